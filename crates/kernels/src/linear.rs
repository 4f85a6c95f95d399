//! Linear layers.

#![allow(unsafe_code)]

use crate::element::Element;
use crate::elementwise::{convert, to_f32};
use crate::gemm::{self, Epilogue};
use crate::int8::Quantised;
use crate::math::Activation;
use crate::pack::{MatrixLayout, PackedMatrix};
use crate::weights::WeightFormat;
use crate::workspace::Workspace;

/// Computes `out[r, n] = act(x[r, k] · Wᵀ + bias) (+ residual)`; `out` and `residual` are
/// `[rows, n]`.
///
/// # Panics
/// If a slice has not the length its shape says, or `w` was packed for GEGLU.
pub fn linear<E: Element>(
    x: &[E],
    rows: usize,
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    act: Activation,
    residual: Option<&[E]>,
    out: &mut [E],
) {
    assert!(!w.geglu, "weights packed for GEGLU");
    check_bias(bias, w);
    if let Some(residual) = residual {
        assert_eq!(residual.len(), rows * w.n(), "length of the residual");
    }
    let epilogue = Epilogue {
        bias,
        activation: act,
        residual,
        ..Epilogue::default()
    };
    product(x, rows, w, epilogue, out);
}

/// Computes the gated layer of diffusers' transformer blocks: `W` is `[2 * inner, k]`, packed with
/// [`PackedMatrix::pack_geglu`], its first half `hidden`, its second half `gate`;
/// `out[r, inner] = hidden * gelu(gate)`. `bias` is `[2 * inner]`.
///
/// # Panics
/// If a slice has not the length its shape says, or `w` was not packed for GEGLU.
pub fn linear_geglu<E: Element>(
    x: &[E],
    rows: usize,
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    out: &mut [E],
) {
    assert!(w.geglu, "weights not packed for GEGLU");
    check_bias(bias, w);
    let epilogue = Epilogue {
        bias,
        geglu: true,
        ..Epilogue::default()
    };
    product(x, rows, w, epilogue, out);
}

/// Gives the memory that [`linear`] and [`linear_geglu`] work in on `rows` rows of `E`.
pub fn linear_workspace<E: Element>(rows: usize, w: &MatrixLayout) -> Workspace {
    let format = w.panel_layout.format;
    if format == WeightFormat::Int8 {
        return Quantised::workspace(rows, w.k(), 1);
    }
    Workspace {
        temporary: match computes_in_f32::<E>(format) {
            true => rows * (w.k() + w.n()) * size_of::<f32>(),
            false => 0,
        },
        scratch: Vec::new(),
    }
}

/// Tells whether activations are converted to `f32` for weights of this format, for which no kernel
/// takes bf16. No network is loaded so; it is there so that every combination works.
pub(crate) fn computes_in_f32<E: Element>(format: WeightFormat) -> bool {
    E::IS_BF16 && !matches!(format, WeightFormat::Bf16 | WeightFormat::Int8)
}

fn check_bias(bias: Option<&[f32]>, w: &PackedMatrix) {
    if let Some(bias) = bias {
        assert_eq!(bias.len(), w.n(), "length of the bias");
    }
}

fn product<E: Element>(
    x: &[E],
    rows: usize,
    w: &PackedMatrix,
    epilogue: Epilogue<E>,
    out: &mut [E],
) {
    assert_eq!(x.len(), rows * w.k(), "length of the input");
    let outputs = if w.geglu { w.n() / 2 } else { w.n() };
    assert_eq!(out.len(), rows * outputs, "length of the output");
    if w.panels.format == WeightFormat::Int8 {
        let x = Quantised::new(w.panels.isa, x, w.k(), 1);
        let source = |row: usize, pointers: &mut [*const u8]| {
            pointers[0] = x.bytes()[row * x.stride..][..x.stride].as_ptr();
        };
        let epilogue = Epilogue {
            input_scales: Some((&x.scales, 1)),
            ..epilogue
        };
        // SAFETY: each pointer is the start of a row of k bytes, padded to whole steps.
        unsafe { gemm::product(rows, &w.panels, &source, &epilogue, outputs, out) }
        return;
    }
    if computes_in_f32::<E>(w.panels.format) {
        let residual = epilogue.residual.map(to_f32);
        let mut y = vec![0f32; out.len()];
        let epilogue = epilogue.with_residual(residual.as_deref());
        product(&to_f32(x), rows, w, epilogue, &mut y);
        convert(&y, out);
        return;
    }
    let k = w.k();
    let source = |row: usize, pointers: &mut [*const E]| {
        pointers[0] = x[row * k..(row + 1) * k].as_ptr();
    };
    // SAFETY: each pointer is the start of a row of k elements.
    unsafe { gemm::product(rows, &w.panels, &source, &epilogue, outputs, out) }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::isa::Isa;
    use crate::test::{assert_close, noise, rounded};
    use crate::weights::Weights;

    /// out[r, n] in f64.
    fn reference(x: &[f32], rows: usize, w: &[f32], n: usize, bias: &[f32]) -> Vec<f64> {
        let k = w.len() / n;
        let mut out = vec![0.0; rows * n];
        for r in 0..rows {
            for j in 0..n {
                let products = (0..k).map(|i| f64::from(x[r * k + i]) * f64::from(w[j * k + i]));
                out[r * n + j] = products.sum::<f64>() + f64::from(bias[j]);
            }
        }
        out
    }

    fn check<E: Element>(isa: Isa, rows: usize, n: usize, k: usize, format: WeightFormat) {
        let x: Vec<E> = rounded(&noise(1, rows * k));
        let x32: Vec<f32> = x.iter().map(|v| v.to_f32()).collect();
        let w32 = noise(2, n * k);
        let w16: Vec<f16> = w32.iter().map(|v| f16::from_f32(*v)).collect();
        let wb: Vec<bf16> = rounded(&w32);
        let (stored, w32): (Weights, Vec<f32>) = match format {
            WeightFormat::F32 => (Weights::F32(&w32), w32.clone()),
            WeightFormat::F16 => (Weights::F16(&w16), w16.iter().map(|v| v.to_f32()).collect()),
            WeightFormat::Bf16 => (Weights::Bf16(&wb), wb.iter().map(|v| v.to_f32()).collect()),
            WeightFormat::Int8 => unreachable!("has its own test"),
        };
        let bias = noise(3, n);
        let residual: Vec<E> = rounded(&noise(4, rows * n));
        let packed = PackedMatrix::pack_for(isa, stored, n, k, format);
        let plain = reference(&x32, rows, &w32, n, &bias);
        let tolerance = if E::IS_BF16 { 4e-3 } else { 1e-6 };
        let what = format!("{isa} {rows}x{n}x{k} {format:?}");

        let mut out = vec![E::default(); rows * n];
        linear(
            &x,
            rows,
            &packed,
            Some(&bias),
            Activation::None,
            None,
            &mut out,
        );
        assert_close(&out, &plain, tolerance, &what);
        for act in [Activation::Silu, Activation::Gelu, Activation::QuickGelu] {
            linear(
                &x,
                rows,
                &packed,
                Some(&bias),
                act,
                Some(&residual),
                &mut out,
            );
            let want: Vec<f64> = plain
                .iter()
                .zip(&residual)
                .map(|(y, r)| act.reference(*y) + f64::from(r.to_f32()))
                .collect();
            assert_close(&out, &want, tolerance, &format!("{what} {act:?}"));
        }

        if n.is_multiple_of(2) {
            let inner = n / 2;
            let packed = PackedMatrix::pack_geglu_for(isa, stored, inner, k, format);
            let mut out = vec![E::default(); rows * inner];
            linear_geglu(&x, rows, &packed, Some(&bias), &mut out);
            let want: Vec<f64> = (0..rows * inner)
                .map(|i| {
                    let at = i / inner * n + i % inner;
                    plain[at] * Activation::Gelu.reference(plain[at + inner])
                })
                .collect();
            assert_close(&out, &want, tolerance, &format!("{what} geglu"));
        }
    }

    const SIZES: [(usize, usize, usize); 12] = [
        (1, 1, 1),
        (2, 3, 4),
        (5, 16, 7),
        (6, 64, 8),
        (7, 65, 9),
        (12, 63, 511),
        (13, 128, 512),
        (11, 130, 513),
        (6, 48, 1030),
        (193, 34, 20),
        (400, 20, 5),
        (3, 66, 4099),
    ];

    #[test]
    fn every_format_and_size_agrees_with_the_reference() {
        for isa in Isa::available() {
            for (rows, n, k) in SIZES {
                for format in [WeightFormat::F32, WeightFormat::F16, WeightFormat::Bf16] {
                    check::<f32>(isa, rows, n, k, format);
                    check::<bf16>(isa, rows, n, k, format);
                }
            }
        }
    }

    /// Rounds rows of `k` as int8 does.
    fn bytes(x: &[f32], k: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for row in x.chunks(k) {
            let scale = row.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
            out.extend(row.iter().map(|v| (v / scale).round_ties_even() * scale));
        }
        out
    }

    #[test]
    fn int8_is_exact_for_the_rounded_numbers() {
        for isa in Isa::available() {
            for (rows, n, k) in SIZES.into_iter().chain([(7, 70, 9000)]) {
                let (x, w, bias) = (noise(1, rows * k), noise(2, n * k), noise(3, n));
                let plain = reference(&bytes(&x, k), rows, &bytes(&w, k), n, &bias);
                let int8 = WeightFormat::Int8;
                let packed = PackedMatrix::pack_for(isa, Weights::F32(&w), n, k, int8);
                let mut out = vec![0f32; rows * n];
                let what = format!("{isa} {rows}x{n}x{k} int8");
                linear(
                    &x,
                    rows,
                    &packed,
                    Some(&bias),
                    Activation::None,
                    None,
                    &mut out,
                );
                // A value in the middle of two bytes may go to either.
                assert_close(&out, &plain, 1e-3, &what);
                let real = reference(&x, rows, &w, n, &bias);
                assert_close(&out, &real, if k < 8 { 0.1 } else { 0.03 }, &what);
                if n.is_multiple_of(2) {
                    let (inner, w) = (n / 2, Weights::F32(&w));
                    let packed = PackedMatrix::pack_geglu_for(isa, w, inner, k, int8);
                    let mut out = vec![0f32; rows * inner];
                    linear_geglu(&x, rows, &packed, Some(&bias), &mut out);
                    let want: Vec<f64> = (0..rows * inner)
                        .map(|i| {
                            let at = i / inner * n + i % inner;
                            plain[at] * Activation::Gelu.reference(plain[at + inner])
                        })
                        .collect();
                    assert_close(&out, &want, 2e-3, &what);
                }
            }
        }
    }

    #[test]
    fn nothing_beyond_a_row_is_read() {
        // An odd k of bf16 leaves half a pair: what lies behind it must not matter.
        let (rows, n, k) = (6, 5, 3);
        let w = noise(5, n * k);
        for isa in Isa::available() {
            let packed = PackedMatrix::pack_for(isa, Weights::F32(&w), n, k, WeightFormat::Bf16);
            let mut x: Vec<bf16> = rounded(&noise(6, rows * k));
            x.push(bf16::NAN);
            let mut out = vec![bf16::ZERO; rows * n];
            let x = &x[..rows * k];
            linear(x, rows, &packed, None, Activation::None, None, &mut out);
            assert!(out.iter().all(|v| v.is_finite()));
        }
    }

    #[test]
    fn threads_do_not_change_the_result() {
        let (rows, n, k) = (1000, 200, 700);
        let (x, w) = (noise(7, rows * k), noise(8, n * k));
        let packed = PackedMatrix::pack(Weights::F32(&w), n, k, WeightFormat::F32);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut out = vec![0f32; rows * n];
            pool.unwrap().install(|| {
                linear(&x, rows, &packed, None, Activation::Silu, None, &mut out);
            });
            out
        };
        assert_eq!(run(1), run(3));
    }
}
