//! LoRAs and their relatives: small files of changes to a checkpoint's weights.
//!
//! The changes are added when weights are read, before they are packed: a network with a
//! LoRA runs as fast as one without. Read are the names of kohya's trainer (with diffusers'
//! or the original implementation's blocks), of LyCORIS, and of diffusers and PEFT.

mod base;
pub mod blocks;
mod bundle;
pub mod named;
mod targets;
mod tensor_names;
mod update;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::changes::Changes;
use super::layer_cache::FileStamp;
use super::part::Part;
use super::recognise::lora_text_width;
use super::stored_tensor::StoredTensor;
use super::tensor_set::TensorSet;
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::python_json;
use crate::warning::{Warning, WarningKind};
pub(super) use base::BaseNetworks;
use blocks::{BlockFactors, BlockScales};
pub(super) use bundle::Bundle;
use bundle::{bundles, is_bundled};
use targets::Targets;
use tensor_names::{TensorName, changes_nothing, foreign_kind};
use update::{ModuleTensors, TensorRole, Update, apply};

/// A file to add, and how much of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// The `.safetensors` file.
    pub file: PathBuf,
    /// The factor that the changes are multiplied by; 1 is what the LoRA was trained for.
    pub scale: f32,
    /// The factor for the changes to the text encoders, if it differs from `scale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_scale: Option<f32>,
    /// Factors that those scales are multiplied by, for each part and block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocks: Option<BlockScales>,
    /// The name that a prompt calls it by, if a prompt asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Lora {
    /// A file, with one scale for all that it changes.
    pub fn new(file: impl Into<PathBuf>, scale: f32) -> Lora {
        Lora {
            file: file.into(),
            scale,
            text_scale: None,
            blocks: None,
            name: None,
        }
    }

    /// The scale of its changes to a part.
    fn scale_of(&self, part: Part) -> f32 {
        match part {
            Part::TextEncoder | Part::TextEncoder2 => self.text_scale.unwrap_or(self.scale),
            _ => self.scale,
        }
    }
}

impl std::str::FromStr for Lora {
    type Err = String;

    /// `FILE`, `FILE:SCALE`, and either with `:BLOCKS` behind it (see [`BlockScales`]).
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (text, blocks) = match text.rsplit_once(':') {
            Some((text, blocks)) if is_blocks(blocks) => (text, Some(blocks.parse()?)),
            _ => (text, None),
        };
        let (file, scale) = match text.rsplit_once(':') {
            Some((file, scale)) if !file.is_empty() => match scale.trim().parse::<f32>() {
                Ok(scale) if scale.is_finite() => (file, scale),
                Ok(_) => {
                    return Err(format!(
                        "`{scale}` is not a scale; use a number such as 0.8"
                    ));
                }
                // A colon inside a path.
                Err(_) => (text, 1.0),
            },
            _ => (text, 1.0),
        };
        if file.is_empty() {
            return Err("name a file, as in FILE or FILE:0.8".to_string());
        }
        Ok(Lora {
            blocks,
            ..Lora::new(file, scale)
        })
    }
}

/// Whether what stands behind a colon is scales by block, rather than the end of a path.
fn is_blocks(text: &str) -> bool {
    text.contains('=') && !text.contains(['/', '\\']) && !text.ends_with(".safetensors")
}

/// The changes to one part's tensors, by the names that its files have for them.
#[derive(Default)]
struct Updates(HashMap<String, Vec<Update>>);

impl Changes for Updates {
    fn change(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn add(&self, name: &str, shape: &[usize], values: &mut [f32]) -> Result<()> {
        (self.0.get(name)).map_or(Ok(()), |updates| apply(updates, name, shape, values))
    }

    fn origins(&self, name: &str) -> Vec<(FileStamp, usize, u32)> {
        let updates = self.0.get(name).into_iter().flatten();
        updates.map(Update::origin).collect()
    }
}

/// Opened LoRAs: matched with a checkpoint's tensors, no values read yet.
#[derive(Default)]
pub struct OpenedLoras {
    loras: Vec<Lora>,
    updates: HashMap<&'static str, Arc<Updates>>,
    bundles: Vec<Bundle>,
    warnings: Vec<Warning>,
}

impl OpenedLoras {
    /// Opens the files and finds the weights that they change.
    ///
    /// # Errors
    /// A file that is no LoRA, that changes nothing of this checkpoint, or that was made for
    /// networks of other sizes.
    pub(super) fn open(loras: &[Lora], base: &BaseNetworks<'_>) -> Result<OpenedLoras> {
        if loras.is_empty() {
            return Ok(OpenedLoras::default());
        }
        let targets = Targets::of(base)?;
        let mut updates: HashMap<&'static str, Updates> = HashMap::new();
        let (mut bundles, mut warnings) = (Vec::new(), Vec::new());
        for lora in loras {
            let matched = match_file(lora, base, &targets)?;
            bundles.extend(matched.bundles);
            warnings.extend(matched.warning);
            for (part, name, update) in matched.updates {
                let of_part = updates.entry(part.folder()).or_default();
                of_part.0.entry(name).or_default().push(update);
            }
        }
        Ok(OpenedLoras {
            loras: loras.to_vec(),
            updates: (updates.into_iter())
                .map(|(part, updates)| (part, Arc::new(updates)))
                .collect(),
            bundles,
            warnings,
        })
    }

    /// The files and their scales, as they were given.
    pub fn loras(&self) -> &[Lora] {
        &self.loras
    }

    /// The textual inversions that the files bring along.
    pub(super) fn bundles(&self) -> &[Bundle] {
        &self.bundles
    }

    /// Gives the warnings about modules of the files that are not used.
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Whether `other` changes a part in the same way.
    pub(crate) fn change_alike(&self, other: &OpenedLoras, part: Part) -> bool {
        let changes = |adapters: &OpenedLoras| -> BTreeMap<String, Vec<_>> {
            (adapters
                .updates
                .get(part.folder())
                .iter()
                .flat_map(|updates| updates.0.iter()))
            .map(|(name, updates)| (name.clone(), updates.iter().map(Update::origin).collect()))
            .collect()
        };
        changes(self) == changes(other)
    }

    /// The changes to a part.
    pub(super) fn of(&self, part: Part) -> Option<Arc<dyn Changes>> {
        let updates = self.updates.get(part.folder())?;
        Some(Arc::clone(updates) as Arc<dyn Changes>)
    }
}

/// The changes that a file makes to the checkpoint, and a warning about modules without a place.
struct Matched {
    updates: Vec<(Part, String, Update)>,
    bundles: Vec<Bundle>,
    warning: Option<Warning>,
}

/// The tensors of one module, by their roles.
struct Module {
    /// The module's name in the file; of several the first.
    key: String,
    roles: HashMap<TensorRole, StoredTensor>,
}

fn match_file(lora: &Lora, base: &BaseNetworks<'_>, targets: &Targets) -> Result<Matched> {
    let path = lora.file.as_path();
    let set = TensorSet::open(std::slice::from_ref(&lora.file))?;
    let is_ia3 = |module: &str| set.get(&format!("{module}.on_input")).is_some();
    set.check_shapes(|name| TensorName::parse(name, is_ia3).is_some())?;
    check_model(&set, base, path)?;
    let peft = PeftConfig::of(&set, path);
    // Sorted, so that messages name the same keys every time.
    let mut names: Vec<&str> = set.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    // Modules of the checkpoint, and those that it does not have: one module may have several names.
    let mut modules: BTreeMap<(Option<&'static str>, String), Module> = BTreeMap::new();
    let mut adapters: BTreeSet<&str> = BTreeSet::new();
    let mut unused: Vec<String> = Vec::new();
    for name in names {
        let tensor = set.get(name).expect("the name is one of the set's");
        let Some(parsed) = TensorName::parse(name, is_ia3) else {
            // An empty marker changes nothing; the words are read by `bundles`.
            let idle = changes_nothing(name) || tensor.values() == 0 || is_bundled(name);
            if !idle {
                unused.push(name.to_string());
            }
            continue;
        };
        adapters.extend(parsed.adapter);
        let meant = match targets.find(parsed.module) {
            Some((part, module, _)) => (Some(part.folder()), module.to_string()),
            None => (None, parsed.module.to_string()),
        };
        let module = modules.entry(meant).or_insert_with(|| Module {
            key: parsed.module.to_string(),
            roles: HashMap::new(),
        });
        if module.roles.insert(parsed.role, tensor.clone()).is_some() && adapters.len() < 2 {
            return Err(Error::file(
                path,
                format!(
                    "`{name}` is there a second time, under another name of the same module \
                     (`{}`); which one counts cannot be known",
                    module.key
                ),
            ));
        }
    }
    if let Some(kind) = foreign_kind(set.iter().map(|(name, _)| name)) {
        return Err(Error::file(
            path,
            format!(
                "it changes weights by {kind}, which is not read here: LoRA, LoCon, DoRA, LoHa, LoKr, \
                 GLoRA, (IA)3 and whole changes are"
            ),
        ));
    }
    if adapters.len() > 1 {
        let names: Vec<&str> = adapters.into_iter().collect();
        return Err(Error::file(
            path,
            format!(
                "it holds several adapters of PEFT's ({}); save each in a file of its own, and give \
                 those that you want",
                names.join(", ")
            ),
        ));
    }
    if modules.is_empty() {
        let what = super::recognise::FileKind::of(&set).describe();
        let text = format!("none of its tensors is named as a LoRA's are: it is {what}");
        return Err(Error::file(path, text));
    }
    let set = Arc::new(set);
    let factors = BlockFactors::new(lora.blocks.as_ref(), base, path)?;
    let mut updates = Vec::new();
    let mut matched: Vec<(Part, String)> = Vec::new();
    for module in modules.into_values() {
        let Module { key, roles } = module;
        let Some((part, module, weights)) = targets.find(&key) else {
            unused.push(key);
            continue;
        };
        let tensors = ModuleTensors {
            key: &key,
            path,
            source: &set,
            pieces: roles,
        };
        let alpha = peft.alpha(part, module);
        let mut used = false;
        let scale = lora.scale_of(part) * factors.of(part, module);
        for (inner, update) in tensors.updates(scale, alpha)? {
            let name = format!("{module}.{inner}");
            let Some(weight) = weights.get(&name) else {
                continue;
            };
            update.check(weight.shape(), &key, path)?;
            used = true;
            // Left out rather than multiplied by nothing: what is read stays as it is stored.
            if !update.is_nothing() {
                updates.push((part, name, update));
            }
        }
        if used {
            matched.push((part, module.to_string()));
        } else {
            unused.push(key);
        }
    }
    unused.sort();
    let all = unused.len();
    let named: Vec<&str> = unused.iter().take(4).map(String::as_str).collect();
    let rest = match all.saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let list = format!("{}{rest}", named.join(", "));
    if matched.is_empty() {
        return Err(Error::file(
            path,
            format!(
                "none of it fits this checkpoint, so it would change nothing; it speaks of {list}"
            ),
        ));
    }
    factors.check_met(&matched, path)?;
    let warning = (all > 0).then(|| {
        let message = format!(
            "{}: {all} of its modules have no place in this checkpoint and are left out: {list}",
            path.display()
        );
        Warning::new(WarningKind::LoraPartlyUsed, "loras", message)
    });
    Ok(Matched {
        updates,
        bundles: bundles(&set, path),
        warning,
    })
}

/// Refuses a LoRA whose attention reads text states of another width: another model's.
fn check_model(set: &TensorSet, base: &BaseNetworks<'_>, path: &Path) -> Result<()> {
    let wanted = base.unet.cross_attention_dim;
    let Some(width) = lora_text_width(set).filter(|width| *width != wanted) else {
        return Ok(());
    };
    let model = match width {
        768 => "Stable Diffusion 1",
        1024 => "Stable Diffusion 2",
        1280 => "SDXL's refiner",
        2048 => "SDXL's base",
        _ => "another model",
    };
    Err(Error::file(
        path,
        format!(
            "this LoRA was made for {model}: its text states have {width} channels, this \
             checkpoint's {wanted}; get one made for this checkpoint"
        ),
    ))
}

/// The configuration that a file of PEFT has for its scale: in the header if diffusers wrote it,
/// in `adapter_config.json` beside the file if PEFT did.
struct PeftConfig {
    config: Map<String, Value>,
}

impl PeftConfig {
    fn of(set: &TensorSet, path: &Path) -> PeftConfig {
        let header = set.metadata("lora_adapter_metadata");
        let mut config = header
            .and_then(|text| python_json::from_str(text).ok())
            .unwrap_or_default();
        if path
            .file_name()
            .is_some_and(|n| n == "adapter_model.safetensors")
        {
            config = read_json(&path.with_file_name("adapter_config.json")).unwrap_or(config);
        }
        PeftConfig { config }
    }

    /// `lora_alpha` of a module, and whether it is divided by the root of the rank.
    fn alpha(&self, part: Part, module: &str) -> Option<(f32, bool)> {
        let entry = |key: &str| {
            let with_part = self.config.get(&format!("{}.{key}", part.folder()));
            with_part.or_else(|| self.config.get(key))
        };
        let own = (entry("alpha_pattern").and_then(Value::as_object))
            .into_iter()
            .flatten()
            .find(|(pattern, _)| {
                let rest = module.strip_suffix(pattern.as_str());
                rest.is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })
            .map(|(_, alpha)| alpha);
        let alpha = own.or_else(|| entry("lora_alpha"))?.as_f64()?;
        let root = entry("use_rslora").and_then(Value::as_bool);
        Some((alpha as f32, root.unwrap_or(false)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_with_and_without_a_scale() {
        let parse = |text: &str| text.parse::<Lora>().map(|l| (l.file, l.scale));
        let lora = |file: &str, scale| Ok((PathBuf::from(file), scale));
        assert_eq!(parse("a.safetensors"), lora("a.safetensors", 1.0));
        assert_eq!(parse("a.safetensors:0.5"), lora("a.safetensors", 0.5));
        assert_eq!(parse("b:c.safetensors"), lora("b:c.safetensors", 1.0));
        assert_eq!(parse("b:c.safetensors:-2"), lora("b:c.safetensors", -2.0));
        assert!(parse("a:nan").is_err() && parse("").is_err());
        // Blocks behind it.
        let blocks = |text: &str| text.parse::<Lora>().map(|l| (l.scale, l.blocks));
        let down = "down=0.5,mid=0".parse().ok();
        assert_eq!(
            blocks("a.safetensors:down=0.5,mid=0"),
            Ok((1.0, down.clone()))
        );
        assert_eq!(blocks("a.safetensors:-2:down=0.5,mid=0"), Ok((-2.0, down)));
        assert_eq!(blocks("b:c=d.safetensors:0.5"), Ok((0.5, None)));
        assert!(blocks("a.safetensors:1:down=").is_err());
    }
}
