//! Other LoRAs for a loaded pipeline: only the layers that change are read again.

use std::sync::Arc;

use super::Pipeline;
use crate::error::Result;
use crate::weights::Part;
use crate::weights::lora::Lora;

impl Pipeline {
    /// This pipeline with these LoRAs in the place of those that it has; none, to take them off.
    ///
    /// Networks that the change does not touch are shared with this one, with the prompts that the
    /// text encoders remember, and of the others all layers that stay as they are. The rest is read
    /// from the checkpoint's files, so that what was taken off leaves no trace: the pictures
    /// are bit for bit those of a pipeline that never had it. A refiner stays.
    ///
    /// ```no_run
    /// # use sdxl::{Lora, Pipeline};
    /// # fn main() -> sdxl::Result<()> {
    /// let plain = Pipeline::open("sdxl").load()?;
    /// let ink = plain.with_loras(&[Lora::new("ink.safetensors", 0.8)])?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) for LoRAs that do not fit the checkpoint.
    pub fn with_loras(&self, loras: &[Lora]) -> Result<Pipeline> {
        let checkpoint = self.checkpoint.with_loras(loras)?;
        let (before, after) = (
            self.checkpoint.files().adapters(),
            checkpoint.files().adapters(),
        );
        let same = |part| before.change_alike(after, part);
        let held = (self.offload, self.budget);
        let mut pipeline = Pipeline::of(checkpoint.clone(), self.precision, held, None);
        for (new, old) in [
            (&mut pipeline.networks, &self.networks),
            (&mut pipeline.streamed, &self.streamed),
        ] {
            // LoRAs may bring words along.
            let same_words = self.checkpoint.files().inversions().words()
                == checkpoint.files().inversions().words();
            if same_words && same(Part::TextEncoder) && same(Part::TextEncoder2) {
                new.text = Arc::clone(&old.text);
            }
            if same(Part::UNet) {
                new.unet = Arc::clone(&old.unet);
            }
            new.vae = Arc::clone(&old.vae);
        }
        pipeline.projector = Arc::clone(&self.projector);
        pipeline.refiner = self.refiner.clone();
        if pipeline.is_pinned() {
            pipeline.networks.load_all()?;
        }
        Ok(pipeline)
    }
}

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use sdxl_testing::golden;

    use super::*;
    use crate::pipeline::Offload;
    use crate::precision::Precision;
    use crate::{Checkpoint, Request};

    fn open(checkpoint: Checkpoint, precision: Precision, offload: Offload) -> Pipeline {
        let pipeline = Pipeline::open(checkpoint).precision(precision);
        pipeline.offload(offload).load().unwrap()
    }

    fn lora(name: &str, scale: f32) -> Lora {
        Lora::new(golden(&format!("lora/{name}.safetensors")), scale)
    }

    fn latents(pipeline: &Pipeline) -> Vec<f32> {
        let request = Request {
            prompt: vec!["a lighthouse".into()],
            seed: vec![5],
            steps: 2,
            ..Request::default()
        };
        let made = pipeline.generate(&request, &mut |_| ControlFlow::Continue(()));
        made.unwrap().latents.to_nchw()
    }

    #[test]
    fn only_what_changes_is_read_and_what_is_taken_off_leaves_no_trace() {
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
            let plain = open(checkpoint, precision, Offload::None);
            let reads = || plain.checkpoint.files().layer_cache().reads();
            let all = reads();
            let without = latents(&plain);

            // The attention of the UNet's way down, and both text encoders.
            let with = plain.with_loras(&[lora("peft", 1.0)]).unwrap();
            let some = reads() - all;
            assert!(0 < some && some < all / 2, "{some} of {all}");
            let peft = latents(&with);
            assert!(peft != without);
            assert!(Arc::ptr_eq(&with.networks.vae, &plain.networks.vae));
            assert!(!Arc::ptr_eq(&with.networks.text, &plain.networks.text));

            // Another scale is another change of the same layers; the same again is none.
            let before = reads();
            let more = with.with_loras(&[lora("peft", 0.5)]).unwrap();
            assert_eq!(reads() - before, some);
            assert!(latents(&more) != peft);
            let before = reads();
            let again = with.with_loras(&[lora("peft", 1.0)]).unwrap();
            assert_eq!(reads() - before, 0);
            assert!(
                Arc::ptr_eq(&again.networks.unet, &with.networks.unet)
                    && Arc::ptr_eq(&again.networks.text, &with.networks.text)
            );

            // One that changes convolutions only leaves prompts remembered.
            let two = with.with_loras(&[lora("peft", 1.0), lora("convolution", 1.0)]);
            let two = two.unwrap();
            assert!(
                Arc::ptr_eq(&two.networks.text, &with.networks.text)
                    && !Arc::ptr_eq(&two.networks.unet, &with.networks.unet)
            );
            let encoded = two.networks.text.get().unwrap().runs();
            assert!(latents(&two) != peft);
            assert_eq!(two.networks.text.get().unwrap().runs(), encoded);

            // One of the two removed: the other alone, as opened with it.
            drop((more, again));
            let convolution = two.with_loras(&[lora("convolution", 1.0)]).unwrap();
            let checkpoint = convolution.checkpoint.clone();
            let options = crate::weights::OpenOptions {
                loras: vec![lora("convolution", 1.0)],
                ..Default::default()
            };
            let fresh = Checkpoint::open_with(checkpoint.root(), &options).unwrap();
            let fresh = open(fresh, precision, Offload::None);
            assert!(latents(&convolution) == latents(&fresh));
            assert!(latents(&two.with_loras(&[lora("peft", 1.0)]).unwrap()) == peft);
            // All removed, and at a scale of 0.
            for none in [vec![], vec![lora("peft", 0.0)]] {
                let bare = two.with_loras(&none).unwrap();
                assert!(latents(&bare) == without);
            }
            // While the plain one is in memory, it is what is found.
            let before = reads();
            two.with_loras(&[]).unwrap();
            assert_eq!(reads() - before, 0);
            // When it is not, only what was changed is read.
            let kept = plain.checkpoint.clone();
            drop((plain, convolution));
            let before = kept.files().layer_cache().reads();
            let bare = with.with_loras(&[]).unwrap();
            assert_eq!(kept.files().layer_cache().reads() - before, some);
            assert!(latents(&bare) == without);
        }
    }

    #[test]
    fn networks_that_come_and_go_and_refiners_take_loras_too() {
        let base = || Checkpoint::open(&golden("base"), None).unwrap();
        let sparing = open(base(), Precision::F32, Offload::Model);
        let staying = open(base(), Precision::F32, Offload::None);
        let without = latents(&sparing);
        let with = sparing.with_loras(&[lora("kohya", 0.7)]).unwrap();
        let changed = latents(&with);
        assert!(changed == latents(&staying.with_loras(&[lora("kohya", 0.7)]).unwrap()));
        assert!(latents(&with.with_loras(&[]).unwrap()) == without && changed != without);

        let refined = Pipeline::open(base()).refiner(golden("refiner"));
        let refined = refined.precision(Precision::F32).load().unwrap();
        let with = refined.with_loras(&[lora("kohya", 0.7)]).unwrap();
        let refiners = [&refined, &with].map(|p| p.refiner().unwrap().pipeline());
        assert!(std::ptr::eq(refiners[0], refiners[1]));
        // Its text encoder is not the one that was changed.
        let texts = [&with, refiners[1]].map(|p| p.networks.text.get().unwrap());
        assert!(!texts[0].share_second(&texts[1]));
    }

    #[test]
    fn a_file_that_was_written_anew_is_another() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("a.safetensors");
        let put = |name: &str, time: u64| {
            std::fs::copy(golden(&format!("lora/{name}.safetensors")), &path).unwrap();
            let file = std::fs::File::options().append(true).open(&path).unwrap();
            let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(time);
            file.set_modified(when).unwrap();
        };
        put("kohya", 1_000_000_000);
        let checkpoint = Checkpoint::open(&golden("base"), None).unwrap();
        let plain = open(checkpoint, Precision::F32, Offload::None);
        let first = plain.with_loras(&[Lora::new(&path, 1.0)]).unwrap();
        std::fs::remove_file(&path).unwrap();
        put("convolution", 1_000_000_001);
        let second = first.with_loras(&[Lora::new(&path, 1.0)]).unwrap();
        let fresh = plain.with_loras(&[lora("convolution", 1.0)]).unwrap();
        assert!(latents(&second) == latents(&fresh) && latents(&second) != latents(&first));
    }
}
