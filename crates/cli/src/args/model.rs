//! The flags about the checkpoint and the machine, shared by `sdxl generate` and `sdxl plot`.

use std::path::PathBuf;

use clap::Args;
use sdxl::weights::lora::Lora;
use sdxl::{InversionFile, Offload, Precision, Request, VaeTiling, device};

use super::heading;
use super::values::{names, set, switch};

/// The checkpoint, what is added to it, and what it may take of the machine.
#[derive(Args)]
#[command(next_help_heading = heading::MODEL)]
pub(crate) struct ModelArgs {
    /// Checkpoint: the folder that holds model_index.json, one .safetensors file, or a model on
    /// the hub, ORG/NAME[/FILE][@REVISION], of which is fetched what the run needs [default: the
    /// demo model that this program carries]
    #[arg(long, value_name = "DIR|FILE|NAME")]
    pub model: Option<PathBuf>,
    /// Use weight files of this variant, such as fp16
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// A VAE to use in the place of the checkpoint's own, named as --model is
    #[arg(long, value_name = "FILE|DIR|NAME")]
    pub vae: Option<PathBuf>,
    /// A UNet to use in the place of the checkpoint's own: .safetensors or GGUF, or a folder
    #[arg(long, value_name = "FILE|DIR")]
    pub unet: Option<PathBuf>,
    /// A LoRA (or DoRA, LoHa, LoKr) to add to the checkpoint, scaled (by 1 where nothing is
    /// said); may be given several times
    ///
    /// Scales by block multiply it: diffusers' names
    /// (down=0.5,mid=0,up.block_0=1,0.5,0,text_encoder=0.2), or lbw= and the 12 or 20 numbers (or
    /// a preset, such as OUTD) of A1111's LoRA Block Weight.
    #[arg(long, value_name = "FILE[:SCALE][:BLOCKS]")]
    pub lora: Vec<Lora>,
    /// Folder of the LoRAs that prompts ask for by name (<lora:NAME:0.8> in A1111's language,
    /// withLora(NAME, 0.8) in Compel's): NAME.safetensors, also in folders inside it. That of
    /// A1111's web UI is models/Lora
    /// [default: the folder that SDXL_LORA_DIR names, else loras]
    #[arg(long, value_name = "DIR")]
    pub lora_dir: Option<PathBuf>,
    /// A textual inversion (with clip_l and clip_g) and the word that stands for it in prompts
    /// [default: the word it was trained for, else the file's name]; may be given several times
    #[arg(long, value_name = "FILE[:TOKEN]")]
    pub embedding: Vec<InversionFile>,
    /// Precision of the networks [default: bf16 where the processor has it, else f32]
    #[arg(long, value_parser = names::<Precision>())]
    pub precision: Option<Precision>,
    /// Networks that are taken out of memory while they do not work; no number changes [default:
    /// model for one run, none for many; sequential where the rest does not fit]
    #[arg(long, value_parser = names::<Offload>())]
    pub offload: Option<Offload>,
    /// Device that the networks run on: `auto` (the fastest there is) or `cpu`
    #[arg(long, value_name = "NAME", default_value_t)]
    pub device: device::DeviceChoice,
    /// Decode tile by tile: bounded memory, faint differences between tiles
    #[arg(long, value_parser = names::<VaeTiling>())]
    vae_tiling: Option<VaeTiling>,
    /// Side of the tiles in pixels, a multiple of 32 from 128: smaller ones take less memory and
    /// differ more from the whole [default: the checkpoint's; SDXL has 1024]
    #[arg(long, value_name = "PIXELS")]
    vae_tile_size: Option<u32>,
    /// Decode the pictures of a batch one by one: less memory, same numbers
    #[arg(long)]
    vae_slicing: bool,
    /// The negative
    #[arg(long)]
    no_vae_slicing: bool,
}

impl ModelArgs {
    /// Puts whatever was typed into `r`.
    pub(crate) fn apply(&self, r: &mut Request) {
        set(&mut r.vae_tiling, &self.vae_tiling);
        set(&mut r.vae_tile_size, &self.vae_tile_size);
        let slicing = switch(self.vae_slicing, self.no_vae_slicing);
        set(&mut r.vae_slicing, &slicing);
    }
}
