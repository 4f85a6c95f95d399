//! The models of a run, opened: the checkpoint with all that is added to it or stands in for parts
//! of it, and the refiner.

use std::path::PathBuf;

use sdxl::Class;
use sdxl::hub::{DownloadEvent, FetchOptions, Purpose};
use sdxl::inputs::InputFile;
use sdxl::pipeline::{PipelineBuilder, default_precision};
use sdxl::prompt::LoraUse;
use sdxl::recipe::RefinerRecipe;
use sdxl::warning::{Warning, WarningKind};
use sdxl::weights::OpenOptions;
use sdxl::weights::lora::{Lora, named};
use sdxl::{Checkpoint, InversionFile, Offload, Part, Pipeline, Precision, Recipe, Request, Run};

use crate::environment;
use crate::error::{Error, Result};
use crate::model::ModelRef;
use crate::{Model, hashes::HashCache};

/// The models of a run by their names, and what changes them. `ModelOptions::default()` is the demo
/// model, as it is.
#[derive(Debug, Clone, Default)]
pub struct ModelOptions {
    /// The checkpoint, as [`ModelRef::parse`] reads it. `None`: the demo.
    pub model: Option<PathBuf>,
    /// Use weight files of this variant, such as `fp16`. `None`: those without one, or of a hub's
    /// model the one that was fetched.
    pub variant: Option<String>,
    /// Precision of the networks. `None`: [`default_precision`].
    pub precision: Option<Precision>,
    /// The device that computes.
    pub device: sdxl::device::DeviceChoice,
    /// A VAE in the place of the checkpoint's own, named as a model is.
    pub vae: Option<PathBuf>,
    /// A UNet in the place of the checkpoint's own: a file or a folder.
    pub unet: Option<PathBuf>,
    /// LoRAs to add to the checkpoint (the knob `lora`).
    pub loras: Vec<Lora>,
    /// Known files of LoRAs that prompts may ask for by name: they come before those in `lora_dir`.
    pub named_loras: Vec<Lora>,
    /// The folder of the LoRAs that prompts ask for by name. `None`: `SDXL_LORA_DIR` in the
    /// environment, else `loras` here.
    pub lora_dir: Option<PathBuf>,
    /// Textual inversions that prompts may use (the knob `embedding`).
    pub embeddings: Vec<InversionFile>,
    /// A refiner that finishes the pictures, named as a model is.
    pub refiner: Option<PathBuf>,
    /// The networks that are in memory (the knob `offload`). `None`: what is best for each run.
    pub offload: Option<Offload>,
}

impl ModelOptions {
    /// These options, and what a recipe says where they say nothing.
    pub fn or_recipe(self, was: &Recipe) -> ModelOptions {
        // Those that its prompt asked for are taken from the prompt again.
        let (named, added): (Vec<Lora>, Vec<Lora>) =
            was.loras.iter().cloned().partition(|l| l.name.is_some());
        ModelOptions {
            model: self.model.or_else(|| Some(was.model.clone())),
            variant: self.variant.or_else(|| was.variant.clone()),
            precision: self.precision.or(Some(was.precision)),
            device: self.device,
            vae: self.vae.or_else(|| was.vae.clone()),
            unet: self.unet.or_else(|| was.unet.clone()),
            loras: or_else(self.loras, added),
            named_loras: or_else(self.named_loras, named),
            lora_dir: self.lora_dir,
            embeddings: or_else(self.embeddings, was.embeddings.clone()),
            refiner: (self.refiner).or_else(|| Some(was.refiner.as_ref()?.model.clone())),
            offload: self.offload,
        }
    }
}

fn or_else<T>(list: Vec<T>, other: Vec<T>) -> Vec<T> {
    match list.is_empty() {
        true => other,
        false => list,
    }
}

/// A permission to use the network.
#[derive(Clone, Copy)]
pub enum FetchPolicy<'a> {
    /// No: a hub's model is looked for in the cache only.
    Never,
    /// Yes: what is not in the cache is fetched, and this hears of the progress, from several
    /// threads.
    Missing(&'a (dyn Fn(DownloadEvent<'_>) + Sync)),
}

/// The opened models of a run. Their files are read when a pipeline is loaded.
pub struct Session {
    model: Model,
    /// The variant that was asked for.
    variant: Option<String>,
    vae: Option<Model>,
    unet: Option<PathBuf>,
    loras: Vec<Lora>,
    checkpoint: Checkpoint,
    refiner: Option<(Model, Checkpoint)>,
    precision: Precision,
    precision_is_default: bool,
    model_is_default: bool,
    offload: Option<Offload>,
}

impl Session {
    /// Finds the models, fetches what is on a hub only (if `fetch` permits), and opens them.
    /// `requests` are all that will be run, whose prompts may ask for LoRAs.
    ///
    /// # Errors
    /// A model that is not there or cannot be fetched, files that do not fit together, and prompts
    /// that ask for different LoRAs.
    pub fn open(
        options: &ModelOptions,
        requests: &[&Request],
        fetch: FetchPolicy<'_>,
    ) -> Result<Session> {
        let get = |field: &'static str, named: Option<&PathBuf>, want: &FetchOptions| {
            let model = ModelRef::parse(named.map(PathBuf::as_path));
            let found = match fetch {
                FetchPolicy::Never => model.find(),
                FetchPolicy::Missing(told) => model.fetch(want, told),
            };
            found.map_err(|error| error.with_field(field))
        };
        let precision = options.precision.unwrap_or_else(default_precision);
        let mut loras = options.loras.clone();
        loras.extend(loras_of_prompts(options, requests)?);
        // A file that is not there is missed before anything is fetched.
        let files = (options.unet.iter().map(|unet| ("unet", unet)))
            .chain(loras.iter().map(|lora| ("lora", &lora.file)));
        for (field, path) in files {
            if !path.exists() {
                let path = path.clone();
                return Err(Error::NoSuchFile { field, path });
            }
        }
        let want = |purpose, replaced: &[(Part, bool)]| FetchOptions {
            purpose,
            precision,
            variant: options.variant.clone(),
            replaced: (replaced.iter().filter(|(_, replaced)| *replaced))
                .map(|(part, _)| *part)
                .collect(),
        };
        let other_vae = (Part::Vae, options.vae.is_some());
        let other_unet = (Part::UNet, options.unet.is_some());
        let wanted = want(Purpose::Checkpoint, &[other_vae, other_unet]);
        let model = get("model", options.model.as_ref(), &wanted)?;
        let vae = (options.vae.as_ref())
            .map(|named| get("vae", Some(named), &want(Purpose::Vae, &[])))
            .transpose()?;
        let shared = |model: &Model| OpenOptions {
            variant: (options.variant.clone()).or(model.variant().map(str::to_string)),
            vae: vae.as_ref().map(|vae| vae.path().to_path_buf()),
            // A refiner reads the same prompts.
            embeddings: options.embeddings.clone(),
            ..OpenOptions::default()
        };
        // Neither a UNet nor LoRAs made for the base fit the refiner.
        let of_base = OpenOptions {
            unet: options.unet.clone(),
            loras: loras.clone(),
            ..shared(&model)
        };
        let device = options.device.device();
        let checkpoint = Checkpoint::open_with(model.path(), &of_base)?.on(device.clone());
        let refiner = (options.refiner.as_ref())
            .map(|named| -> Result<_> {
                let model = get(
                    "refiner",
                    Some(named),
                    &want(Purpose::Checkpoint, &[other_vae]),
                )?;
                let checkpoint = Checkpoint::open_with(model.path(), &shared(&model))?;
                Ok((model, checkpoint.on(device)))
            })
            .transpose()?;
        Ok(Session {
            model,
            variant: options.variant.clone(),
            vae,
            unet: options.unet.clone(),
            loras,
            checkpoint,
            refiner,
            precision,
            precision_is_default: options.precision.is_none(),
            model_is_default: options.model.is_none(),
            offload: options.offload,
        })
    }

    /// The checkpoint's files.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The opened checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The opened checkpoint of the refiner, where there is one.
    pub fn refiner(&self) -> Option<&Checkpoint> {
        self.refiner.as_ref().map(|(_, checkpoint)| checkpoint)
    }

    /// Precision of the networks.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Whether nobody named the precision.
    pub fn precision_is_default(&self) -> bool {
        self.precision_is_default
    }

    /// Whether nobody named a model, so that it is the demo.
    pub fn model_is_default(&self) -> bool {
        self.model_is_default
    }

    /// Begins to open a pipeline of these models. Where nobody said which networks are to be in
    /// memory, every run decides, and nothing is loaded before the first.
    pub fn pipeline(&self) -> PipelineBuilder {
        let opening = Pipeline::open(self.checkpoint.clone()).precision(self.precision);
        let opening = match self.offload {
            Some(offload) => opening.offload(offload),
            None => opening.offload_by_run(),
        };
        match self.refiner() {
            Some(refiner) => opening.refiner(refiner.clone()),
            None => opening,
        }
    }

    /// Loads the networks for many runs: in memory as was asked for, or else all at once. Where they
    /// do not fit so, every run decides which of them are in memory, which `warn` is told.
    ///
    /// # Errors
    /// As [`PipelineBuilder::load`].
    pub fn load(&self, warn: &mut dyn FnMut(Warning)) -> Result<Pipeline> {
        let opening = self.pipeline();
        if self.offload.is_some() {
            return Ok(opening.load()?);
        }
        match opening.clone().offload(Offload::None).load() {
            Err(why) if why.class() == Class::Machine => {
                let message = format!(
                    "{}; so networks are in memory only while they work, which takes longer",
                    why.message()
                );
                warn(Warning::new(WarningKind::Slow, "offload", message));
                Ok(opening.load()?)
            }
            loaded => Ok(loaded?),
        }
    }

    /// Makes the recipe of a run, but for the hashes of the weights.
    pub fn recipe_of(&self, run: &Run) -> Recipe {
        let inputs = &run.inputs().files;
        let mut recipe = self.recipe(run.request().clone(), run.scheduler(), inputs);
        // Tiles that were chosen for want of memory: a replay has the same.
        if run.plan().short {
            recipe.request.vae_tile_size = run.vae_tile_size().or(recipe.request.vae_tile_size);
        }
        recipe.latents_sha256 = run.inputs().latents_sha256.clone();
        recipe
    }

    /// Makes the recipe of a request whose open questions are decided, without the hashes of the
    /// weights and of a latents file.
    pub fn recipe(&self, request: Request, scheduler_class: &str, inputs: &[InputFile]) -> Recipe {
        Recipe {
            version: crate::VERSION.to_string(),
            model: self.model.name_in_recipes(),
            variant: self.variant.clone(),
            vae: self.vae.as_ref().map(Model::name_in_recipes),
            unet: self.unet.clone(),
            loras: self.loras.clone(),
            embeddings: self.checkpoint.files().inversions().files().to_vec(),
            precision: self.precision,
            isa: sdxl_kernels::Isa::current().to_string(),
            latents_sha256: None,
            inputs: inputs.to_vec(),
            files: Vec::new(),
            refiner: self.refiner.as_ref().map(|(model, _)| RefinerRecipe {
                model: model.name_in_recipes(),
                files: Vec::new(),
            }),
            scheduler_class: scheduler_class.to_string(),
            request,
            image_index: 0,
        }
    }

    /// Hashes the weights, at once, for a recipe of this session's. [`crate::pictures::Hashing`]
    /// does it beside a run.
    ///
    /// # Errors
    /// A weight file that cannot be read.
    pub fn hash_weights(&self, recipe: &mut Recipe) -> Result<()> {
        let cache = HashCache::of_user();
        recipe.files = cache.hash_weights(&self.checkpoint)?;
        if let (Some(recipe), Some(refiner)) = (&mut recipe.refiner, self.refiner()) {
            recipe.files = cache.hash_weights(refiner)?;
        }
        Ok(())
    }
}

/// The LoRAs that the prompts ask for: the known files, else those in the folder.
fn loras_of_prompts(options: &ModelOptions, requests: &[&Request]) -> Result<Vec<Lora>> {
    let mut wanted = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let of_this = request.loras()?;
        if i > 0 && of_this != wanted {
            return Err(Error::DifferentLoras);
        }
        wanted = of_this;
    }
    let folder = (options.lora_dir.clone()).unwrap_or_else(environment::lora_dir);
    let file = |wanted: &LoraUse| -> Result<PathBuf> {
        let same = |l: &&Lora| l.name.as_ref() == Some(&wanted.name) && l.file.is_file();
        match options.named_loras.iter().find(same) {
            Some(lora) => Ok(lora.file.clone()),
            None => Ok(named::find(&folder, &wanted.name)?),
        }
    };
    let all = wanted.iter().map(|w| Ok(Lora::named(w, file(w)?)));
    all.collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sdxl_testing::golden;

    use super::*;

    fn base() -> ModelOptions {
        ModelOptions {
            model: Some(golden("base")),
            precision: Some(Precision::F32),
            ..ModelOptions::default()
        }
    }

    #[test]
    fn a_session_tells_its_recipe_and_opens_by_it() {
        let options = ModelOptions {
            refiner: Some(golden("refiner")),
            ..base()
        };
        let request = Request {
            prompt: vec!["a cat".into()],
            ..Request::default()
        };
        let session = Session::open(&options, &[&request], FetchPolicy::Never).unwrap();
        assert!(!session.model_is_default() && !session.precision_is_default());
        let mut recipe = session.recipe(request.clone(), "DDIMScheduler", &[]);
        assert_eq!(recipe.model, golden("base"));
        assert_eq!(recipe.scheduler_class, "DDIMScheduler");
        assert_eq!(recipe.request, request);
        session.hash_weights(&mut recipe).unwrap();
        let refiner = recipe.refiner.clone().unwrap();
        assert_eq!(refiner.model, golden("refiner"));
        for files in [&recipe.files, &refiner.files] {
            assert!(files.iter().any(|f| f.name.starts_with("unet/")));
        }
        // Opened by its recipe, it is the same again.
        let again = ModelOptions::default().or_recipe(&recipe);
        let again = Session::open(&again, &[&request], FetchPolicy::Never).unwrap();
        assert!(!again.model_is_default() && !again.precision_is_default());
        let again = again.recipe(request, "DDIMScheduler", &[]);
        assert_eq!(again.model, recipe.model);
        assert_eq!(again.precision, recipe.precision);
        assert_eq!(again.refiner.unwrap().model, refiner.model);
    }

    #[test]
    fn options_come_before_the_recipe() {
        let session = Session::open(&base(), &[], FetchPolicy::Never).unwrap();
        let mut was = session.recipe(Request::default(), "", &[]);
        was.variant = Some("fp16".into());
        was.loras = vec![Lora::new(Path::new("a.safetensors"), 0.5)];
        was.loras.push(Lora {
            name: Some("ink".into()),
            ..Lora::new(Path::new("ink.safetensors"), 1.0)
        });
        let options = ModelOptions {
            model: Some("other".into()),
            loras: vec![Lora::new(Path::new("b.safetensors"), 1.0)],
            ..ModelOptions::default()
        };
        let both = options.or_recipe(&was);
        assert_eq!(both.model, Some("other".into()));
        assert_eq!(both.variant.as_deref(), Some("fp16"));
        assert_eq!(both.precision, Some(Precision::F32));
        let files = |loras: &[Lora]| -> Vec<PathBuf> {
            loras.iter().map(|lora| lora.file.clone()).collect()
        };
        assert_eq!(files(&both.loras), [PathBuf::from("b.safetensors")]);
        // A prompt has to ask for it.
        assert_eq!(files(&both.named_loras), [PathBuf::from("ink.safetensors")]);
        let alone = ModelOptions::default().or_recipe(&was);
        assert_eq!(files(&alone.loras), [PathBuf::from("a.safetensors")]);
    }

    #[test]
    fn files_that_are_not_there_are_missed_first() {
        let unet = Some(PathBuf::from("no/such.safetensors"));
        let options = ModelOptions {
            // Would have to be fetched.
            model: Some("org/name".into()),
            unet,
            ..base()
        };
        let nothing = |_: DownloadEvent<'_>| panic!("something is fetched");
        let Err(error) = Session::open(&options, &[], FetchPolicy::Missing(&nothing)) else {
            panic!("opened");
        };
        assert!(matches!(error, Error::NoSuchFile { field: "unet", .. }));
        let of = |prompt: &str| Request {
            prompt: vec![prompt.to_string()],
            ..Request::default()
        };
        let (one, other) = (of("a cat withLora(ink, 0.5)"), of("a cat"));
        let opened = Session::open(&base(), &[&one, &other], FetchPolicy::Never);
        assert!(matches!(opened, Err(Error::DifferentLoras)));
    }
}
