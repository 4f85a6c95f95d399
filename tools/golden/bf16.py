"""How far PyTorch in bfloat16 is from PyTorch in float32, module by module.

Weights and inputs are rounded to bf16 as `torch_dtype=torch.bfloat16` does it; what each module
makes is held against the float32 goldens of `modules.py`, as a relative L2 distance. A later block's
distance holds what the blocks before it did.

The goldens' networks have so few channels that chance decides much. So there is a wide one besides,
whose weights and inputs are made by a rule (`made`) rather than kept: `modules/wide.json` has its
configuration and its tensors' shapes.
"""

import json
import math

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from checkpoints import load
from files import GOLDEN, versions, write_json
from modules import Recorder

BF16 = torch.bfloat16


def distances(outputs: dict, exact: dict) -> dict:
    """Relative L2, rounded to the four digits that anyone needs."""
    found = {}
    for name, values in outputs.items():
        error = (values.double() - exact[name].double()).norm() / exact[name].double().norm()
        found[name] = float(f"{error:.3e}")
    return found


def text_encoders(found: dict) -> None:
    for part, model_class in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        exact = load_file(GOLDEN / f"modules/{part}.safetensors")
        model = load(model_class, GOLDEN / "base" / part).to(BF16)
        output = model(exact["input_ids"], output_hidden_states=True)
        outputs = {f"hidden_states.{k}": output.hidden_states[-k] for k in range(2, 5)}
        if part == "text_encoder_2":
            outputs["text_embeds"] = output.text_embeds
        found[part] = distances(outputs, exact)


def unets(found: dict) -> None:
    cases = [(name, GOLDEN / name / "unet", f"modules/unet_{name}.{size}.safetensors")
             for name in ("base", "refiner") for size in ("8x12", "9x13")]
    cases += [(name, GOLDEN / "unets" / name, f"unets/{name}/golden.safetensors") for name in ("ssd-1b", "vega")]
    for _, folder, file in cases:
        exact = load_file(GOLDEN / file)
        model = load(UNet2DConditionModel, folder).to(BF16)
        names = ["conv_in", *(f"down_blocks.{i}" for i in range(len(model.down_blocks)))]
        names += ["mid_block"] if model.mid_block is not None else []
        names += [f"up_blocks.{i}" for i in range(len(model.up_blocks))]
        given = {name: exact[name].to(BF16) for name in ("sample", "encoder_hidden_states", "text_embeds")}
        with Recorder(model, names) as outputs:
            outputs["out"] = model(
                given["sample"],
                exact["timestep"][0],
                encoder_hidden_states=given["encoder_hidden_states"],
                # Exact, though a pipeline rounds them: the comparison is of the networks.
                added_cond_kwargs={"text_embeds": given["text_embeds"], "time_ids": exact["time_ids"]},
            ).sample
        found[file] = distances(outputs, exact)


def vae(found: dict) -> None:
    model = load(AutoencoderKL, GOLDEN / "base/vae").to(BF16)
    exact = load_file(GOLDEN / "modules/vae_decode.safetensors")
    found["vae_decode"] = distances({"image": model.decode(exact["latents"].to(BF16)).sample}, exact)
    exact = load_file(GOLDEN / "modules/vae_encode.safetensors")
    mean = model.encode(exact["image"].to(BF16)).latent_dist.mean
    found["vae_encode"] = distances({"mean": mean}, exact)


def made(name: str, shape: list[int]) -> torch.Tensor:
    """Values that depend on the name and the place alone: weights even within what keeps a layer's
    variance, norms' scales around 1, the network's inputs of variance 1."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & (2**64 - 1)
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    even = 2.0 * ((z >> np.uint64(40)).astype(np.float64) / 2**24) - 1.0
    if not name.endswith((".weight", ".bias")):
        values = math.sqrt(3.0) * even
    elif len(shape) > 1:
        values = math.sqrt(3.0 / math.prod(shape[1:])) * even
    elif name.endswith(".weight"):
        values = 1.0 + 0.2 * even
    else:
        values = 0.1 * even
    return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def wide(found: dict) -> None:
    config = json.loads((GOLDEN / "base/unet/config.json").read_text())
    config |= {"block_out_channels": [64, 128, 192], "cross_attention_dim": 64, "norm_num_groups": 32}
    config |= {"transformer_layers_per_block": [1, 1, 2], "layers_per_block": 1}
    config |= {"projection_class_embeddings_input_dim": 32 + 6 * config["addition_time_embed_dim"]}
    model = UNet2DConditionModel.from_config(config).eval()
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: made(name, shape) for name, shape in shapes.items()})
    inputs = {"sample": [2, 4, 32, 32], "encoder_hidden_states": [2, 20, 64], "text_embeds": [2, 32]}
    given = {name: made(name, shape) for name, shape in inputs.items()}
    time_ids = torch.tensor([[1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0]] * 2)
    names = ["conv_in", "mid_block"]
    for i in range(3):
        names += [f"down_blocks.{i}", f"up_blocks.{i}"]

    def run(dtype):
        network = model.to(dtype)
        with Recorder(network, names) as outputs:
            outputs["out"] = network(
                given["sample"].to(dtype),
                500,
                encoder_hidden_states=given["encoder_hidden_states"].to(dtype),
                added_cond_kwargs={"text_embeds": given["text_embeds"].to(dtype), "time_ids": time_ids},
            ).sample
            return dict(outputs)

    exact = run(torch.float32)
    found["wide"] = distances(run(BF16), exact)
    norms = {name: float(f"{values.double().norm():.8e}") for name, values in exact.items()}
    config = {key: value for key, value in config.items() if value is not None}
    write_json(
        GOLDEN / "modules/wide.json",
        {"versions": versions(), "config": config, "shapes": shapes, "inputs": inputs, "f32_norms": norms},
    )


@torch.no_grad()
def make_bf16() -> None:
    found = {}
    wide(found)
    text_encoders(found)
    unets(found)
    vae(found)
    write_json(GOLDEN / "modules/bf16.json", {"versions": versions(), "relative_l2": found})
