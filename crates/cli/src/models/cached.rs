//! `sdxl models list`, `rm` and `verify`: the cache of models that were pulled.

use std::io::{IsTerminal, Write};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use sdxl::hub::{Cached, ModelKind, ModelName, scan};
use sdxl::units::size;
use sdxl_kit::hub;
use serde_json::json;

use super::pull::parse;
use crate::{Reported, usage};

/// `sdxl models list`
#[derive(Args)]
pub(super) struct ListArgs {
    /// List what is not for this program, too
    #[arg(long)]
    all: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// `sdxl models rm`
#[derive(Args)]
pub(super) struct RmArgs {
    /// ORG/NAME, or ORG/NAME@REVISION to keep the others
    name: String,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
}

/// `sdxl models verify`
#[derive(Args)]
pub(super) struct VerifyArgs {
    /// ORG/NAME[@REVISION] [default: all that `sdxl models list` lists]
    name: Option<String>,
    /// Remove broken files, so that the next pull fetches them
    #[arg(long)]
    remove_broken: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

fn is_ours(of: &Cached) -> bool {
    !matches!(of.kind, ModelKind::Other(_))
}

/// The revision as a person says it: `main 4621659`.
fn revision(of: &Cached) -> String {
    let mut words = of.revisions.clone();
    words.push(of.commit[..7].to_string());
    words.join(" ")
}

/// Lists the cache.
pub(super) fn list(args: &ListArgs) -> anyhow::Result<()> {
    let hub = hub();
    let all = scan(hub.cache());
    let (ours, others): (Vec<&Cached>, Vec<&Cached>) = all.iter().partition(|of| is_ours(of));
    let shown = if args.all { all.iter().collect() } else { ours };
    if args.json {
        let models: Vec<_> = (shown.iter())
            .map(|of| {
                json!({
                    "name": of.repo,
                    "commit": of.commit,
                    "revisions": of.revisions,
                    "bytes": of.bytes(),
                    "kind": of.kind.to_string(),
                    "path": of.snapshot.to_string_lossy(),
                })
            })
            .collect();
        let object = json!({ "cache": hub.cache().to_string_lossy(), "models": models });
        out!("{object}");
        return Ok(());
    }
    let width = shown.iter().map(|of| of.repo.len()).max().unwrap_or(0);
    let middle = shown.iter().map(|of| revision(of).len()).max().unwrap_or(0);
    for of in &shown {
        let (name, at, bytes) = (&of.repo, revision(of), size(of.bytes()));
        out!("{name:<width$}  {at:<middle$}  {bytes:>9}  {}", of.kind);
    }
    let cache = hub.cache().display();
    if shown.is_empty() {
        err!("no models in {cache}; `sdxl models pull ORG/NAME` fetches one");
    }
    if !args.all && !others.is_empty() {
        let count = others.len();
        err!("and {count} in {cache} that this program has no use for (--all lists them)");
    }
    Ok(())
}

/// Removes models.
pub(super) fn rm(args: &RmArgs) -> anyhow::Result<()> {
    let name = parse(&args.name)?;
    if name.file.is_some() {
        return Err(usage(format!(
            "`{name}` is one file; what can be removed is a model or a revision of it: {}",
            name.repo
        )));
    }
    let removal = hub().removal(&name)?;
    for of in &removal.revisions {
        err!("{}  {}  {}", of.repo, revision(of), of.kind);
    }
    let bytes = size(removal.bytes);
    if !args.yes {
        if !std::io::stdin().is_terminal() {
            return Err(usage(format!(
                "removing {name} would free {bytes}; add --yes to do it without being asked"
            )));
        }
        let mut stderr = std::io::stderr();
        write!(stderr, "remove and free {bytes}? [y/N] ")?;
        stderr.flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            err!("nothing was removed");
            return Ok(());
        }
    }
    removal.carry_out()?;
    out!("freed {bytes}");
    Ok(())
}

/// Reads models again.
pub(super) fn verify(args: &VerifyArgs) -> anyhow::Result<()> {
    let hub = hub();
    let all = scan(hub.cache());
    let names: Vec<ModelName> = match &args.name {
        Some(text) => vec![parse(text)?],
        None => {
            let ours = all.iter().filter(|of| is_ours(of));
            let mut names: Vec<ModelName> =
                ours.filter_map(|of| ModelName::parse(&of.repo)).collect();
            names.dedup();
            names
        }
    };
    let mut models = Vec::new();
    let mut broken = 0;
    for name in &names {
        let bytes = (all.iter())
            .filter(|of| of.repo == name.repo)
            .map(Cached::bytes)
            .sum();
        let bar = bar(bytes);
        let found = hub.verify(name, &mut |file, bytes| {
            bar.set_prefix(file.to_string());
            bar.inc(bytes);
        })?;
        bar.finish_and_clear();
        for one in &found.broken {
            if args.remove_broken {
                one.remove()?;
            }
            if !args.json {
                out!("{name}  {}: {}", one.file, one.what);
            }
        }
        broken += found.broken.len();
        if args.json {
            let list = found.broken.iter();
            let list: Vec<_> = list
                .map(|b| json!({ "file": b.file, "what": b.what }))
                .collect();
            models.push(json!({
                "name": name.to_string(),
                "good": found.good,
                "unknown": found.unknown,
                "broken": list,
            }));
            continue;
        }
        let good = found.good;
        let unknown = match found.unknown.len() {
            0 => String::new(),
            n => format!(", {n} of which the cache has no hash"),
        };
        out!(
            "{name}  {good} good, {} broken{unknown}",
            found.broken.len()
        );
    }
    if args.json {
        out!("{}", json!({ "models": models }));
    }
    if broken == 0 {
        return Ok(());
    }
    let s = if broken == 1 { "" } else { "s" };
    let text = match args.remove_broken {
        true => {
            format!("{broken} broken file{s} removed; `sdxl models pull` fetches what is missing")
        }
        false => format!(
            "{broken} broken file{s}; --remove-broken takes them away, and then `sdxl models pull` \
             fetches them again"
        ),
    };
    Err(match args.json {
        true => anyhow::Error::new(Reported(text)),
        false => usage(text),
    })
}

fn bar(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(
        "{prefix:44!} [{bar:20}] {bytes:>10}/{total_bytes} {bytes_per_sec} {eta}",
    );
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style.progress_chars("=> "))
}
