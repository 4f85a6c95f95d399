"""How far PyTorch in bfloat16 is from PyTorch in float32, module by module.

Weights and inputs are rounded to bf16 as `torch_dtype=torch.bfloat16` does it; what each module
makes is held against the float32 goldens of `modules.py`, as a relative L2 distance. A later block's
distance holds what the blocks before it did.
"""

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


@torch.no_grad()
def make_bf16() -> None:
    found = {}
    text_encoders(found)
    unets(found)
    vae(found)
    write_json(GOLDEN / "modules/bf16.json", {"versions": versions(), "relative_l2": found})
