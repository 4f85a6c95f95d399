//! The table of all scheduler classes, and the class that a name means.

use serde_json::{Map, Value};

use super::SchedulerError;
use super::info::Info;
use super::names::{normalise, similarity};
use super::update_rule::Build;
use super::{
    ddim, ddim_inverse, ddpm, deis_multistep, dpmsolver_multistep, dpmsolver_sde,
    dpmsolver_singlestep, edm_dpmsolver_multistep, edm_euler, euler_ancestral_discrete,
    euler_discrete, heun_discrete, k_dpm_2_ancestral_discrete, k_dpm_2_discrete, lcm, lms_discrete,
    pndm, sasolver, tcd, unipc_multistep,
};

/// All classes with their `build` functions, in the order in which they are listed.
static ALL: [(&Info, Build); 20] = [
    (&euler_discrete::INFO, euler_discrete::build),
    (
        &euler_ancestral_discrete::INFO,
        euler_ancestral_discrete::build,
    ),
    (&dpmsolver_multistep::INFO, dpmsolver_multistep::build),
    (&unipc_multistep::INFO, unipc_multistep::build),
    (&dpmsolver_sde::INFO, dpmsolver_sde::build),
    (&ddim::INFO, ddim::build),
    (&heun_discrete::INFO, heun_discrete::build),
    (&k_dpm_2_discrete::INFO, k_dpm_2_discrete::build),
    (
        &k_dpm_2_ancestral_discrete::INFO,
        k_dpm_2_ancestral_discrete::build,
    ),
    (&dpmsolver_singlestep::INFO, dpmsolver_singlestep::build),
    (&deis_multistep::INFO, deis_multistep::build),
    (&sasolver::INFO, sasolver::build),
    (&lms_discrete::INFO, lms_discrete::build),
    (&pndm::INFO, pndm::build),
    (&ddpm::INFO, ddpm::build),
    (&lcm::INFO, lcm::build),
    (&tcd::INFO, tcd::build),
    (&edm_euler::INFO, edm_euler::build),
    (
        &edm_dpmsolver_multistep::INFO,
        edm_dpmsolver_multistep::build,
    ),
    (&ddim_inverse::INFO, ddim_inverse::build),
];

/// All schedulers, the usual ones first.
pub fn all() -> impl ExactSizeIterator<Item = &'static Info> {
    ALL.iter().map(|(info, _)| *info)
}

/// The scheduler of a name: a class name of diffusers, a short name or a name of the AUTOMATIC1111
/// web UI.
///
/// # Errors
/// An unknown name, with the known name that is most like it.
pub fn find(name: &str) -> Result<&'static Info, SchedulerError> {
    resolve(name).map(|(info, _)| info)
}

/// The class of exactly that name in diffusers.
pub(crate) fn class(name: &str) -> Option<&'static Info> {
    all().find(|info| info.class == name)
}

/// The function that builds schedulers of a class.
pub(super) fn build_function(info: &Info) -> Build {
    let mut entries = ALL.iter();
    let entry = entries.find(|(other, _)| *other == info);
    entry.expect("every class is in the table").1
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
                return Err(info.unknown_option(option));
            }
            options.insert(option.to_owned(), value);
            Ok(())
        };
    for (ending, option) in CURVES {
        if let Some((info, mut options)) = with_ending(ending) {
            // The curve takes the place of one that a configuration may already have.
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
    // The prefix that samplers of k-diffusion had at first.
    let name = name.strip_prefix("k_").unwrap_or(name);
    for info in all() {
        if normalise(info.class) == name || info.names.iter().any(|n| normalise(n) == name) {
            return Some((info, "{}"));
        }
    }
    let (_, class_name, options) = PRESETS
        .iter()
        .find(|(preset, _, _)| normalise(preset) == name)?;
    class(class_name).map(|info| (info, *options))
}

fn object(text: &str) -> Map<String, Value> {
    serde_json::from_str(text).expect("presets are written as JSON objects")
}

/// The error for a name, with the known name that is most like it.
pub(super) fn unknown_name(name: &str) -> SchedulerError {
    let wanted = normalise(name);
    let known = all().flat_map(|i| i.names.iter().copied().chain([i.class]));
    let known = known.chain(PRESETS.iter().map(|(preset, _, _)| *preset));
    let nearest = known.max_by(|a, b| similarity(a, &wanted).total_cmp(&similarity(b, &wanted)));
    SchedulerError::UnknownName {
        name: name.to_owned(),
        nearest: nearest.expect("the table has names").to_owned(),
    }
}
