//! Working on a large picture in overlapping tiles, so that memory does not grow with it.
//!
//! The tiles, their overlap and the way they are blended are diffusers'
//! (`AutoencoderKL._tiled_decode`, `_tiled_encode`), so the numbers are too. Norms see one tile
//! at a time: the result differs from an untiled one, visibly where a tile's contrast is
//! unlike its neighbours'.

use super::Vae;
use crate::cancel::OrCancelled;
use crate::model::config::VAE_FACTOR;
use crate::tensor::Tensor;

/// The part of a tile that overlaps the next.
const OVERLAP: f64 = 0.25;

/// A finished tile, `[height, width, channels]`.
struct Tile {
    height: usize,
    width: usize,
    values: Vec<f32>,
}

/// The sizes of a tile, before and after the network.
struct Sizes {
    /// Side of a tile of the input.
    tile: usize,
    /// From one tile of the input to the next.
    step: usize,
    /// Rows or columns by which neighbouring tiles overlap in the output.
    blend: usize,
    /// Rows or columns that a tile adds to the output.
    keep: usize,
}

impl Sizes {
    fn new(tile_in: usize, tile_out: usize) -> Self {
        let blend = (tile_out as f64 * OVERLAP) as usize;
        Sizes {
            tile: tile_in,
            step: (tile_in as f64 * (1.0 - OVERLAP)) as usize,
            blend,
            keep: tile_out - blend,
        }
    }
}

/// The sizes of the tiles of `height` times `width` latents, with how many there are of each: `tile`
/// times `tile` first, and those that the border cuts.
pub fn tiles_of(grid: [usize; 2], tile: usize) -> Vec<([usize; 2], usize)> {
    let step = Sizes::new(tile, tile).step;
    let [rows, columns] = grid.map(|side| -> Vec<usize> {
        let starts = (0..side).step_by(step);
        starts.map(|start| tile.min(side - start)).collect()
    });
    let mut found: Vec<([usize; 2], usize)> = Vec::new();
    for height in &rows {
        for width in &columns {
            match found
                .iter_mut()
                .find(|(size, _)| size == &[*height, *width])
            {
                Some((_, count)) => *count += 1,
                None => found.push(([*height, *width], 1)),
            }
        }
    }
    found
}

impl Vae {
    /// Side of a tile in latents, unless a request says another.
    pub fn tile_size(&self) -> usize {
        (self.config().sample_size.unwrap_or(1024) / VAE_FACTOR).max(8)
    }

    /// [`Vae::decode`] of one picture `[1, H, W, C]`, by tiles of `tile` times `tile` latents; a
    /// quarter of each lies on the next, so `tile` is a multiple of 4.
    ///
    /// # Errors
    /// As [`Vae::decode`].
    pub fn decode_tiled(&self, latents: &Tensor, tile: usize) -> OrCancelled<Tensor> {
        let scale = VAE_FACTOR;
        let sizes = Sizes::new(tile, tile * scale);
        let size = [latents.dim(1) * scale, latents.dim(2) * scale];
        tiled(latents, size, 3, &sizes, &|part| self.decode(part))
    }

    /// [`Vae::encode`] of one picture `[1, 8H, 8W, 3]`, by tiles as for [`Self::decode_tiled`].
    ///
    /// # Errors
    /// As [`Vae::decode`].
    pub fn encode_tiled(&self, picture: &Tensor, tile: usize) -> OrCancelled<Tensor> {
        let scale = VAE_FACTOR;
        let sizes = Sizes::new(tile * scale, tile);
        let size = [picture.dim(1) / scale, picture.dim(2) / scale];
        let channels = 2 * self.config().latent_channels;
        tiled(picture, size, channels, &sizes, &|part| self.encode(part))
    }
}

/// Runs `network` on every tile of `input` `[1, H, W, C]`, put together to `[1, size.., channels]`.
fn tiled(
    input: &Tensor,
    [out_height, out_width]: [usize; 2],
    channels: usize,
    sizes: &Sizes,
    network: &dyn Fn(&Tensor) -> OrCancelled<Tensor>,
) -> OrCancelled<Tensor> {
    let values = input.to_f32_vec();
    let row_length = out_width * channels;
    let mut out = vec![0f32; out_height * row_length];
    // The row of tiles above, already blended: a tile blends with blended neighbours.
    let mut above: Vec<Tile> = Vec::new();
    for (row, top) in (0..input.dim(1)).step_by(sizes.step).enumerate() {
        let mut current: Vec<Tile> = Vec::new();
        for (column, left) in (0..input.dim(2)).step_by(sizes.step).enumerate() {
            let result = network(&part(&values, input.shape(), [top, left], sizes.tile))?;
            let mut here = Tile {
                height: result.dim(1),
                width: result.dim(2),
                values: result.to_f32_vec(),
            };
            if let Some(neighbour) = above.get(column) {
                blend_down(neighbour, &mut here, sizes.blend, channels);
            }
            if let Some(neighbour) = current.last() {
                blend_right(neighbour, &mut here, sizes.blend, channels);
            }
            let kept_width = here.width.min(sizes.keep) * channels;
            for y in 0..here.height.min(sizes.keep) {
                let from = y * here.width * channels;
                let to = (row * sizes.keep + y) * row_length + column * sizes.keep * channels;
                out[to..to + kept_width].copy_from_slice(&here.values[from..from + kept_width]);
            }
            current.push(here);
        }
        above = current;
    }
    Ok(Tensor::from_f32(
        vec![1, out_height, out_width, channels],
        out,
    ))
}

/// The tile of `values` `[1, H, W, C]` whose corner is at `top`, `left`.
fn part(values: &[f32], shape: &[usize], [top, left]: [usize; 2], side: usize) -> Tensor {
    let (width, channels) = (shape[2], shape[3]);
    let bottom = (top + side).min(shape[1]);
    let right = (left + side).min(width);
    let mut part = Vec::with_capacity((bottom - top) * (right - left) * channels);
    for y in top..bottom {
        let start = (y * width + left) * channels;
        part.extend_from_slice(&values[start..start + (right - left) * channels]);
    }
    Tensor::from_f32(vec![1, bottom - top, right - left, channels], part)
}

fn mix(a: f32, b: f32, step: usize, extent: usize) -> f32 {
    let weight = step as f32 / extent as f32;
    a * (1.0 - weight) + b * weight
}

/// Fades the lower edge of `above` into the upper edge of `tile`.
fn blend_down(above: &Tile, tile: &mut Tile, extent: usize, channels: usize) {
    let extent = extent.min(above.height).min(tile.height);
    let columns = above.width.min(tile.width) * channels;
    for y in 0..extent {
        let from = (above.height - extent + y) * above.width * channels;
        let to = y * tile.width * channels;
        for x in 0..columns {
            tile.values[to + x] = mix(above.values[from + x], tile.values[to + x], y, extent);
        }
    }
}

/// Fades the right edge of `left` into the left edge of `tile`.
fn blend_right(left: &Tile, tile: &mut Tile, extent: usize, channels: usize) {
    let extent = extent.min(left.width).min(tile.width);
    for y in 0..left.height.min(tile.height) {
        for x in 0..extent {
            let from = (y * left.width + left.width - extent + x) * channels;
            let to = (y * tile.width + x) * channels;
            for c in 0..channels {
                tile.values[to + c] = mix(left.values[from + c], tile.values[to + c], x, extent);
            }
        }
    }
}
