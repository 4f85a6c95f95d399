//! `sdxl plan` and `--dry-run`: what a run would take, and how it would be arranged.

use sdxl::memory::{Budget, Speed, bytes};
use sdxl::pipeline::{Asked, Plan, Residence};
use sdxl::{Inputs, Precision, Request};
use sdxl_kit::Session;
use serde_json::{Value, json};

use crate::args::Offload;

/// Plans a run, or says what is wrong: what a smaller precision would change is only said.
///
/// # Errors
/// Those of [`Plan::new`].
pub fn plan(
    session: &Session,
    request: &Request,
    inputs: &Inputs,
    memory: Option<Budget>,
) -> sdxl::Result<Plan> {
    let residences: &[Residence] = match session.residence() {
        Some(asked) => &[asked],
        None => &[Residence::InTurn, Residence::Streamed],
    };
    let asked = Asked {
        checkpoint: session.checkpoint(),
        refiner: session.refiner(),
        precision: session.precision(),
        request,
        inputs,
        residences,
        budget: memory.unwrap_or_else(Budget::free),
    };
    let plan = Plan::new(&asked);
    let short = match &plan {
        Ok(plan) => plan.residence != residences[0],
        Err(error) => !error.is_usage() || memory.is_some(),
    };
    if short && session.precision_is_default() && session.precision() != Precision::Int8 {
        let smaller = Plan::new(&Asked {
            precision: Precision::Int8,
            ..asked
        });
        if let Ok(smaller) = smaller
            && plan.as_ref().is_err() | (smaller.residence == residences[0])
        {
            err!(
                "hint: --precision int8 would take {}, {}",
                bytes(smaller.peak()),
                networks(smaller.residence)
            );
        }
    }
    plan
}

/// When networks are in memory, in words.
fn networks(residence: Residence) -> &'static str {
    match residence {
        Residence::Whole => "all networks in memory at once",
        Residence::InTurn => "each network in memory while it works",
        Residence::Streamed => "layers read from the files as they work",
    }
}

/// Prints a plan.
pub fn show(plan: &Plan, request: &Request, given: bool, json: bool) {
    let mut speed = Speed::default();
    if json {
        out!("{}", object(plan, request, &mut speed));
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
        networks(plan.residence),
        Offload::of(plan.residence).word()
    );
    let rows: Vec<String> = plan.rows.iter().map(usize::to_string).collect();
    let how = match plan.is_sequential() {
        true => "guidance one side after the other",
        false => "guidance and prompt of a picture together",
    };
    out!("UNet       rows at once: {} ({how})", rows.join(", "));
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

fn object(plan: &Plan, request: &Request, speed: &mut Speed) -> Value {
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
        "offload": Offload::of(plan.residence).word(),
        "unet_rows": plan.rows,
        "sequential_guidance": plan.is_sequential(),
        "vae_tile_size": plan.tile_size(request),
        "parts": parts,
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
