//! The UNet with its conditioning: noisy latents become rows of a batch, and the answers to the rows a
//! guided prediction.

use std::sync::Arc;

use super::conditioning::{PromptPair, Weighted};
use super::guidance::{compose, guide};
use crate::error::Result;
use crate::latents::Latents;
use crate::model::attention::TextKeys;
use crate::model::unet::UNet;
use crate::noise::BatchSlice;
use crate::profile;
use crate::request::{Request, Size};
use crate::tensor::Tensor;
use crate::text::Conditioning;
use crate::weights::Checkpoint;

/// Bytes of keys and values of texts that are kept: a full-size model takes 24 MB for 77 tokens in
/// `bf16`. Texts beyond are read anew at every step.
pub(super) const KEPT_KEYS: usize = 256 << 20;

/// Images of a batch at most: a larger one no longer makes the kernels faster.
pub(super) const MOST_IMAGES: usize = 8;

/// A UNet and everything that the images of a stage are conditioned on.
pub(super) struct Denoiser {
    unet: Arc<UNet>,
    request: Arc<Request>,
    prompts: Arc<[PromptPair]>,
    /// The images of this group, of all of the request.
    part: BatchSlice,
    ids: SizeIds,
    /// The keys and values that the UNet made of texts so far.
    keys: Vec<(Arc<Conditioning>, Arc<TextKeys>)>,
}

/// The place of an evaluation in a stage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// The number that the UNet is told for the noise level.
    pub timestep: f64,
    /// The guidance scale; `None` for the prompt alone.
    pub scale: Option<f32>,
    /// The step on the way from noise to picture, from 0.
    pub step: usize,
}

/// Rows that a UNet evaluates together, each on its own: of one run or of several.
#[derive(Default)]
pub(super) struct Rows {
    /// Latents as the UNet is shown them, `[H, W, C]` a row.
    values: Vec<f32>,
    timesteps: Vec<f64>,
    texts: Vec<Arc<TextKeys>>,
    pooled: Vec<f32>,
    ids: Vec<f32>,
}

impl Denoiser {
    /// A denoiser for the images `part` of a batch, in pictures of `size`, which begin with noise or
    /// with something else.
    pub(super) fn new(
        (checkpoint, unet): (&Checkpoint, Arc<UNet>),
        request: Arc<Request>,
        prompts: Arc<[PromptPair]>,
        part: BatchSlice,
        size: Size,
        from_noise: bool,
    ) -> Self {
        Denoiser {
            ids: SizeIds::new(checkpoint, &request, size, from_noise),
            unet,
            request,
            prompts,
            part,
            keys: Vec::new(),
        }
    }

    /// The UNet.
    pub(super) fn unet(&self) -> &Arc<UNet> {
        &self.unet
    }

    /// The prompt of an image of the group.
    fn prompt(&self, image: usize) -> &PromptPair {
        &self.prompts[(self.part.first + image) / self.request.num_images]
    }

    /// Whether the negative side is evaluated: several parts are summed as differences from it,
    /// guided or not. All images of a request are treated alike.
    fn is_two_sided(&self, moment: Moment) -> bool {
        let composed = |prompt: &PromptPair| is_composed(prompt.positive(moment.step));
        moment.scale.is_some() || self.prompts.iter().any(composed)
    }

    /// Adds the rows of an evaluation of `input`, `[N, H, W, C]`: for each image the negative side,
    /// if there is one, then the parts of the prompt.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub(super) fn add_rows(
        &mut self,
        rows: &mut Rows,
        input: &Latents,
        moment: Moment,
    ) -> Result<()> {
        let two_sided = self.is_two_sided(moment);
        for image in 0..self.part.count {
            let own = image * input.image_len()..(image + 1) * input.image_len();
            let values = &input.data()[own];
            let prompt = self.prompt(image);
            let negative = two_sided.then(|| Arc::clone(prompt.negative(moment.step)));
            let positive = prompt.positive(moment.step).iter();
            let positive = positive.map(|(_, part)| (Side::Positive, Arc::clone(part)));
            let negative = negative.map(|text| (Side::Negative, text));
            let texts: Vec<_> = negative.into_iter().chain(positive).collect();
            for (side, text) in texts {
                rows.values.extend_from_slice(values);
                rows.timesteps.push(moment.timestep);
                rows.pooled.extend_from_slice(&text.pooled);
                let ids = self
                    .ids
                    .of(side, self.part.first + image, two_sided, self.part.of);
                rows.ids.extend_from_slice(ids);
                rows.texts.push(self.keys_of(text)?);
            }
        }
        Ok(())
    }

    /// Keys and values of a text: computed once, as long as there is room for them.
    fn keys_of(&mut self, text: Arc<Conditioning>) -> Result<Arc<TextKeys>> {
        if let Some((_, keys)) = self.keys.iter().find(|(t, _)| Arc::ptr_eq(t, &text)) {
            return Ok(Arc::clone(keys));
        }
        let width = self.unet.config().cross_attention_dim;
        let shape = vec![text.tokens(width), width];
        let context = Tensor::from_f32(shape, text.context.clone());
        let keys = Arc::new(self.unet.text_keys(&context)?);
        let kept: usize = self.keys.iter().map(|(_, keys)| keys.bytes()).sum();
        if kept + keys.bytes() <= KEPT_KEYS {
            self.keys.push((text, Arc::clone(&keys)));
        }
        Ok(keys)
    }

    /// The guided prediction for all images from the UNet's `answers` to their rows, which have
    /// `shape` `[N, H, W, C]`.
    pub(super) fn combine(
        &self,
        mut answers: &[f32],
        shape: [usize; 4],
        moment: Moment,
    ) -> Latents {
        let two_sided = self.is_two_sided(moment);
        let size: usize = shape[1..].iter().product();
        let mut take = |rows: usize| {
            let (taken, rest) = answers.split_at(rows * size);
            answers = rest;
            taken.to_vec()
        };
        let mut prediction = Vec::with_capacity(shape.iter().product());
        for image in 0..self.part.count {
            let parts = self.prompt(image).positive(moment.step);
            if !two_sided {
                prediction.extend(take(1));
                continue;
            }
            let mut uncond = take(1);
            let weights = parts.iter().map(|(weight, _)| *weight);
            let cond = compose(&uncond, take(parts.len()), weights);
            match moment.scale {
                Some(scale) => {
                    guide(&mut uncond, &cond, scale, self.request.guidance_rescale);
                    prediction.extend(uncond);
                }
                None => prediction.extend(cond),
            }
        }
        Latents::new(shape, prediction)
    }
}

impl Rows {
    /// Number of rows.
    pub(super) fn len(&self) -> usize {
        self.timesteps.len()
    }

    /// Adds the rows of another evaluation behind these.
    pub(super) fn append(&mut self, mut other: Rows) {
        self.values.append(&mut other.values);
        self.timesteps.append(&mut other.timesteps);
        self.texts.append(&mut other.texts);
        self.pooled.append(&mut other.pooled);
        self.ids.append(&mut other.ids);
    }

    /// The answers of `unet` to all rows, one after the other: `[H, W, C]` a row, of latents of
    /// `height` and `width`. So many rows go through it `at_once`, which changes no number.
    ///
    /// # Errors
    /// [`Error::Cancelled`](crate::Error::Cancelled).
    pub(super) fn evaluate(
        &self,
        unet: &UNet,
        [height, width]: [usize; 2],
        at_once: usize,
    ) -> Result<Vec<f32>> {
        let count = self.len();
        let of_row = |values: &[f32], rows: std::ops::Range<usize>| -> Vec<f32> {
            let len = values.len() / count;
            values[rows.start * len..rows.end * len].to_vec()
        };
        let mut answers = Vec::new();
        for first in (0..count).step_by(at_once.max(1)) {
            let rows = first..count.min(first + at_once.max(1));
            let n = rows.len();
            let tensor = |values: &[f32], shape: &[usize]| {
                let values = of_row(values, rows.clone());
                let last = values.len() / shape.iter().product::<usize>();
                Tensor::from_f32([shape, &[last]].concat(), values)
            };
            let x = tensor(&self.values, &[n, height, width]);
            let pooled = tensor(&self.pooled, &[n]);
            let ids = tensor(&self.ids, &[n]);
            let (timesteps, texts) = (&self.timesteps[rows.clone()], &self.texts[rows.clone()]);
            let answer = profile::scope("unet", || {
                unet.forward_with(&x, timesteps, texts, &pooled, &ids)
            })??;
            answers.extend(answer.to_f32_vec());
        }
        Ok(answers)
    }
}

/// Whether a positive side is more than the prediction for one text.
fn is_composed(positive: &[Weighted]) -> bool {
    !matches!(positive, [(1.0, _)])
}

/// A side of the guidance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Away from this.
    Negative,
    /// Towards this.
    Positive,
}

/// The numbers besides the text: the original picture's height and width, crop top and left,
/// and the height and width aimed at or, for a refiner, how beautiful the picture is.
struct SizeIds {
    positive: Vec<f32>,
    negative: Vec<f32>,
    /// Text to image of the reference puts the texts into its batch as n n p p but the size ids
    /// as n p n p, so with several images half of them are swapped. It shows only where
    /// negative sizes are given; matched, since numbers are.
    alternate: bool,
}

impl SizeIds {
    /// Gives the size ids of a row of the batch: the row of `side` of the guidance for `image`,
    /// which is counted over all `images` of the request.
    fn of(&self, side: Side, image: usize, two_sided: bool, images: usize) -> &[f32] {
        let negative = if self.alternate {
            let row = match side {
                Side::Negative => image,
                Side::Positive => images + image,
            };
            two_sided && row.is_multiple_of(2)
        } else {
            side == Side::Negative
        };
        match negative {
            true => &self.negative,
            false => &self.positive,
        }
    }

    fn new(checkpoint: &Checkpoint, request: &Request, size: Size, from_noise: bool) -> Self {
        let original = request.original_size.unwrap_or(size);
        let target = request.target_size.unwrap_or(size);
        let crop = request.crops_coords_top_left;
        let negative_crop = request.negative_crops_coords_top_left;
        let negative_original = request.negative_original_size.unwrap_or(original);
        let negative_target = request.negative_target_size.unwrap_or(target);
        let ids = |original: Size, crop: [usize; 2], last: &[f32]| {
            let first = [original.height, original.width, crop[0], crop[1]];
            let first = first.map(|v| v as f32);
            [&first, last].concat()
        };
        let sides = |size: Size| [size.height as f32, size.width as f32];
        let positive = ids(original, crop, &sides(target));
        if checkpoint.requires_aesthetics_score {
            return SizeIds {
                positive: ids(original, crop, &[request.aesthetic_score]),
                negative: ids(
                    negative_original,
                    negative_crop,
                    &[request.negative_aesthetic_score],
                ),
                alternate: false,
            };
        }
        let negative = if !from_noise {
            // Here the reference passes over the negative crop.
            ids(negative_original, crop, &sides(negative_target))
        } else if request.negative_original_size.is_some() && request.negative_target_size.is_some()
        {
            ids(negative_original, negative_crop, &sides(negative_target))
        } else {
            // And here over the negative sizes, unless both are there.
            positive.clone()
        };
        SizeIds {
            positive,
            negative,
            alternate: from_noise,
        }
    }
}
