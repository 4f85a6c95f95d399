//! The refiner of a pipeline: its weights are read while the base runs, and what it has in
//! common with the base is in memory once.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;

use super::Pipeline;
use crate::error::{Error, Result};
use crate::memory;
use crate::model::vae::Vae;
use crate::text::TextEncoders;
use crate::weights::Precision;
use crate::weights::folder::{Checkpoint, Family, Part};
use crate::weights::same::same_part;

/// Refuses a checkpoint that cannot refine what `base` makes.
///
/// # Errors
/// [`Error::File`] naming the folder: no refiner, or other latents.
pub fn check_refiner(base: &Checkpoint, refiner: &Checkpoint) -> Result<()> {
    if base.family() == Family::Refiner {
        return Err(Error::file(
            base.root(),
            "this is a refiner, which finishes a picture and cannot start one from a prompt; give \
             a base checkpoint as the model",
        ));
    }
    if refiner.family() == Family::Base {
        return Err(Error::file(
            refiner.root(),
            "this is a base checkpoint (it has two text encoders), not a refiner; to go over a \
             picture with it, give it as the model, with init_image and strength",
        ));
    }
    check_channels(refiner)?;
    let (ours, theirs) = (&base.vae, &refiner.vae);
    let differing = if ours.latent_channels != theirs.latent_channels {
        Some("latent_channels")
    } else if ours.scaling_factor != theirs.scaling_factor {
        Some("scaling_factor")
    } else if ours.latents_mean != theirs.latents_mean {
        Some("latents_mean")
    } else if ours.latents_std != theirs.latents_std {
        Some("latents_std")
    } else {
        None
    };
    match differing {
        Some(key) => Err(Error::file(
            refiner.config_path(Part::Vae),
            format!(
                "`{key}` is not that of {}: base and refiner must have latents of one scale to hand \
                 them over; use a refiner of the same family",
                base.config_path(Part::Vae).display()
            ),
        )),
        None => Ok(()),
    }
}

fn check_channels(refiner: &Checkpoint) -> Result<()> {
    if refiner.unet.in_channels == refiner.vae.latent_channels {
        return Ok(());
    }
    Err(Error::file(
        refiner.config_path(Part::UNet),
        format!(
            "in_channels is {}, not the {} of the latents, which a refiner has",
            refiner.unet.in_channels, refiner.vae.latent_channels
        ),
    ))
}

/// Parts of a loaded pipeline that another checkpoint may have too.
#[derive(Clone)]
pub struct Shared {
    checkpoint: Checkpoint,
    second: Arc<TextEncoders>,
    vae: Arc<Vae>,
}

impl Shared {
    /// The text encoders of a refiner, where they are the second of the base.
    pub fn text(&self, refiner: &Checkpoint) -> Result<Option<TextEncoders>> {
        let same = !refiner.has(Part::TextEncoder)
            && same_part(&self.checkpoint, refiner, Part::TextEncoder2)?;
        Ok(same.then(|| self.second.second_alone()))
    }

    /// The VAE, where it is that of the base.
    pub fn vae(&self, refiner: &Checkpoint) -> Result<Option<Arc<Vae>>> {
        let same = same_part(&self.checkpoint, refiner, Part::Vae)?;
        Ok(same.then(|| Arc::clone(&self.vae)))
    }
}

/// A refiner that is loaded, or being loaded.
pub struct Refiner {
    checkpoint: Checkpoint,
    precision: Precision,
    shared: Shared,
    loading: Mutex<Option<JoinHandle<Result<Pipeline>>>>,
    loaded: OnceLock<Box<Pipeline>>,
}

impl Refiner {
    /// Checks the refiner against `base` and starts to read it in a thread of its own.
    pub fn load_beside(base: &Pipeline, checkpoint: Checkpoint) -> Result<Refiner> {
        check_refiner(&base.checkpoint, &checkpoint)?;
        // Files that are missing are told of now and not after the base has run.
        let mut needed = memory::of_part(&checkpoint, Part::UNet, base.precision)?;
        for part in [Part::TextEncoder2, Part::Vae] {
            let bytes = memory::of_part(&checkpoint, part, base.precision)?;
            if bytes != memory::of_part(&base.checkpoint, part, base.precision)? {
                needed += bytes;
            }
        }
        memory::check(
            &format!("the refiner in {}, beside the base,", base.precision),
            needed,
            "use --precision bf16 or f16, or run base and refiner one after the other \
             (--output-latents, then --latents with --denoising-start)",
        )?;
        let shared = Shared {
            checkpoint: base.checkpoint.clone(),
            second: Arc::new(base.text.second_alone()),
            vae: Arc::clone(&base.vae),
        };
        let precision = base.precision;
        let thread = {
            let (checkpoint, shared) = (checkpoint.clone(), shared.clone());
            std::thread::Builder::new()
                .name("refiner".into())
                .spawn(move || Pipeline::load_parts(checkpoint, precision, Some(&shared)))
        };
        Ok(Refiner {
            checkpoint,
            precision,
            shared,
            // Without a thread it is loaded when it is needed.
            loading: Mutex::new(thread.ok()),
            loaded: OnceLock::new(),
        })
    }

    /// The refiner's configuration.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The loaded refiner; waits for it where needed.
    pub fn get(&self) -> Result<&Pipeline> {
        if let Some(pipeline) = self.loaded.get() {
            return Ok(pipeline);
        }
        // Held while loading, so that only one of several runs loads.
        let mut loading = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipeline) = self.loaded.get() {
            return Ok(pipeline);
        }
        let pipeline = match loading.take().map(JoinHandle::join) {
            Some(Ok(loaded)) => loaded?,
            Some(Err(_)) => {
                return Err(Error::Machine(
                    "loading the refiner stopped with an error of this program".into(),
                ));
            }
            None => {
                let checkpoint = self.checkpoint.clone();
                Pipeline::load_parts(checkpoint, self.precision, Some(&self.shared))?
            }
        };
        Ok(self.loaded.get_or_init(|| Box::new(pipeline)))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn golden(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join("../../golden")
            .join(name)
    }

    #[test]
    fn equal_parts_are_in_memory_once_and_changed_ones_are_not() {
        let open = |path: PathBuf| Checkpoint::open(&path, None).unwrap();
        let base = Pipeline::from_checkpoint(open(golden("base")), Precision::F32).unwrap();
        let base = base.with_refiner(open(golden("refiner"))).unwrap();
        let refiner = base.refiner().unwrap().get().unwrap();
        assert!(Arc::ptr_eq(&base.vae, &refiner.vae));
        assert!(base.text.share_second(&refiner.text));

        // The same refiner with files of its own, of which the VAE differs in one bit.
        let dir = tempfile::TempDir::new().unwrap();
        let copy = |from: PathBuf, to: PathBuf| {
            std::fs::create_dir_all(to.parent().unwrap()).unwrap();
            std::fs::copy(from, to).unwrap();
        };
        copy(
            golden("refiner/model_index.json"),
            dir.path().join("model_index.json"),
        );
        for folder in ["scheduler", "text_encoder_2", "tokenizer_2", "unet", "vae"] {
            for entry in std::fs::read_dir(golden("refiner").join(folder)).unwrap() {
                let entry = entry.unwrap();
                let to = dir.path().join(folder).join(entry.file_name());
                copy(entry.path(), to);
            }
        }
        let vae = dir.path().join("vae/diffusion_pytorch_model.safetensors");
        let mut bytes = std::fs::read(&vae).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&vae, bytes).unwrap();
        let base = base.with_refiner(open(dir.path().to_path_buf())).unwrap();
        let refiner = base.refiner().unwrap().get().unwrap();
        assert!(!Arc::ptr_eq(&base.vae, &refiner.vae));
        assert!(base.text.share_second(&refiner.text));
    }
}
