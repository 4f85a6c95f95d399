//! The modules of a checkpoint that LoRAs can change, found by the names that files have for them.

use std::collections::HashMap;

use super::base::BaseNetworks;
use super::tensor_names::without_leftovers;
use crate::error::Result;
use crate::weights::names::Names;
use crate::weights::{Part, TensorSet};

/// Modules that can be changed, by their names with `_` for `.`, as kohya writes them.
pub(super) struct Targets {
    parts: Vec<(Part, TensorSet, HashMap<String, String>)>,
}

impl Targets {
    pub(super) fn of(base: &BaseNetworks<'_>) -> Result<Targets> {
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
    pub(super) fn find(&self, key: &str) -> Option<(Part, &str, &TensorSet)> {
        let key = without_leftovers(key);
        let key = key.strip_prefix("base_model.model.").unwrap_or(&key);
        let (part, name) = [
            ("lora_unet_", Part::UNet),
            ("lora_te1_", Part::TextEncoder),
            ("lora_te2_", Part::TextEncoder2),
            ("lora_te_", Part::TextEncoder),
            ("lycoris_te1_", Part::TextEncoder),
            ("lycoris_te2_", Part::TextEncoder2),
            ("lycoris_te_", Part::TextEncoder),
            ("lycoris_unet_", Part::UNet),
            ("lycoris_", Part::UNet),
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
