//! The display of the progress of a run: a bar on a terminal, plain lines elsewhere.
//! Everything goes to standard error, so that standard output stays for results.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use sdxl::Event;

/// Shows the events of one run.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    /// Evaluations that were shown, and the time that they took.
    evaluations: usize,
    seconds: f64,
}

impl Progress {
    /// For a run of `evaluations`; looks at standard error to decide how to show them.
    pub(crate) fn new(evaluations: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(evaluations as u64);
            let style = ProgressStyle::with_template("{prefix} [{bar:32}] {pos}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar
        });
        Progress {
            bar,
            evaluations: 0,
            seconds: 0.0,
        }
    }

    /// A line that is not about progress.
    pub(crate) fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| err!("{line}")),
            None => err!("{line}"),
        }
    }

    /// Says what is being done before the first event.
    pub(crate) fn begin(&self, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(what.to_string());
                bar.tick();
            }
            None => err!("{what}"),
        }
    }

    /// Shows one event.
    pub(crate) fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Encoding => match &self.bar {
                Some(bar) => bar.set_prefix("encoding"),
                None => err!("encoding the prompt"),
            },
            Event::Loading => self.begin("loading"),
            Event::Step(step) => {
                let (index, total, seconds) = (step.index, step.total, step.seconds);
                self.step(index, total, seconds);
            }
            Event::Decoding { index, total } => match &self.bar {
                Some(bar) => {
                    bar.set_prefix("decoding ");
                    bar.set_message(format!("picture {index} of {total}"));
                }
                None => err!("decoding picture {index} of {total}"),
            },
            _ => {}
        }
    }

    /// Shows an evaluation that took so many `seconds`.
    pub(crate) fn step(&mut self, index: usize, total: usize, seconds: f64) {
        self.evaluations += 1;
        self.seconds += seconds;
        let mean = self.seconds / self.evaluations as f64;
        let left = mean * (total - index) as f64;
        let pace = format!("{mean:.2} s/step, {} left", clock(left));
        match &self.bar {
            Some(bar) => {
                bar.set_prefix("denoising");
                bar.set_position(index as u64);
                bar.set_message(pace);
            }
            None => err!("step {index}/{total}, {pace}"),
        }
    }

    /// Ends the display.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Seconds as m:ss.
fn clock(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    format!("{}:{:02}", whole / 60, whole % 60)
}
