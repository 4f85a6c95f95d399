//! Noise against PyTorch and torchsde (`golden/noise`, made by `tools/golden/noise.py`).

use sdxl::Latents;
use sdxl::Named;
use sdxl::noise::{BrownianTree, Generator, NoiseError, NoiseSource, Rng};
use sdxl_testing::Golden;
use serde::Deserialize;

/// PyTorch's own values differ this much between kinds of processors.
const TOLERANCE: f32 = 2e-6;

#[derive(Deserialize)]
struct About {
    draws: Vec<Draw>,
    paths: Vec<BrownianPath>,
}

#[derive(Deserialize)]
struct Draw {
    seed: u64,
    sizes: Vec<usize>,
    after: u64,
}

#[derive(Deserialize)]
struct BrownianPath {
    entropy: u64,
    low: f64,
    high: f64,
    queries: Vec<[f64; 2]>,
}

fn golden() -> (Golden, About) {
    let golden = Golden::open("noise/torch.safetensors");
    let about = serde_json::from_str(&golden.about()).unwrap();
    (golden, about)
}

/// Fails where a value is further than `tolerance` from its reference.
fn assert_each_close(ours: &[f32], theirs: &[f32], tolerance: f32, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (i, (a, b)) in ours.iter().zip(theirs).enumerate() {
        assert!(
            (a - b).abs() <= tolerance,
            "{what}: value {i} is {a}, not {b}"
        );
    }
}

#[test]
fn cpu_draws_are_those_of_torch() {
    let (golden, about) = golden();
    for (i, draw) in about.draws.iter().enumerate() {
        let mut generator = Generator::new(Rng::TorchCpu, draw.seed);
        let ours: Vec<f32> = draw
            .sizes
            .iter()
            .flat_map(|&n| generator.randn(n))
            .collect();
        let what = format!("seed {}", draw.seed);
        assert_each_close(&ours, &golden.flat(&format!("draw.{i}")), TOLERANCE, &what);
        // The integer stream is exact: it stands where PyTorch's stands.
        assert_eq!(generator.draw_seed(), draw.after, "{what}");
    }
}

#[test]
fn a_pictures_latents_are_those_of_torch() {
    let latents = Generator::new(Rng::TorchCpu, 1234).randn_latents([1, 128, 128, 4]);
    let some: Vec<f32> = latents.to_nchw().into_iter().step_by(509).collect();
    assert_each_close(&some, &golden().0.flat("picture"), TOLERANCE, "seed 1234");
}

#[test]
fn brownian_paths_are_those_of_torchsde() {
    let (golden, about) = golden();
    for (i, path) in about.paths.iter().enumerate() {
        let tree = BrownianTree::new(
            Rng::TorchCpu,
            path.entropy,
            path.low,
            path.high,
            [1, 2, 2, 4],
        );
        let ours: Vec<f32> = path
            .queries
            .iter()
            .flat_map(|&[from, to]| tree.increment(from, to).to_nchw())
            .collect();
        let what = format!("entropy {}", path.entropy);
        assert_each_close(&ours, &golden.flat(&format!("path.{i}")), 1e-5, &what);
    }
}

/// The values that the web UI of AUTOMATIC1111 documents for its Philox generator, seed 0, shape
/// (3, 4).
#[test]
fn cuda_draws_have_the_documented_values() {
    const KNOWN: [f32; 12] = [
        -0.924_662_6,
        -0.425_344_15,
        -2.643_845_8,
        0.145_183_88,
        -0.120_866_47,
        -0.579_725_6,
        -0.622_851_2,
        -0.328_387_1,
        -1.074_542_3,
        -0.363_144_07,
        -1.671_050_7,
        2.265_505,
    ];
    assert_each_close(
        &Generator::new(Rng::TorchCuda, 0).randn(12),
        &KNOWN,
        TOLERANCE,
        "philox",
    );
}

#[test]
fn a_generator_resumes_where_it_was_saved() {
    for rng in [Rng::TorchCpu, Rng::TorchCuda] {
        let mut generator = Generator::new(rng, 99);
        generator.randn(3);
        generator.randn(1000);
        let text = serde_json::to_string(&generator).unwrap();
        let mut copy: Generator = serde_json::from_str(&text).unwrap();
        for numel in [1, 5, 100] {
            assert_eq!(copy.randn(numel), generator.randn(numel), "{}", rng.name());
        }
    }
}

#[test]
fn a_batch_has_one_generator_or_one_per_image() {
    let shape = [3, 6, 5, 4];
    let one = NoiseSource::new(Rng::TorchCpu, &[7])
        .unwrap()
        .draw(shape)
        .unwrap();
    assert_eq!(one, Generator::new(Rng::TorchCpu, 7).randn_latents(shape));
    let list = NoiseSource::new(Rng::TorchCpu, &[7, 8, 9])
        .unwrap()
        .draw(shape)
        .unwrap();
    let images = [7, 8, 9].map(|s| Generator::new(Rng::TorchCpu, s).randn_latents([1, 6, 5, 4]));
    assert_eq!(list, Latents::concat(&images));

    let wrong = NoiseSource::new(Rng::TorchCpu, &[7, 8])
        .unwrap()
        .draw(shape);
    assert_eq!(
        wrong,
        Err(NoiseError::SeedCount {
            seeds: 2,
            images: 3
        })
    );
    assert_eq!(
        NoiseSource::new(Rng::TorchCpu, &[]),
        Err(NoiseError::NoSeed)
    );
    assert!(
        "cuda"
            .parse::<Rng>()
            .unwrap_err()
            .to_string()
            .contains("torch-cuda")
    );
}
