//! Networks that run on the [`Meta`] device, to know what they take before they are read.
//!
//! It is the networks' own code that runs, from reading the weights to the last operator: only the
//! kernels are left out, and the values. So the bytes are those of a run by construction, and what
//! changes in a network or in the way weights are read changes here with it. That takes some
//! milliseconds.

use std::sync::Arc;

use crate::cancel::{Cancel, OrCancelled};
use crate::device::{CountedBytes, MemoryKind, Meta};
use crate::error::Result;
use crate::model::config::VAE_FACTOR;
use crate::model::unet::UNet;
use crate::model::vae::Vae;
use crate::precision::Precision;
use crate::profile;
use crate::tensor::{DType, Tensor};
use crate::text::clip::ClipTextModel;
use crate::weights::Loader;
use crate::weights::{Checkpoint, Part};

/// The memory and the operations that a piece of work takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WorkCost {
    /// The most bytes at once, of weights, tensors, and what kernels work in.
    pub peak: u64,
    /// Bytes that kernels keep for other work.
    pub scratch: u64,
    /// Operations, as a profile counts them.
    pub flop: u64,
    /// Bytes of weights that are packed meanwhile, where they do not stay in memory.
    pub packed: u64,
}

/// A network on the meta device.
pub struct Rehearsed<T> {
    network: T,
    meta: Arc<Meta>,
    loading: WorkCost,
    /// Biases, and the scales and shifts of norms, which stay in any case.
    _vectors: CountedBytes,
}

impl<T> Rehearsed<T> {
    fn load(
        checkpoint: &Checkpoint,
        part: Part,
        precision: Precision,
        streamed: bool,
        load: impl FnOnce(&Loader<'_>) -> Result<T>,
    ) -> Result<Self> {
        let meta = Arc::new(Meta::default());
        let meter = meta.meter();
        let tensors = checkpoint.on(meta.clone()).tensors(part)?;
        let vectors = (tensors.iter())
            .filter(|(_, tensor)| tensor.shape().len() == 1)
            .map(|(_, tensor)| tensor.values() * size_of::<f32>());
        let vectors = meter.count(MemoryKind::Weights, vectors.sum());
        let loader = Loader::new(&tensors, precision).streamed(streamed);
        let network = load(&loader)?;
        let loading = WorkCost {
            peak: meter.take_peak() as u64,
            packed: meter.packed() as u64,
            ..WorkCost::default()
        };
        Ok(Rehearsed {
            network,
            meta,
            loading,
            _vectors: vectors,
        })
    }

    /// Bytes of weights that are in memory as long as the network is.
    pub fn weights(&self) -> u64 {
        self.meta.meter().weights() as u64
    }

    /// Gives the work of reading the network.
    pub fn loading(&self) -> WorkCost {
        self.loading
    }

    fn work<R>(&self, run: impl FnOnce(&T) -> OrCancelled<R>) -> WorkCost {
        self.work_on(|_| Ok(()), |network, ()| run(network))
    }

    /// Measures the work of `run`. The memory that `prepare` takes is counted too, but not its
    /// operations nor the weights that are packed for it.
    fn work_on<P, R>(
        &self,
        prepare: impl FnOnce(&T) -> OrCancelled<P>,
        run: impl FnOnce(&T, P) -> OrCancelled<R>,
    ) -> WorkCost {
        self.meta.meter().release();
        self.meta.meter().take_peak();
        let prepared = to_its_end(|| prepare(&self.network));
        let packed = self.meta.meter().packed();
        let (_, profile) = profile::record(|| to_its_end(|| run(&self.network, prepared)));
        WorkCost {
            peak: self.meta.meter().take_peak() as u64,
            scratch: self.meta.meter().scratch() as u64,
            flop: profile.flop,
            packed: (self.meta.meter().packed() - packed) as u64,
        }
    }

    fn tensor(&self, shape: &[usize]) -> Tensor {
        self.meta.tensor(shape, DType::F32)
    }
}

/// Runs what takes milliseconds to its end, whatever becomes of the run that it is for: half a count
/// would be of no use.
fn to_its_end<R>(run: impl FnOnce() -> OrCancelled<R>) -> R {
    let made = Cancel::new().run(run);
    made.expect("nobody else has this token, so nobody cancels it")
}

/// A part's network with all its weights, whichever it is.
pub fn weights_of(checkpoint: &Checkpoint, part: Part, precision: Precision) -> Result<u64> {
    Ok(match part {
        Part::UNet => unet(checkpoint, precision, false)?.weights(),
        Part::Vae => vae(checkpoint, precision, false)?.weights(),
        Part::TextEncoder | Part::TextEncoder2 => {
            text_encoder(checkpoint, part, precision, false)?.weights()
        }
    })
}

/// The UNet.
pub fn unet(
    checkpoint: &Checkpoint,
    precision: Precision,
    streamed: bool,
) -> Result<Rehearsed<UNet>> {
    let path = checkpoint.config_path(Part::UNet);
    Rehearsed::load(checkpoint, Part::UNet, precision, streamed, |loader| {
        UNet::load(&checkpoint.unet, &path, loader)
    })
}

impl Rehearsed<UNet> {
    /// An evaluation of so many rows `at_once`, latents of `height` times `width`. Their texts have so
    /// many `tokens`; what the network made of so many `texts` is in memory.
    pub fn evaluation(
        &self,
        at_once: usize,
        (texts, tokens): (usize, usize),
        [height, width]: [usize; 2],
    ) -> WorkCost {
        let config = self.network.config();
        let text =
            |unet: &UNet| unet.text_keys(&self.tensor(&[tokens, config.cross_attention_dim]));
        let prepare = |unet: &UNet| -> OrCancelled<Vec<_>> {
            let keys = (0..texts.max(1)).map(|_| Ok(Arc::new(text(unet)?)));
            keys.collect()
        };
        self.work_on(prepare, |unet, keys| {
            let rows: Vec<_> = keys.iter().cycle().take(at_once).cloned().collect();
            // Pooled text and size ids are one vector by the time they are used.
            let zeros = |n: usize| Tensor::from_f32([at_once, n], vec![0.0; at_once * n]);
            let added = zeros(config.projection_class_embeddings_input_dim);
            let x = self.tensor(&[at_once, height, width, config.in_channels]);
            unet.forward_with(&x, &vec![500.0; at_once], &rows, &added, &zeros(0))
        })
    }

    /// Bytes of the keys and values of a text.
    pub fn text_keys(&self, tokens: usize) -> usize {
        let text = self.tensor(&[tokens, self.network.config().cross_attention_dim]);
        to_its_end(|| self.network.text_keys(&text)).bytes()
    }
}

/// The VAE.
pub fn vae(
    checkpoint: &Checkpoint,
    precision: Precision,
    streamed: bool,
) -> Result<Rehearsed<Vae>> {
    let precision = precision.of_part(Part::Vae, checkpoint.vae.force_upcast);
    Rehearsed::load(checkpoint, Part::Vae, precision, streamed, |loader| {
        Vae::load(&checkpoint.vae, loader)
    })
}

impl Rehearsed<Vae> {
    /// Decoding `count` pictures of `height` times `width` latents at once.
    pub fn decode(&self, count: usize, [height, width]: [usize; 2]) -> WorkCost {
        self.work(|vae| {
            let channels = vae.config().latent_channels;
            vae.decode(&self.tensor(&[count, height, width, channels]))
        })
    }

    /// Encoding a picture of `height` times `width` latents.
    pub fn encode(&self, [height, width]: [usize; 2]) -> WorkCost {
        self.work(|vae| vae.encode(&self.tensor(&[1, VAE_FACTOR * height, VAE_FACTOR * width, 3])))
    }

    /// Side of a tile in latents, where nobody asks for another.
    pub fn tile_size(&self) -> usize {
        self.network.tile_size()
    }
}

/// A text encoder.
pub fn text_encoder(
    checkpoint: &Checkpoint,
    part: Part,
    precision: Precision,
    streamed: bool,
) -> Result<Rehearsed<ClipTextModel>> {
    let config = match (part, &checkpoint.text_encoder) {
        (Part::TextEncoder, Some(config)) => config,
        _ => &checkpoint.text_encoder_2,
    };
    let precision = precision.of_part(part, false);
    Rehearsed::load(checkpoint, part, precision, streamed, |loader| {
        ClipTextModel::load(config, loader, part == Part::TextEncoder2)
    })
}

impl Rehearsed<ClipTextModel> {
    /// Encoding so many sequences at once.
    pub fn encode(&self, sequences: usize) -> WorkCost {
        // Tokens and positions become numbers before they are a tensor.
        let prepare = |model: &ClipTextModel| {
            let config = model.config();
            Ok(self.tensor(&[
                sequences,
                config.max_position_embeddings,
                2 * config.hidden_size,
            ]))
        };
        self.work_on(prepare, |model, _numbers| {
            let ids = vec![0; model.config().max_position_embeddings];
            model.forward(&vec![ids; sequences], 1)
        })
    }
}
