//! What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere.
//! Everything goes to standard error, so that standard output stays for results.

use std::io::IsTerminal;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use sdxl::Event;

use crate::flags;

/// Shows the events of one run.
pub struct Progress {
    bar: Option<ProgressBar>,
    began: Instant,
    evaluations: f64,
}

impl Progress {
    /// For a run of `evaluations`; looks at standard error to decide how to show them.
    pub fn new(evaluations: usize) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(evaluations as u64);
            let style = ProgressStyle::with_template("{prefix} [{bar:32}] {pos}/{len} {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar
        });
        Progress {
            bar,
            began: Instant::now(),
            evaluations: 0.0,
        }
    }

    /// A line that is not about progress.
    pub fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| err!("{line}")),
            None => err!("{line}"),
        }
    }

    /// Says what is being done before the first event.
    pub fn begin(&self, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_prefix(what.to_string());
                bar.tick();
            }
            None => err!("{what}"),
        }
    }

    /// Shows one event.
    pub fn show(&mut self, event: Event<'_>) {
        match event {
            Event::Warning(warning) => self.say(&flags::of_warning(warning)),
            Event::Encoding => match &self.bar {
                Some(bar) => bar.set_prefix("encoding"),
                None => err!("encoding the prompt"),
            },
            Event::Loading => self.begin("loading"),
            Event::Step {
                index,
                total,
                seconds,
            } => {
                self.evaluations += seconds;
                let mean = self.evaluations / index as f64;
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
            Event::Decoding { index, total } => match &self.bar {
                Some(bar) => {
                    bar.set_prefix("decoding ");
                    bar.set_message(format!("picture {index} of {total}"));
                }
                None => err!("decoding picture {index} of {total}"),
            },
            Event::Picture { .. } => {}
        }
    }

    /// Ends the display and gives the seconds since the start.
    pub fn finish(self) -> f64 {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.began.elapsed().as_secs_f64()
    }
}

/// Seconds as m:ss.
fn clock(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    format!("{}:{:02}", whole / 60, whole % 60)
}
