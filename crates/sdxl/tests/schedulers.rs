//! Every scheduler against trajectories of diffusers (`golden/schedulers`, made by
//! `tools/golden/schedulers.py`), and properties that hold without a reference.

use std::collections::HashMap;
use std::path::PathBuf;

use sdxl::Latents;
use sdxl::noise::{NoiseSource, Rng};
use sdxl::scheduler::{self, InferenceSteps, Scheduler, SchedulerConfig, Steps};
use sdxl_testing::{Golden, golden};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Allowed relative deviation of every sample of a trajectory. A few cases say another one, because
/// they magnify the last bits of PyTorch's own functions; `tools/golden/scheduler_cases.py` says
/// why, and has them with exactly rounded functions too, for this tolerance.
const TOLERANCE: f64 = 1e-5;

/// Allowed relative deviation of a noise level. The reference computes them from square roots that
/// PyTorch does not round correctly; with zero terminal SNR the highest come from their
/// differences.
const SIGMAS: f64 = 2e-6;

#[derive(Deserialize)]
struct About {
    base: Map<String, Value>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    config: Map<String, Value>,
    plan: CasePlan,
    #[serde(default = "default_seeds")]
    seeds: Vec<u64>,
    #[serde(default = "default_shape")]
    shape: [usize; 4],
    evaluations: usize,
    init_noise_sigma: f64,
    tolerance: Option<f64>,
}

fn default_seeds() -> Vec<u64> {
    vec![7]
}

fn default_shape() -> [usize; 4] {
    [1, 4, 2, 2]
}

#[derive(Deserialize)]
struct CasePlan {
    steps: Option<usize>,
    timesteps: Option<Vec<f64>>,
    sigmas: Option<Vec<f64>>,
    strength: Option<f64>,
    denoising_start: Option<f64>,
    denoising_end: Option<f64>,
    #[serde(default)]
    eta: f64,
}

impl Case {
    fn config(&self, class: &str) -> SchedulerConfig {
        let mut object = self.config.clone();
        object.insert("_class_name".into(), class.into());
        SchedulerConfig::from_json(object).unwrap()
    }

    fn plan(&self) -> InferenceSteps {
        let plan = &self.plan;
        let steps = match (&plan.timesteps, &plan.sigmas, plan.steps) {
            (Some(timesteps), _, _) => Steps::Timesteps(timesteps.clone()),
            (_, Some(sigmas), _) => Steps::Sigmas(sigmas.clone()),
            (_, _, Some(steps)) => Steps::Count(steps),
            _ => panic!("a plan without steps"),
        };
        InferenceSteps {
            strength: plan.strength,
            denoising_start: plan.denoising_start,
            denoising_end: plan.denoising_end,
            eta: plan.eta,
            ..InferenceSteps::new(steps)
        }
    }

    /// `[batch, height, width, channels]`.
    fn shape(&self) -> [usize; 4] {
        let [batch, channels, height, width] = self.shape;
        [batch, height, width, channels]
    }

    fn noise(&self) -> NoiseSource {
        NoiseSource::new(Rng::TorchCpu, &self.seeds).unwrap()
    }

    /// The latents a run starts from.
    fn start(&self, scheduler: &Scheduler, noise: &mut NoiseSource) -> Latents {
        let noise = noise.draw(self.shape()).unwrap();
        if self.plan.denoising_start.is_some() {
            noise.map(|x| x * 2.0)
        } else if self.plan.strength.is_some() {
            let numel = noise.data().len() as f32;
            let ramp: Vec<f32> = (0..noise.data().len())
                .map(|i| -1.0 + 2.0 * i as f32 / (numel - 1.0))
                .collect();
            scheduler.add_noise(&Latents::from_nchw(self.shape(), &ramp), &noise)
        } else {
            let sigma = scheduler.init_noise_sigma();
            noise.map(|x| x * sigma)
        }
    }
}

/// What stands in for the UNet.
fn denoiser(input: &Latents, timestep: f64) -> Latents {
    let u = timestep / 1000.0;
    let [batch, height, width, channels] = input.shape();
    let image = height * width * channels;
    let out: Vec<f32> = input
        .to_nchw()
        .iter()
        .enumerate()
        .map(|(i, &x)| {
            let (x, pattern) = (f64::from(x), (i % image % 5) as f64 - 2.0);
            (x * (0.3 + 0.6 * u) + 0.25 * (1.0 - u) * pattern + 0.5 * x / (1.0 + x * x)) as f32
        })
        .collect();
    Latents::from_nchw([batch, height, width, channels], &out)
}

/// One evaluation and its update.
fn advance(scheduler: &mut Scheduler, sample: &Latents, noise: &mut NoiseSource) -> Latents {
    let timestep = scheduler.timestep().unwrap();
    let output = denoiser(&scheduler.scale_model_input(sample), timestep);
    scheduler.step(&output, sample, noise).unwrap()
}

/// The golden files, one for each class.
fn golden_files() -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(golden("schedulers"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    files
}

/// The reference's numbers of a case.
struct Reference {
    timesteps: Vec<f64>,
    /// Of the evaluations and of the result; none where the class has none.
    sigmas: Vec<f64>,
    samples: Vec<f64>,
}

/// Calls `f` with class, case, name of the case and its numbers, for all cases of all files.
fn for_all_cases(mut f: impl FnMut(&str, &Case, &str, &Reference)) {
    for path in golden_files() {
        let file = Golden::open_at(&path);
        let About { base, cases } = serde_json::from_str(&file.about()).unwrap();
        let mut parts = ["timesteps", "sigmas", "samples"].map(|name| {
            // Some classes have no sigmas.
            let values = if file.has(name) {
                file.wide(name)
            } else {
                Vec::new()
            };
            values.into_iter()
        });
        let class = path.file_stem().unwrap().to_str().unwrap();
        for (i, mut case) in cases.into_iter().enumerate() {
            let n = case.evaluations;
            let image: usize = case.shape.iter().product();
            let [timesteps, sigmas, samples] = &mut parts;
            let reference = Reference {
                timesteps: timesteps.take(n).collect(),
                sigmas: sigmas.take(n + 1).collect(),
                samples: samples.take((n + 1) * image).collect(),
            };
            let options = serde_json::to_string(&case.config).unwrap();
            let name = format!("{class} case {i}, {options}, {:?}", case.plan());
            let mut config = base.clone();
            config.append(&mut case.config);
            case.config = config;
            f(class, &case, &name, &reference);
        }
        assert!(
            parts.iter_mut().all(|part| part.next().is_none()),
            "{class}: numbers left"
        );
    }
}

/// `|a - b| / |b|`.
fn relative(a: impl IntoIterator<Item = f64>, b: &[f64]) -> f64 {
    let difference: f64 = a.into_iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    let norm: f64 = b.iter().map(|b| b * b).sum();
    if difference == 0.0 {
        0.0
    } else {
        (difference / norm).sqrt()
    }
}

#[test]
fn trajectories_are_those_of_diffusers() {
    let mut worst: HashMap<String, f64> = HashMap::new();
    let mut failures = Vec::new();
    for_all_cases(|class, case, name, reference| {
        let mut scheduler = match scheduler::build(&case.config(class), &case.plan()) {
            Ok(scheduler) => scheduler,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                return;
            }
        };
        let timesteps = scheduler.timesteps();
        if timesteps.len() != reference.timesteps.len() {
            failures.push(format!(
                "{name}: timesteps {timesteps:?}, not {:?}",
                reference.timesteps
            ));
            return;
        }
        let mut check = |what: &str, deviation: f64, allowed: f64| {
            if deviation.is_nan() || deviation > allowed {
                failures.push(format!("{name}: {what} off by {deviation:.2e}"));
            }
        };
        for (ours, theirs) in timesteps.iter().zip(&reference.timesteps) {
            check(
                "timesteps",
                (ours - theirs).abs() / theirs.abs().max(1.0),
                1e-6,
            );
        }
        for (ours, theirs) in scheduler.sigmas().iter().zip(&reference.sigmas) {
            check("sigmas", relative([f64::from(*ours)], &[*theirs]), SIGMAS);
        }
        let init = f64::from(scheduler.init_noise_sigma());
        check(
            "init_noise_sigma",
            relative([init], &[case.init_noise_sigma]),
            1e-6,
        );

        let mut noise = case.noise();
        let mut sample = case.start(&scheduler, &mut noise);
        let len = sample.data().len();
        let start = &reference.samples[..len];
        for (i, theirs) in reference.samples.chunks(len).enumerate() {
            if i == 1 {
                // From the very same start: noise may differ in its last bits (tests/noise.rs),
                // which a start at sigma 4096 and a step to sigma 10 would magnify 400 times.
                let start: Vec<f32> = start.iter().map(|&x| x as f32).collect();
                sample = Latents::from_nchw(case.shape(), &start);
            }
            if i > 0 {
                sample = advance(&mut scheduler, &sample, &mut noise);
            }
            let deviation = relative(sample.to_nchw().into_iter().map(f64::from), theirs);
            if case.tolerance.is_none() {
                let worst = worst.entry(class.to_owned()).or_default();
                *worst = worst.max(deviation);
            }
            check(
                &format!("sample {i}"),
                deviation,
                case.tolerance.unwrap_or(TOLERANCE),
            );
        }
        assert_eq!(scheduler.timestep(), None, "{name}");
    });
    let mut worst: Vec<_> = worst.into_iter().collect();
    worst.sort_by(|a, b| a.0.cmp(&b.0));
    for (class, deviation) in worst {
        println!("{class}: largest deviation {deviation:.2e}");
    }
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn a_run_resumes_bit_for_bit_after_every_evaluation() {
    for_all_cases(|class, case, name, reference| {
        if reference.timesteps.len() > 12 {
            return;
        }
        let build = || scheduler::build(&case.config(class), &case.plan()).unwrap();
        let (mut scheduler, mut noise) = (build(), case.noise());
        let mut sample = case.start(&scheduler, &mut noise);
        let mut saved = Vec::new();
        while scheduler.timestep().is_some() {
            let parts = (scheduler.state(), &sample, &noise);
            saved.push(serde_json::to_string(&parts).unwrap());
            sample = advance(&mut scheduler, &sample, &mut noise);
        }
        for text in saved {
            let (state, mut resumed, mut noise) = serde_json::from_str(&text).unwrap();
            let mut scheduler = build();
            scheduler.restore(state).unwrap();
            while scheduler.timestep().is_some() {
                resumed = advance(&mut scheduler, &resumed, &mut noise);
            }
            assert_eq!(resumed, sample, "{name}");
        }
    });
}
