//! The display of the progress of files that come from a hub: a bar for each on a terminal, else a
//! line for each. Everything goes to standard error.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use sdxl::hub::DownloadEvent;
use sdxl::units::size;

/// Files below this leave no bar behind.
const SMALL: u64 = 1_000_000;

/// Shows the events of pulls, one after the other.
pub(crate) struct Bars {
    terminal: Option<MultiProgress>,
    files: Mutex<HashMap<String, ProgressBar>>,
}

impl Bars {
    /// Looks at standard error to decide how to show them.
    pub(crate) fn new() -> Bars {
        let terminal = std::io::stderr().is_terminal();
        Bars {
            terminal: terminal.then(MultiProgress::new),
            files: Mutex::new(HashMap::new()),
        }
    }

    /// Shows one event.
    pub(crate) fn show(&self, event: DownloadEvent<'_>) {
        if let DownloadEvent::Begin { .. } = event {
            // Another model's files have the same names.
            self.files.lock().unwrap_or_else(|e| e.into_inner()).clear();
        }
        match event {
            // The index, which says what else there is to fetch.
            DownloadEvent::Begin {
                files: 1, bytes, ..
            } if bytes < SMALL => {}
            DownloadEvent::Begin {
                repo,
                commit,
                files,
                bytes,
            } => {
                let commit = &commit[..commit.len().min(7)];
                let s = if files == 1 { "" } else { "s" };
                let bytes = size(bytes);
                self.say(&format!(
                    "pulling {repo}@{commit}: {files} file{s}, {bytes}"
                ));
            }
            DownloadEvent::File {
                path,
                done,
                size: whole,
            } => match &self.terminal {
                Some(all) => self.move_bar(all, path, done, whole),
                None if done == whole => err!("  {path}  {}", size(whole)),
                None => {}
            },
            DownloadEvent::Waiting { url, why, pause } => {
                let seconds = pause.as_secs_f64().ceil();
                self.say(&format!("{url}: {why}; again in {seconds} s"));
            }
        }
    }

    fn say(&self, line: &str) {
        match &self.terminal {
            Some(all) => all.suspend(|| err!("{line}")),
            None => err!("{line}"),
        }
    }

    fn move_bar(&self, all: &MultiProgress, path: &str, done: u64, whole: u64) {
        let mut files = self.files.lock().unwrap_or_else(|e| e.into_inner());
        let bar = files.entry(path.to_string()).or_insert_with(|| {
            let bar = all.add(ProgressBar::new(whole));
            let style = ProgressStyle::with_template(
                "{prefix:44!} [{bar:20}] {bytes:>10}/{total_bytes} {bytes_per_sec} {eta}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style.progress_chars("=> "));
            bar.set_prefix(path.to_string());
            // What an earlier pull has left says nothing of this one's pace.
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        bar.set_position(done);
        match done == whole {
            true if whole < SMALL => bar.finish_and_clear(),
            true => bar.finish(),
            false => {}
        }
    }
}
