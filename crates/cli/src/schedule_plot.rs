//! `sdxl schedulers show --plot`: noise levels and timesteps over a run, drawn as an SVG file.

use std::fmt::Write;

/// The run of one scheduler.
pub(crate) struct Curve {
    /// The name of the curve in the plot.
    pub name: String,
    /// One for each evaluation.
    pub timesteps: Vec<f64>,
    /// One for each evaluation, and that of the result.
    pub sigmas: Vec<f64>,
}

/// Colours that people who see colours differently tell apart (Okabe & Ito 2008), without the
/// yellow, which is hard to see on white.
const COLOURS: [&str; 7] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000",
];
/// Strokes that tell curves apart when the colours begin again.
const DASHES: [&str; 3] = ["none", "7 3", "2 3"];

const WIDTH: f64 = 860.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = WIDTH - 24.0;
const PANEL: f64 = 250.0;
/// Height of the strip under the logarithmic axis for a level of 0.
const ZERO_STRIP: f64 = 22.0;
/// Most evaluations whose points are marked one by one.
const MARKED: usize = 60;

/// A straight line from values to pixels.
struct Axis {
    values: (f64, f64),
    pixels: (f64, f64),
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        let share = (value - self.values.0) / (self.values.1 - self.values.0);
        self.pixels.0 + share * (self.pixels.1 - self.pixels.0)
    }
}

/// A place on an axis and what stands beside it.
struct Tick {
    value: f64,
    label: String,
}

/// The whole file: sigmas above on a logarithmic axis, timesteps below.
pub(crate) fn svg(title: &str, curves: &[Curve]) -> String {
    let legend_rows = curves.len().div_ceil(3);
    let top = 80.0 + 20.0 * legend_rows as f64;
    let below = top + PANEL + 70.0;
    let height = below + PANEL + 56.0;
    let evaluations = curves.iter().map(|c| c.timesteps.len()).max().unwrap_or(1);
    let across = Axis {
        values: (0.0, evaluations.max(1) as f64),
        pixels: (LEFT + 10.0, RIGHT - 10.0),
    };
    let mut out = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" font-family="system-ui, 'DejaVu Sans', sans-serif" font-size="13" fill="#222">
<title>{title}</title>
<rect width="100%" height="100%" fill="#fff"/>
<text x="{LEFT}" y="30" font-size="17" font-weight="600">{title}</text>
"##,
        title = escape(title),
    );
    legend(&mut out, curves);
    sigmas(&mut out, curves, &across, top);
    timesteps(&mut out, curves, &across, below);
    out.push_str("</svg>\n");
    out
}

fn stroke(index: usize) -> (&'static str, &'static str) {
    let dashes = DASHES[index / COLOURS.len() % DASHES.len()];
    (COLOURS[index % COLOURS.len()], dashes)
}

fn legend(out: &mut String, curves: &[Curve]) {
    for (i, curve) in curves.iter().enumerate() {
        let (x, y) = (
            LEFT + (i % 3) as f64 * (RIGHT - LEFT) / 3.0,
            52.0 + 20.0 * (i / 3) as f64,
        );
        let (colour, dashes) = stroke(i);
        let _ = writeln!(
            out,
            r#"<path d="M{x:.1} {y:.1}h24" stroke="{colour}" stroke-width="2.5" stroke-dasharray="{dashes}"/><text x="{:.1}" y="{:.1}">{}</text>"#,
            x + 31.0,
            y + 4.5,
            escape(&curve.name)
        );
    }
}

fn sigmas(out: &mut String, curves: &[Curve], across: &Axis, top: f64) {
    let all = || curves.iter().flat_map(|c| c.sigmas.iter().copied());
    let low = all().filter(|s| *s > 0.0).fold(f64::INFINITY, f64::min);
    let high = all().fold(0.0, f64::max);
    // A little air, and never an empty range.
    let (low, high) = if low.is_finite() {
        (low / 1.25, high * 1.25)
    } else {
        (0.1, 10.0)
    };
    let bottom = top + PANEL;
    let has_zero = all().any(|s| s == 0.0);
    let floor = bottom - if has_zero { ZERO_STRIP } else { 0.0 };
    let up = Axis {
        values: (low.ln(), high.ln()),
        pixels: (floor, top),
    };
    let place = |sigma: f64| {
        if sigma > 0.0 {
            up.at(sigma.ln())
        } else {
            bottom - 8.0
        }
    };
    let mut ticks = decades(low, high);
    if has_zero {
        ticks.push(Tick {
            value: 0.0,
            label: "0".into(),
        });
    }
    frame(out, "noise level (sigma)", across, &ticks, place, top);
    for (i, curve) in curves.iter().enumerate() {
        line(out, i, &curve.sigmas, across, place);
    }
}

fn timesteps(out: &mut String, curves: &[Curve], across: &Axis, top: f64) {
    let all = || curves.iter().flat_map(|c| c.timesteps.iter().copied());
    let (low, high) = (
        all().fold(0.0, f64::min),
        all().fold(f64::NEG_INFINITY, f64::max),
    );
    let high = if high > low { high } else { low + 1.0 };
    let air = 0.03 * (high - low);
    let up = Axis {
        values: (low - air, high + air),
        pixels: (top + PANEL, top),
    };
    let ticks = round_steps(low - air, high + air, 6);
    frame(out, "timestep", across, &ticks, |t| up.at(t), top);
    for (i, curve) in curves.iter().enumerate() {
        line(out, i, &curve.timesteps, across, |t| up.at(t));
    }
    let _ = writeln!(
        out,
        r#"<text x="{:.1}" y="{:.1}" text-anchor="middle">evaluations of the UNet done</text>"#,
        (LEFT + RIGHT) / 2.0,
        top + PANEL + 40.0
    );
}

/// A panel's border, grid, numbers and name.
fn frame(
    out: &mut String,
    name: &str,
    across: &Axis,
    ticks: &[Tick],
    place: impl Fn(f64) -> f64,
    top: f64,
) {
    let bottom = top + PANEL;
    let _ = writeln!(
        out,
        r#"<text x="{LEFT}" y="{:.1}" font-weight="600">{name}</text>"#,
        top - 8.0
    );
    for tick in ticks {
        let y = place(tick.value);
        let _ = writeln!(
            out,
            r##"<path d="M{LEFT} {y:.1}H{RIGHT}" stroke="#e4e4e4"/><text x="{:.1}" y="{:.1}" text-anchor="end" fill="#555">{}</text>"##,
            LEFT - 8.0,
            y + 4.5,
            tick.label
        );
    }
    for tick in round_steps(across.values.0, across.values.1, 10) {
        if tick.value.fract() != 0.0 {
            continue;
        }
        let x = across.at(tick.value);
        let _ = writeln!(
            out,
            r##"<path d="M{x:.1} {top:.1}V{bottom:.1}" stroke="#f0f0f0"/><text x="{x:.1}" y="{:.1}" text-anchor="middle" fill="#555">{}</text>"##,
            bottom + 18.0,
            tick.label
        );
    }
    let _ = writeln!(
        out,
        r##"<rect x="{LEFT}" y="{top:.1}" width="{:.1}" height="{PANEL}" fill="none" stroke="#bbb"/>"##,
        RIGHT - LEFT
    );
}

/// One curve through its points.
fn line(out: &mut String, index: usize, values: &[f64], across: &Axis, place: impl Fn(f64) -> f64) {
    let (colour, dashes) = stroke(index);
    let points: Vec<(f64, f64)> = values
        .iter()
        .enumerate()
        .map(|(i, &v)| (across.at(i as f64), place(v)))
        .collect();
    let path: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.2},{y:.2}"))
        .collect();
    let _ = writeln!(
        out,
        r#"<polyline points="{}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-dasharray="{dashes}"/>"#,
        path.join(" ")
    );
    if values.len() > MARKED {
        return;
    }
    let _ = write!(out, r#"<g fill="{colour}">"#);
    for (x, y) in points {
        let _ = write!(out, r#"<circle cx="{x:.2}" cy="{y:.2}" r="2.6"/>"#);
    }
    out.push_str("</g>\n");
}

/// 1, 2 and 5 times powers of ten between two positive numbers; the powers alone where those would
/// crowd.
fn decades(low: f64, high: f64) -> Vec<Tick> {
    let (first, last) = (low.log10().floor() as i32, high.log10().floor() as i32);
    let factors: &[u32] = if last - first > 4 { &[1] } else { &[1, 2, 5] };
    let mut ticks = Vec::new();
    for power in first..=last {
        for &factor in factors {
            let value = f64::from(factor) * 10f64.powi(power);
            if (low..=high).contains(&value) {
                ticks.push(Tick {
                    value,
                    label: decimal(value, power),
                });
            }
        }
    }
    ticks
}

/// About `count` round numbers between two numbers.
fn round_steps(low: f64, high: f64, count: usize) -> Vec<Tick> {
    let rough = (high - low) / count as f64;
    let power = rough.log10().floor() as i32;
    let unit = 10f64.powi(power);
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|f| f * unit >= 0.999 * rough)
        .unwrap_or(10.0);
    let step = factor * unit;
    let (first, last) = ((low / step).ceil() as i64, (high / step).floor() as i64);
    (first..=last)
        .map(|i| {
            let value = i as f64 * step;
            Tick {
                value,
                label: decimal(value, power),
            }
        })
        .collect()
}

/// A number with as many decimals as its unit, `10^power`, asks for.
fn decimal(value: f64, power: i32) -> String {
    let places = usize::try_from(-power).unwrap_or(0);
    format!("{value:.places$}")
}

/// Text as XML wants it.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(ticks: &[Tick]) -> Vec<&str> {
        ticks.iter().map(|t| t.label.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(
            labels(&decades(0.03, 3.0)),
            ["0.05", "0.1", "0.2", "0.5", "1", "2"]
        );
        assert_eq!(
            labels(&decades(0.02, 5000.0)),
            ["0.1", "1", "10", "100", "1000"]
        );
        assert_eq!(
            labels(&round_steps(0.0, 999.0, 6)),
            ["0", "200", "400", "600", "800"]
        );
        assert_eq!(
            labels(&round_steps(-1.5, 1.1, 6)),
            ["-1.5", "-1.0", "-0.5", "0.0", "0.5", "1.0"]
        );
        assert_eq!(labels(&round_steps(0.0, 1.0, 10)).len(), 11);
    }

    #[test]
    fn every_value_is_a_point_inside_the_picture() {
        let curve = Curve {
            name: "a <b> & c".into(),
            timesteps: vec![999.0, 500.0, 1.0],
            sigmas: vec![4096.0, 1.0, 0.03, 0.0],
        };
        let text = svg("one", &[curve]);
        assert!(text.contains("a &lt;b&gt; &amp; c"));
        assert_eq!(text.matches("<circle").count(), 7);
        assert!(!text.contains("NaN") && !text.contains("inf"));
        for part in text.split("cy=\"").skip(1) {
            let y: f64 = part.split('"').next().unwrap().parse().unwrap();
            assert!((0.0..700.0).contains(&y), "{y}");
        }
    }
}
