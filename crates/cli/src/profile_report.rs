//! A profile as tables, and as a picture in the style of flame graphs (Gregg 2016), top down.

use std::fmt::Write;

use sdxl::profile::{Profile, ProfileEntry};

use crate::schedule_plot::escape;

/// Shapes shown below each operator.
const SHAPES: usize = 5;
/// Layers below this share of the time are not listed.
const LEAST: f64 = 0.005;
/// Levels of layers listed.
const LEVELS: usize = 2;

/// Time by operator, with the shapes that took most, then by layer.
pub(crate) fn tables(profile: &Profile) -> String {
    let mut out = String::new();
    let mut row = |name: &str, calls: Option<u64>, seconds: f64, flop: u64| {
        let calls = calls.map_or(String::new(), |n| n.to_string());
        let rate = match flop {
            0 => String::new(),
            flop => format!("{:.1}", flop as f64 / seconds / 1e9),
        };
        let share = 100.0 * seconds / profile.seconds;
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{name:<48}{calls:>8}{seconds:>11.3}{share:>8.1}{rate:>10}"
        );
    };
    let by_shape = profile.operators(true);
    let mut rest = profile.seconds;
    let totals = profile.operators(false);
    for total in &totals {
        rest -= total.seconds;
        row(&total.name, Some(total.calls), total.seconds, total.flop);
        let shapes = by_shape.iter().filter(|t| t.name == total.name);
        for shape in shapes.take(SHAPES) {
            if shape.seconds >= LEAST * profile.seconds {
                let name = format!("  {}", shape.shape.as_deref().unwrap_or_default());
                row(&name, Some(shape.calls), shape.seconds, shape.flop);
            }
        }
    }
    row("(outside of operators)", None, rest, 0);
    row("all", None, profile.seconds, profile.flop);
    let heading = |what: &str| {
        format!(
            "{what:<48}{:>8}{:>11}{:>8}{:>10}\n",
            "calls", "seconds", "%", "GFLOP/s"
        )
    };
    let operators = std::mem::take(&mut out);
    layers(&profile.inside, 0, profile, &mut out);
    format!(
        "{}{operators}\n{}{out}",
        heading("operator"),
        heading("layer")
    )
}

fn layers(entries: &[ProfileEntry], level: usize, profile: &Profile, out: &mut String) {
    for entry in entries.iter().filter(|e| e.shape.is_none()) {
        if level == LEVELS || entry.seconds < LEAST * profile.seconds {
            continue;
        }
        let name = format!("{}{}", "  ".repeat(level), entry.name);
        let share = 100.0 * entry.seconds / profile.seconds;
        let rate = match entry.flop {
            0 => String::new(),
            flop => format!("{:.1}", flop as f64 / entry.seconds / 1e9),
        };
        let _ = writeln!(
            out,
            "{name:<48}{:>8}{:>11.3}{share:>8.1}{rate:>10}",
            entry.calls, entry.seconds
        );
        layers(&entry.inside, level + 1, profile, out);
    }
}

const WIDTH: f64 = 1200.0;
const ROW: f64 = 18.0;
/// About the width of a character.
const CHARACTER: f64 = 6.3;

/// A box for each scope and operator, as wide as its share of the time, below the one that it
/// ran in; a pointer on it tells its numbers.
pub(crate) fn svg(profile: &Profile) -> String {
    fn depth(entries: &[ProfileEntry]) -> usize {
        let below = entries.iter().map(|e| 1 + depth(&e.inside));
        below.max().unwrap_or(0)
    }
    let height = ROW * (depth(&profile.inside) + 1) as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"10.5\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    let label = format!("all: {:.3} s", profile.seconds);
    boxed(&mut out, [0.0, 0.0, WIDTH], "#ddd", &label, &label);
    rows(&mut out, &profile.inside, [0.0, ROW], "", profile.seconds);
    out.push_str("</svg>\n");
    out
}

fn rows(out: &mut String, entries: &[ProfileEntry], [left, top]: [f64; 2], path: &str, whole: f64) {
    let mut x = left;
    for entry in entries {
        let width = WIDTH * entry.seconds / whole;
        let name = match &entry.shape {
            Some(shape) => format!("{} {shape}", entry.name),
            None => entry.name.clone(),
        };
        let full = format!("{path}{name}");
        let mut title = format!(
            "{full}: {} calls, {:.4} s, {:.2} %",
            entry.calls,
            entry.seconds,
            100.0 * entry.seconds / whole
        );
        if entry.flop > 0 {
            let rate = entry.flop as f64 / entry.seconds / 1e9;
            let _ = write!(title, ", {rate:.1} GFLOP/s");
        }
        // Narrower ones cannot be seen.
        if width >= 0.2 {
            boxed(out, [x, top, width], colour(entry), &name, &title);
            rows(
                out,
                &entry.inside,
                [x, top + ROW],
                &format!("{full} / "),
                whole,
            );
        }
        x += width;
    }
}

fn boxed(out: &mut String, [x, y, width]: [f64; 3], fill: &str, label: &str, title: &str) {
    let _ = write!(
        out,
        "<g><title>{}</title><rect x=\"{x:.2}\" y=\"{y:.1}\" width=\"{width:.2}\" height=\"{}\" \
         fill=\"{fill}\" stroke=\"#fff\" stroke-width=\"0.5\"/>",
        escape(title),
        ROW - 1.0
    );
    let fits = (width / CHARACTER) as usize;
    if fits >= 4 {
        let shown: String = label.chars().take(fits - 1).collect();
        let _ = write!(
            out,
            "<text x=\"{:.2}\" y=\"{:.1}\">{}</text>",
            x + 3.0,
            y + 12.5,
            escape(&shown)
        );
    }
    out.push_str("</g>\n");
}

/// Scopes are grey, products warm, the rest blue.
fn colour(entry: &ProfileEntry) -> &'static str {
    match (entry.shape.is_some(), entry.name.as_str()) {
        (false, _) => "#d0d0d0",
        (true, "linear") => "#f2b134",
        (true, "geglu") => "#f08a24",
        (true, "conv2d") => "#e4572e",
        (true, "self_attention" | "cross_attention") => "#d96c8a",
        (true, _) => "#7fb2d9",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile() -> Profile {
        let operator = |name: &str, shape: &str, calls, seconds, flop| ProfileEntry {
            name: name.into(),
            shape: Some(shape.into()),
            calls,
            seconds,
            flop,
            inside: Vec::new(),
        };
        let inside = vec![
            operator("linear", "2x3x4", 5, 2.0, 4_000_000_000),
            operator("silu", "2x<3", 1, 0.5, 0),
        ];
        let block = ProfileEntry {
            name: "blocks.0".into(),
            shape: None,
            calls: 1,
            seconds: 3.0,
            flop: 4_000_000_000,
            inside,
        };
        Profile {
            seconds: 4.0,
            flop: 4_000_000_000,
            inside: vec![block],
        }
    }

    #[test]
    fn tables_show_times_shares_and_rates() {
        let text = tables(&profile());
        let line = |start: &str| -> Vec<String> {
            let found = text.lines().find(|l| l.starts_with(start));
            let words = found.unwrap_or_else(|| panic!("no {start} in\n{text}"));
            words.split_whitespace().map(str::to_string).collect()
        };
        assert_eq!(line("linear"), ["linear", "5", "2.000", "50.0", "2.0"]);
        assert_eq!(line("  2x3x4"), ["2x3x4", "5", "2.000", "50.0", "2.0"]);
        assert_eq!(line("silu"), ["silu", "1", "0.500", "12.5"]);
        assert_eq!(line("(outside")[3..], ["1.500", "37.5"]);
        assert_eq!(line("blocks.0"), ["blocks.0", "1", "3.000", "75.0", "1.3"]);
    }

    #[test]
    fn boxes_lie_inside_the_one_they_ran_in() {
        let text = svg(&profile());
        assert_eq!(text.matches("<rect").count(), 5);
        assert!(text.contains("silu 2x&lt;3"));
        let number = |part: &str, key: &str| -> f64 {
            let rest = part.split(&format!(" {key}=\"")).nth(1).unwrap();
            rest.split('"').next().unwrap().parse().unwrap()
        };
        let boxes: Vec<(f64, f64)> = (text.split("<g>").skip(1))
            .map(|part| (number(part, "x"), number(part, "width")))
            .collect();
        assert_eq!(
            boxes,
            [(0.0, 1200.0), (0.0, 900.0), (0.0, 600.0), (600.0, 150.0)]
        );
    }
}
