//! The stochastic DPM-Solver++ of k-diffusion (`sample_dpmpp_sde`: Lu et al. 2022 with ancestral
//! noise), as `DPMSolverSDEScheduler` of diffusers has it: a second evaluation in the middle of the
//! step, and noise from a Brownian path over the noise level, so that pictures of different numbers
//! of steps resemble one another.

use super::exploding;
use super::math::{exp, exp_m1, ln};
use super::prediction::{EPSILON, Prediction, V, prediction};
use super::registry::{Built, Info, OptionInfo, Randomness};
use super::training::{self, ZeroSnr, option};
use super::{At, Plan, Rule, SchedulerConfig, SchedulerError, Step};
use crate::latents::Latents;
use crate::noise::{BrownianTree, NoiseError, PartOfBatch};
use crate::schedule::SigmaTable;

pub(super) const INFO: Info = Info {
    class: "DPMSolverSDEScheduler",
    names: &["dpm++_sde"],
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
    build,
};

const OPTIONS: &[OptionInfo] = &[
    option("prediction_type", r#""epsilon""#),
    option("noise_sampler_seed", "null"),
    // An argument of the reference's `step`.
    option("s_noise", "1.0"),
];

fn build(config: &SchedulerConfig, plan: &Plan) -> Built {
    let prediction = prediction(config, &[EPSILON, V])?;
    let alphas = training::alphas_cumprod(config, training::BETA_SCHEDULES, ZeroSnr::No)?;
    let table = SigmaTable::new(&alphas);
    let curve = training::curve(config)?;
    let levels = exploding::levels(config, plan, &table, curve, (None, None))?;
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
    let sigmas = exploding::with_final(&exploding::twice(&levels.sigmas), 0.0);
    let schedule = exploding::schedule(training::spacing(config)?, timesteps, sigmas);
    let seeds = config.seeds("noise_sampler_seed")?;
    let s_noise = config.number("s_noise")? as f32;
    Ok((
        schedule,
        Box::new(DpmSolverSde {
            prediction,
            seeds,
            s_noise,
            trees: Vec::new(),
            grown_from: Vec::new(),
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
    /// The Brownian paths of the run, once they are needed, and the seeds that they follow from.
    trees: Vec<BrownianTree>,
    grown_from: Vec<u64>,
    /// The images that paths of a whole batch are cut down to.
    part: Option<PartOfBatch>,
}

impl Rule for DpmSolverSde {
    fn scale_model_input(&self, at: At<'_>, sample: &Latents) -> Latents {
        exploding::scale(sample, level(at))
    }

    fn step(&mut self, mut step: Step<'_>) -> Result<Latents, SchedulerError> {
        let at = step.at;
        self.grow_trees(&mut step)?;
        let denoised = self
            .prediction
            .denoise(step.model_output, step.sample, level(at));
        let (start, end) = ends(at);
        if end == 0.0 {
            let derivative = exploding::derivative(step.sample, &denoised, start);
            return Ok(exploding::along(step.sample, &derivative, end - start));
        }
        let t = -ln(start);
        let (from, to, anchor) = if at.is_second() {
            (exp(-t), exp(ln(end)), step.state.take_anchor()?)
        } else {
            step.state.anchor = Some(step.sample.clone());
            (exp(-t), middle(at), step.sample.clone())
        };
        let up = to.min(exploding::ancestral(from, to).1);
        let down = (to * to - up * up).sqrt();
        let t_down = -ln(down);
        let (of_sample, of_clean) = (exp(-t_down) / exp(-t), exp_m1(t - t_down));
        let moved = Latents::zip_with([&anchor, &denoised], |[x, x0]| {
            of_sample * x - of_clean * x0
        });
        let noise = self.noise(from, to);
        Ok(Latents::zip_with([&moved, &noise], |[x, n]| {
            x + n * self.s_noise * up
        }))
    }

    fn add_noise(&self, at: At<'_>, original: &Latents, noise: &Latents) -> Latents {
        exploding::add_noise(original, noise, at.sigma())
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

/// The levels at the start and the end of the step that an evaluation belongs to.
fn ends(at: At<'_>) -> (f32, f32) {
    if at.is_second() {
        (at.sigma_past(1), at.sigma())
    } else {
        (at.sigma(), at.sigma_next())
    }
}

/// The level in the middle of the step, in the logarithm.
fn middle(at: At<'_>) -> f32 {
    let (start, end) = ends(at);
    let (t, t_end) = (-ln(start), -ln(end));
    exp(-(t + (t_end - t) * 0.5))
}

/// The level of an evaluation's sample.
fn level(at: At<'_>) -> f32 {
    if at.is_second() {
        middle(at)
    } else {
        at.sigma()
    }
}

impl DpmSolverSde {
    /// Starts the Brownian paths of a run, or those of a run that goes on.
    fn grow_trees(&mut self, step: &mut Step<'_>) -> Result<(), SchedulerError> {
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
        if step.state.index > 0 && !self.trees.is_empty() && *seeds == self.grown_from {
            return Ok(());
        }
        let part = step.noise.part(batch);
        check_seeds(seeds, part.of)?;
        // One path for the whole batch is cut down to the images that are worked on.
        let one = seeds.len() == 1;
        self.part = one.then_some(part);
        let (own, images) = match one {
            true => (&seeds[..], part.of),
            false => (&seeds[part.first..part.first + part.count], 1),
        };
        let shape = [images, height, width, channels];
        let sigmas = &step.at.schedule.sigmas;
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
        self.grown_from = seeds.clone();
        Ok(())
    }

    /// Standard normal noise for the way between two levels.
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
