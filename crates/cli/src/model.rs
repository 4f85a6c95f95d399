//! Which checkpoint a command is to use: a folder, a file, a model on a hub, or the demo model that
//! this program carries.

use std::path::{Path, PathBuf};

use anyhow::Context;
use sdxl::hub::{Found, Hub, Name, Purpose, Settings, Want};
use sdxl::pipeline::{Residence, default_precision};
use sdxl::prompt::LoraUse;
use sdxl::recipe::RefinerRecipe;
use sdxl::weights::folder::OpenOptions;
use sdxl::weights::lora::{Lora, named};
use sdxl::{Checkpoint, Error, Part, Pipeline, Precision, Recipe, Request};
use sdxl_demo::{Demo, Unpacked};

use crate::args::{Offload, PictureArgs};
use crate::flags;
use crate::pulling::Bars;
use crate::usage;

/// What is said when nobody named a checkpoint.
const DEMO_NOTICE: &str = "model: the built-in demo, which draws simple scenes at 96x96; for real pictures add --model \
     stabilityai/stable-diffusion-xl-base-1.0 (fetched once: 7 GB, or 14 for f32), or --model DIR, an SDXL \
     checkpoint's folder";

/// A checkpoint's folder or file, and what it is called.
pub struct Model {
    name: PathBuf,
    folder: PathBuf,
    // The variant that was fetched from a hub; what was named on the command line comes first.
    variant: Option<String>,
    // Where the demo could only be unpacked for a while, the folder goes with this.
    _demo: Option<Unpacked>,
}

/// What a word that stands for a checkpoint means.
enum Meaning {
    Demo(Demo),
    Path,
    OnHub(Name),
}

/// What is there comes first: a folder `org/name` is never taken for a model on a hub.
fn meaning(named: &Path) -> Meaning {
    if let Some(demo) = Demo::named(named) {
        return Meaning::Demo(demo);
    }
    let name = named.to_str().and_then(Name::parse);
    match name {
        Some(name) if !named.exists() => Meaning::OnHub(name),
        _ => Meaning::Path,
    }
}

impl Model {
    /// What `named` means here: a path, a model in the cache of the hub, or one of the models in
    /// this program, `demo` and `demo-refiner`. `demo` is what is meant when none is named.
    pub fn find(named: Option<&Path>) -> anyhow::Result<Model> {
        Self::of(named, &|name| hub().cached(name))
    }

    /// The same; what is on the hub only is fetched.
    pub fn get(named: Option<&Path>, want: &Want) -> anyhow::Result<Model> {
        Self::of(named, &|name| {
            let bars = Bars::new();
            hub().get(name, want, &|event| bars.show(event))
        })
    }

    fn of(
        named: Option<&Path>,
        on_hub: &dyn Fn(&Name) -> sdxl::Result<Found>,
    ) -> anyhow::Result<Model> {
        let named = named.unwrap_or(Path::new(Demo::Base.name()));
        let demo = match meaning(named) {
            Meaning::Demo(demo) => demo,
            Meaning::Path => {
                return Ok(Model {
                    name: named.to_path_buf(),
                    folder: named.to_path_buf(),
                    variant: None,
                    _demo: None,
                });
            }
            Meaning::OnHub(name) => {
                let found = on_hub(&name).with_context(|| {
                    format!(
                        "there is no file or folder `{name}` here, so it means a model on the hub"
                    )
                })?;
                return Ok(Model {
                    name: found.name.to_string().into(),
                    folder: found.path,
                    variant: found.variant,
                    _demo: None,
                });
            }
        };
        let unpacked = demo.unpack().context(
            "the built-in demo model cannot be unpacked; set TMPDIR to a folder that can be written",
        )?;
        Ok(Model {
            name: named.to_path_buf(),
            folder: unpacked.path().to_path_buf(),
            variant: None,
            _demo: Some(unpacked),
        })
    }

    /// The names of the demo and of a hub's models are good on another machine too. JSON has no
    /// other text than Unicode.
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
    vae: Option<Model>,
    /// What stands in for the base's UNet, where something does.
    unet: Option<PathBuf>,
    /// What is added to its weights.
    loras: Vec<Lora>,
    /// The opened folder.
    pub checkpoint: Checkpoint,
    /// The refiner and its opened folder, where one is to finish the pictures.
    pub refiner: Option<(Model, Checkpoint)>,
    /// Precision of the networks.
    pub precision: Precision,
    /// Whether nobody named it.
    pub precision_open: bool,
    /// When they are to be in memory, where somebody said it.
    pub residence: Option<Residence>,
    /// A line for whoever named no checkpoint.
    pub notice: Option<&'static str>,
}

/// The hub and its cache, as the environment has them.
pub fn hub() -> Hub {
    Hub::new(Settings::from_env())
}

impl Chosen {
    /// Chooses, fetches what is on a hub only (if `fetch`), and opens the checkpoints. `refiner` is the typed
    /// one; `requests` are all that will be run, whose prompts may ask for LoRAs.
    pub fn new(
        args: &PictureArgs,
        refiner: Option<&Path>,
        replayed: Option<&Recipe>,
        requests: &[&Request],
        fetch: bool,
    ) -> anyhow::Result<Chosen> {
        let get = |named: Option<&Path>, want: &Want| match fetch {
            true => Model::get(named, want),
            false => Model::find(named),
        };
        let named = args
            .model
            .as_deref()
            .or(replayed.map(|r| r.model.as_path()));
        let variant = args
            .variant
            .clone()
            .or(replayed.and_then(|r| r.variant.clone()));
        let mut loras = match (args.lora.as_slice(), replayed) {
            // Those that its prompt asked for are taken from the prompt again.
            ([], Some(was)) => (was.loras.iter())
                .filter(|l| l.name.is_none())
                .cloned()
                .collect(),
            (typed, _) => typed.to_vec(),
        };
        loras.extend(named_loras(requests, &args.lora_dir, replayed)?);
        let embeddings = match (args.embedding.as_slice(), replayed) {
            ([], Some(was)) => was.embeddings.clone(),
            (typed, _) => typed.to_vec(),
        };
        let precision = args
            .precision
            .or(replayed.map(|r| r.precision))
            .unwrap_or_else(default_precision);
        let vae = args.vae.clone().or(replayed.and_then(|r| r.vae.clone()));
        let unet = args.unet.clone().or(replayed.and_then(|r| r.unet.clone()));
        // What is named here is missed before anything is fetched.
        let named_files = unet.iter().chain(loras.iter().map(|lora| &lora.file));
        if let Some(missing) = named_files.into_iter().find(|path| !path.exists()) {
            return Err(usage(format!(
                "{}: there is no such file",
                missing.display()
            )));
        }
        let want = |purpose, replaced: &[(Part, bool)]| Want {
            purpose,
            precision,
            variant: variant.clone(),
            replaced: (replaced.iter().filter(|(_, replaced)| *replaced))
                .map(|(part, _)| *part)
                .collect(),
        };
        let other_vae = (Part::Vae, vae.is_some());
        let replaced = [other_vae, (Part::UNet, unet.is_some())];
        let model = get(named, &want(Purpose::Checkpoint, &replaced))?;
        let vae = vae
            .map(|named| get(Some(&named), &want(Purpose::Vae, &[])))
            .transpose()?;
        let options = |model: &Model| OpenOptions {
            variant: variant.clone().or(model.variant.clone()),
            vae: vae.as_ref().map(|vae| vae.folder().to_path_buf()),
            // A refiner reads the same prompts.
            embeddings: embeddings.clone(),
            ..OpenOptions::default()
        };
        // Neither a UNet nor LoRAs made for the base fit the refiner.
        let of_base = OpenOptions {
            unet: unet.clone(),
            loras: loras.clone(),
            ..options(&model)
        };
        let checkpoint = Checkpoint::open_with(model.folder(), &of_base)?;
        let refiner = refiner
            .or(replayed.and_then(|r| Some(r.refiner.as_ref()?.model.as_path())))
            .map(|named| -> anyhow::Result<_> {
                let model = get(Some(named), &want(Purpose::Checkpoint, &[other_vae]))?;
                let checkpoint = Checkpoint::open_with(model.folder(), &options(&model))?;
                Ok((model, checkpoint))
            })
            .transpose()?;
        Ok(Chosen {
            model,
            variant,
            vae,
            unet,
            loras,
            checkpoint,
            refiner,
            precision,
            precision_open: args.precision.is_none() && replayed.is_none(),
            residence: args.offload.map(Offload::residence),
            notice: named.is_none().then_some(DEMO_NOTICE),
        })
    }

    /// The refiner's opened folder.
    pub fn refiner(&self) -> Option<&Checkpoint> {
        self.refiner.as_ref().map(|(_, checkpoint)| checkpoint)
    }

    /// The networks, in memory as `residence` says.
    pub fn open(&self, residence: Residence) -> sdxl::Result<Pipeline> {
        let checkpoint = self.checkpoint.clone();
        let pipeline = Pipeline::with_residence(checkpoint, self.precision, residence)?;
        match self.refiner() {
            Some(refiner) => pipeline.with_refiner(refiner.clone()),
            None => Ok(pipeline),
        }
    }

    /// The networks for many runs, in memory as was asked for, or all at once. Where they do not fit
    /// so, layers are read as they work, which `say` is told.
    pub fn pipeline(&self, say: &mut dyn FnMut(&str)) -> sdxl::Result<Pipeline> {
        match self.open(self.residence.unwrap_or(Residence::Whole)) {
            Err(error @ Error::Machine { .. }) if self.residence.is_none() => {
                let why = flags::of_error(&error);
                say(&format!(
                    "{why}; so layers are read from the files as they work, which takes longer \
                     (as with --offload sequential)"
                ));
                self.open(Residence::Streamed)
            }
            opened => opened,
        }
    }

    /// The recipe of `request` as far as it is known before the run: without scheduler and the
    /// hashes of files.
    pub fn recipe(&self, request: Request) -> Recipe {
        Recipe {
            version: env!("CARGO_PKG_VERSION").to_string(),
            model: self.model.name_in_recipes(),
            variant: self.variant.clone(),
            vae: self.vae.as_ref().map(Model::name_in_recipes),
            unet: self.unet.clone(),
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
