//! `sdxl watermark`: look for the invisible watermark, or put it in.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use sdxl::image::read;
use sdxl::image::{Encoding, Format, Texts};
use sdxl::{Pixels, watermark};
use sdxl_kit::{destination, files};

use crate::args::names;
use crate::flags;
use crate::usage;

/// `sdxl watermark`
#[derive(Args)]
pub(crate) struct WatermarkArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say of each picture whether it carries SDXL's invisible watermark
    Detect {
        /// PNG, JPEG or WebP
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Write a picture again with the watermark; what it says about its making is kept
    Embed {
        /// PNG, JPEG or WebP
        file: PathBuf,
        /// The file to write (*.png, *.jpg or *.webp)
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
        /// Format of the picture [default: what the file's name ends in]
        #[arg(long, value_parser = names::<Format>(), ignore_case = true)]
        format: Option<Format>,
        /// Quality of a JPEG, 1 to 100 [default: 90]; makes a WebP lossy
        #[arg(long, value_name = "Q")]
        quality: Option<u8>,
        /// Replace the file if it exists
        #[arg(long)]
        overwrite: bool,
    },
}

impl WatermarkArgs {
    /// Whether errors should be told in JSON too.
    pub(crate) fn wants_json(&self) -> bool {
        matches!(self.command, Command::Detect { json: true, .. })
    }
}

/// Runs the command.
pub(crate) fn run(args: &WatermarkArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Detect { files, json } => detect(files, *json),
        Command::Embed {
            file,
            output,
            format,
            quality,
            overwrite,
        } => {
            let encoding = destination::encoding(Some(output), *format, *quality)?;
            embed(file, output, encoding, *overwrite)
        }
    }
}

fn detect(files: &[PathBuf], json: bool) -> anyhow::Result<()> {
    let mut found = Vec::new();
    for path in files {
        let image = read(path)?;
        let detection = watermark::detect(&image.data, image.width, image.height);
        if !json {
            let verdict = match &detection {
                None => format!(
                    "{}x{} is too small for a watermark",
                    image.width, image.height
                ),
                Some(d) => format!(
                    "{} ({} of {} bits, {:.1} standard deviations)",
                    if d.found() {
                        "watermark"
                    } else {
                        "no watermark"
                    },
                    d.matching,
                    watermark::BITS,
                    d.z
                ),
            };
            out!("{}: {verdict}", path.display());
        }
        found.push(serde_json::json!({
            "path": path.to_string_lossy(),
            "watermark": detection.map(|d| d.found()),
            "bits": detection.map(|d| d.bits.map(u8::from).to_vec()),
            "matching": detection.map(|d| d.matching),
            "z": detection.map(|d| d.z),
        }));
    }
    if json {
        out!("{}", serde_json::json!({ "files": found }));
    }
    Ok(())
}

fn embed(file: &Path, to: &Path, encoding: Encoding, overwrite: bool) -> anyhow::Result<()> {
    files::check_writable("output", to, overwrite)?;
    let image = read(file)?;
    let (width, height) = (image.width, image.height);
    if !watermark::fits(width, height) {
        return Err(usage(format!(
            "{}: {width}x{height} is too small for a watermark; it takes a width of 256 and 65536 pixels",
            file.display()
        )));
    }
    let texts = Texts::read(file)?.unwrap_or_default();
    let mut values: Vec<f32> = (image.data.iter())
        .map(|b| f32::from(*b) / 127.5 - 1.0)
        .collect();
    watermark::embed(&mut values, width, height);
    let marked = Pixels::new(width, height, 3, sdxl::image::to_u8(&values));
    let original = std::fs::read(file).map_err(|e| sdxl::Error::read(file, &e))?;
    let written = encoding.encode_like(&marked, &original, &texts)?;
    for warning in written.warnings {
        err!("{}", flags::of_warning(&warning));
    }
    files::write_file(to, &written.bytes, overwrite)?;
    out!("{}", to.display());
    Ok(())
}
