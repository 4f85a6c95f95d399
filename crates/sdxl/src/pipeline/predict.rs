//! What the UNet is asked for every image, and its answer with guidance.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

use super::Pipeline;
use super::conditioning::{PromptPair, Weighted};
use super::guidance::{compose, guide};
use crate::cancel::OrCancelled;
use crate::latents::Latents;
use crate::model::attention::TextKeys;
use crate::model::unet::UNet;
use crate::profile;
use crate::request::{Request, Size};
use crate::tensor::Tensor;
use crate::text::Conditioning;
use crate::weights::folder::Checkpoint;

/// Bytes of keys and values of texts that are kept: a full-size model takes 24 MB for 77 tokens in
/// `bf16`. Texts beyond are read anew at every step.
pub(super) const KEPT_KEYS: usize = 256 << 20;

/// Images of a batch at most: a larger one no longer makes the kernels faster.
pub(super) const MOST_IMAGES: usize = 8;

/// What every image of a stage is conditioned on.
pub struct Rows<'a> {
    model: &'a Pipeline,
    unet: &'a UNet,
    request: &'a Request,
    prompts: &'a [PromptPair],
    ids: SizeIds,
    /// Rows that go through the network together: images, each with as many rows as its guidance
    /// and its prompt take, or rows of one image.
    at_once: usize,
    /// What the UNet made of texts so far.
    keys: RefCell<Vec<(&'a Conditioning, Arc<TextKeys>)>>,
}

impl<'a> Rows<'a> {
    /// Pictures of `size`, made by `model` with its `unet` from noise or from something else, so
    /// many rows `at_once`, which changes no number.
    pub fn new(
        model: &'a Pipeline,
        unet: &'a UNet,
        request: &'a Request,
        prompts: &'a [PromptPair],
        size: Size,
        from_noise: bool,
        at_once: usize,
    ) -> Self {
        Rows {
            model,
            unet,
            request,
            prompts,
            ids: SizeIds::new(&model.checkpoint, request, size, from_noise),
            at_once,
            keys: RefCell::default(),
        }
    }

    /// Keys and values of a text: computed once, as long as there is room for them.
    fn keys_of(&self, text: &'a Conditioning) -> OrCancelled<Arc<TextKeys>> {
        let mut known = self.keys.borrow_mut();
        if let Some((_, keys)) = known.iter().find(|(t, _)| std::ptr::eq(*t, text)) {
            return Ok(Arc::clone(keys));
        }
        let width = self.model.checkpoint.unet.cross_attention_dim;
        let shape = vec![text.tokens(width), width];
        let context = Tensor::from_f32(shape, text.context.clone());
        let keys = Arc::new(self.unet.text_keys(&context)?);
        let kept: usize = known.iter().map(|(_, keys)| keys.bytes()).sum();
        if kept + keys.bytes() <= KEPT_KEYS {
            known.push((text, Arc::clone(&keys)));
        }
        Ok(keys)
    }

    /// The request.
    pub fn request(&self) -> &Request {
        self.request
    }

    /// The prediction for all images, `input` `[N, H, W, C]`, guided by `scale` or, without
    /// one, for the prompt alone, as it is at `step` (from 0).
    ///
    /// # Errors
    /// [`crate::Cancelled`].
    pub fn predict(
        &self,
        input: &Latents,
        timestep: f64,
        scale: Option<f32>,
        step: usize,
    ) -> OrCancelled<Latents> {
        let [images, height, width, _] = input.shape();
        let channels = self.model.checkpoint.unet.out_channels;
        let mut prediction = Vec::with_capacity(images * height * width * channels);
        let text_width = self.model.checkpoint.unet.cross_attention_dim;
        let tokens = |image: usize| self.prompt(image).tokens(text_width);
        // Several parts are summed as differences from the negative side, guided or not.
        let positive = |image: usize| self.prompt(image).positive(step);
        let two_sided = scale.is_some() || (0..images).any(|image| is_composed(positive(image)));
        let most = (0..images).map(|image| positive(image).len()).max();
        let rows = most.unwrap_or(1) + usize::from(two_sided);
        let group = (self.at_once / rows).max(1);
        let mut first = 0;
        while first < images {
            // Texts of different lengths cannot go together.
            let together = (first..images.min(first + group))
                .take_while(|image| tokens(*image) == tokens(first));
            let group = first..first + together.count();
            first = group.end;
            let sides: &[bool] = if two_sided { &[false, true] } else { &[true] };
            prediction.extend(self.predict_group(input, timestep, scale, step, group, sides)?);
        }
        Ok(Latents::new([images, height, width, channels], prediction))
    }

    /// The prompt that an image is of.
    fn prompt(&self, image: usize) -> &'a PromptPair {
        &self.prompts[image / self.request.num_images]
    }

    /// Images of the range `group`; of `sides`, false is uncond and true cond.
    fn predict_group(
        &self,
        input: &Latents,
        timestep: f64,
        scale: Option<f32>,
        step: usize,
        group: Range<usize>,
        sides: &[bool],
    ) -> OrCancelled<Vec<f32>> {
        let [images, height, width, channels] = input.shape();
        let positive = |image: usize| self.prompt(image).positive(step);
        let (mut values, mut ids) = (Vec::new(), Vec::new());
        let mut text: Vec<&'a Conditioning> = Vec::new();
        let size = height * width * channels;
        for (side, &is_positive) in sides.iter().enumerate() {
            for image in group.clone() {
                let negative = if self.ids.alternate {
                    sides.len() == 2 && (side * images + image).is_multiple_of(2)
                } else {
                    !is_positive
                };
                let texts: Vec<&'a Conditioning> = if is_positive {
                    positive(image).iter().map(|(_, part)| &**part).collect()
                } else {
                    vec![self.prompt(image).negative(step)]
                };
                for part in texts {
                    values.extend_from_slice(&input.data()[image * size..(image + 1) * size]);
                    text.push(part);
                    ids.extend(if negative {
                        &self.ids.negative
                    } else {
                        &self.ids.positive
                    });
                }
            }
        }
        let batch = text.len();
        let mut out = Vec::with_capacity(values.len());
        let count = ids.len() / batch;
        for first in (0..batch).step_by(self.at_once) {
            let rows = first..batch.min(first + self.at_once);
            let n = rows.len();
            let text = &text[rows.clone()];
            let keys: Result<Vec<_>, _> = text.iter().map(|text| self.keys_of(text)).collect();
            let keys = keys?;
            let pooled: Vec<f32> = text.iter().flat_map(|text| text.pooled.clone()).collect();
            let pooled = Tensor::from_f32(vec![n, pooled.len() / n], pooled);
            let ids = &ids[rows.start * count..rows.end * count];
            let ids = Tensor::from_f32(vec![n, count], ids.to_vec());
            let values = &values[rows.start * size..rows.end * size];
            let x = Tensor::from_f32(vec![n, height, width, channels], values.to_vec());
            let made = profile::scope("unet", || {
                let timesteps = vec![timestep; n];
                self.unet.forward_with(&x, &timesteps, &keys, &pooled, &ids)
            })??;
            out.extend(made.to_f32_vec());
        }
        if sides.len() == 2 {
            let size = out.len() / batch;
            let mut cond = out.split_off(group.len() * size);
            for (image, u) in group.zip(out.chunks_exact_mut(size)) {
                let parts = positive(image);
                let rest = cond.split_off(parts.len() * size);
                let weights = parts.iter().map(|(weight, _)| *weight);
                let c = compose(u, std::mem::replace(&mut cond, rest), weights);
                match scale {
                    Some(scale) => guide(u, &c, scale, self.request.guidance_rescale),
                    None => u.copy_from_slice(&c),
                }
            }
        }
        Ok(out)
    }
}

/// Whether a positive side is more than the prediction for one text.
fn is_composed(positive: &[Weighted]) -> bool {
    !matches!(positive, [(1.0, _)])
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
