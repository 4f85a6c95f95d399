//! Measures the machine's peak and what share of it the kernels reach at SDXL's shapes.
//!
//! `cargo run --release -p sdxl-kernels --example peak [FILTER]` times the operations whose
//! line contains FILTER. `RAYON_NUM_THREADS` and `SDXL_ISA` choose threads and instructions.

use std::time::Instant;

use half::bf16;
use sdxl_kernels::{
    Activation, Arithmetic, AttentionShape, ConvGeometry, Element, GroupNorm, Isa, PackedConv,
    PackedMatrix, WeightFormat, Weights, attention, conv2d, group_norm, layer_norm, linear,
    linear_geglu, normed_conv2d, peak_flops,
};

struct Bench {
    filter: String,
    peak: f64,
    kind: &'static str,
}

impl Bench {
    /// Prints the shortest time of `run`, which does `flop` operations.
    fn time(&self, what: &str, flop: f64, prepare: impl FnOnce() -> Box<dyn FnMut()>) {
        let line = format!("{:5} {what}", self.kind);
        if !line.contains(&self.filter) {
            return;
        }
        let mut run = prepare();
        run();
        let start = Instant::now();
        let mut times = Vec::new();
        while times.len() < 3 || (start.elapsed().as_secs_f64() < 0.7 && times.len() < 200) {
            let start = Instant::now();
            run();
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        let best = times[0];
        print!(
            "{line:48} {:9.3} ms (median {:.3})",
            best * 1e3,
            times[times.len() / 2] * 1e3
        );
        if flop > 0.0 {
            let rate = flop / best;
            print!(
                "{:8.1} GFLOP/s {:5.1} %",
                rate / 1e9,
                rate / self.peak * 100.0
            );
        }
        println!();
    }
}

fn values<E: Element>(n: usize) -> Vec<E> {
    let mut state = 1u32;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            E::from_f32((state >> 8) as f32 / (1 << 24) as f32 - 0.5)
        })
        .collect()
}

/// A 3x3 convolution of squares that keeps their size, or doubles it first.
fn square(batch: usize, size: usize, upsample: bool) -> ConvGeometry {
    ConvGeometry {
        upsample,
        ..ConvGeometry::same(batch, size, size)
    }
}

fn products<E: Element>(b: &Bench, format: WeightFormat) {
    for (rows, n, k) in [
        (2048, 1280, 1280),
        (2048, 10240, 1280),
        (2048, 1280, 5120),
        (8192, 640, 640),
        (8192, 5120, 640),
        (8192, 640, 2560),
        (8192, 1920, 640),
        (154, 2560, 2048),
        (77, 3072, 768),
        (2, 1280, 1280),
    ] {
        let flop = 2.0 * (rows * n * k) as f64;
        b.time(&format!("linear {rows}x{n}x{k}"), flop, || {
            let (x, w) = (values::<E>(rows * k), values::<bf16>(n * k));
            let w = PackedMatrix::pack(Weights::Bf16(&w), n, k, format);
            let (mut out, bias) = (vec![E::default(); rows * n], values(n));
            Box::new(move || linear(&x, rows, &w, Some(&bias), Activation::None, None, &mut out))
        });
    }
    // As in a network: by the time a layer comes again, its weights have left the caches.
    for (rows, n, k) in [(512, 1280, 1280), (512, 1280, 5120), (256, 1280, 1280)] {
        let flop = 2.0 * (rows * n * k) as f64;
        b.time(&format!("linear {rows}x{n}x{k}, cold"), flop, || {
            let (x, w) = (values::<E>(rows * k), values::<bf16>(n * k));
            let packed = || PackedMatrix::pack(Weights::Bf16(&w), n, k, format);
            let layers: Vec<_> = (0..(1 << 28) / (n * k)).map(|_| packed()).collect();
            let (mut out, bias) = (vec![E::default(); rows * n], values(n));
            let mut next = 0;
            Box::new(move || {
                let w = &layers[next % layers.len()];
                next += 1;
                linear(&x, rows, w, Some(&bias), Activation::None, None, &mut out);
            })
        });
    }
    for (rows, inner, k) in [(8192, 2560, 640), (2048, 5120, 1280)] {
        let flop = 4.0 * (rows * inner * k) as f64;
        b.time(&format!("geglu {rows}x{inner}x{k}"), flop, || {
            let (x, w) = (values::<E>(rows * k), values::<bf16>(2 * inner * k));
            let w = PackedMatrix::pack_geglu(Weights::Bf16(&w), inner, k, format);
            let (mut out, bias) = (vec![E::default(); rows * inner], values(2 * inner));
            Box::new(move || linear_geglu(&x, rows, &w, Some(&bias), &mut out))
        });
    }
    for (batch, size, c_in, c_out, upsample) in [
        (2, 64, 4, 320, false),
        (2, 64, 320, 320, false),
        (2, 64, 960, 320, false),
        (2, 32, 640, 640, false),
        (2, 32, 1920, 640, false),
        (2, 16, 1280, 1280, false),
        (2, 16, 2560, 1280, false),
        (2, 16, 1280, 1280, true),
        (2, 32, 640, 640, true),
        (1, 64, 512, 512, false),
        (1, 128, 512, 512, true),
        (1, 256, 256, 256, false),
        (1, 512, 128, 128, false),
        (1, 512, 128, 3, false),
    ] {
        let factor = if upsample { 4 } else { 1 };
        let flop = 18.0 * (factor * batch * size * size * c_in * c_out) as f64;
        let what = if upsample { "upconv" } else { "conv" };
        b.time(
            &format!("{what} {batch}x{size}x{size} {c_in}->{c_out}"),
            flop,
            || {
                let g = square(batch, size, upsample);
                let x = values::<E>(batch * size * size * c_in);
                let w = values::<bf16>(c_in * c_out * 9);
                let w = if upsample {
                    PackedConv::pack_upsampled(Weights::Bf16(&w), c_out, c_in, format)
                } else {
                    PackedConv::pack(Weights::Bf16(&w), c_out, c_in, 3, 3, format)
                };
                let mut out = vec![E::default(); factor * batch * size * size * c_out];
                Box::new(move || conv2d(&x, &g, &w, None, None, None, &mut out))
            },
        );
    }
}

/// The convolutions of residual blocks, with their norms.
fn blocks(b: &Bench) {
    for (batch, size, c_in, c_out) in [
        (2, 64, 320, 320),
        (2, 64, 960, 320),
        (2, 32, 640, 640),
        (2, 32, 1920, 640),
        (2, 16, 1280, 1280),
        (2, 16, 2560, 1280),
        (2, 128, 320, 320),
        (2, 32, 1280, 1280),
        (1, 16, 1280, 1280),
    ] {
        let flop = 18.0 * (batch * size * size * c_in * c_out) as f64;
        b.time(
            &format!("norm+conv {batch}x{size}x{size} {c_in}->{c_out}"),
            flop,
            || {
                let g = square(batch, size, false);
                let x = values::<bf16>(batch * size * size * c_in);
                let w = values::<bf16>(c_in * c_out * 9);
                let w =
                    PackedConv::pack_winograd(Weights::Bf16(&w), c_out, c_in, WeightFormat::Bf16);
                let mut out = vec![bf16::default(); batch * size * size * c_out];
                let (gamma, beta) = (values(c_in), values(c_in));
                Box::new(move || {
                    let shape = [batch, size * size, c_in, 32];
                    let norm = GroupNorm::new(&x, shape, 1e-5, &gamma, &beta, true);
                    normed_conv2d(&x, &norm, &g, &w, None, None, None, &mut out);
                })
            },
        );
    }
}

fn all<E: Element>(b: &Bench, format: WeightFormat) {
    products::<E>(b, format);
    for (batch, heads, head_dim, queries, keys) in [
        (2, 10, 64, 4096, 4096),
        (2, 20, 64, 1024, 1024),
        (2, 10, 64, 4096, 77),
        (2, 20, 64, 1024, 77),
        (1, 1, 512, 4096, 4096),
    ] {
        let flop = 4.0 * (batch * heads * head_dim * queries * keys) as f64;
        let what = format!("attention {batch}x{queries}x{keys} {heads}x{head_dim}");
        b.time(&what, flop, || {
            let model = heads * head_dim;
            let q = values::<E>(batch * queries * model);
            let (k, v) = (
                values::<E>(batch * keys * model),
                values::<E>(batch * keys * model),
            );
            let mut out = vec![E::default(); batch * queries * model];
            let shape = AttentionShape {
                batch,
                heads,
                head_dim,
                queries,
                keys,
                q_stride: model,
                kv_stride: model,
                causal: false,
            };
            Box::new(move || attention(&q, &k, &v, &shape, &mut out))
        });
    }
    for (batch, pixels, c) in [(2, 4096, 320), (2, 1024, 640), (1, 262_144, 128)] {
        b.time(
            &format!("group_norm+silu {batch}x{pixels}x{c}"),
            0.0,
            || {
                let x = values::<E>(batch * pixels * c);
                let mut out = vec![E::default(); x.len()];
                let (gamma, beta) = (values(c), values(c));
                Box::new(move || {
                    group_norm(
                        &x, batch, pixels, c, 32, 1e-5, &gamma, &beta, true, &mut out,
                    );
                })
            },
        );
    }
    for (rows, c) in [(8192, 640), (2048, 1280)] {
        b.time(&format!("layer_norm {rows}x{c}"), 0.0, || {
            let x = values::<E>(rows * c);
            let mut out = vec![E::default(); x.len()];
            let (gamma, beta) = (values(c), values(c));
            Box::new(move || layer_norm(&x, rows, c, 1e-5, &gamma, &beta, &mut out))
        });
    }
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    println!(
        "{}, {} threads",
        Isa::current(),
        rayon::current_num_threads()
    );
    for (kind, arithmetic) in [
        ("bf16", Arithmetic::Bf16),
        ("int8", Arithmetic::Int8),
        ("f32", Arithmetic::F32),
    ] {
        let peak = peak_flops(arithmetic);
        println!("{kind:5} peak {:.1} GFLOP/s", peak / 1e9);
        let bench = Bench {
            filter: filter.clone(),
            peak,
            kind,
        };
        match arithmetic {
            Arithmetic::Bf16 => {
                blocks(&bench);
                all::<bf16>(&bench, WeightFormat::Bf16);
            }
            // The other operations do not depend on the weights' format.
            Arithmetic::Int8 => products::<bf16>(&bench, WeightFormat::Int8),
            Arithmetic::F32 => all::<f32>(&bench, WeightFormat::F32),
        }
    }
}
