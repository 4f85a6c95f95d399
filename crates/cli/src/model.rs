//! Which checkpoint a command is to use: a folder, or the demo model that this program carries.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sdxl::pipeline::default_precision;
use sdxl::prompt::LoraUse;
use sdxl::recipe::RefinerRecipe;
use sdxl::weights::folder::OpenOptions;
use sdxl::weights::lora::{Lora, named};
use sdxl::{Checkpoint, Pipeline, Precision, Recipe, Request};
use sdxl_demo::{Demo, Unpacked};

use crate::args::PictureArgs;
use crate::usage;

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
    /// Chooses, and opens the checkpoints. `refiner` is the typed one; `requests` are all that
    /// will be run, whose prompts may ask for LoRAs.
    pub fn new(
        args: &PictureArgs,
        refiner: Option<&Path>,
        replayed: Option<&Recipe>,
        requests: &[&Request],
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
            // A refiner reads the same prompts.
            embeddings: match (args.embedding.as_slice(), replayed) {
                ([], Some(was)) => was.embeddings.clone(),
                (typed, _) => typed.to_vec(),
            },
        };
        let mut loras = match (args.lora.as_slice(), replayed) {
            // Those that its prompt asked for are taken from the prompt again.
            ([], Some(was)) => (was.loras.iter())
                .filter(|l| l.name.is_none())
                .cloned()
                .collect(),
            (typed, _) => typed.to_vec(),
        };
        loras.extend(named_loras(requests, &args.lora_dir, replayed)?);
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

    /// The networks, to be loaded.
    pub fn pipeline(&self) -> sdxl::Result<Pipeline> {
        let pipeline = Pipeline::from_checkpoint(self.checkpoint.clone(), self.precision)?;
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
            embeddings: self.checkpoint.files().inversions().files().to_vec(),
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

/// The LoRAs that the prompts ask for: the files of a recipe where it names them, else those in
/// `folder`.
fn named_loras(
    requests: &[&Request],
    folder: &Path,
    replayed: Option<&Recipe>,
) -> anyhow::Result<Vec<Lora>> {
    let mut wanted = Vec::new();
    for (i, request) in requests.iter().enumerate() {
        let its = request.loras()?;
        if i > 0 && its != wanted {
            return Err(usage(
                "the pictures' prompts ask for different LoRAs, which change the whole model; make a \
                 sheet for each, or give what they share with --lora",
            ));
        }
        wanted = its;
    }
    let file = |wanted: &LoraUse| {
        let known = replayed.and_then(|was| {
            let same = |l: &&Lora| l.name.as_ref() == Some(&wanted.name) && l.file.is_file();
            was.loras.iter().find(same)
        });
        match known {
            Some(lora) => Ok(lora.file.clone()),
            None => named::find(folder, &wanted.name),
        }
    };
    let all = wanted.iter().map(|w| Ok(Lora::named(w, file(w)?)));
    all.collect()
}
