//! The stochastic DPM-Solver++ of k-diffusion (`sample_dpmpp_sde`: Lu et al. 2022 with ancestral
//! noise), as `DPMSolverSDEScheduler` of diffusers has it: a second evaluation in the middle of the
//! step, and noise from a Brownian path over the noise level, so that pictures of different numbers
//! of steps resemble one another.

use super::info::{Info, OptionInfo, Randomness, option};
use super::math::{exp, exp_m1, ln};
use super::prediction::{EPSILON, Prediction, V, prediction};
use super::schedule::{Position, with_final};
use super::training::{self, ZeroSnr};
use super::update_rule::{Built, Step, UpdateRule};
use super::variance_exploding;
use super::{InferenceSteps, SchedulerConfig, SchedulerError};
use crate::latents::Latents;
use crate::noise::{BatchSlice, BrownianTree, NoiseError};
use crate::noise_schedule::SigmaTable;

pub(super) static INFO: Info = Info {
    class: "DPMSolverSDEScheduler",
    names: &["dpm++_sde"],
    a1111: Some("DPM++ SDE"),
    order: 2,
    evaluations_per_step: 2,
    randomness: Randomness::Stochastic,
    when: "detailed, varied pictures in 10 to 15 steps of two evaluations, best with karras sigmas",
    custom_timesteps: false,
    custom_sigmas: false,
    options: &[
        training::LATENT_NOISE,
        training::SPACING,
        training::CURVES,
        OPTIONS,
    ],
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("noise_sampler_seed", "null"),
    // An argument of the reference's `step`.
    option("s_noise", "1.0"),
];

pub(super) fn build(config: &SchedulerConfig, inference: &InferenceSteps) -> Built {
    let prediction = prediction(config, &[EPSILON, V])?;
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::No)?;
    let table = SigmaTable::new(&alphas);
    let curve = training::sigma_curve(config)?;
    let levels = variance_exploding::levels(config, inference, &table, curve, (None, None))?;
    // The timestep of each step's middle, which is computed in f64 here and in f32 in the update.
    let logs: Vec<f64> = levels.sigmas.iter().map(|&s| -libm::log(s)).collect();
    let middles = logs
        .windows(2)
        .map(|w| libm::exp(-(w[0] + (w[1] - w[0]) * 0.5)));
    let mut middles = middles.map(|s| table.timestep_of(s));
    let mut timesteps = Vec::with_capacity(2 * levels.timesteps.len());
    for t in levels.timesteps {
        timesteps.push(t);
        timesteps.extend(middles.next());
    }
    let sigmas = with_final(&variance_exploding::twice(&levels.sigmas), 0.0);
    let schedule = variance_exploding::schedule(training::spacing(config)?, timesteps, sigmas);
    let seeds = config.seeds("noise_sampler_seed")?;
    let s_noise = config.number("s_noise")? as f32;
    Ok((
        schedule,
        Box::new(DpmSolverSde {
            prediction,
            seeds,
            s_noise,
            trees: Vec::new(),
            tree_seeds: Vec::new(),
            part: None,
        }),
    ))
}

struct DpmSolverSde {
    prediction: Prediction,
    /// The seeds of the Brownian paths: one for the batch or one for each image; drawn if there are
    /// none.
    seeds: Vec<u64>,
    s_noise: f32,
    /// The Brownian paths of the run; empty before the first evaluation.
    trees: Vec<BrownianTree>,
    /// The seeds of `trees`.
    tree_seeds: Vec<u64>,
    /// The images of this run within the batch, where one path serves a whole batch.
    part: Option<BatchSlice>,
}

impl UpdateRule for DpmSolverSde {
    fn scale_model_input(&self, position: Position<'_>, sample: &Latents) -> Latents {
        variance_exploding::scale(sample, sample_sigma(position))
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let position = step.position;
        self.make_trees(&mut step)?;
        let denoised =
            self.prediction
                .denoise(step.model_output, step.sample, sample_sigma(position));
        let (sigma, sigma_next) = step_sigmas(position);
        if sigma_next == 0.0 {
            let d = variance_exploding::derivative(step.sample, &denoised, sigma);
            let dt = sigma_next - sigma;
            return Ok(variance_exploding::euler_step(step.sample, &d, dt));
        }
        // As in k-diffusion, t is the negative logarithm of a noise level; going there and back
        // rounds as the reference does.
        let t = -ln(sigma);
        let (from, to, anchor) = if position.is_second() {
            (exp(-t), exp(ln(sigma_next)), step.state.take_anchor()?)
        } else {
            step.state.anchor = Some(step.sample.clone());
            (exp(-t), sigma_mid(position), step.sample.clone())
        };
        let sigma_up = to.min(variance_exploding::ancestral_step(from, to).1);
        let sigma_down = (to * to - sigma_up * sigma_up).sqrt();
        let t_down = -ln(sigma_down);
        let (of_sample, of_denoised) = (exp(-t_down) / exp(-t), exp_m1(t - t_down));
        let next = Latents::zip_with([&anchor, &denoised], |[x, x0]| {
            of_sample * x - of_denoised * x0
        });
        let noise = self.noise(from, to);
        Ok(Latents::zip_with([&next, &noise], |[x, n]| {
            x + n * self.s_noise * sigma_up
        }))
    }

    fn add_noise(&self, position: Position<'_>, original: &Latents, noise: &Latents) -> Latents {
        variance_exploding::add_noise(original, noise, position.sigma())
    }

    fn check_images(&self, images: usize) -> Result<(), SchedulerError> {
        match self.seeds.as_slice() {
            [] => Ok(()),
            seeds => check_seeds(seeds, images),
        }
    }
}

/// Refuses seeds that are neither one nor one for each image.
fn check_seeds(seeds: &[u64], images: usize) -> Result<(), SchedulerError> {
    match seeds.len() {
        seeds if seeds == 1 || seeds == images => Ok(()),
        seeds => Err(NoiseError::SeedCount { seeds, images }.into()),
    }
}

/// The noise levels at the start and the end of the step that an evaluation belongs to.
fn step_sigmas(position: Position<'_>) -> (f32, f32) {
    if position.is_second() {
        (position.sigma_past(1), position.sigma())
    } else {
        (position.sigma(), position.sigma_next())
    }
}

/// The noise level in the middle of the step, in the logarithm.
fn sigma_mid(position: Position<'_>) -> f32 {
    let (sigma, sigma_next) = step_sigmas(position);
    let (t, t_next) = (-ln(sigma), -ln(sigma_next));
    exp(-(t + (t_next - t) * 0.5))
}

/// The noise level of an evaluation's sample.
fn sample_sigma(position: Position<'_>) -> f32 {
    if position.is_second() {
        sigma_mid(position)
    } else {
        position.sigma()
    }
}

impl DpmSolverSde {
    /// Makes the Brownian paths of a run at its first evaluation, or at the first one after a restart.
    fn make_trees(&mut self, step: &mut Step<'_>) -> Result<(), SchedulerError> {
        if step.state.index == 0 {
            // Without a seed of its own the reference draws one from the global generator.
            let given = &self.seeds;
            step.state.seeds = if given.is_empty() {
                step.noise.draw_seeds()
            } else {
                given.clone()
            };
        }
        let [batch, height, width, channels] = step.sample.shape();
        let seeds = &step.state.seeds;
        if step.state.index > 0 && !self.trees.is_empty() && *seeds == self.tree_seeds {
            return Ok(());
        }
        let part = step.noise.part(batch);
        check_seeds(seeds, part.of)?;
        // Of a path for the whole batch, the images of this run are used.
        let one = seeds.len() == 1;
        self.part = one.then_some(part);
        let (own, images) = match one {
            true => (&seeds[..], part.of),
            false => (&seeds[part.first..part.first + part.count], 1),
        };
        let shape = [images, height, width, channels];
        let sigmas = &step.position.schedule.sigmas;
        let low = sigmas
            .iter()
            .copied()
            .filter(|&s| s > 0.0)
            .fold(f32::INFINITY, f32::min);
        let high = sigmas.iter().copied().fold(0.0, f32::max);
        let rng = step.noise.rng();
        self.trees = own
            .iter()
            .map(|&seed| BrownianTree::new(rng, seed, low.into(), high.into(), shape))
            .collect();
        self.tree_seeds = seeds.clone();
        Ok(())
    }

    /// Standard normal noise for a step between two noise levels.
    fn noise(&self, from: f32, to: f32) -> Latents {
        let increments = self
            .trees
            .iter()
            .map(|tree| tree.increment(from.into(), to.into()));
        let increments: Vec<_> = increments.collect();
        // Between equal levels there is no noise to scale, and none is added.
        let deviation = (to - from).abs().sqrt().max(f32::MIN_POSITIVE);
        let paths = Latents::concat(&increments);
        let own = match self.part {
            Some(part) => part.of_batch(paths),
            None => paths,
        };
        own.map(|w| w / deviation)
    }
}
