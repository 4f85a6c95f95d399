//! `sdxl plan` and `--dry-run`: what a run would take, and how it would be arranged.

use sdxl::memory::{Speed, bytes};
use sdxl::pipeline::{Offload, Plan};
use sdxl::{Inputs, Precision, Request, Run, Warning};
use sdxl_kit::{Session, StateFile};
use serde_json::{Value, json};

use crate::args::GenerateArgs;
use crate::flags;

/// Prepares a run, or takes up the one of a state, or says what is wrong: the memory that a smaller
/// precision would take is only said.
///
/// # Errors
/// The errors of [`sdxl::Pipeline::prepare`] and [`StateFile::prepare`].
pub(crate) fn prepare(
    own: &GenerateArgs,
    session: &Session,
    request: &Request,
    inputs: Inputs,
    state: Option<&StateFile>,
) -> sdxl_kit::Result<Run> {
    let opening = || {
        let opening = session.pipeline();
        match own.memory {
            Some(budget) => opening.memory(budget),
            None => opening,
        }
    };
    let pipeline = opening().lazy()?;
    let run = match state {
        Some(state) => state.prepare(&pipeline, request, inputs.clone()),
        None => pipeline
            .prepare(request, inputs.clone())
            .map_err(Into::into),
    };
    let best = own.picture.model.offload.unwrap_or(Offload::Model);
    let short = match &run {
        Ok(run) => run.plan().offload > best,
        Err(error) => !error.is_usage() || error.field() == Some("memory"),
    };
    if short && session.precision_is_default() && session.precision() != Precision::Int8 {
        let smaller = opening().precision(Precision::Int8).lazy()?;
        if let Ok(smaller) = smaller.prepare(request, inputs)
            && (run.is_err() || smaller.plan().offload <= best)
        {
            err!(
                "hint: --precision int8 would take {}, {}",
                bytes(smaller.plan().peak()),
                networks(smaller.plan().offload)
            );
        }
    }
    run
}

/// Which networks are in memory, in words.
fn networks(offload: Offload) -> &'static str {
    match offload {
        Offload::None => "all networks in memory at once",
        Offload::Model => "each network in memory while it works",
        Offload::Sequential => "layers read from the files as they work",
    }
}

/// Prints the plan of a run and what there is to warn of; `given`: for a budget that was typed.
pub(crate) fn show(run: &Run, given: bool, json: bool) {
    let (plan, request) = (run.plan(), run.request());
    let mut speed = Speed::default();
    for warning in run.warnings() {
        err!("{}", flags::of_warning(warning));
    }
    if json {
        out!("{}", object(run, &mut speed));
        return;
    }
    let width = plan.parts.iter().map(|part| part.name.len()).max();
    let width = width.unwrap_or(0).max(16);
    let line = |name: &str, peak: u64, seconds: f64| {
        let (peak, time) = (bytes(peak).to_string(), duration(seconds));
        out!("{name:width$}  {peak:>10}  {time:>12}");
    };
    out!("{:width$}  {:>10}  {:>12}", "", "memory", "about");
    for part in &plan.parts {
        line(&part.name, part.peak, part.seconds(&mut speed));
    }
    line("whole run", plan.peak(), plan.seconds(&mut speed));
    out!("");
    out!("precision  {}", plan.precision);
    out!(
        "networks   {} (--offload {})",
        networks(plan.offload),
        plan.offload
    );
    let rows: Vec<String> = plan.rows.iter().map(usize::to_string).collect();
    let how = match plan.is_sequential() {
        true => "guidance one side after the other",
        false => "guidance and prompt of a picture together",
    };
    out!("UNet       rows at once: {} ({how})", rows.join(", "));
    if request.images() > plan.group {
        out!("pictures   {} at a time, from noise to file", plan.group);
    }
    match plan.tile_size(request) {
        Some(side) => out!("VAE        tiles of {side}x{side}: they show a little in the picture"),
        None => out!("VAE        whole pictures"),
    }
    match plan.budget {
        Some(budget) if given => out!("memory     {} given (--memory)", bytes(budget)),
        Some(budget) => out!("memory     {} may be taken: what is free", bytes(budget)),
        None => out!("memory     not known on this system"),
    }
}

fn object(run: &Run, speed: &mut Speed) -> Value {
    let (plan, request): (&Plan, _) = (run.plan(), run.request());
    let warnings: Vec<String> = run.warnings().iter().map(Warning::to_string).collect();
    let parts: Vec<Value> = (plan.parts.iter())
        .map(|part| {
            json!({
                "name": part.name,
                "peak_bytes": part.peak,
                "seconds": part.seconds(speed),
            })
        })
        .collect();
    json!({
        "peak_bytes": plan.peak(),
        "seconds": plan.seconds(speed),
        "budget_bytes": plan.budget,
        "precision": plan.precision,
        "offload": plan.offload,
        "unet_rows": plan.rows,
        "pictures_at_a_time": plan.group,
        "sequential_guidance": plan.is_sequential(),
        "vae_tile_size": plan.tile_size(request),
        "parts": parts,
        "warnings": warnings,
        "request": request,
    })
}

/// A length of time, roughly.
fn duration(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    match seconds {
        s if s < 1.0 => format!("{s:.1} s"),
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{minutes} min"),
        _ => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_two_digits_or_so() {
        let said = [0.21, 7.4, 99.0, 130.0, 5990.0, 7260.0].map(duration);
        assert_eq!(
            said,
            ["0.2 s", "7 s", "99 s", "2 min", "100 min", "2 h 1 min"]
        );
    }
}
