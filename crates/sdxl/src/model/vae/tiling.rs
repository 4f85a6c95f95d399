//! Decoding a large picture in overlapping tiles, so that memory does not grow with it.
//!
//! The tiles, their overlap and the way they are blended are diffusers'
//! (`AutoencoderKL._tiled_decode`), so the numbers are too. Norms see one tile at a
//! time: the picture differs from an untiled one, visibly where a tile's contrast is
//! unlike its neighbours'.

use super::Vae;
use crate::tensor::Tensor;

/// The part of a tile that overlaps the next.
const OVERLAP: f64 = 0.25;

/// A decoded tile, `[height, width, 3]`.
struct Tile {
    height: usize,
    width: usize,
    values: Vec<f32>,
}

impl Vae {
    /// Side of a tile, in latents.
    pub fn tile_size(&self) -> usize {
        let config = self.config();
        let scale = 1 << (config.block_out_channels.len() - 1);
        (config.sample_size.unwrap_or(1024) / scale).max(8)
    }

    /// [`Vae::decode`] of one picture `[1, H, W, C]`, tile by tile.
    pub fn decode_tiled(&self, latents: &Tensor) -> Tensor {
        let scale = 1 << (self.config().block_out_channels.len() - 1);
        let (height, width) = (latents.dim(1), latents.dim(2));
        let tile = self.tile_size();
        let step = (tile as f64 * (1.0 - OVERLAP)) as usize;
        let blend = ((tile * scale) as f64 * OVERLAP) as usize;
        let keep = tile * scale - blend;

        let mut out = vec![0f32; height * scale * width * scale * 3];
        let row_length = width * scale * 3;
        // The row of tiles above, already blended: a tile blends with blended neighbours.
        let mut above: Vec<Tile> = Vec::new();
        for (row, top) in (0..height).step_by(step).enumerate() {
            let mut current: Vec<Tile> = Vec::new();
            for (column, left) in (0..width).step_by(step).enumerate() {
                let mut here = self.decode_tile(latents, top, left, tile);
                if let Some(neighbour) = above.get(column) {
                    blend_down(neighbour, &mut here, blend);
                }
                if let Some(neighbour) = current.last() {
                    blend_right(neighbour, &mut here, blend);
                }
                let kept_width = here.width.min(keep);
                for y in 0..here.height.min(keep) {
                    let from = y * here.width * 3;
                    let to = (row * keep + y) * row_length + column * keep * 3;
                    out[to..to + kept_width * 3]
                        .copy_from_slice(&here.values[from..from + kept_width * 3]);
                }
                current.push(here);
            }
            above = current;
        }
        Tensor::from_f32(vec![1, height * scale, width * scale, 3], out)
    }

    fn decode_tile(&self, latents: &Tensor, top: usize, left: usize, side: usize) -> Tile {
        let (width, channels) = (latents.dim(2), latents.channels());
        let bottom = (top + side).min(latents.dim(1));
        let right = (left + side).min(width);
        let values = latents.to_f32_vec();
        let mut part = Vec::with_capacity((bottom - top) * (right - left) * channels);
        for y in top..bottom {
            let start = (y * width + left) * channels;
            part.extend_from_slice(&values[start..start + (right - left) * channels]);
        }
        let shape = vec![1, bottom - top, right - left, channels];
        let decoded = self.decode(&Tensor::from_f32(shape, part));
        Tile {
            height: decoded.dim(1),
            width: decoded.dim(2),
            values: decoded.to_f32_vec(),
        }
    }
}

fn mix(a: f32, b: f32, step: usize, extent: usize) -> f32 {
    let weight = step as f32 / extent as f32;
    a * (1.0 - weight) + b * weight
}

/// Fades the lower edge of `above` into the upper edge of `tile`.
fn blend_down(above: &Tile, tile: &mut Tile, extent: usize) {
    let extent = extent.min(above.height).min(tile.height);
    let columns = above.width.min(tile.width) * 3;
    for y in 0..extent {
        let from = (above.height - extent + y) * above.width * 3;
        let to = y * tile.width * 3;
        for x in 0..columns {
            tile.values[to + x] = mix(above.values[from + x], tile.values[to + x], y, extent);
        }
    }
}

/// Fades the right edge of `left` into the left edge of `tile`.
fn blend_right(left: &Tile, tile: &mut Tile, extent: usize) {
    let extent = extent.min(left.width).min(tile.width);
    for y in 0..left.height.min(tile.height) {
        for x in 0..extent {
            let from = (y * left.width + left.width - extent + x) * 3;
            let to = (y * tile.width + x) * 3;
            for c in 0..3 {
                tile.values[to + c] = mix(left.values[from + c], tile.values[to + c], x, extent);
            }
        }
    }
}
