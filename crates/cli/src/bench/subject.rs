//! The subjects of a timing: parts of SDXL base with random weights, and inputs for them.

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::bail;
use clap::ValueEnum;
use sdxl::model::attention::TextKeys;
use sdxl::model::config::VAE_FACTOR;
use sdxl::model::unet::UNet;
use sdxl::model::vae::Vae;
use sdxl::noise::Generator;
use sdxl::profile::scope;
use sdxl::tensor::Tensor;
use sdxl::text::clip::ClipTextModel;
use sdxl::weights::Loader;
use sdxl::{Checkpoint, Inputs, Part, Pipeline, Precision, Request, Rng};

/// The work that can be timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Work {
    /// One call of the denoising network
    Unet,
    /// Decoding pictures
    Vae,
    /// Both text encoders on sequences of 77 tokens
    Text,
    /// A whole run: prompt, guided steps, decoding
    Generate,
}

/// Values of SDXL base's weights, part by part.
const WEIGHTS: [(Part, u64); 4] = [
    (Part::TextEncoder, 123_060_480),
    (Part::TextEncoder2, 694_659_840),
    (Part::UNet, 2_567_463_684),
    (Part::Vae, 83_653_863),
];

/// Bytes of the weights that a subject needs.
pub(super) fn weight_bytes(what: Work, precision: Precision) -> u64 {
    let bytes = |(part, values): &(Part, u64)| match (what, part) {
        // As its configuration asks for.
        (Work::Generate, Part::Vae) => values * Precision::F32.bytes(),
        (Work::Generate, _)
        | (Work::Unet, Part::UNet)
        | (Work::Vae, Part::Vae)
        | (Work::Text, Part::TextEncoder | Part::TextEncoder2) => values * precision.bytes(),
        _ => 0,
    };
    WEIGHTS.iter().map(bytes).sum()
}

/// Something loaded, with its inputs.
pub(super) enum Subject {
    Unet {
        unet: Box<UNet>,
        latents: Tensor,
        /// The keys and values of the texts in cross-attention: computed once a run, so not timed.
        texts: Vec<Arc<TextKeys>>,
        pooled: Tensor,
        time_ids: Tensor,
    },
    Vae {
        vae: Box<Vae>,
        latents: Tensor,
    },
    Text {
        first: Box<ClipTextModel>,
        second: Box<ClipTextModel>,
        ids: Vec<Vec<u32>>,
    },
    Generate {
        pipeline: Box<Pipeline>,
        request: Box<Request>,
    },
}

impl Subject {
    /// Pictures of `size` x `size`; `batch` rows, or pictures.
    pub(super) fn new(
        what: Work,
        size: usize,
        batch: usize,
        steps: usize,
        precision: Precision,
    ) -> anyhow::Result<Subject> {
        let checkpoint = Checkpoint::with_random_weights()?;
        let side = size / VAE_FACTOR;
        let mut noise = Generator::new(Rng::TorchCpu, 0);
        let mut normal = |shape: &[usize]| {
            let values = noise.randn(shape.iter().product());
            Tensor::from_f32(shape, values)
        };
        let path = |part: Part| checkpoint.config_path(part);
        Ok(match what {
            Work::Unet => {
                let config = &checkpoint.unet;
                let tensors = checkpoint.tensors(Part::UNet)?;
                let loader = Loader::new(&tensors, precision);
                let ids = [size, size, 0, 0, size, size].map(|n| n as f32);
                let unet = Box::new(UNet::load(config, &path(Part::UNet), &loader)?);
                Subject::Unet {
                    latents: normal(&[batch, side, side, config.in_channels]),
                    texts: (0..batch)
                        .map(|_| normal(&[77, config.cross_attention_dim]))
                        .map(|text| Ok(Arc::new(unet.text_keys(&text)?)))
                        .collect::<sdxl::Result<_>>()?,
                    pooled: normal(&[batch, checkpoint.text_encoder_2.projection_dim]),
                    time_ids: Tensor::from_f32([batch, ids.len()], ids.repeat(batch)),
                    unet,
                }
            }
            Work::Vae => {
                let tensors = checkpoint.tensors(Part::Vae)?;
                let loader = Loader::new(&tensors, precision);
                Subject::Vae {
                    vae: Box::new(Vae::load(&checkpoint.vae, &loader)?),
                    latents: normal(&[batch, side, side, checkpoint.vae.latent_channels]),
                }
            }
            Work::Text => {
                let Some(config) = &checkpoint.text_encoder else {
                    bail!("SDXL base without its first text encoder");
                };
                let (one, two) = (
                    checkpoint.tensors(Part::TextEncoder)?,
                    checkpoint.tensors(Part::TextEncoder2)?,
                );
                let second = &checkpoint.text_encoder_2;
                Subject::Text {
                    first: Box::new(ClipTextModel::load(
                        config,
                        &Loader::new(&one, precision),
                        false,
                    )?),
                    second: Box::new(ClipTextModel::load(
                        second,
                        &Loader::new(&two, precision),
                        true,
                    )?),
                    // Between the tokens of beginning and end some words, then the end again.
                    ids: (0..batch as u32)
                        .map(|row| {
                            let words = (0..20).map(|i| 320 + 97 * i + row);
                            let mut ids: Vec<u32> = [49406].into_iter().chain(words).collect();
                            ids.resize(config.max_position_embeddings, 49407);
                            ids
                        })
                        .collect(),
                }
            }
            Work::Generate => {
                let request = Request {
                    prompt: vec!["a lighthouse at dusk, oil painting".to_string()],
                    seed: vec![0],
                    steps,
                    width: Some(size),
                    height: Some(size),
                    num_images: batch,
                    ..Request::default()
                };
                Subject::Generate {
                    pipeline: Box::new(Pipeline::open(checkpoint).precision(precision).load()?),
                    request: Box::new(request),
                }
            }
        })
    }

    /// Computes once.
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let finite = match self {
            Subject::Unet {
                unet,
                latents,
                texts,
                pooled,
                time_ids,
            } => {
                let timesteps = vec![500.0; latents.dim(0)];
                let out = scope("unet", || {
                    unet.forward_with(latents, &timesteps, texts, pooled, time_ids)
                })??;
                is_finite(&out)
            }
            Subject::Vae { vae, latents } => {
                is_finite(&scope("vae.decoder", || vae.decode(latents))??)
            }
            Subject::Text { first, second, ids } => {
                let one = scope("text_encoder", || first.forward(ids, 1))??;
                let two = scope("text_encoder_2", || second.forward(ids, 1))??;
                is_finite(&one.hidden) && is_finite(&two.hidden)
            }
            Subject::Generate { pipeline, request } => {
                // Work is not finite is refused there.
                let go_on = &mut |_: sdxl::Event<'_>| ControlFlow::Continue(());
                pipeline.prepare(request, Inputs::default())?.start(go_on)?;
                true
            }
        };
        if !finite {
            bail!("the numbers left the range of the precision");
        }
        Ok(())
    }
}

fn is_finite(tensor: &Tensor) -> bool {
    tensor.to_f32_vec().iter().all(|v| v.is_finite())
}
