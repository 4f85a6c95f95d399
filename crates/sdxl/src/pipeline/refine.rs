//! The refiner of a pipeline: its weights are read while the base runs, and what it has in
//! common with the base is in memory once.

use std::sync::Arc;

use super::check::check_refiner;
use super::{Offload, Pipeline};
use crate::error::Result;
use crate::memory;
use crate::weights::{Checkpoint, Part};

/// A refiner.
#[derive(Clone)]
pub struct Refiner {
    pipeline: Arc<Pipeline>,
}

impl Refiner {
    /// Checks the refiner against `base` and, where networks stay in memory, starts to read it in
    /// a thread of its own.
    pub fn load_beside(base: &Pipeline, checkpoint: Checkpoint) -> Result<Refiner> {
        check_refiner(&base.checkpoint, &checkpoint)?;
        // Files that are missing are told of now and not after the base has run.
        let mut needed = memory::part_bytes(&checkpoint, Part::UNet, base.precision)?;
        for part in [Part::TextEncoder2, Part::Vae] {
            let bytes = memory::part_bytes(&checkpoint, part, base.precision)?;
            if base.is_pinned()
                && bytes != memory::part_bytes(&base.checkpoint, part, base.precision)?
            {
                needed += bytes;
            }
        }
        if base
            .offload
            .is_none_or(|offload| offload == Offload::Sequential)
        {
            // Plans of runs say what fits.
            needed = 0;
        }
        memory::check_fits(
            &format!("the refiner in {}, beside the base,", base.precision),
            needed,
            "use `precision bf16`, f16 or int8, or run base and refiner one after the other \
             (`output_latents`, then `latents` with `denoising_start`)",
        )?;
        let refiner = Self::lazy_beside(base, checkpoint)?;
        if base.is_pinned() {
            let pipeline = Arc::clone(&refiner.pipeline);
            // Without a thread it is read when it is needed; what goes wrong here does so again
            // then, and is told of.
            let _ = std::thread::Builder::new()
                .name("refiner".into())
                .spawn(move || pipeline.networks.load_all());
        }
        Ok(refiner)
    }

    /// Checks the refiner against `base`; it is loaded when a run first needs it.
    pub fn lazy_beside(base: &Pipeline, checkpoint: Checkpoint) -> Result<Refiner> {
        check_refiner(&base.checkpoint, &checkpoint)?;
        let held = (base.offload, base.budget);
        let pipeline = Arc::new(Pipeline::of(checkpoint, base.precision, held, Some(base)));
        Ok(Refiner { pipeline })
    }

    /// The refiner's configuration.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.pipeline.checkpoint
    }

    /// The refiner as a pipeline of its own.
    pub fn pipeline(&self) -> &Pipeline {
        &self.pipeline
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use sdxl_testing::golden;

    use super::*;
    use crate::precision::Precision;

    #[test]
    fn equal_parts_are_in_memory_once_and_changed_ones_are_not() {
        let open = |path: PathBuf| Checkpoint::open(&path, None).unwrap();
        let load = |refiner: PathBuf| {
            let base = Pipeline::open(open(golden("base"))).refiner(open(refiner));
            base.precision(Precision::F32).load().unwrap()
        };
        let base = load(golden("refiner"));
        let refiner = base.refiner().unwrap().pipeline();
        let vaes = |base: &Pipeline, refiner: &Pipeline| {
            [base, refiner].map(|p| p.networks.vae.get().unwrap())
        };
        let [ours, theirs] = vaes(&base, refiner);
        assert!(Arc::ptr_eq(&ours, &theirs));
        let texts = [&base, refiner].map(|p| p.networks.text.get().unwrap());
        assert!(texts[0].share_second(&texts[1]));

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
        let base = load(dir.path().to_path_buf());
        let refiner = base.refiner().unwrap().pipeline();
        let [ours, theirs] = vaes(&base, refiner);
        assert!(!Arc::ptr_eq(&ours, &theirs));
        let texts = [&base, refiner].map(|p| p.networks.text.get().unwrap());
        assert!(texts[0].share_second(&texts[1]));
    }
}
