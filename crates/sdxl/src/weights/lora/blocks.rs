//! Scales of a LoRA by block, in the two ways people write them: the dictionary of diffusers'
//! `set_adapters`, and the list of A1111's extension `sd-webui-lora-block-weight`.
//!
//! Either multiplies the LoRA's scale. They divide the networks differently: in diffusers'
//! dictionary a scale belongs to a transformer and what is beside it, in the list to a block of the
//! original implementation.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::base::BaseNetworks;
use crate::error::{Error, Result};
use crate::model::config::UNetConfig;
use crate::weights::Part;
use crate::weights::names::Names;

/// Factors for parts of the networks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BlockScales {
    /// The dictionary that diffusers' `set_adapters` takes as `adapter_weights`:
    /// `{"unet": {"down": 0.5, "mid": 1, "up": {"block_0": [1, 0.5, 0]}}, "text_encoder": 0.2}`.
    /// A number in the place of a dictionary or a list is for all of it, and places that are not
    /// named keep 1. Residual blocks and resamplers have the factor of the transformer with the
    /// same number in their block, those of the middle keep 1.
    Named(Map<String, Value>),
    /// `lbw=`: the text encoders, the input blocks, the middle and the output blocks: those that
    /// have transformers (12 numbers for SDXL, the other blocks have 0), or all (20 numbers).
    Listed(Vec<f32>),
}

/// The extension's presets, for SDXL's twelve numbers. Shallow blocks are those far from the middle.
const PRESETS: [(&str, [f32; 12]); 10] = [
    ("NONE", [0.0; 12]),
    ("ALL", [1.0; 12]),
    ("ALL0.5", [0.5; 12]),
    ("INS", of_places("111000000000")),
    ("IND", of_places("100110000000")),
    ("INALL", of_places("111110000000")),
    ("MIDD", of_places("100111111000")),
    ("OUTD", of_places("100000111000")),
    ("OUTS", of_places("100000000111")),
    ("OUTALL", of_places("100000111111")),
];

const fn of_places(digits: &str) -> [f32; 12] {
    let mut weights = [0.0; 12];
    let mut i = 0;
    while i < 12 {
        if digits.as_bytes()[i] == b'1' {
            weights[i] = 1.0;
        }
        i += 1;
    }
    weights
}

/// The numbers that stand behind `lbw=`: a preset's name, or a list with commas.
///
/// # Errors
/// A sentence about what is neither.
pub fn read_list(text: &str) -> std::result::Result<Vec<f32>, String> {
    let text = text.trim();
    if let Some((_, weights)) = PRESETS.iter().find(|(name, _)| *name == text) {
        return Ok(weights.to_vec());
    }
    let number = |word: &str| word.trim().parse::<f32>().ok().filter(|n| n.is_finite());
    let numbers: Option<Vec<f32>> = text.split(',').map(number).collect();
    numbers.ok_or_else(|| {
        let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
        format!(
            "`lbw={text}` is neither a list of numbers such as 1,0,0,0,0,0,1,1,1,0,0,0 nor one of the \
             presets {}",
            names.join(", ")
        )
    })
}

impl std::str::FromStr for BlockScales {
    type Err = String;

    /// `down=0.5,up.block_0=1,0.5,0,text_encoder=0.2`: the dictionary's entries by their path, with
    /// or without `unet.` in front; or `lbw=` and a list or a preset.
    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if let Some(list) = text.strip_prefix("lbw=") {
            return read_list(list).map(BlockScales::Listed);
        }
        // A word without a name goes on with the list before it.
        let mut entries: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        let mut last = String::new();
        for word in text.split(',') {
            let value = match word.split_once('=') {
                Some((name, value)) => {
                    let name = name.trim();
                    last = name.strip_prefix("unet.").unwrap_or(name).to_string();
                    if entries.insert(last.clone(), Vec::new()).is_some() {
                        return Err(format!("`{last}` is given twice"));
                    }
                    value
                }
                None => word,
            };
            let number = value.trim().parse::<f64>().ok().filter(|n| n.is_finite());
            let Some(number) = number else {
                return Err(format!(
                    "`{word}` has no number; write as in down=0.5,mid=0"
                ));
            };
            match entries.get_mut(&last) {
                Some(numbers) => numbers.push(number.into()),
                None => return Err(format!("`{word}` names no block; write as in down=0.5")),
            }
        }
        let mut root = Map::new();
        for (name, mut numbers) in entries {
            let value = match numbers.len() {
                1 => numbers.remove(0),
                _ => Value::Array(numbers),
            };
            let path: Vec<&str> = match name.split('.').collect::<Vec<_>>()[..] {
                [first @ ("down" | "up" | "mid"), ref rest @ ..] => {
                    [&["unet", first], rest].concat()
                }
                ref whole => whole.to_vec(),
            };
            insert(&mut root, &path, value)
                .ok_or_else(|| format!("`{name}` is given as a whole and in parts"))?;
        }
        Ok(BlockScales::Named(root))
    }
}

/// Puts `value` at a path; nothing where something stands in the way.
fn insert(into: &mut Map<String, Value>, path: &[&str], value: Value) -> Option<()> {
    match path {
        [] => None,
        [last] => into.insert(last.to_string(), value).is_none().then_some(()),
        [first, rest @ ..] => {
            let inner = into
                .entry(first.to_string())
                .or_insert_with(|| Map::new().into());
            insert(inner.as_object_mut()?, rest, value)
        }
    }
}

/// A place that a factor was given for, and whether the file changes anything there.
struct Asked {
    label: String,
    met: Cell<bool>,
}

/// A factor, and which of the askings it comes from.
type AskedFactor = (f32, usize);

/// [`BlockScales`] matched with a checkpoint's networks.
pub(super) struct BlockFactors {
    kind: ByBlock,
    asked: Vec<Asked>,
}

enum ByBlock {
    None,
    Named {
        unet: Option<AskedFactor>,
        /// By a transformer's name.
        transformers: HashMap<String, AskedFactor>,
        text_encoder: Option<AskedFactor>,
        text_encoder_2: Option<AskedFactor>,
    },
    Listed {
        names: Names,
        base: f32,
        /// By a block's name in the original implementation.
        blocks: HashMap<String, f32>,
    },
}

impl BlockFactors {
    /// # Errors
    /// [`Error::File`] naming `path`, the LoRA: blocks that this checkpoint does not have, values
    /// that are no scales, and lists of another length.
    pub(super) fn new(
        blocks: Option<&BlockScales>,
        base: &BaseNetworks<'_>,
        path: &Path,
    ) -> Result<BlockFactors> {
        let mut asked = Vec::new();
        let kind = match blocks {
            None => ByBlock::None,
            Some(BlockScales::Listed(weights)) => listed(weights, base, path)?,
            Some(BlockScales::Named(dictionary)) => {
                let mut reader = Reader {
                    path,
                    asked: &mut asked,
                };
                reader.dictionary(dictionary, base)?
            }
        };
        Ok(BlockFactors { kind, asked })
    }

    /// The factor of a module.
    pub(super) fn of(&self, part: Part, module: &str) -> f32 {
        let found = match &self.kind {
            ByBlock::None => None,
            ByBlock::Listed {
                names,
                base,
                blocks,
            } => {
                if part != Part::UNet {
                    return *base;
                }
                let original = names.to_original(module);
                return (original.as_deref().and_then(block_of))
                    .map_or(1.0, |block| blocks.get(block).copied().unwrap_or(0.0));
            }
            ByBlock::Named {
                unet,
                transformers,
                text_encoder,
                text_encoder_2,
            } => match part {
                Part::TextEncoder => *text_encoder,
                Part::TextEncoder2 => *text_encoder_2,
                _ => unet.or_else(|| transformers.get(&transformer_of(module)?).copied()),
            },
        };
        found.map_or(1.0, |(factor, asked)| {
            self.asked[asked].met.set(true);
            factor
        })
    }

    /// Refuses scales for places where the file changes nothing. `changed`: the modules that it
    /// changes.
    pub(super) fn check_met(&self, changed: &[(Part, String)], path: &Path) -> Result<()> {
        let in_vain: Vec<&str> = (self.asked.iter().filter(|asked| !asked.met.get()))
            .map(|asked| asked.label.as_str())
            .collect();
        if in_vain.is_empty() {
            return Ok(());
        }
        let places: BTreeSet<String> = (changed.iter())
            .filter_map(|(part, module)| match part {
                Part::UNet => {
                    let transformer = transformer_of(module)?;
                    Some(match transformer.split('.').collect::<Vec<_>>()[..] {
                        [side, block, ..] if side != "mid_block" => {
                            format!("{}.block_{block}", side.trim_end_matches("_blocks"))
                        }
                        _ => "mid".to_string(),
                    })
                }
                _ => Some(part.folder().to_string()),
            })
            .collect();
        let places: Vec<String> = places.into_iter().collect();
        Err(Error::file(
            path,
            format!(
                "a scale is given for {}, where this LoRA changes nothing; it changes {}",
                in_vain.join(", "),
                if places.is_empty() {
                    "nothing that has a scale".to_string()
                } else {
                    places.join(", ")
                }
            ),
        ))
    }
}

/// The transformer whose scale a module has in diffusers: its own, or that of the same number in
/// its block. Modules outside of blocks have none, nor have the middle's residual blocks.
fn transformer_of(module: &str) -> Option<String> {
    let mut words = module.split('.');
    match (words.next()?, words.next()?, words.next()?, words.next()) {
        (side @ ("down_blocks" | "up_blocks"), block, _, Some(number)) => {
            Some(format!("{side}.{block}.attentions.{number}"))
        }
        ("mid_block", "attentions", "0", _) => Some("mid_block.attentions.0".to_string()),
        _ => None,
    }
}

/// `input_blocks.4` of `input_blocks.4.1.proj_in`; the middle is one block.
fn block_of(original: &str) -> Option<&str> {
    if original.starts_with("middle_block.") {
        return Some("middle_block");
    }
    let start = ["input_blocks.", "output_blocks."]
        .into_iter()
        .find(|start| original.starts_with(start))?;
    let end = original[start.len()..].find('.')?;
    Some(&original[..start.len() + end])
}

fn listed(weights: &[f32], base: &BaseNetworks<'_>, path: &Path) -> Result<ByBlock> {
    let names = Names::unet(base.unet, &base.unet_config)?;
    // All blocks in the list's order, and whether they have a transformer.
    let mut all: BTreeMap<(u8, usize), (String, bool)> = BTreeMap::new();
    all.insert((1, 0), ("middle_block".to_string(), true));
    for (original, name) in names.modules() {
        let Some(block) = block_of(original) else {
            continue;
        };
        let place = match block.rsplit_once('.') {
            Some(("input_blocks", number)) => (0, number.parse().expect("blocks are numbered")),
            Some((_, number)) => (2, number.parse().expect("blocks are numbered")),
            None => continue,
        };
        let entry = all.entry(place).or_insert((block.to_string(), false));
        entry.1 |= name.contains(".attentions.");
    }
    let short: Vec<&String> = (all.values().filter(|(_, attends)| *attends))
        .map(|(name, _)| name)
        .collect();
    let chosen: Vec<&String> = if weights.len() == 1 + short.len() {
        short
    } else if weights.len() == 1 + all.len() {
        all.values().map(|(name, _)| name).collect()
    } else {
        let title = |name: &&String| {
            let (side, number) = name.rsplit_once('.').unwrap_or(("", ""));
            match side {
                "input_blocks" => format!("IN{number:0>2}"),
                "output_blocks" => format!("OUT{number}"),
                _ => "MID".to_string(),
            }
        };
        let titles: Vec<String> = short.iter().map(title).collect();
        let foreign = match weights.len() {
            17 | 26 => " (lists of 17 and 26 are for Stable Diffusion 1)",
            _ => "",
        };
        return Err(Error::file(
            path,
            format!(
                "lbw has {} numbers{foreign}; for this checkpoint it has {} (BASE, {}), or {} for all \
                 blocks",
                weights.len(),
                1 + short.len(),
                titles.join(", "),
                1 + all.len()
            ),
        ));
    };
    let blocks = (chosen.into_iter().cloned())
        .zip(weights[1..].iter().copied())
        .collect();
    Ok(ByBlock::Listed {
        base: weights[0],
        names,
        blocks,
    })
}

/// Reads diffusers' dictionary.
struct Reader<'a> {
    path: &'a Path,
    asked: &'a mut Vec<Asked>,
}

impl Reader<'_> {
    fn refuse<T>(&self, text: String) -> Result<T> {
        Err(Error::file(
            self.path,
            format!("its scales by block: {text}"),
        ))
    }

    fn ask(&mut self, label: &str) -> usize {
        self.asked.push(Asked {
            label: format!("`{}`", label.strip_prefix("unet.").unwrap_or(label)),
            met: Cell::new(false),
        });
        self.asked.len() - 1
    }

    fn number(&self, value: &Value, label: &str) -> Result<f32> {
        match value.as_f64().map(|n| n as f32).filter(|n| n.is_finite()) {
            Some(number) => Ok(number),
            None => self.refuse(format!("`{label}` is {value}, which is no scale")),
        }
    }

    /// Refuses names that are not `known`.
    fn check_names(&self, map: &Map<String, Value>, at: &str, known: &[String]) -> Result<()> {
        match map.keys().find(|name| !known.contains(name)) {
            None => Ok(()),
            Some(name) => self.refuse(format!(
                "there is no `{at}{name}`; there is {}",
                known.join(", ")
            )),
        }
    }

    fn dictionary(&mut self, map: &Map<String, Value>, base: &BaseNetworks<'_>) -> Result<ByBlock> {
        let parts = [Part::UNet, Part::TextEncoder, Part::TextEncoder2];
        let known: Vec<String> = (parts.iter().filter(|part| base.has(**part)))
            .map(|part| part.folder().to_string())
            .collect();
        self.check_names(map, "", &known)?;
        let mut text = [None; 2];
        for (factor, part) in text.iter_mut().zip(&parts[1..]) {
            if let Some(value) = map.get(part.folder()) {
                let number = self.number(value, part.folder())?;
                *factor = Some((number, self.ask(part.folder())));
            }
        }
        let mut unet = None;
        let mut transformers = HashMap::new();
        match map.get("unet") {
            None => {}
            Some(Value::Object(inner)) => {
                transformers = self.unet(inner, base.unet, &base.unet_config)?;
            }
            Some(value) => unet = Some((self.number(value, "unet")?, self.ask("unet"))),
        }
        let [text_encoder, text_encoder_2] = text;
        Ok(ByBlock::Named {
            unet,
            transformers,
            text_encoder,
            text_encoder_2,
        })
    }

    fn unet(
        &mut self,
        map: &Map<String, Value>,
        config: &UNetConfig,
        config_path: &Path,
    ) -> Result<HashMap<String, AskedFactor>> {
        // The transformers of each block, by the side and the block's name.
        let mut sides: BTreeMap<&str, BTreeMap<String, BTreeSet<usize>>> = BTreeMap::new();
        for (_, name) in Names::unet(config, config_path)?.modules() {
            if let [side, block, "attentions", number] = name.split('.').collect::<Vec<_>>()[..] {
                let side = if side == "down_blocks" { "down" } else { "up" };
                let blocks = sides.entry(side).or_default();
                let numbers = blocks.entry(format!("block_{block}")).or_default();
                numbers.insert(number.parse().expect("attentions are numbered"));
            }
        }
        self.check_names(map, "", &["down", "mid", "up"].map(String::from))?;
        let mut found = HashMap::new();
        if let Some(value) = map.get("mid") {
            let value = match value.as_array().map(Vec::as_slice) {
                Some([one]) => one,
                _ => value,
            };
            let number = self.number(value, "mid")?;
            found.insert(
                "mid_block.attentions.0".to_string(),
                (number, self.ask("mid")),
            );
        }
        for (side, blocks) in &sides {
            let mut put =
                |reader: &mut Self, name: &str, value: &Value, label: &str, asked: usize| {
                    let block = name.trim_start_matches("block_");
                    let numbers = &blocks[name];
                    let each = match value {
                        Value::Array(list) if list.len() == 1 => vec![&list[0]; numbers.len()],
                        Value::Array(list) if list.len() == numbers.len() => list.iter().collect(),
                        Value::Array(list) => {
                            let (given, has) = (list.len(), numbers.len());
                            return reader.refuse(format!(
                            "`{label}` has {given} scales, and {side}.{name} has {has} transformers"
                        ));
                        }
                        one => vec![one; numbers.len()],
                    };
                    for (number, value) in numbers.iter().zip(each) {
                        let transformer = format!("{side}_blocks.{block}.attentions.{number}");
                        found.insert(transformer, (reader.number(value, label)?, asked));
                    }
                    Ok(())
                };
            match map.get(*side) {
                None => {}
                Some(Value::Object(inner)) => {
                    let known: Vec<String> = blocks.keys().cloned().collect();
                    self.check_names(inner, &format!("{side}."), &known)?;
                    for (name, value) in inner {
                        let label = format!("{side}.{name}");
                        let asked = self.ask(&label);
                        put(self, name, value, &label, asked)?;
                    }
                }
                Some(value) => {
                    let asked = self.ask(side);
                    for name in blocks.keys() {
                        put(self, name, value, side, asked)?;
                    }
                }
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn named(text: &str) -> Value {
        match text.parse::<BlockScales>() {
            Ok(BlockScales::Named(map)) => map.into(),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn blocks_as_they_are_typed() {
        assert_eq!(named("mid=0"), json!({"unet": {"mid": 0.0}}));
        assert_eq!(named("unet.mid=0"), named("mid=0"));
        assert_eq!(
            named("down=0.5,up.block_0=1,0.5,-2,text_encoder=0.2, mid = 1"),
            json!({"unet": {"down": 0.5, "mid": 1.0, "up": {"block_0": [1.0, 0.5, -2.0]}},
                "text_encoder": 0.2})
        );
        for (text, word) in [
            ("down", "down"),
            ("down=x", "down=x"),
            ("down=inf", "down=inf"),
            ("0.5,down=1", "0.5"),
            ("down=1,down=2", "twice"),
            ("down=1,down.block_1=2", "whole"),
            ("unet=1,mid=2", "whole"),
            ("lbw=OUT", "OUTALL"),
            ("lbw=1,R", "1,R"),
        ] {
            let told = text.parse::<BlockScales>().unwrap_err();
            assert!(told.contains(word), "{text}: {told}");
        }
    }

    #[test]
    fn presets_are_lists() {
        assert_eq!(read_list("OUTD"), read_list("1,0,0,0,0,0,1,1,1,0,0,0"));
        assert_eq!(read_list("MIDD"), read_list("1,0,0,1,1,1,1,1,1,0,0,0"));
        assert_eq!(read_list("ALL0.5").unwrap(), [0.5; 12]);
    }

    #[test]
    fn a_module_goes_with_a_transformer() {
        let of = |module| transformer_of(module).unwrap_or_default();
        assert_eq!(
            of("down_blocks.1.attentions.0.proj_in"),
            "down_blocks.1.attentions.0"
        );
        assert_eq!(
            of("up_blocks.0.resnets.2.conv1"),
            "up_blocks.0.attentions.2"
        );
        assert_eq!(
            of("mid_block.attentions.0.proj_in"),
            "mid_block.attentions.0"
        );
        assert_eq!(of("mid_block.resnets.0.conv1"), "");
        assert_eq!(of("conv_in"), "");
    }
}
