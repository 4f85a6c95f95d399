"""Writes the trained (averaged) weights as fp16 checkpoint folders: `python export.py --work DIR --output DIR`.

Of the refiner only what is not the base's: `sdxl models export-demo` writes whole folders.
"""

import argparse
import json
import os

import torch
from safetensors.torch import save_file

import models
from stages import load_ema
from tokenizer import write_tokenizer

VERSION = "0.19.0.dev0"
SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": VERSION, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "interpolation_type": "linear", "num_train_timesteps": 1000, "prediction_type": "epsilon",
    "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1,
    "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
}


def _json(path, value):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(value, f, indent=2, sort_keys=True)
        f.write("\n")


def _weights(path, state):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    # Position ids are not in the published files' fp16 set that matters: they are only 0..76.
    state = {k: v.to(torch.float16).contiguous() for k, v in state.items() if not k.endswith("position_ids")}
    for k, v in state.items():
        if not torch.isfinite(v).all():
            raise ValueError(f"{k} does not fit fp16")
    save_file(state, path, metadata={"format": "pt"})


def _diffusers_part(folder, model):
    _json(os.path.join(folder, "config.json"), {**{k: v for k, v in model.config.items() if not k.startswith("_")},
                                                "_class_name": type(model).__name__, "_diffusers_version": VERSION})
    _weights(os.path.join(folder, "diffusion_pytorch_model.safetensors"), model.state_dict())


def _text_part(folder, model):
    config = model.config
    keep = ("attention_dropout", "bos_token_id", "dropout", "eos_token_id", "hidden_act", "hidden_size",
            "initializer_factor", "initializer_range", "intermediate_size", "layer_norm_eps",
            "max_position_embeddings", "num_attention_heads", "num_hidden_layers", "pad_token_id",
            "projection_dim", "vocab_size")
    values = {k: getattr(config, k, 0.0) for k in keep}
    values.update(architectures=[type(model).__name__], model_type="clip_text_model", torch_dtype="float16")
    _json(os.path.join(folder, "config.json"), values)
    state = model.state_dict()
    # The published files name everything but the projection under `text_model.`.
    state = {k if k.startswith(("text_model.", "text_projection.")) else "text_model." + k: v for k, v in state.items()}
    _weights(os.path.join(folder, "model.safetensors"), state)


def export(work, output):
    scale = float(open(os.path.join(work, "scaling_factor.txt")).read())
    vae = models.new_vae()
    load_ema(work, "vae", vae=vae)
    vae.register_to_config(scaling_factor=scale)
    tokenizer_pads = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}
    base = os.path.join(output, "base")
    for name, pad in tokenizer_pads.items():
        size = write_tokenizer(os.path.join(base, name), pad)
    one, two, unet = models.new_text_encoder(size), models.new_text_encoder_2(size), models.new_base_unet()
    if not load_ema(work, "base", unet=unet, text_encoder=one, text_encoder_2=two):
        raise SystemExit(f"{work} has no trained base: run train.py first")
    common = {"_diffusers_version": VERSION, "add_watermarker": None, "scheduler": ["diffusers", "EulerDiscreteScheduler"],
              "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
              "tokenizer_2": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
              "vae": ["diffusers", "AutoencoderKL"]}
    _json(os.path.join(base, "model_index.json"), {
        **common, "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True,
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]})
    _json(os.path.join(base, "scheduler", "scheduler_config.json"), SCHEDULER)
    _text_part(os.path.join(base, "text_encoder"), one)
    _text_part(os.path.join(base, "text_encoder_2"), two)
    _diffusers_part(os.path.join(base, "unet"), unet)
    _diffusers_part(os.path.join(base, "vae"), vae)

    unet = models.new_refiner_unet()
    if not load_ema(work, "refiner", unet=unet):
        print("no refiner yet: base only")
        return
    refiner = os.path.join(output, "refiner")
    _json(os.path.join(refiner, "model_index.json"), {
        **common, "_class_name": "StableDiffusionXLImg2ImgPipeline", "force_zeros_for_empty_prompt": False,
        "requires_aesthetics_score": True, "text_encoder": [None, None], "tokenizer": [None, None]})
    _json(os.path.join(refiner, "scheduler", "scheduler_config.json"), SCHEDULER)
    _diffusers_part(os.path.join(refiner, "unet"), unet)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", required=True, help="the folder given to train.py")
    parser.add_argument("--output", required=True, help="folder for base/ and refiner/")
    args = parser.parse_args()
    export(args.work, args.output)
