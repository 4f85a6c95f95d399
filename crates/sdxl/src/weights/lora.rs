//! LoRAs and their relatives: small files of changes to a checkpoint's weights.
//!
//! The changes are added when weights are read, before they are packed: a network with a
//! LoRA runs as fast as one without. Read are the names of kohya's trainer (with diffusers'
//! or the original implementation's blocks), of LyCORIS, and of diffusers and PEFT.

mod base;
pub mod blocks;
pub mod named;
mod update;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::changes::Changes;
use super::layer_cache::FileStamp;
use super::names::Names;
use super::part::Part;
use super::recognise::lora_text_width;
use super::stored_tensor::StoredTensor;
use super::tensor_set::TensorSet;
use crate::error::{Error, Result};
use crate::files::read_json;
use crate::warning::{Warning, WarningKind};
pub(super) use base::BaseNetworks;
use blocks::{BlockFactors, BlockScales};
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
        let mut warnings = Vec::new();
        for lora in loras {
            let matched = match_file(lora, base, &targets)?;
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
            warnings,
        })
    }

    /// The files and their scales, as they were given.
    pub fn loras(&self) -> &[Lora] {
        &self.loras
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

/// Modules that can be changed, by their names with `_` for `.`, as kohya writes them.
struct Targets {
    parts: Vec<(Part, TensorSet, HashMap<String, String>)>,
}

impl Targets {
    fn of(base: &BaseNetworks<'_>) -> Result<Targets> {
        let mut parts = Vec::new();
        for (part, set) in &base.tensors {
            let (part, set) = (*part, set.clone());
            let original = match part {
                Part::UNet => Some(Names::unet(base.unet, &base.unet_config)?),
                _ => None,
            };
            let mut modules = HashMap::new();
            for (name, _) in set.iter() {
                let Some(module) = name.strip_suffix(".weight") else {
                    continue;
                };
                let flat = |name: &str| name.replace('.', "_");
                if let Some(name) = original.as_ref().and_then(|n| n.to_original(module)) {
                    modules.insert(flat(&name), module.to_string());
                }
                if let Some(short) = module.strip_prefix("text_model.") {
                    modules.insert(flat(short), module.to_string());
                } else if part != Part::UNet {
                    modules.insert(flat(&format!("text_model.{module}")), module.to_string());
                }
                modules.insert(flat(module), module.to_string());
            }
            parts.push((part, set, modules));
        }
        Ok(Targets { parts })
    }

    /// The part, the module and the tensors of a name in a LoRA.
    fn find(&self, key: &str) -> Option<(Part, &str, &TensorSet)> {
        let key = key.strip_prefix("base_model.model.").unwrap_or(key);
        let (part, name) = [
            ("lora_unet_", Part::UNet),
            ("lora_te1_", Part::TextEncoder),
            ("lora_te2_", Part::TextEncoder2),
            ("lora_te_", Part::TextEncoder),
            ("unet.", Part::UNet),
            ("model.diffusion_model.", Part::UNet),
            ("diffusion_model.", Part::UNet),
            ("text_encoder.", Part::TextEncoder),
            ("text_encoder_2.", Part::TextEncoder2),
            ("text_encoders.clip_l.transformer.", Part::TextEncoder),
            ("text_encoders.clip_g.transformer.", Part::TextEncoder2),
        ]
        .into_iter()
        .find_map(|(prefix, part)| Some((part, key.strip_prefix(prefix)?)))
        .unwrap_or((Part::UNet, key));
        // Before PEFT, diffusers named the objects that held the attention's LoRAs.
        let mut name = name.replace(".processor.", ".").replace('.', "_");
        if name.ends_with("_to_out") {
            name.push_str("_0");
        }
        let (_, set, modules) = self.parts.iter().find(|(p, _, _)| *p == part)?;
        Some((part, modules.get(&name)?.as_str(), set))
    }
}

/// The endings of the names of a LoRA's tensors, each with the piece of a change that it marks.
const ENDINGS: [(&str, TensorRole); 37] = [
    (".lora_down.weight", TensorRole::Down),
    (".lora_up.weight", TensorRole::Up),
    (".lora_mid.weight", TensorRole::Mid),
    (".lora_A.weight", TensorRole::Down),
    (".lora_B.weight", TensorRole::Up),
    (".lora_A.default.weight", TensorRole::Down),
    (".lora_B.default.weight", TensorRole::Up),
    (".lora.down.weight", TensorRole::Down),
    (".lora.up.weight", TensorRole::Up),
    ("_lora.down.weight", TensorRole::Down),
    ("_lora.up.weight", TensorRole::Up),
    (".lora_linear_layer.down.weight", TensorRole::Down),
    (".lora_linear_layer.up.weight", TensorRole::Up),
    (".alpha", TensorRole::Alpha),
    (".dora_scale", TensorRole::DoraScale),
    (".lora_magnitude_vector", TensorRole::Magnitude),
    (".lora_magnitude_vector.weight", TensorRole::Magnitude),
    (
        ".lora_magnitude_vector.default.weight",
        TensorRole::Magnitude,
    ),
    (".hada_w1_a", TensorRole::Hada1A),
    (".hada_w1_b", TensorRole::Hada1B),
    (".hada_w2_a", TensorRole::Hada2A),
    (".hada_w2_b", TensorRole::Hada2B),
    (".hada_t1", TensorRole::HadaT1),
    (".hada_t2", TensorRole::HadaT2),
    (".lokr_w1", TensorRole::Kron1),
    (".lokr_w1_a", TensorRole::Kron1A),
    (".lokr_w1_b", TensorRole::Kron1B),
    (".lokr_w2", TensorRole::Kron2),
    (".lokr_w2_a", TensorRole::Kron2A),
    (".lokr_w2_b", TensorRole::Kron2B),
    (".lokr_t2", TensorRole::KronT2),
    (".diff", TensorRole::Diff),
    (".w_norm", TensorRole::Diff),
    (".diff_b", TensorRole::DiffBias),
    (".b_norm", TensorRole::DiffBias),
    (".lora_B.bias", TensorRole::DiffBias),
    (".lora_up.bias", TensorRole::DiffBias),
];

fn split(name: &str) -> Option<(&str, TensorRole)> {
    (ENDINGS.iter()).find_map(|(ending, piece)| Some((name.strip_suffix(ending)?, *piece)))
}

/// The changes that a file makes to the checkpoint, and a warning about modules without a place.
struct Matched {
    updates: Vec<(Part, String, Update)>,
    warning: Option<Warning>,
}

fn match_file(lora: &Lora, base: &BaseNetworks<'_>, targets: &Targets) -> Result<Matched> {
    let path = lora.file.as_path();
    let set = TensorSet::open(std::slice::from_ref(&lora.file))?;
    set.check_shapes(|name| split(name).is_some())?;
    check_model(&set, base, path)?;
    let peft = PeftConfig::of(&set, path);
    let set = Arc::new(set);
    // Sorted, so that messages name the same keys every time.
    let mut modules: BTreeMap<&str, HashMap<TensorRole, StoredTensor>> = BTreeMap::new();
    let mut unused: Vec<String> = Vec::new();
    for (name, tensor) in set.iter() {
        match split(name) {
            Some((key, piece)) => {
                modules
                    .entry(key)
                    .or_default()
                    .insert(piece, tensor.clone());
            }
            // A list of numbers from 0, or an empty marker, changes nothing.
            None if name.ends_with(".position_ids") || tensor.values() == 0 => {}
            None => unused.push(name.to_string()),
        }
    }
    if modules.is_empty() {
        let what = super::recognise::FileKind::of(&set).describe();
        let text = format!("none of its tensors is named as a LoRA's are: it is {what}");
        return Err(Error::file(path, text));
    }
    let factors = BlockFactors::new(lora.blocks.as_ref(), base, path)?;
    let mut updates = Vec::new();
    let mut matched: Vec<(Part, String)> = Vec::new();
    for (key, pieces) in modules {
        let Some((part, module, weights)) = targets.find(key) else {
            unused.push(key.to_string());
            continue;
        };
        let tensors = ModuleTensors {
            key,
            path,
            source: &set,
            pieces,
        };
        let alpha = peft.alpha(part, module);
        let mut used = false;
        let scale = lora.scale_of(part) * factors.of(part, module);
        for (inner, update) in tensors.updates(scale, alpha)? {
            let name = format!("{module}.{inner}");
            let Some(weight) = weights.get(&name) else {
                continue;
            };
            update.check(weight.shape(), key, path)?;
            used = true;
            // Left out rather than multiplied by nothing: what is read stays as it is stored.
            if !update.is_nothing() {
                updates.push((part, name, update));
            }
        }
        if used {
            matched.push((part, module.to_string()));
        } else {
            unused.push(key.to_string());
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
    Ok(Matched { updates, warning })
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
            .and_then(|text| serde_json::from_str(text).ok())
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
