"""The tiny checkpoints, in the layout and with the key names of the published ones."""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import configs
from files import GOLDEN, link, write_json, write_weights
from vocab import make_tokenizer
from weights import random_weights


def make_text_encoder(folder: Path, model_class, config: dict, seed: int, position_ids: bool) -> None:
    """A text encoder, stored as float16 to keep the vocabulary's rows small.

    Published files name everything `text_model.…`; this transformers saves the
    first encoder without that prefix. `position_ids` adds the index buffer that
    files of older exports carry and that a reader must pass over.
    """
    known = {key: value for key, value in config.items() if key not in ("architectures", "torch_dtype", "dropout")}
    arrays = random_weights(seed, model_class(CLIPTextConfig(**known)))
    arrays = {
        name if name.startswith("text_") else f"text_model.{name}": values.astype(np.float16)
        for name, values in arrays.items()
    }
    if position_ids:
        arrays["text_model.embeddings.position_ids"] = np.arange(77, dtype=np.int64)[None]
    write_json(folder / "config.json", config)
    write_weights(folder / "model.safetensors", arrays)


def make_diffusers_model(folder: Path, model_class, config: dict, seed: int, dtype=np.float32) -> None:
    """A UNet or VAE; key names are what diffusers itself writes."""
    arrays = random_weights(seed, model_class.from_config(config))
    write_json(folder / "config.json", config)
    write_weights(
        folder / "diffusion_pytorch_model.safetensors",
        {name: values.astype(dtype) for name, values in arrays.items()},
    )


def make_base() -> None:
    base = GOLDEN / "base"
    write_json(base / "model_index.json", configs.MODEL_INDEX_BASE)
    write_json(base / "scheduler/scheduler_config.json", configs.SCHEDULER)
    make_tokenizer(base / "tokenizer", "<|endoftext|>")
    make_tokenizer(base / "tokenizer_2", "!")
    make_text_encoder(base / "text_encoder", CLIPTextModel, configs.TEXT_ENCODER, 1, position_ids=True)
    make_text_encoder(
        base / "text_encoder_2", CLIPTextModelWithProjection, configs.TEXT_ENCODER_2, 2, position_ids=False
    )
    make_diffusers_model(base / "unet", UNet2DConditionModel, configs.UNET_BASE, 3)
    make_diffusers_model(base / "vae", AutoencoderKL, configs.VAE, 4)


def make_refiner() -> None:
    """Second encoder and VAE are those of the base, as in the published pair."""
    refiner = GOLDEN / "refiner"
    write_json(refiner / "model_index.json", configs.MODEL_INDEX_REFINER)
    write_json(refiner / "scheduler/scheduler_config.json", configs.SCHEDULER)
    for part in ("text_encoder_2", "tokenizer_2", "vae"):
        link(refiner / part, f"../base/{part}")
    make_diffusers_model(refiner / "unet", UNet2DConditionModel, configs.UNET_REFINER, 5, np.float16)


def make_inpaint() -> None:
    """All but the UNet is the base's."""
    inpaint = GOLDEN / "inpaint"
    write_json(inpaint / "model_index.json", configs.MODEL_INDEX_INPAINT)
    write_json(inpaint / "scheduler/scheduler_config.json", configs.SCHEDULER)
    for part in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "vae"):
        link(inpaint / part, f"../base/{part}")
    make_diffusers_model(inpaint / "unet", UNet2DConditionModel, configs.UNET_INPAINT, 20, np.float16)


def make_unets() -> None:
    for seed, (name, config) in enumerate(configs.UNETS.items(), start=6):
        make_diffusers_model(GOLDEN / "unets" / name, UNet2DConditionModel, config, seed, np.float16)


def load(model_class, folder: Path):
    """A model from such a folder in float32; an error unless every weight was found."""
    model, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    problems = {key: value for key, value in info.items() if value}
    assert not problems, problems
    return model.eval()
