//! The pictures of a run, each written as soon as it is decoded: an interruption loses none that
//! is finished.

use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use sdxl::image::{Encoding, Format, Picture};
use sdxl::recipe::{self, FileHash, Recipe};
use sdxl::{Checkpoint, Tiling};
use serde_json::Value;

use crate::hashes::Known;
use crate::output::Destination;

/// The hashes of the weights, and of the refiner's.
type Hashes = (Vec<FileHash>, Option<Vec<FileHash>>);

/// Makes a signed file of a picture's: its format, its bytes, and whether it is a composite.
pub type Sign = dyn Fn(Format, &[u8], bool) -> sdxl::Result<Vec<u8>>;

/// The weights' hashes, found in a thread beside the run.
pub struct Hashing {
    thread: JoinHandle<sdxl::Result<Hashes>>,
    // The thread begins when this is gone.
    held_back: Option<Sender<()>>,
}

impl Hashing {
    /// Makes the thread, which waits for [`Hashing::begin`]: files that are hashed for the first
    /// time are read whole, and while the networks are loaded that would hold them up.
    pub fn new(checkpoint: &Checkpoint, refiner: Option<&Checkpoint>) -> Hashing {
        let (checkpoint, refiner) = (checkpoint.clone(), refiner.cloned());
        let (held_back, wait) = channel();
        let thread = std::thread::spawn(move || {
            // Ends with an error, when the other end goes.
            let _ = wait.recv();
            let known = Known::of_user();
            let hash = |path: &Path| known.hash_file(path);
            let of_refiner = |refiner| recipe::hash_weights(refiner, &hash);
            let refiner_files = refiner.as_ref().map(of_refiner).transpose()?;
            Ok((recipe::hash_weights(&checkpoint, &hash)?, refiner_files))
        });
        Hashing {
            thread,
            held_back: Some(held_back),
        }
    }

    /// Lets it hash: there is time now.
    pub fn begin(&mut self) {
        self.held_back = None;
    }

    fn finish(mut self) -> std::thread::Result<sdxl::Result<Hashes>> {
        self.begin();
        self.thread.join()
    }
}

/// Writes pictures.
pub struct Pictures<'a> {
    /// Where to.
    pub destination: &'a Destination,
    /// How.
    pub encoding: &'a Encoding,
    /// Who signs them.
    pub sign: Option<Box<Sign>>,
    /// The recipe, but for what is known only when a picture is there.
    pub recipe: Recipe,
    /// The hashes that the recipe lacks; gone once they are in it.
    pub hashing: Option<Hashing>,
    /// The recipe that is replayed.
    pub replayed: Option<&'a Recipe>,
    /// The one picture that is wanted, from 0.
    pub only: Option<usize>,
    /// How many are to be written.
    pub count: usize,
    /// What was written: path, seed, prompt and size.
    pub files: Vec<Value>,
    /// Why pictures could not be signed, and where they are without a signature.
    pub unsigned: Option<(String, Vec<String>)>,
}

impl Pictures<'_> {
    /// Writes picture `index` (from 0), if it is wanted.
    pub fn write(
        &mut self,
        index: usize,
        picture: &Picture,
        vae_tiled: bool,
        warn: &mut dyn FnMut(String),
    ) -> anyhow::Result<()> {
        if let Some(hashing) = self.hashing.take() {
            self.take_hashes(hashing, warn);
        }
        if self.only.is_some_and(|one| one != index) {
            return Ok(());
        }
        if vae_tiled {
            // On a machine with more memory too, a replay gives these pictures.
            self.recipe.request.vae_tiling = Tiling::On;
        }
        self.recipe.image_index = index;
        let texts = self.recipe.texts();
        let file = self.encoding.encode(&picture.pixels, &texts)?;
        for warning in file.warnings {
            warn(warning.to_string());
        }
        let number = self.files.len();
        let (count, seed) = (self.count, picture.seed);
        let signed = (self.sign.as_ref())
            .map(|sign| sign(self.encoding.format(), &file.bytes, texts.is_composite()));
        let path = match signed {
            None => (self.destination).write(number, count, seed, &file.bytes)?,
            Some(Ok(bytes)) => self.destination.write(number, count, seed, &bytes)?,
            // It took long to make; without a signature it is still worth having.
            Some(Err(error)) => {
                let path = (self.destination).write_unsigned(number, count, seed, &file.bytes)?;
                let (_, paths) =
                    (self.unsigned).get_or_insert_with(|| (error.to_string(), Vec::new()));
                paths.push(path.display().to_string());
                path
            }
        };
        self.files.push(serde_json::json!({
            "path": path.to_string_lossy(),
            "seed": seed,
            "prompt": self.recipe.request.prompt[picture.prompt_index],
            "width": picture.pixels.width,
            "height": picture.pixels.height,
        }));
        Ok(())
    }

    /// A picture is worth more than its recipe: what cannot be hashed is only said.
    fn take_hashes(&mut self, hashing: Hashing, warn: &mut dyn FnMut(String)) {
        match hashing.finish() {
            Ok(Ok((files, refiner_files))) => {
                self.recipe.files = files;
                if let (Some(refiner), Some(files)) = (&mut self.recipe.refiner, refiner_files) {
                    refiner.files = files;
                }
            }
            failed => {
                let why = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "hashing stopped".to_string(),
                };
                warn(format!("the recipe names no weight files: {why}"));
            }
        }
        if let Some(was) = self.replayed {
            let of_refiner = |r: &Recipe| -> Vec<FileHash> {
                (r.refiner.as_ref()).map_or_else(Vec::new, |r| r.files.clone())
            };
            warn_of_other_weights(&was.files, &self.recipe.files, warn);
            warn_of_other_weights(&of_refiner(was), &of_refiner(&self.recipe), warn);
        }
    }
}

fn warn_of_other_weights(was: &[FileHash], files: &[FileHash], warn: &mut dyn FnMut(String)) {
    if was == files {
        return;
    }
    let changed: Vec<&str> = (files.iter().filter(|f| !was.contains(f)))
        .map(|f| f.name.as_str())
        .collect();
    warn(format!(
        "the recipe was made with other weights, so the picture may differ; changed: {}",
        changed.join(", ")
    ));
}

#[cfg(test)]
mod tests {
    use sdxl::Pixels;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_picture_outlives_its_signature() {
        let dir = tempfile::TempDir::new().unwrap();
        let recipe = json!({
            "version": "1", "model": "m", "precision": "f32", "isa": "avx2", "files": [],
            "scheduler_class": "EulerDiscreteScheduler", "image_index": 0,
            "request": {"prompt": ["a cat"], "seed": [7], "num_images": 2},
        });
        let to = dir.path().join("a.png");
        let destination = Destination::new(Some(&to), Format::Png, 2, false, true).unwrap();
        let encoding = Encoding::new(Format::Png, None).unwrap();
        let mut pictures = Pictures {
            destination: &destination,
            encoding: &encoding,
            // The second file is refused.
            sign: Some(Box::new(|_, file, _| {
                match String::from_utf8_lossy(file).contains("\"image_index\": 1") {
                    true => Err(sdxl::Error::machine("the key is gone")),
                    false => Ok(b"signed".to_vec()),
                }
            })),
            recipe: serde_json::from_value(recipe).unwrap(),
            hashing: None,
            replayed: None,
            only: None,
            count: 2,
            files: Vec::new(),
            unsigned: None,
        };
        let picture = Picture {
            pixels: Pixels::new(1, 1, 3, vec![0; 3]),
            seed: 7,
            prompt_index: 0,
        };
        for index in 0..2 {
            let mut warn = |text: String| panic!("{text}");
            pictures.write(index, &picture, false, &mut warn).unwrap();
        }
        assert_eq!(
            std::fs::read(dir.path().join("a-1.png")).unwrap(),
            b"signed"
        );
        assert!(!dir.path().join("a-2.png").exists());
        let kept = dir.path().join("a-2.unsigned.png");
        assert!(std::fs::read(&kept).unwrap().starts_with(b"\x89PNG"));
        let (why, paths) = pictures.unsigned.unwrap();
        assert!(why.contains("the key is gone"));
        assert_eq!(paths, [kept.display().to_string()]);
    }
}
