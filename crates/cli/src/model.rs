//! Which checkpoint a command is to use: a folder, or the demo model that this program carries.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sdxl::pipeline::default_precision;
use sdxl::recipe::RefinerRecipe;
use sdxl::weights::folder::OpenOptions;
use sdxl::weights::lora::Lora;
use sdxl::{Checkpoint, Pipeline, Precision, Recipe, Request};
use sdxl_demo::{Demo, Unpacked};

use crate::args::PictureArgs;

/// What is said when nobody named a checkpoint.
const DEMO_NOTICE: &str = "model: the built-in demo, which draws simple scenes at 96x96; for real pictures add --model DIR, \
     an SDXL checkpoint's folder (such as a download of stabilityai/stable-diffusion-xl-base-1.0)";

/// A checkpoint folder, and what it is called.
pub struct Model {
    name: PathBuf,
    folder: PathBuf,
    // Where the demo could only be unpacked for a while, the folder goes with this.
    _demo: Option<Unpacked>,
}

impl Model {
    /// The folder `named`; `demo` and `demo-refiner` are the models in this program, and
    /// `demo` is what is meant when none is named.
    pub fn find(named: Option<&Path>) -> anyhow::Result<Model> {
        let named = named.unwrap_or(Path::new(Demo::Base.name()));
        let Some(demo) = Demo::named(named) else {
            return Ok(Model {
                name: named.to_path_buf(),
                folder: named.to_path_buf(),
                _demo: None,
            });
        };
        let unpacked = demo.unpack().context(
            "the built-in demo model cannot be unpacked; set TMPDIR to a folder that can be written",
        )?;
        Ok(Model {
            name: named.to_path_buf(),
            folder: unpacked.path().to_path_buf(),
            _demo: Some(unpacked),
        })
    }

    /// The demo's name is good on another machine too. JSON has no other text than Unicode.
    fn name_in_recipes(&self) -> PathBuf {
        self.name.to_string_lossy().into_owned().into()
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// What a run computes with: what was typed, or else what the recipe beside it says.
pub struct Chosen {
    /// Its files.
    pub model: Model,
    /// The variant of the weight files, where one was named.
    pub variant: Option<String>,
    /// What stands in for the VAE, where something does.
    vae: Option<PathBuf>,
    /// What is added to its weights.
    loras: Vec<Lora>,
    /// The opened folder.
    pub checkpoint: Checkpoint,
    /// The refiner and its opened folder, where one is to finish the pictures.
    pub refiner: Option<(Model, Checkpoint)>,
    /// Precision of the networks.
    pub precision: Precision,
    /// A line for whoever named no checkpoint.
    pub notice: Option<&'static str>,
}

impl Chosen {
    /// Chooses, and opens the checkpoints. `refiner` is the typed one.
    pub fn new(
        args: &PictureArgs,
        refiner: Option<&Path>,
        replayed: Option<&Recipe>,
    ) -> anyhow::Result<Chosen> {
        let named = args
            .model
            .as_deref()
            .or(replayed.map(|r| r.model.as_path()));
        let model = Model::find(named)?;
        let variant = args
            .variant
            .clone()
            .or(replayed.and_then(|r| r.variant.clone()));
        let options = OpenOptions {
            variant: variant.clone(),
            vae: args.vae.clone().or(replayed.and_then(|r| r.vae.clone())),
            loras: Vec::new(),
        };
        let loras = match (args.lora.as_slice(), replayed) {
            ([], Some(was)) => was.loras.clone(),
            (typed, _) => typed.to_vec(),
        };
        let with_loras = OpenOptions {
            loras: loras.clone(),
            ..options.clone()
        };
        let checkpoint = Checkpoint::open_with(model.folder(), &with_loras)?;
        let refiner = refiner
            .or(replayed.and_then(|r| Some(r.refiner.as_ref()?.model.as_path())))
            .map(|named| -> anyhow::Result<_> {
                let model = Model::find(Some(named))?;
                let checkpoint = Checkpoint::open_with(model.folder(), &options)?;
                Ok((model, checkpoint))
            })
            .transpose()?;
        let precision = args
            .precision
            .or(replayed.map(|r| r.precision))
            .unwrap_or_else(default_precision);
        Ok(Chosen {
            model,
            variant,
            vae: options.vae,
            loras,
            checkpoint,
            refiner,
            precision,
            notice: named.is_none().then_some(DEMO_NOTICE),
        })
    }

    /// The refiner's opened folder.
    pub fn refiner(&self) -> Option<&Checkpoint> {
        self.refiner.as_ref().map(|(_, checkpoint)| checkpoint)
    }

    /// The networks, for one run or for `many`: for one each is in memory only while it works.
    pub fn pipeline(&self, many: bool) -> sdxl::Result<Pipeline> {
        let checkpoint = self.checkpoint.clone();
        let pipeline = if many {
            Pipeline::from_checkpoint(checkpoint, self.precision)?
        } else {
            Pipeline::sparing(checkpoint, self.precision)?
        };
        match self.refiner() {
            Some(refiner) => pipeline.with_refiner(refiner.clone()),
            None => Ok(pipeline),
        }
    }

    /// The recipe of `request` as far as it is known before the run: without scheduler and the
    /// hashes of files.
    pub fn recipe(&self, request: Request) -> Recipe {
        Recipe {
            version: env!("CARGO_PKG_VERSION").to_string(),
            model: self.model.name_in_recipes(),
            variant: self.variant.clone(),
            vae: self.vae.clone(),
            loras: self.loras.clone(),
            precision: self.precision,
            isa: sdxl_kernels::Isa::current().to_string(),
            latents_sha256: None,
            inputs: Vec::new(),
            files: Vec::new(),
            refiner: self.refiner.as_ref().map(|(model, _)| RefinerRecipe {
                model: model.name_in_recipes(),
                files: Vec::new(),
            }),
            scheduler_class: String::new(),
            request,
            image_index: 0,
        }
    }
}
