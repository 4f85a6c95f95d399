//! `sdxl aspects`: the sizes SDXL was trained at, with their shapes.

use clap::Args;
use sdxl::request::aspect::{self, Aspect};
use sdxl::{Checkpoint, Size};
use sdxl_kit::Model;

/// Shapes beside one another.
const COLUMNS: usize = 5;
/// Characters for each of them.
const WIDTH: usize = 19;

/// `sdxl aspects`
#[derive(Args)]
pub(crate) struct AspectsArgs {
    /// Checkpoint whose sizes to list [default: SDXL's, about 1024x1024]
    #[arg(long, value_name = "DIR")]
    model: Option<std::path::PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Runs the command.
pub(crate) fn run(args: &AspectsArgs) -> anyhow::Result<()> {
    let native = match &args.model {
        None => 1024 * 1024,
        Some(named) => {
            let model = Model::find(Some(named))?;
            Checkpoint::open(model.path(), None)?.unet.native_pixels()
        }
    };
    let sizes: Vec<(Size, Size)> = aspect::buckets(native).collect();
    let names = aspect::NAMES.iter().filter_map(|(name, ratio)| {
        Some((*name, *ratio, name.parse::<Aspect>().ok()?.size(native)))
    });
    if args.json {
        let list: Vec<_> = (sizes.iter())
            .map(|(bucket, own)| {
                serde_json::json!({
                    "width": own.width,
                    "height": own.height,
                    "ratio": bucket.width as f64 / bucket.height as f64,
                })
            })
            .collect();
        let names: Vec<_> = names
            .map(|(name, ratio, size)| {
                serde_json::json!({ "name": name, "aspect": ratio, "width": size.width, "height": size.height })
            })
            .collect();
        out!("{}", serde_json::json!({ "sizes": list, "names": names }));
        return Ok(());
    }
    for row in sizes.chunks(COLUMNS) {
        let shapes: Vec<Vec<String>> = row.iter().map(|(bucket, _)| shape(*bucket)).collect();
        let tallest = shapes.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..tallest {
            // All stand on the same ground.
            let cells = shapes.iter().map(|shape| {
                let above = tallest - shape.len();
                let text = line.checked_sub(above).map_or("", |i| shape[i].as_str());
                format!("{text:<WIDTH$}")
            });
            out!("{}", cells.collect::<String>().trim_end());
        }
        let labels = row.iter().map(|(bucket, own)| {
            let ratio = bucket.width as f64 / bucket.height as f64;
            format!("{:<WIDTH$}", format!("{own} ({ratio:.2})"))
        });
        out!("{}\n", labels.collect::<String>().trim_end());
    }
    for (name, ratio, size) in names {
        out!("--aspect {name:<10} {ratio:<5} {size}");
    }
    Ok(())
}

/// A box of the bucket's shape: a character is about half as wide as high.
fn shape(size: Size) -> Vec<String> {
    let across = (size.width + 64) / 128 - 2;
    let down = (size.height + 128) / 256 - 2;
    let mut lines = vec![format!("┌{}┐", "─".repeat(across))];
    lines.extend(std::iter::repeat_n(
        format!("│{}│", " ".repeat(across)),
        down,
    ));
    lines.push(format!("└{}┘", "─".repeat(across)));
    lines
}
