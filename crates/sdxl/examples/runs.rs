//! Measures runs of SDXL base with random weights of its true size: what evaluating several together gains
//! and takes, and how soon a run stops.
//!
//! ```sh
//! cargo run --release -p sdxl --example runs -- together 512 4 bf16   # size, runs, precision
//! cargo run --release -p sdxl --example runs -- cancel 1024 bf16
//! ```

use std::error::Error;
use std::time::{Duration, Instant};

use sdxl::{Cancel, Checkpoint, Event, Inputs, Pipeline, Precision, Request, Run, memory};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["together", size, runs, precision] => {
            together(size.parse()?, runs.parse()?, precision.parse()?)
        }
        ["cancel", size, precision] => cancel(size.parse()?, precision.parse()?),
        _ => Err("give `together SIZE RUNS PRECISION` or `cancel SIZE PRECISION`".into()),
    }
}

fn open(precision: Precision) -> sdxl::Result<Pipeline> {
    let checkpoint = Checkpoint::with_random_weights()?;
    Pipeline::open(checkpoint).precision(precision).load()
}

fn prepare(pipeline: &Pipeline, size: usize, seed: u64, steps: usize) -> sdxl::Result<Run> {
    let request = Request {
        prompt: vec![format!("a lighthouse at dusk, number {seed}")],
        seed: vec![seed],
        steps,
        width: Some(size),
        height: Some(size),
        ..Request::default()
    };
    pipeline.prepare(&request, Inputs::default())
}

/// Seconds a run and evaluation, the median: each run alone, one after the other, then all together.
fn together(size: usize, count: u64, precision: Precision) -> Result<(), Box<dyn Error>> {
    // The first evaluation brings memory to hand, so there are more.
    let steps = if size > 512 { 2 } else { 5 };
    let pipeline = open(precision)?;
    let mut alone = Vec::new();
    for seed in 0..count {
        let mut run = prepare(&pipeline, size, seed, steps)?;
        while run.evaluations_done() < steps {
            if let Some(Event::Step(step)) = run.step()? {
                alone.push(step.seconds);
            }
        }
    }
    let before = memory::peak().unwrap_or(0);
    let runs = (0..count).map(|seed| prepare(&pipeline, size, seed, steps));
    let mut runs: Vec<Run> = runs.collect::<sdxl::Result<_>>()?;
    let mut shared = Vec::new();
    while runs.iter().any(|run| run.evaluations_done() < steps) {
        let mut all: Vec<&mut Run> = runs.iter_mut().collect();
        let began = Instant::now();
        let events = Pipeline::step_together(&mut all);
        let seconds = began.elapsed().as_secs_f64();
        let events: Vec<_> = events.into_iter().collect::<sdxl::Result<_>>()?;
        if events
            .iter()
            .all(|event| matches!(event, Some(Event::Step(_))))
        {
            shared.push(seconds / count as f64);
        }
    }
    let peak = memory::peak().unwrap_or(0);
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
    };
    let (alone, shared) = (median(alone), median(shared));
    println!(
        "{count} runs of {size}x{size} in {precision}: {alone:.2} s an evaluation alone, {shared:.2} s \
         together ({:.2} times as fast); peak {} alone, {} together",
        alone / shared,
        memory::bytes(before),
        memory::bytes(peak),
    );
    Ok(())
}

/// Seconds from the cancelling of a run until it answers: at moments of an evaluation, of decoding and
/// of loading.
fn cancel(size: usize, precision: Precision) -> Result<(), Box<dyn Error>> {
    let stop = |what: &str, wait: f64, work: &mut dyn FnMut(&Cancel) -> sdxl::Result<()>| {
        let token = Cancel::new();
        let (sender, receiver) = std::sync::mpsc::channel();
        let (cancelled, far) = (token.clone(), Duration::from_secs_f64(wait));
        std::thread::spawn(move || {
            std::thread::sleep(far);
            cancelled.cancel();
            let _ = sender.send(Instant::now());
        });
        let ended = work(&token);
        let now = Instant::now();
        let at = receiver.recv().unwrap_or(now);
        let said = match ended {
            Err(sdxl::Error::Cancelled) => "",
            _ => " (it was over before)",
        };
        let seconds = now.saturating_duration_since(at).as_secs_f64();
        println!("{what}, {wait:.1} s after its start: stopped after {seconds:.2} s{said}");
        seconds
    };
    let mut worst: f64 = 0.0;
    for wait in [0.5, 2.0, 4.0] {
        let load = &mut |token: &Cancel| token.run(|| open(precision).map(drop));
        worst = worst.max(stop("loading", wait, load));
    }
    let pipeline = open(precision)?;
    let mut run = prepare(&pipeline, size, 1, 2)?;
    // The first evaluation tells how long one takes.
    let mut took = 0.0;
    while run.evaluations_done() < 1 {
        if let Some(Event::Step(step)) = run.step()? {
            took = step.seconds;
        }
    }
    for share in [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95] {
        let evaluate = &mut |token: &Cancel| {
            run.set_cancel_token(token.clone());
            run.step().map(drop)
        };
        worst = worst.max(stop("an evaluation", share * took, evaluate));
    }
    run.set_cancel_token(Cancel::new());
    while !matches!(run.step()?, Some(Event::Decoding { .. })) {}
    for wait in [0.5, 1.5, 3.0, 4.5, 6.0, 8.0, 10.0, 12.0, 14.0] {
        let decode = &mut |token: &Cancel| {
            run.set_cancel_token(token.clone());
            match run.step()? {
                Some(Event::Picture(_)) | None => Ok(()),
                _ => Err(sdxl::Error::Cancelled),
            }
        };
        worst = worst.max(stop("decoding", wait, decode));
    }
    println!("{size}x{size} in {precision}: stopped after {worst:.2} s at the latest");
    Ok(())
}
