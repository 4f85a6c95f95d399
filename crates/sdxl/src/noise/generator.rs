//! PyTorch's generators of random numbers.

use serde::{Deserialize, Serialize};

use super::{mt19937, philox};
use crate::latents::Latents;
use crate::named::named;

/// A number that cannot be used as asked.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum NoiseError {
    /// The number of seeds is neither one nor the number of images.
    #[error("{seeds} seeds for {images} images: give one seed, or one per image")]
    SeedCount {
        /// The number of seeds.
        seeds: usize,
        /// The number of images that are to be drawn.
        images: usize,
    },
    /// No seeds.
    #[error("no seed: give one seed, or one per image")]
    NoSeed,
}

/// Which of PyTorch's generators a seed is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rng {
    /// `torch.Generator("cpu")`: the same noise on every machine, and what pipelines usually use.
    #[default]
    TorchCpu,
    /// `torch.Generator("cuda")` on an H100. Other GPUs give the same noise for tensors of up to
    /// 256 values per block that they hold at once: three images of 1024 x 1024 on an A100 or RTX
    /// 4090, less than one on a T4.
    TorchCuda,
}

named! { Rng:
    TorchCpu, "torch-cpu", "PyTorch's on the CPU, as most pipelines use it";
    TorchCuda, "torch-cuda", "PyTorch's on a GPU (an H100; others give the same for small pictures)";
}

/// A generator of standard normal numbers. It serialises with its position: read back, it goes on
/// exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    seed: u64,
    engine: Engine,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Engine {
    TorchCpu(mt19937::Mt19937),
    TorchCuda(philox::Philox),
}

impl Generator {
    /// `torch.Generator(device).manual_seed(seed)`. The CPU generator uses only the low 32 bits of
    /// the seed.
    pub fn new(rng: Rng, seed: u64) -> Self {
        let engine = match rng {
            Rng::TorchCpu => Engine::TorchCpu(mt19937::Mt19937::new(seed as u32)),
            Rng::TorchCuda => Engine::TorchCuda(philox::Philox::new(seed)),
        };
        Self { seed, engine }
    }

    /// Which of PyTorch's generators this is.
    pub fn rng(&self) -> Rng {
        match self.engine {
            Engine::TorchCpu(_) => Rng::TorchCpu,
            Engine::TorchCuda(_) => Rng::TorchCuda,
        }
    }

    /// The seed it began with.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// `torch.randn(numel, generator=self)` in `f32`: the values of a contiguous tensor in memory
    /// order.
    pub fn randn(&mut self, numel: usize) -> Vec<f32> {
        match &mut self.engine {
            Engine::TorchCpu(engine) => engine.randn(numel),
            Engine::TorchCuda(engine) => engine.randn(numel),
        }
    }

    /// `torch.randn(batch, channels, height, width)`, for a `shape` of `[batch, height, width,
    /// channels]`.
    pub fn randn_latents(&mut self, shape: [usize; 4]) -> Latents {
        Latents::from_nchw(shape, &self.randn(shape.iter().product()))
    }

    /// `torch.randint(0, 2**63 - 1, [])` on the CPU, the number that PyTorch programs draw to seed
    /// something else.
    ///
    /// PyTorch draws such numbers from the CPU generator even where noise is drawn on a GPU; a CUDA
    /// generator answers with the first number of a CPU generator of the same seed, as after
    /// `torch.manual_seed(seed)`.
    pub fn draw_seed(&mut self) -> u64 {
        const RANGE: u64 = (1 << 63) - 1;
        match &mut self.engine {
            Engine::TorchCpu(engine) => engine.next_u64() % RANGE,
            Engine::TorchCuda(_) => mt19937::Mt19937::new(self.seed as u32).next_u64() % RANGE,
        }
    }
}
