//! All schedulers: their names, their options with defaults, and what people need to know to choose
//! one.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Plan, Rule, Schedule, SchedulerConfig, SchedulerError};
use super::{
    ddim, ddim_inverse, ddpm, deis_multistep, dpmsolver_multistep, dpmsolver_sde,
    dpmsolver_singlestep, edm_dpmsolver_multistep, edm_euler, euler_ancestral_discrete,
    euler_discrete, heun_discrete, k_dpm_2_ancestral_discrete, k_dpm_2_discrete, lcm, lms_discrete,
    pndm, sasolver, tcd, unipc_multistep,
};

/// Whether the same start always gives the same result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Randomness {
    /// It draws no noise.
    Deterministic,
    /// It draws noise in its steps; for the same seed the result is the same.
    Stochastic,
    /// It draws noise if an option says so.
    Optional(&'static str),
}

/// When schedulers draw noise that do so by `eta`.
pub(super) const BY_ETA: Randomness = Randomness::Optional("eta above 0");

/// An option of a scheduler class.
#[derive(Clone, Copy, Debug)]
pub struct OptionInfo {
    /// The option's key in a configuration.
    pub name: &'static str,
    /// The option's default as JSON; `null` is none.
    pub default: &'static str,
}

impl OptionInfo {
    /// The default.
    pub fn default_value(&self) -> Value {
        serde_json::from_str(self.default).unwrap_or(Value::Null)
    }
}

/// The result of a rule's `build` function: the schedule of the evaluations, and the update rule.
pub(super) type Built = Result<(Schedule, Box<dyn Rule>), SchedulerError>;

/// A scheduler class.
#[derive(Debug)]
pub struct Info {
    /// The class name of diffusers.
    pub class: &'static str,
    /// Short names, the one to show first.
    pub names: &'static [&'static str],
    /// The order of accuracy: the power of the step length with which the error falls, for the
    /// default options.
    pub order: u8,
    /// Evaluations of the UNet per step; the last step of a second-order scheduler takes one.
    pub evaluations_per_step: usize,
    /// Whether it draws noise.
    pub randomness: Randomness,
    /// When to use it, in a line.
    pub when: &'static str,
    /// Whether [`super::Steps::Timesteps`] is possible.
    pub custom_timesteps: bool,
    /// Whether [`super::Steps::Sigmas`] is possible.
    pub custom_sigmas: bool,
    /// The options of the class, in groups.
    pub(super) options: &'static [&'static [OptionInfo]],
    pub(super) build: fn(&SchedulerConfig, &Plan) -> Built,
}

impl PartialEq for Info {
    fn eq(&self, other: &Self) -> bool {
        self.class == other.class
    }
}

impl Info {
    /// All options of the class.
    pub fn options(&self) -> impl Iterator<Item = &'static OptionInfo> {
        self.options.iter().copied().flatten()
    }

    /// Whether `eta` has an effect.
    pub fn uses_eta(&self) -> bool {
        self.randomness == BY_ETA
    }

    /// The option of that name.
    pub fn option(&self, name: &str) -> Option<&'static OptionInfo> {
        self.options().find(|o| o.name == name)
    }
}

static ALL: [Info; 20] = [
    euler_discrete::INFO,
    euler_ancestral_discrete::INFO,
    dpmsolver_multistep::INFO,
    unipc_multistep::INFO,
    dpmsolver_sde::INFO,
    ddim::INFO,
    heun_discrete::INFO,
    k_dpm_2_discrete::INFO,
    k_dpm_2_ancestral_discrete::INFO,
    dpmsolver_singlestep::INFO,
    deis_multistep::INFO,
    sasolver::INFO,
    lms_discrete::INFO,
    pndm::INFO,
    ddpm::INFO,
    lcm::INFO,
    tcd::INFO,
    edm_euler::INFO,
    edm_dpmsolver_multistep::INFO,
    ddim_inverse::INFO,
];

/// All schedulers, the usual ones first.
pub fn all() -> &'static [Info] {
    &ALL
}

/// The scheduler of a name: a class name of diffusers, a short name or a name of the AUTOMATIC1111
/// web UI.
pub fn find(name: &str) -> Result<&'static Info, SchedulerError> {
    resolve(name).map(|(info, _)| info)
}

/// The class of exactly that name.
pub(super) fn class(name: &str) -> Option<&'static Info> {
    ALL.iter().find(|info| info.class == name)
}

/// Names that mean a class with options: those of the web UI of AUTOMATIC1111 and of InvokeAI, as
/// far as diffusers has what they mean.
const PRESETS: &[(&str, &str, &str)] = &[
    (
        "dpm++_2m_sde",
        DPM_MULTI,
        r#"{"algorithm_type": "sde-dpmsolver++"}"#,
    ),
    (
        "dpm++_2m_sde_heun",
        DPM_MULTI,
        r#"{"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}"#,
    ),
    ("dpm++_3m", DPM_MULTI, r#"{"solver_order": 3}"#),
    (
        "dpm++_3m_sde",
        DPM_MULTI,
        r#"{"algorithm_type": "sde-dpmsolver++", "solver_order": 3}"#,
    ),
    ("dpm++_1m", DPM_MULTI, r#"{"solver_order": 1}"#),
    (
        "dpm++_3s",
        "DPMSolverSinglestepScheduler",
        r#"{"solver_order": 3}"#,
    ),
];

const DPM_MULTI: &str = "DPMSolverMultistepScheduler";

/// Endings of names that mean a sigma curve, as in `dpm++_2m_karras`.
const CURVES: &[(&str, &str)] = &[
    ("karras", "use_karras_sigmas"),
    ("k", "use_karras_sigmas"),
    ("exponential", "use_exponential_sigmas"),
    ("beta", "use_beta_sigmas"),
    ("lu", "use_lu_lambdas"),
];

/// Endings of names that mean evenly spaced timesteps from the last one down.
const TRAILING: &[&str] = &["trailing", "sgm_uniform", "simple"];

/// The class that a name means, and the options that it implies.
pub(super) fn resolve(name: &str) -> Result<(&'static Info, Map<String, Value>), SchedulerError> {
    let wanted = normalise(name);
    if let Some((info, options)) = base(&wanted) {
        return Ok((info, object(options)));
    }
    let with_ending = |ending: &str| {
        let stem = wanted.strip_suffix(ending)?.strip_suffix('_')?;
        base(stem).map(|(info, options)| (info, object(options)))
    };
    let imply =
        |info: &'static Info, options: &mut Map<String, Value>, option: &str, value: Value| {
            if info.option(option).is_none() {
                return Err(unknown_option(info, option));
            }
            options.insert(option.to_owned(), value);
            Ok(())
        };
    for (ending, option) in CURVES {
        if let Some((info, mut options)) = with_ending(ending) {
            // Instead of the curve that a configuration may already have.
            let others = CURVES
                .iter()
                .filter(|(_, other)| info.option(other).is_some());
            options.extend(others.map(|(_, other)| ((*other).to_owned(), false.into())));
            imply(info, &mut options, option, true.into())?;
            return Ok((info, options));
        }
    }
    for ending in TRAILING {
        if let Some((info, mut options)) = with_ending(ending) {
            imply(info, &mut options, "timestep_spacing", "trailing".into())?;
            return Ok((info, options));
        }
    }
    Err(unknown_name(name))
}

/// A normalised name without an ending.
fn base(name: &str) -> Option<(&'static Info, &'static str)> {
    // As the samplers of k-diffusion were first called.
    let name = name.strip_prefix("k_").unwrap_or(name);
    for info in &ALL {
        if normalise(info.class) == name || info.names.iter().any(|n| normalise(n) == name) {
            return Some((info, "{}"));
        }
    }
    let (_, class_name, options) = PRESETS
        .iter()
        .find(|(preset, _, _)| normalise(preset) == name)?;
    class(class_name).map(|info| (info, *options))
}

/// Lower case, with one underscore for every blank, hyphen or underscore, and `++` for `pp`: `DPM++
/// 2M`, `dpmpp_2m` and `dpm++_2m` are the same name. The endings of class names are left out.
fn normalise(name: &str) -> String {
    let words: Vec<_> = name
        .split([' ', '-', '_'])
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
        .collect();
    let joined = words.join("_").replace("dpmpp", "dpm++");
    let joined = joined.strip_suffix("scheduler").unwrap_or(&joined);
    joined.strip_suffix('_').unwrap_or(joined).to_owned()
}

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).unwrap_or_default()
}

/// The error for a name, with the known name that is most like it.
pub(super) fn unknown_name(name: &str) -> SchedulerError {
    let wanted = normalise(name);
    let known = ALL
        .iter()
        .flat_map(|i| i.names.iter().copied().chain([i.class]));
    let known = known.chain(PRESETS.iter().map(|(preset, _, _)| *preset));
    let nearest = known.max_by(|a, b| similarity(a, &wanted).total_cmp(&similarity(b, &wanted)));
    SchedulerError::UnknownName {
        name: name.to_owned(),
        nearest: nearest.unwrap_or_default().to_owned(),
    }
}

/// The error for an option, with the option of the class that is most like it.
pub(super) fn unknown_option(info: &'static Info, option: &str) -> SchedulerError {
    let nearest = info
        .options()
        .map(|o| o.name)
        .filter(|o| similarity(o, option) > 0.8)
        .max_by(|a, b| similarity(a, option).total_cmp(&similarity(b, option)));
    SchedulerError::UnknownOption {
        class: info.class,
        option: option.to_owned(),
        nearest: nearest.map(str::to_owned),
        options: info
            .options()
            .map(|o| o.name)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

fn similarity(known: &str, wanted: &str) -> f64 {
    strsim::jaro_winkler(&normalise(known), wanted)
}
