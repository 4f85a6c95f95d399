//! A profile of the time that is spent: a tree of named scopes with operators at its leaves.
//!
//! Networks name their parts with [`scope`], and `ops` its operators with [`operator`]. Outside
//! of [`record`] both only run what they are given: no clock is read and no name is made.
//! A recording belongs to the thread that called [`record`]; networks stay on that thread (their
//! kernels spread out below the operators).
//!
//! Because every part of a network goes through [`scope`], it is also where a run that was cancelled
//! ends ([`Cancel`](crate::Cancel)).

use std::cell::RefCell;
use std::fmt::Display;
use std::time::Instant;

use serde::Serialize;

use crate::cancel::{self, OrCancelled};

/// A scope or an operator, all its calls at one place together.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct ProfileEntry {
    /// The name; dots separate levels that were entered at once (`down_blocks.0`).
    pub name: String,
    /// The sizes an operator worked on; a scope has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<String>,
    /// The number of calls.
    pub calls: u64,
    /// Wall-clock time, with everything inside.
    pub seconds: f64,
    /// Operations of the products inside (a product and a sum are two).
    pub flop: u64,
    /// The scopes and operators that ran inside, in the order of the first calls.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inside: Vec<ProfileEntry>,
}

/// The profile that was recorded.
#[derive(Debug, Clone, Serialize, PartialEq)]
pub struct Profile {
    /// Wall-clock time of the whole.
    pub seconds: f64,
    /// Operations of all products.
    pub flop: u64,
    /// The outermost scopes and operators, in the order of the first calls.
    pub inside: Vec<ProfileEntry>,
}

/// All calls of an operator, or of an operator on one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Total {
    /// The operator's name.
    pub name: String,
    /// The sizes it worked on, where totals are asked for by shape.
    pub shape: Option<String>,
    /// The number of calls.
    pub calls: u64,
    /// Wall-clock time.
    pub seconds: f64,
    /// Operations, for a product.
    pub flop: u64,
}

impl Profile {
    /// Time by operator, or by operator and shape, the longest first.
    pub fn operators(&self, by_shape: bool) -> Vec<Total> {
        let mut totals: Vec<Total> = Vec::new();
        let mut waiting: Vec<&ProfileEntry> = self.inside.iter().collect();
        while let Some(entry) = waiting.pop() {
            waiting.extend(&entry.inside);
            if entry.shape.is_none() {
                continue;
            }
            let shape = entry.shape.as_ref().filter(|_| by_shape);
            let same = |t: &&mut Total| t.name == entry.name && t.shape.as_ref() == shape;
            match totals.iter_mut().find(same) {
                Some(total) => {
                    total.calls += entry.calls;
                    total.seconds += entry.seconds;
                    total.flop += entry.flop;
                }
                None => totals.push(Total {
                    name: entry.name.clone(),
                    shape: shape.cloned(),
                    calls: entry.calls,
                    seconds: entry.seconds,
                    flop: entry.flop,
                }),
            }
        }
        totals.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        totals
    }
}

/// A place in the tree while it grows.
struct Node {
    name: String,
    shape: Option<String>,
    calls: u64,
    seconds: f64,
    flop: u64,
    inside: Vec<usize>,
}

struct Recorder {
    nodes: Vec<Node>,
    /// From the root, which is node 0, to where the thread is.
    path: Vec<usize>,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Stops recording, also when what was recorded panics; what was recorded around it goes on.
struct Recording(Option<Recorder>);

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDER.set(self.0.take());
    }
}

/// Runs `run` and gives, beside its result, what it spent its time with. A recording around this
/// one knows nothing of it.
pub fn record<R>(run: impl FnOnce() -> R) -> (R, Profile) {
    let mut recorder = Recorder {
        nodes: Vec::new(),
        path: Vec::new(),
    };
    recorder.enter(String::new(), None);
    let recording = Recording(RECORDER.replace(Some(recorder)));
    let began = Instant::now();
    let result = run();
    let seconds = began.elapsed().as_secs_f64();
    let recorded = RECORDER.take();
    drop(recording);
    let inside: Vec<ProfileEntry> = recorded.map_or_else(Vec::new, |r| {
        r.nodes[0].inside.iter().map(|i| r.entry(*i)).collect()
    });
    let profile = Profile {
        seconds,
        flop: inside.iter().map(|e| e.flop).sum(),
        inside,
    };
    (result, profile)
}

/// Runs a part of a network under its name.
///
/// # Errors
/// [`crate::Cancelled`] where the thread's token was cancelled, before `run` or by its end: what `run` made
/// may then be incomplete, and is dropped.
pub fn scope<R>(name: impl Display, run: impl FnOnce() -> R) -> OrCancelled<R> {
    cancel::check()?;
    let result = timed(&name, None, 0, run);
    cancel::check()?;
    Ok(result)
}

/// Runs an operator on sizes `shape`, which takes `flop` operations where it is a product.
pub fn operator<R>(
    name: &'static str,
    shape: impl Display,
    flop: usize,
    run: impl FnOnce() -> R,
) -> R {
    timed(&name, Some(&shape), flop as u64, run)
}

fn timed<R>(
    name: &dyn Display,
    shape: Option<&dyn Display>,
    flop: u64,
    run: impl FnOnce() -> R,
) -> R {
    let entered = RECORDER.with_borrow_mut(|recorder| {
        let recorder = recorder.as_mut()?;
        Some(recorder.enter(name.to_string(), shape.map(|s| s.to_string())))
    });
    let Some(node) = entered else {
        return run();
    };
    let began = Instant::now();
    let result = run();
    let seconds = began.elapsed().as_secs_f64();
    RECORDER.with_borrow_mut(|recorder| {
        if let Some(recorder) = recorder {
            recorder.leave(node, seconds, flop);
        }
    });
    result
}

impl Recorder {
    /// The place of this name inside the present one, which becomes the present one.
    fn enter(&mut self, name: String, shape: Option<String>) -> usize {
        let here = self.path.last().copied();
        let known = here.and_then(|here| {
            let same = |i: &&usize| self.nodes[**i].name == name && self.nodes[**i].shape == shape;
            self.nodes[here].inside.iter().find(same).copied()
        });
        let node = known.unwrap_or_else(|| {
            let new = self.nodes.len();
            self.nodes.push(Node {
                name,
                shape,
                calls: 0,
                seconds: 0.0,
                flop: 0,
                inside: Vec::new(),
            });
            if let Some(here) = here {
                self.nodes[here].inside.push(new);
            }
            new
        });
        self.path.push(node);
        node
    }

    fn leave(&mut self, node: usize, seconds: f64, flop: u64) {
        // Elsewhere only in a recording that was begun inside of `node`.
        if self.path.last() == Some(&node) {
            self.path.pop();
            let node = &mut self.nodes[node];
            node.calls += 1;
            node.seconds += seconds;
            node.flop += flop;
        }
    }

    fn entry(&self, index: usize) -> ProfileEntry {
        let node = &self.nodes[index];
        let inside: Vec<ProfileEntry> = node.inside.iter().map(|i| self.entry(*i)).collect();
        ProfileEntry {
            name: node.name.clone(),
            shape: node.shape.clone(),
            calls: node.calls,
            seconds: node.seconds,
            flop: node.flop + inside.iter().map(|e| e.flop).sum::<u64>(),
            inside,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancel::{Cancel, Cancelled};

    fn work() -> u32 {
        for block in 0..2 {
            scope(format_args!("blocks.{block}"), || {
                for _ in 0..3 {
                    operator("linear", format_args!("{}x8", 2 + block), 10, || ());
                }
                operator("silu", 16, 0, || ());
            })
            .unwrap();
        }
        scope("blocks.0", || operator("linear", "2x8", 10, || 7)).unwrap()
    }

    #[test]
    fn calls_and_operations_are_counted_where_they_ran() {
        let (result, profile) = record(work);
        assert_eq!(result, 7);
        let names: Vec<&str> = profile.inside.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(names, ["blocks.0", "blocks.1"]);
        let first = &profile.inside[0];
        assert_eq!((first.calls, first.flop), (2, 40));
        assert_eq!((first.inside[0].calls, first.inside[0].flop), (4, 40));
        assert_eq!(profile.flop, 70);
        let totals = profile.operators(false);
        let linear = totals.iter().find(|t| t.name == "linear").unwrap();
        assert_eq!((linear.calls, linear.flop), (7, 70));
        let by_shape = profile.operators(true);
        let calls = |shape: &str| {
            let same = |t: &&Total| t.name == "linear" && t.shape.as_deref() == Some(shape);
            by_shape.iter().find(same).unwrap().calls
        };
        assert_eq!((calls("2x8"), calls("3x8")), (4, 3));
    }

    #[test]
    fn times_inside_add_up_to_no_more_than_the_time_around() {
        let pause = || std::thread::sleep(std::time::Duration::from_millis(2));
        let ((), profile) = record(|| {
            scope("outer", || {
                operator("a", 1, 0, pause);
                pause();
                scope("inner", || operator("b", 1, 0, pause)).unwrap();
            })
            .unwrap();
        });
        fn check(entries: &[ProfileEntry], around: f64) {
            let sum: f64 = entries.iter().map(|e| e.seconds).sum();
            assert!(sum <= around, "{sum} inside of {around}");
            for entry in entries {
                assert!(entry.seconds >= 0.002, "{entry:?}");
                check(&entry.inside, entry.seconds);
            }
        }
        check(&profile.inside, profile.seconds);
        let outer = &profile.inside[0];
        let inside: f64 = outer.inside.iter().map(|e| e.seconds).sum();
        assert!(outer.seconds - inside >= 0.002, "the pause of its own");
    }

    #[test]
    fn nothing_is_named_or_kept_outside_of_a_recording() {
        struct Unnamed;
        impl Display for Unnamed {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                panic!("a name was made");
            }
        }
        let made = scope(Unnamed, || operator("x", Unnamed, 1, || 3));
        assert_eq!(made, Ok(3));
        let ((), empty) = record(|| ());
        assert!(empty.inside.is_empty());
    }

    #[test]
    fn a_cancelled_scope_gives_nothing_and_begins_none() {
        let token = Cancel::new();
        let (made, profile) = record(|| {
            token.run(|| {
                let first = scope("first", || {
                    token.cancel();
                    7
                });
                (first, scope("second", || panic!("it was cancelled before")))
            })
        });
        assert_eq!(made, (Err(Cancelled), Err(Cancelled)));
        // The first took time all the same, and the recording is where it was.
        let names: Vec<&str> = profile.inside.iter().map(|e| e.name.as_str()).collect();
        assert_eq!((names, profile.inside[0].calls), (vec!["first"], 1));
    }

    #[test]
    fn a_panic_ends_the_recording() {
        let failed = std::panic::catch_unwind(|| record(|| scope("a", || panic!("on purpose"))));
        assert!(failed.is_err());
        assert!(RECORDER.take().is_none());
    }
}
