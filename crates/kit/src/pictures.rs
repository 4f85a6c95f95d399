//! The pictures of a run, each written with its recipe as soon as it is decoded: an interruption
//! loses none that is finished.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

use sdxl::files::FileHash;
use sdxl::image::{Encoding, Format, Picture};
use sdxl::recipe::Recipe;
use sdxl::warning::WarningKind;
use sdxl::{Checkpoint, VaeTiling, Warning};
use serde::{Serialize, Serializer};

use crate::destination::Destination;
use crate::error::Result;
use crate::hashes::HashCache;
use crate::replay;
use crate::session::Session;

/// The hashes of the weights, and of the refiner's.
type Hashes = (Vec<FileHash>, Option<Vec<FileHash>>);

/// A function that makes a signed file of a picture's: given its format, its bytes, and whether it
/// is a composite.
pub type Sign = dyn Fn(Format, &[u8], bool) -> sdxl::Result<Vec<u8>> + Send;

/// A thread beside the run that finds the hashes of the weights.
pub struct Hashing {
    thread: JoinHandle<Result<Hashes>>,
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
            let cache = HashCache::of_user();
            let of_refiner = |refiner| cache.hash_weights(refiner);
            let refiner_files = refiner.as_ref().map(of_refiner).transpose()?;
            Ok((cache.hash_weights(&checkpoint)?, refiner_files))
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

    fn finish(mut self) -> std::thread::Result<Result<Hashes>> {
        self.begin();
        self.thread.join()
    }
}

/// A picture that was written. As JSON, what a front end tells of it: `path`, `seed`, `prompt`,
/// `width` and `height`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Written {
    /// The file.
    #[serde(serialize_with = "as_text")]
    pub path: PathBuf,
    /// The seed of its noise.
    pub seed: u64,
    /// The prompt, empty where encoded prompts stood for it.
    pub prompt: String,
    /// Pixels from left to right.
    pub width: usize,
    /// Pixels from top to bottom.
    pub height: usize,
    /// Number of the request's pictures, from 0.
    #[serde(skip)]
    pub index: usize,
    /// The reasons why the file is not what was asked for: elsewhere, without hashes in its recipe,
    /// made with other weights than the recipe that is replayed.
    #[serde(skip)]
    pub warnings: Vec<Warning>,
    /// The reason why it bears no signature where one was asked for.
    #[serde(skip)]
    pub unsigned: Option<String>,
    /// Whether it is in the system's folder for temporary files, where it may not last, because its
    /// own could not be written.
    #[serde(skip)]
    pub is_temporary: bool,
}

/// JSON has no other text than Unicode.
fn as_text<S: Serializer>(path: &Path, to: S) -> std::result::Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// A writer of the pictures of one run.
pub struct PictureWriter {
    destination: Destination,
    encoding: Encoding,
    sign: Option<Box<Sign>>,
    // But for what is known only when a picture is there.
    recipe: Recipe,
    // Gone once its hashes are in the recipe.
    hashing: Option<Hashing>,
    replayed: Option<Recipe>,
    only: Option<usize>,
    // Pictures that were written before a run was resumed.
    before: usize,
    written: Vec<Written>,
}

impl PictureWriter {
    /// Makes a writer for the pictures of `recipe` ([`Session::recipe`]).
    pub fn new(destination: Destination, encoding: Encoding, recipe: Recipe) -> PictureWriter {
        PictureWriter {
            destination,
            encoding,
            sign: None,
            recipe,
            hashing: None,
            replayed: None,
            only: None,
            before: 0,
            written: Vec::new(),
        }
    }

    /// Adds the hashes of the session's weights to the recipes. They are found beside the run, from
    /// [`PictureWriter::begin_hashing`] on or when the first picture is written.
    pub fn with_hashes_of(mut self, session: &Session) -> PictureWriter {
        self.hashing = Some(Hashing::new(session.checkpoint(), session.refiner()));
        self
    }

    /// Writes the one picture that a recipe is of ([`replay::only_picture`]; the destination is for
    /// one then), and warns of weights unlike the recipe's.
    pub fn replaying(mut self, was: &Recipe) -> PictureWriter {
        self.only = replay::only_picture(was, &self.recipe.request);
        self.replayed = Some(was.clone());
        self
    }

    /// Goes on where a run was resumed, so many of whose pictures were written before.
    pub fn resuming(mut self, written: usize) -> PictureWriter {
        self.before = written;
        self
    }

    /// Signs the pictures.
    pub fn signed_by(mut self, sign: Box<Sign>) -> PictureWriter {
        self.sign = Some(sign);
        self
    }

    /// Lets the weights be hashed: they are loaded, and steps have begun. May be called at every
    /// step.
    pub fn begin_hashing(&mut self) {
        if let Some(hashing) = &mut self.hashing {
            hashing.begin();
        }
    }

    /// The recipe of the pictures, as far as it is known.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The pictures that were written, in their order.
    pub fn written(&self) -> &[Written] {
        &self.written
    }

    /// Writes picture `index` (from 0) of the run, and says where; nothing where it is not wanted.
    /// `vae_tiled`: whether the VAE decoded it tile by tile.
    ///
    /// # Errors
    /// A picture that its format cannot hold, and [`crate::Error::Unsaved`], which holds the file
    /// where it could be written nowhere.
    pub fn write(
        &mut self,
        index: usize,
        picture: &Picture,
        vae_tiled: bool,
    ) -> Result<Option<&Written>> {
        if self.only.is_some_and(|one| one != index) {
            return Ok(None);
        }
        let mut warnings = Vec::new();
        if let Some(hashing) = self.hashing.take() {
            self.take_hashes(hashing, &mut warnings);
        }
        if vae_tiled {
            // On a machine with more memory too, a replay gives these pictures.
            self.recipe.request.vae_tiling = VaeTiling::On;
        }
        self.recipe.image_index = index;
        let texts = self.recipe.texts();
        let file = self.encoding.encode(&picture.pixels, &texts)?;
        warnings.extend(file.warnings);
        let (number, seed) = (self.before + self.written.len(), picture.seed);
        let signed = (self.sign.as_ref())
            .map(|sign| sign(self.encoding.format(), &file.bytes, texts.is_composite()));
        let mut unsigned = None;
        let saved = match signed {
            None => self.destination.save(number, seed, &file.bytes)?,
            Some(Ok(bytes)) => self.destination.save(number, seed, &bytes)?,
            // It took long to make; without a signature it is still worth having.
            Some(Err(error)) => {
                unsigned = Some(error.to_string());
                self.destination.save_unsigned(number, seed, &file.bytes)?
            }
        };
        let elsewhere = |message| Warning::new(WarningKind::PictureElsewhere, "output", message);
        warnings.extend(saved.warning.map(elsewhere));
        let prompt = self.recipe.request.prompt.get(picture.prompt_index);
        self.written.push(Written {
            path: saved.path,
            seed,
            prompt: prompt.cloned().unwrap_or_default(),
            width: picture.pixels.width,
            height: picture.pixels.height,
            index,
            warnings,
            unsigned,
            is_temporary: saved.is_temporary,
        });
        Ok(self.written.last())
    }

    /// A picture is worth more than its recipe: what cannot be hashed is only said.
    fn take_hashes(&mut self, hashing: Hashing, warnings: &mut Vec<Warning>) {
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
                let message = format!("the recipe names no weight files: {why}");
                warnings.push(Warning::new(
                    WarningKind::RecipeWithoutHashes,
                    None,
                    message,
                ));
            }
        }
        if let Some(was) = &self.replayed {
            warnings.extend(replay::weight_differences(was, &self.recipe));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use sdxl::Pixels;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    /// A recipe of two pictures.
    fn recipe() -> Recipe {
        let recipe = json!({
            "version": "1", "model": "m", "precision": "f32", "isa": "avx2", "files": [],
            "scheduler_class": "EulerDiscreteScheduler", "image_index": 0,
            "request": {"prompt": ["a cat"], "seed": [7], "num_images": 2},
        });
        serde_json::from_value(recipe).unwrap()
    }

    fn writer(output: &Path, images: usize) -> PictureWriter {
        let destination = Destination::new(Some(output), Format::Png, images, false).unwrap();
        let encoding = Encoding::new(Format::Png, None).unwrap();
        PictureWriter::new(destination, encoding, recipe())
    }

    fn picture() -> Picture {
        Picture {
            pixels: Pixels::new(1, 1, 3, vec![0; 3]),
            seed: 7,
            prompt_index: 0,
        }
    }

    #[test]
    fn each_picture_has_its_recipe() {
        let dir = TempDir::new().unwrap();
        let mut pictures = writer(&dir.path().join("a.png"), 2);
        for index in 0..2 {
            let written = pictures.write(index, &picture(), index == 1).unwrap();
            let written = written.unwrap().clone();
            assert!(written.warnings.is_empty() && written.unsigned.is_none());
            let read = Recipe::read(&written.path).unwrap();
            assert_eq!(read.image_index, index);
            assert_eq!(read.request.vae_tiling == VaeTiling::On, index == 1);
        }
        let path = dir.path().join("a-2.png");
        let said = json!({
            "path": path, "seed": 7, "prompt": "a cat", "width": 1, "height": 1,
        });
        assert_eq!(serde_json::to_value(&pictures.written()[1]).unwrap(), said);
    }

    #[test]
    fn a_replay_writes_one_and_tells_of_other_weights() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.png");
        let mut was = recipe();
        was.image_index = 1;
        was.files = vec![FileHash {
            name: "unet/a".into(),
            bytes: 1,
            sha256: "11".into(),
        }];
        let options = crate::ModelOptions {
            model: Some(sdxl_testing::golden("base")),
            ..crate::ModelOptions::default()
        };
        let session = Session::open(&options, &[], crate::FetchPolicy::Never).unwrap();
        let mut pictures = writer(&path, 1).replaying(&was).with_hashes_of(&session);
        assert_eq!(pictures.write(0, &picture(), false).unwrap(), None);
        pictures.begin_hashing();
        let written = pictures.write(1, &picture(), false).unwrap().unwrap();
        assert_eq!((&written.path, written.index), (&path, 1));
        let [warning] = &written.warnings[..] else {
            panic!("{:?}", written.warnings);
        };
        assert!(warning.message.contains("other weights"), "{warning}");
        let read = Recipe::read(&path).unwrap();
        assert!(read.files.iter().any(|f| f.name.starts_with("unet/")));
    }

    #[test]
    fn a_picture_outlives_its_signature() {
        let dir = TempDir::new().unwrap();
        // The second file is refused.
        let sign: Box<Sign> = Box::new(|_, file, _| {
            match String::from_utf8_lossy(file).contains("\"image_index\": 1") {
                true => Err(sdxl::Error::Cancelled),
                false => Ok(b"signed".to_vec()),
            }
        });
        let mut pictures = writer(&dir.path().join("a.png"), 2).signed_by(sign);
        for index in 0..2 {
            let written = pictures.write(index, &picture(), false).unwrap().unwrap();
            assert!(written.warnings.is_empty());
        }
        assert_eq!(fs::read(dir.path().join("a-1.png")).unwrap(), b"signed");
        assert!(!dir.path().join("a-2.png").exists());
        let kept = dir.path().join("a-2.unsigned.png");
        assert!(fs::read(&kept).unwrap().starts_with(b"\x89PNG"));
        let [first, second] = pictures.written() else {
            panic!("two pictures");
        };
        assert_eq!(first.unsigned, None);
        assert_eq!(second.unsigned, Some(sdxl::Error::Cancelled.to_string()));
        assert_eq!(second.path, kept);
    }

    #[test]
    fn a_name_that_was_taken_meanwhile_costs_no_picture() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("a.png");
        let mut pictures = writer(&path, 1);
        fs::write(&path, "somebody else's").unwrap();
        let written = pictures.write(0, &picture(), false).unwrap().unwrap();
        assert_eq!(written.path, dir.path().join("a (2).png"));
        assert!(!written.is_temporary && written.warnings.len() == 1);
        assert_eq!(Recipe::read(&written.path).unwrap().image_index, 0);
        assert_eq!(fs::read(&path).unwrap(), b"somebody else's");
    }
}
