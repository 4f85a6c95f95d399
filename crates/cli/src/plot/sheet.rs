//! Drawing a contact sheet: grids of pictures with labels, on white.

use noto_sans_mono_bitmap::{
    FontWeight, RasterHeight, RasterizedChar, get_raster, get_raster_width,
};
use sdxl::Pixels;

/// Pictures in rows and columns.
pub(super) struct Grid {
    /// A line above it; empty for none.
    pub heading: String,
    /// Row by row.
    pub pictures: Vec<Pixels>,
}

/// Everything that a sheet shows.
pub(super) struct Sheet {
    /// The paragraphs above the grids, about what all pictures share.
    pub title: Vec<String>,
    /// Over the columns of every grid.
    pub columns: Vec<String>,
    /// Beside the rows of every grid; one empty label for a sheet of one row.
    pub rows: Vec<String>,
    /// One below the other.
    pub grids: Vec<Grid>,
}

/// Pixels around everything, and between a label and what it is for.
const MARGIN: usize = 16;
/// Pixels between pictures.
const GAP: usize = 6;
/// Characters that a row's label, or the label of a column of narrow pictures, may have in a line.
const LABEL: usize = 18;
/// Most lines of a label, and of a paragraph of the title.
const LINES: usize = 4;
const INK: u8 = 0x20;
const FAINT: u8 = 0x60;

impl Sheet {
    /// Draws it.
    pub(super) fn draw(&self) -> Pixels {
        let pictures = || self.grids.iter().flat_map(|g| &g.pictures);
        let cell_width = pictures().map(|p| p.width).max().unwrap_or(1);
        let cell_height = pictures().map(|p| p.height).max().unwrap_or(1);
        let font = Font::beside(cell_width);

        let widest = |labels: &[String]| labels.iter().map(|l| l.chars().count()).max();
        let short = |labels: &[String]| widest(labels).unwrap_or(0).min(LABEL) * font.width;
        // Narrow pictures make room for their label.
        let column = cell_width.max(short(&self.columns));
        let gutter = match short(&self.rows) {
            0 => 0,
            width => width + MARGIN,
        };
        let columns: Vec<Vec<String>> = self.columns.iter().map(|l| font.wrap(l, column)).collect();
        let header = columns.iter().map(Vec::len).max().unwrap_or(0) * font.height;
        let rows: Vec<Vec<String>> = (self.rows.iter())
            .map(|l| font.wrap(l, gutter.saturating_sub(MARGIN)))
            .collect();
        let row = cell_height.max(rows.iter().map(Vec::len).max().unwrap_or(0) * font.height);
        let grid_width = gutter + self.columns.len() * (column + GAP) - GAP;
        // The title has room for words even over one small picture.
        let inner = grid_width.max(40 * font.width);
        let title: Vec<Vec<String>> = self.title.iter().map(|l| font.wrap(l, inner)).collect();
        let title_height = title.iter().map(Vec::len).sum::<usize>() * font.height;
        let heading = |grid: &Grid| {
            let lines = font.wrap(&grid.heading, inner).len();
            lines * font.height + if lines > 0 { MARGIN } else { 0 }
        };
        let body = header + GAP + self.rows.len() * (row + GAP);
        let grids: usize = self.grids.iter().map(|g| heading(g) + body + MARGIN).sum();

        let mut out = Canvas::new(inner + 2 * MARGIN, title_height + grids + 2 * MARGIN);
        let mut y = MARGIN;
        for (i, line) in title.iter().enumerate() {
            let ink = if i == 0 { INK } else { FAINT };
            y = out.lines(&font, line, (MARGIN, y), ink);
        }
        for grid in &self.grids {
            y += MARGIN;
            let after = out.lines(&font, &font.wrap(&grid.heading, inner), (MARGIN, y), INK);
            y += heading(grid);
            debug_assert!(after <= y);
            for (i, label) in columns.iter().enumerate() {
                let left = MARGIN + gutter + i * (column + GAP);
                // Close to the pictures, where labels have different numbers of lines.
                let top = y + header - label.len() * font.height;
                for (j, line) in label.iter().enumerate() {
                    let x = left + (column - font.width_of(line).min(column)) / 2;
                    out.text(&font, line, (x, top + j * font.height), INK);
                }
            }
            y += header + GAP;
            for (i, label) in rows.iter().enumerate() {
                let middle = y + (row - (label.len() * font.height).min(row)) / 2;
                for (j, line) in label.iter().enumerate() {
                    let x = MARGIN + gutter - MARGIN / 2 - font.width_of(line);
                    out.text(&font, line, (x, middle + j * font.height), INK);
                }
                for j in 0..self.columns.len() {
                    let Some(picture) = grid.pictures.get(i * self.columns.len() + j) else {
                        continue;
                    };
                    let left = MARGIN + gutter + j * (column + GAP);
                    let place = (
                        left + (column - picture.width) / 2,
                        y + (row - picture.height) / 2,
                    );
                    out.put(picture, place);
                }
                y += row + GAP;
            }
        }
        out.0
    }
}

/// The picture no larger than `longest` pixels on its longer side, each pixel the mean of the area
/// that it covers.
pub(super) fn reduced(picture: &Pixels, longest: usize) -> Pixels {
    let side = picture.width.max(picture.height);
    if side <= longest {
        return picture.clone();
    }
    let scaled = |n: usize| ((n * longest + side / 2) / side).max(1);
    let (width, height) = (scaled(picture.width), scaled(picture.height));
    let (across, down) = (covers(picture.width, width), covers(picture.height, height));
    let mut rgb = Vec::with_capacity(3 * width * height);
    for rows in &down {
        for columns in &across {
            let mut sums = [0.0f32; 4];
            for &(y, tall) in rows {
                for &(x, wide) in columns {
                    let weight = tall * wide;
                    let pixel = &picture.data[3 * (y * picture.width + x)..][..3];
                    for (sum, &v) in sums.iter_mut().zip(pixel) {
                        *sum += weight * f32::from(v);
                    }
                    sums[3] += weight;
                }
            }
            rgb.extend(sums[..3].iter().map(|s| (s / sums[3]).round() as u8));
        }
    }
    Pixels::new(width, height, 3, rgb)
}

/// For each of `to` equal parts of a line of `from` pixels, the pixels in it and how much of them.
fn covers(from: usize, to: usize) -> Vec<Vec<(usize, f32)>> {
    let size = from as f64 / to as f64;
    (0..to)
        .map(|i| {
            let (start, end) = (i as f64 * size, (i + 1) as f64 * size);
            let last = (end.ceil() as usize).min(from);
            (start as usize..last)
                .map(|x| {
                    let inside = end.min((x + 1) as f64) - start.max(x as f64);
                    (x, inside as f32)
                })
                .collect()
        })
        .collect()
}

/// Letters of one size. All are equally wide.
struct Font {
    size: RasterHeight,
    width: usize,
    height: usize,
}

impl Font {
    /// The size that suits pictures of a width.
    fn beside(cell_width: usize) -> Font {
        let size = if cell_width >= 320 {
            RasterHeight::Size24
        } else {
            RasterHeight::Size16
        };
        Font {
            size,
            width: get_raster_width(FontWeight::Regular, size),
            height: size.val(),
        }
    }

    /// A letter; a question mark in a box where the font has none.
    fn letter(&self, c: char) -> Option<RasterizedChar> {
        let get = |c| get_raster(c, FontWeight::Regular, self.size);
        get(c).or_else(|| get('\u{fffd}')).or_else(|| get('?'))
    }

    fn width_of(&self, line: &str) -> usize {
        line.chars().count() * self.width
    }

    /// Lines of at most `width` pixels, broken between words where that is possible; of what does
    /// not fit into [`LINES`] the last one says so with dots.
    fn wrap(&self, text: &str, width: usize) -> Vec<String> {
        let most = (width / self.width).max(1);
        let mut lines: Vec<String> = Vec::new();
        let mut line = String::new();
        let mut used = 0;
        for word in text.split_whitespace() {
            let mut word: Vec<char> = word.chars().filter(|c| !c.is_control()).collect();
            if used > 0 && used + 1 + word.len() > most {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            if used > 0 {
                line.push(' ');
                used += 1;
            }
            // A word longer than a line is broken where a name has a joint, or else anywhere.
            while used + word.len() > most {
                let room = most - used;
                let joint = (1..=room)
                    .rev()
                    .find(|&end| is_joint(word[end - 1], word[end]));
                let cut = joint.unwrap_or(room);
                line.extend(word.drain(..cut));
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            used += word.len();
            line.extend(word);
        }
        if !line.is_empty() {
            lines.push(line);
        }
        if lines.len() > LINES {
            lines.truncate(LINES);
            if let Some(last) = lines.last_mut() {
                let kept: String = last.chars().take(most.saturating_sub(3)).collect();
                *last = format!("{}...", kept.trim_end());
            }
        }
        lines
    }
}

/// Whether a long name may be broken between two letters.
fn is_joint(before: char, after: char) -> bool {
    matches!(before, '_' | '-' | ',' | '/') || before.is_lowercase() && after.is_uppercase()
}

/// A sheet in the making.
struct Canvas(Pixels);

impl Canvas {
    fn new(width: usize, height: usize) -> Canvas {
        Canvas(Pixels::new(width, height, 3, vec![255; 3 * width * height]))
    }

    /// Lines below one another; gives the height at which they end.
    fn lines(&mut self, font: &Font, lines: &[String], (x, y): (usize, usize), ink: u8) -> usize {
        for (i, line) in lines.iter().enumerate() {
            self.text(font, line, (x, y + i * font.height), ink);
        }
        y + lines.len() * font.height
    }

    fn text(&mut self, font: &Font, line: &str, (x, y): (usize, usize), ink: u8) {
        for (i, letter) in line.chars().map(|c| font.letter(c)).enumerate() {
            let Some(letter) = letter else { continue };
            for (down, row) in letter.rows().enumerate() {
                for (across, &cover) in row.iter().enumerate() {
                    self.darken(x + i * font.width + across, y + down, cover, ink);
                }
            }
        }
    }

    /// Mixes `ink`, a grey, into a pixel.
    fn darken(&mut self, x: usize, y: usize, cover: u8, ink: u8) {
        if x >= self.0.width || y >= self.0.height {
            return;
        }
        let (cover, ink) = (u32::from(cover), u32::from(ink));
        for v in &mut self.0.data[3 * (y * self.0.width + x)..][..3] {
            *v = ((u32::from(*v) * (255 - cover) + ink * cover + 127) / 255) as u8;
        }
    }

    fn put(&mut self, picture: &Pixels, (x, y): (usize, usize)) {
        for (i, row) in picture.data.chunks_exact(3 * picture.width).enumerate() {
            let start = 3 * ((y + i) * self.0.width + x);
            self.0.data[start..start + row.len()].copy_from_slice(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flat(width: usize, height: usize, colour: [u8; 3]) -> Pixels {
        Pixels::new(width, height, 3, colour.repeat(width * height))
    }

    #[test]
    fn labels_are_broken_at_words_and_joints() {
        let font = Font::beside(64);
        let wrap = |text: &str, letters: usize| font.wrap(text, letters * font.width);
        assert_eq!(
            wrap("a red fox in the snow", 9),
            ["a red fox", "in the", "snow"]
        );
        assert_eq!(wrap("dpm++_2m_karras", 10), ["dpm++_2m_", "karras"]);
        let class = wrap("EulerAncestralDiscreteScheduler", 18);
        assert_eq!(class, ["EulerAncestral", "DiscreteScheduler"]);
        assert_eq!(wrap("abcdefgh", 3), ["abc", "def", "gh"]);
        assert_eq!(wrap("a b c d e f", 1), ["a", "b", "c", "..."]);
        assert!(wrap("", 5).is_empty());
        assert_eq!(wrap("ünïcode \u{7}猫", 20), ["ünïcode 猫"]);
    }

    #[test]
    fn pictures_keep_their_mean_when_reduced() {
        let mut picture = flat(10, 4, [0, 100, 200]);
        for (i, v) in picture.data.iter_mut().enumerate() {
            *v = v.wrapping_add((i % 7) as u8);
        }
        let mean =
            |p: &Pixels| p.data.iter().map(|&v| f64::from(v)).sum::<f64>() / p.data.len() as f64;
        let before = mean(&picture);
        let small = reduced(&picture, 3);
        assert_eq!((small.width, small.height), (3, 1));
        assert!((mean(&small) - before).abs() < 1.0);
        assert_eq!(reduced(&picture, 10), picture);
    }

    #[test]
    fn every_picture_is_on_the_sheet_in_its_place() {
        let colour = |i: usize| [(40 * i) as u8, 255, 10];
        let sheet = Sheet {
            title: vec!["a cat".into(), "seed 0".into()],
            columns: vec!["8 steps".into(), "guidance_scale 16".into()],
            rows: vec!["euler".into(), "dpm++_2m_karras".into()],
            grids: (0..2)
                .map(|g| Grid {
                    heading: format!("seed {g}"),
                    pictures: (0..4).map(|i| flat(20, 12, colour(1 + i))).collect(),
                })
                .collect(),
        };
        let drawn = sheet.draw();
        assert_eq!(drawn.data.len(), 3 * drawn.width * drawn.height);
        let pixels: Vec<[u8; 3]> = drawn.data.as_chunks::<3>().0.to_vec();
        let firsts: Vec<usize> = (1..=4)
            .map(|i| {
                let count = pixels.iter().filter(|p| **p == colour(i)).count();
                assert_eq!(count, 2 * 20 * 12, "picture {i}");
                pixels.iter().position(|p| *p == colour(i)).unwrap()
            })
            .collect();
        let column = |i: usize| firsts[i] % drawn.width;
        assert_eq!((column(0), column(1)), (column(2), column(3)));
        assert!(column(0) < column(1) && firsts[1] < firsts[2]);
        // Dark letters are there, and not over the pictures.
        assert!(pixels.iter().any(|p| p[0] < 0x40 && p[0] == p[1]));
    }
}
