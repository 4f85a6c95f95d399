//! `sdxl bench`: how fast this machine computes networks of the size of SDXL base. Their weights
//! are random, so no checkpoint is needed; what is timed is checked first.

mod subject;
mod verify;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use sdxl::pipeline::default_precision;
use sdxl::profile::{self, Profile};
use sdxl::{Precision, Size, memory};
use sdxl_kernels::{Arithmetic, Isa, WeightFormat, peak_flops};
use sdxl_kit::files;

use crate::args::names;
use crate::profile_report;
use subject::{Subject, Work};

/// `sdxl bench`
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Work to time
    #[arg(value_enum)]
    what: Work,
    /// Side of the pictures in pixels, a multiple of 8 (`text` has none)
    #[arg(long, value_name = "PIXELS", default_value = "512", value_parser = side)]
    size: usize,
    /// Rows that go through the network together: texts, latents, or pictures for `vae` and
    /// `generate` [default: 2 (a guided picture's) for unet and text, else 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    batch: Option<usize>,
    /// Precision of the networks [default: as in a run: f32 for the VAE, else bf16 where the
    /// processor has it]
    #[arg(long, value_parser = names::<Precision>())]
    precision: Option<Precision>,
    /// Steps of `generate`
    #[arg(long, value_name = "N", default_value = "4", value_parser = positive)]
    steps: usize,
    /// Threads [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = positive)]
    threads: Option<usize>,
    /// Timed repetitions; the median counts [default: 3, for `generate` 1]
    #[arg(long, value_name = "N", value_parser = positive)]
    repeats: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    /// Show where the time went, by operator and by layer
    #[arg(long)]
    profile: bool,
    /// Draw where the time went
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("a whole number from 1 on is wanted".to_string()),
    }
}

fn side(text: &str) -> Result<usize, String> {
    match positive(text) {
        Ok(side) if side.is_multiple_of(8) => Ok(side),
        _ => Err("a multiple of 8 is wanted".to_string()),
    }
}

/// The report of one timing, as the program prints it.
struct Report {
    what: String,
    size: Size,
    batch: usize,
    steps: Option<usize>,
    precision: Precision,
    verified: verify::Errors,
    load_seconds: f64,
    times: Vec<f64>,
    /// Operations of one repetition.
    flop: f64,
    /// Operations per second with all operands in registers.
    peak: f64,
    peak_rss: Option<u64>,
    profile: Profile,
}

/// Runs the command.
pub(crate) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    if let Some(threads) = args.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build_global()
            .context("the threads cannot be started")?;
    }
    if let Some(path) = &args.svg {
        files::check_writable("svg", path, true)?;
    }
    let (what, steps) = (args.what, args.steps);
    let precision = args.precision.unwrap_or(match what {
        Work::Vae => Precision::F32,
        _ => default_precision(),
    });
    let batch = args.batch.unwrap_or(match what {
        Work::Unet | Work::Text => 2,
        Work::Vae | Work::Generate => 1,
    });
    memory::check_fits(
        &format!("SDXL base in {precision}"),
        subject::weight_bytes(what, precision),
        "use another --precision, or a machine with more memory",
    )?;
    err!("verifying the operators");
    let verified = verify::operators(precision)?;
    let arithmetic = match precision.weight_format() {
        WeightFormat::F32 | WeightFormat::F16 => Arithmetic::F32,
        WeightFormat::Bf16 => Arithmetic::Bf16,
        WeightFormat::Int8 => Arithmetic::Int8,
    };
    let peak = peak_flops(arithmetic);
    err!("making random weights");
    let began = Instant::now();
    let subject = Subject::new(what, args.size, batch, steps, precision)?;
    let load_seconds = began.elapsed().as_secs_f64();
    // The first time memory is new; a run of many steps has that in it.
    if what != Work::Generate {
        err!("warming up");
        subject.run()?;
    }
    let repeats = args.repeats.unwrap_or(match what {
        Work::Generate => 1,
        _ => 3,
    });
    err!("timing");
    let (times, profile) = profile::record(|| {
        (0..repeats)
            .map(|_| {
                let began = Instant::now();
                subject.run()?;
                Ok(began.elapsed().as_secs_f64())
            })
            .collect::<anyhow::Result<Vec<f64>>>()
    });
    let report = Report {
        what: format!("{what:?}").to_lowercase(),
        size: Size {
            width: args.size,
            height: args.size,
        },
        batch,
        steps: (what == Work::Generate).then_some(steps),
        precision,
        verified,
        load_seconds,
        times: times?,
        flop: profile.flop as f64 / repeats as f64,
        peak,
        peak_rss: memory::peak(),
        profile,
    };
    if args.json {
        out!("{}", report.json(args.profile));
    } else {
        report.print();
        if args.profile {
            out!("\n{}", profile_report::tables(&report.profile).trim_end());
        }
    }
    if let Some(path) = &args.svg {
        let svg = profile_report::svg(&report.profile);
        files::write_file(path, svg.as_bytes(), true)?;
    }
    Ok(())
}

impl Report {
    /// The median.
    fn seconds(&self) -> f64 {
        let mut sorted = self.times.clone();
        sorted.sort_by(f64::total_cmp);
        let half = sorted.len() / 2;
        match sorted.len() % 2 {
            0 => (sorted[half - 1] + sorted[half]) / 2.0,
            _ => sorted[half],
        }
    }

    fn json(&self, with_profile: bool) -> serde_json::Value {
        let rate = self.flop / self.seconds();
        let mut object = serde_json::json!({
            "what": self.what,
            "width": self.size.width,
            "height": self.size.height,
            "batch": self.batch,
            "steps": self.steps,
            "precision": self.precision,
            "isa": Isa::current().to_string(),
            "threads": rayon::current_num_threads(),
            "seconds": self.seconds(),
            "seconds_each": self.times,
            "load_seconds": self.load_seconds,
            "gflop": self.flop / 1e9,
            "gflop_per_second": rate / 1e9,
            "peak_gflop_per_second": self.peak / 1e9,
            "share_of_peak": rate / self.peak,
            "peak_rss_bytes": self.peak_rss,
            "relative_l2": self.verified.worst(),
        });
        if with_profile {
            object["profile"] = serde_json::json!(self.profile);
        }
        object
    }

    fn print(&self) {
        let steps = self.steps.map_or(String::new(), |n| format!(", {n} steps"));
        let size = match self.what.as_str() {
            "text" => "77 tokens".to_string(),
            _ => self.size.to_string(),
        };
        out!(
            "{}, {size}, batch {}{steps}, {}, {} instructions, {} threads",
            self.what,
            self.batch,
            self.precision,
            Isa::current(),
            rayon::current_num_threads()
        );
        out!("verified     {}", self.verified);
        let each: Vec<String> = self.times.iter().map(|t| format!("{t:.3}")).collect();
        out!(
            "seconds      {:.3} (median of {})",
            self.seconds(),
            each.join(", ")
        );
        out!("operations   {:.1} GFLOP", self.flop / 1e9);
        let rate = self.flop / self.seconds();
        out!(
            "rate         {:.1} GFLOP/s, {:.1} % of this machine's {:.1}",
            rate / 1e9,
            100.0 * rate / self.peak,
            self.peak / 1e9
        );
        if let Some(bytes) = self.peak_rss {
            out!("peak memory  {:.0} MiB", bytes as f64 / f64::from(1 << 20));
        }
        out!("loading      {:.1} s", self.load_seconds);
    }
}
