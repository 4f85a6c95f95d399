//! Several runs evaluated in one batch of a UNet.

use std::sync::Arc;
use std::time::Instant;

use super::{Done, Run};
use crate::error::{Error, Result};
use crate::model::unet::UNet;
use crate::pipeline::Pipeline;
use crate::pipeline::denoiser::Rows;
use crate::pipeline::event::Event;
use crate::pipeline::run::evaluation::Pending;

/// A run whose rows are in a batch.
struct Member {
    /// The index of this run among all the runs.
    run: usize,
    stage: usize,
    pending: Pending,
    /// The first of its rows, and the number of them.
    rows: (usize, usize),
}

/// Runs that are evaluated at once.
struct Batch {
    unet: Arc<UNet>,
    /// Height and width of the latents.
    grid: [usize; 2],
    rows: Rows,
    members: Vec<Member>,
    /// Rows that go through the UNet at once: those of all runs, within what fits in memory.
    at_once: usize,
    /// Rows that fit in memory together, by the run that knows of least.
    most: usize,
}

impl Pipeline {
    /// Does the next piece of every run, as [`Run::step`] does, but evaluates runs together in one batch of
    /// the UNet where they are at an evaluation of the same UNet with latents of the same height and
    /// width, whatever their prompts, seeds, numbers of steps and schedulers. Every run has the
    /// numbers that it has alone, bit for bit.
    ///
    /// The answers are in the order of `runs`; an error is that of one run and leaves the others as
    /// they are. A token of [`Run::cancel_token`] is asked before an evaluation that several runs share, and
    /// not within.
    pub fn step_together<'r>(runs: &'r mut [&mut Run]) -> Vec<Result<Option<Event<'r>>>> {
        let mut done: Vec<Option<Result<Option<Done>>>> = runs.iter().map(|_| None).collect();
        let mut batches: Vec<Batch> = Vec::new();
        for (i, run) in runs.iter_mut().enumerate() {
            let cancel = run.cancel.clone();
            let joined = cancel.run(|| match run.advance(true)? {
                Some(Done::Ready(stage)) => join(&mut batches, i, run, stage).map(|()| None),
                other => Ok(Some(other)),
            });
            // Those that joined a batch are answered with it.
            done[i] = joined.transpose();
        }
        for batch in batches {
            let began = Instant::now();
            let answers = match batch.members.as_slice() {
                [alone] => {
                    let cancel = runs[alone.run].cancel.clone();
                    cancel.run(|| batch.rows.evaluate(&batch.unet, batch.grid, batch.at_once))
                }
                _ => batch.rows.evaluate(&batch.unet, batch.grid, batch.at_once),
            };
            let answers = answers.map_err(|error| error.to_string());
            let seconds = began.elapsed().as_secs_f64();
            let len = answers.as_ref().map_or(0, |a| a.len() / batch.rows.len());
            for Member {
                run,
                stage,
                pending,
                rows: (first, count),
            } in batch.members
            {
                let own = answers
                    .as_ref()
                    .map(|a| &a[first * len..(first + count) * len]);
                let finished = match own {
                    Ok(own) => runs[run].finish_evaluation(stage, pending, own),
                    // The one reason for which an evaluation has no answer.
                    Err(_) => Err(Error::Cancelled),
                };
                done[run] = Some(finished.map(|()| Some(Done::Step(seconds))));
            }
        }
        let answer = |(run, done): (&'r mut &mut Run, Option<Result<Option<Done>>>)| {
            let done = done.expect("every run did something")?;
            let run: &'r Run = run;
            Ok(done.map(|done| run.event(done)))
        };
        runs.iter_mut().zip(done).map(answer).collect()
    }
}

/// Adds the rows of a run to the batch that they belong to.
fn join(batches: &mut Vec<Batch>, index: usize, run: &mut Run, stage: usize) -> Result<()> {
    let mut rows = Rows::default();
    let pending = run.begin_evaluation(stage, &mut rows)?;
    let unet = run.unet();
    let grid = pending.grid();
    let plan = &run.job.plan;
    let (own, most) = (plan.rows[stage], plan.most_rows[stage]);
    let count = rows.len();
    let same = |batch: &&mut Batch| Arc::ptr_eq(&batch.unet, &unet) && batch.grid == grid;
    let batch = match batches.iter_mut().find(same) {
        Some(batch) => {
            batch.most = batch.most.min(most);
            batch.at_once = (batch.at_once + own).min(batch.most);
            batch
        }
        None => {
            batches.push(Batch {
                unet,
                grid,
                rows: Rows::default(),
                members: Vec::new(),
                at_once: own,
                most,
            });
            batches.last_mut().expect("one was added")
        }
    };
    let first = batch.rows.len();
    batch.rows.append(rows);
    batch.members.push(Member {
        run: index,
        stage,
        pending,
        rows: (first, count),
    });
    Ok(())
}
