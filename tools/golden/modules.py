"""Inputs and outputs of each network of the tiny checkpoints, in float32."""

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from checkpoints import load
from configs import UNETS
from files import GOLDEN, write_tensors
from weights import normal

TEXTS = [
    "a photo of an astronaut riding a horse on mars",
    "",
    "wow! a cat! \U0001f408",
    " ".join(["dog !"] * 40),
]


def inputs(name: str, *shape: int) -> torch.Tensor:
    """Standard normal float32 values that belong to this name."""
    return torch.from_numpy(normal(100, name, shape))


class Recorder:
    """Keeps the outputs of named submodules during one call of `model`."""

    def __init__(self, model: torch.nn.Module, names: list[str]):
        self.outputs = {}
        self.hooks = [model.get_submodule(name).register_forward_hook(self.keep(name)) for name in names]

    def keep(self, name: str):
        def hook(_module, _inputs, output):
            # a down block gives (hidden states, residuals)
            self.outputs[name] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    def __enter__(self):
        return self.outputs

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()


@torch.no_grad()
def make_text_encoders() -> None:
    """`hidden_states.K` counts from the end like the pipeline does: K = 2 is what
    it takes without clip_skip, 1 the last layer's output before the final norm
    and 5 the embeddings (the tiny encoders have 4 layers)."""
    for part, model_class in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        tokenizer = CLIPTokenizer.from_pretrained(GOLDEN / "base" / part.replace("text_encoder", "tokenizer"))
        model = load(model_class, GOLDEN / "base" / part)
        ids = tokenizer(TEXTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        output = model(ids, output_hidden_states=True)
        assert len(output.hidden_states) == 5
        tensors = {"input_ids": ids, "last_hidden_state": output.last_hidden_state}
        for k in range(1, 5 + 1):
            tensors[f"hidden_states.{k}"] = output.hidden_states[-k]
        if part == "text_encoder_2":
            tensors["text_embeds"] = output.text_embeds
        # what the numbering above says, checked against the layers themselves
        text_model = getattr(model, "text_model", model)
        assert torch.equal(text_model.final_layer_norm(output.hidden_states[-1]), output.last_hidden_state)
        assert torch.equal(text_model.embeddings(input_ids=ids), output.hidden_states[-5])
        write_tensors(GOLDEN / f"modules/{part}.safetensors", tensors)


@torch.no_grad()
def unet_golden(model: UNet2DConditionModel, name: str, height: int, width: int, timestep: float) -> dict:
    """One UNet call at batch 2, with the output of every block.

    Names of outputs are those of the modules; `emb` is the sum of
    `time_embedding` and `add_embedding`, what the resnets get.
    """
    config = model.config
    if "refiner" in name:  # one aesthetic score in place of the target size
        ids = [[768.0, 1344.0, 16.0, 40.0, 6.0], [64.0, 96.0, 0.0, 0.0, 2.5]]
    else:
        ids = [[768.0, 1344.0, 16.0, 40.0, 1024.0, 1000.0], [64.0, 96.0, 0.0, 0.0, 64.0, 104.0]]
    pooled = config.projection_class_embeddings_input_dim - len(ids[0]) * config.addition_time_embed_dim
    given = {
        "sample": inputs(f"{name}.sample", 2, 4, height, width),
        "timestep": torch.tensor([timestep]),
        "encoder_hidden_states": inputs(f"{name}.encoder_hidden_states", 2, 77, config.cross_attention_dim),
        "text_embeds": inputs(f"{name}.text_embeds", 2, pooled),
        "time_ids": torch.tensor(ids),
    }
    names = ["time_proj", "time_embedding", "add_embedding", "conv_in"]
    names += [f"down_blocks.{i}" for i in range(len(model.down_blocks))]
    names += ["mid_block"] if model.mid_block is not None else []
    names += [f"up_blocks.{i}" for i in range(len(model.up_blocks))]
    with Recorder(model, names) as outputs:
        out = model(
            given["sample"],
            given["timestep"][0],
            encoder_hidden_states=given["encoder_hidden_states"],
            added_cond_kwargs={"text_embeds": given["text_embeds"], "time_ids": given["time_ids"]},
        ).sample
    emb = outputs["time_embedding"] + outputs["add_embedding"]
    return {**given, **outputs, "emb": emb, "out": out}


def make_unet_goldens() -> None:
    """Base and refiner. 9x13 is odd at every level: the up blocks must then make
    the size of the residual they meet, not twice their own."""
    for name in ("base", "refiner"):
        model = load(UNet2DConditionModel, GOLDEN / name / "unet")
        for height, width, timestep in ((8, 12, 981.0), (9, 13, 411.415)):
            case = f"unet_{name}.{height}x{width}"
            write_tensors(GOLDEN / f"modules/{case}.safetensors", unet_golden(model, case, height, width, timestep))
    for name in UNETS:
        folder = GOLDEN / "unets" / name
        model = load(UNet2DConditionModel, folder)
        write_tensors(folder / "golden.safetensors", unet_golden(model, f"unet_{name}", 6, 9, 651.0))


@torch.no_grad()
def make_vae_goldens() -> None:
    """Encoder: `moments` is what `quant_conv` gives, mean and log variance. Decoder:
    latents as the network takes them (divided by the scaling factor), the image
    around -1..1 and not clamped."""
    model = load(AutoencoderKL, GOLDEN / "base/vae")
    image = torch.tanh(inputs("vae.image", 2, 3, 48, 72))
    parts = ["conv_in", *(f"down_blocks.{i}" for i in range(4)), "mid_block"]
    with Recorder(model.encoder, parts) as outputs:
        posterior = model.encode(image).latent_dist
    mean, logvar = posterior.parameters.chunk(2, dim=1)
    assert torch.equal(mean, posterior.mean) and torch.equal(logvar, posterior.logvar)  # the clamp does nothing
    last = {name: outputs[name] for name in ("down_blocks.3", "mid_block")}
    write_tensors(GOLDEN / "modules/vae_encode.safetensors", {"image": image, **last, "mean": mean, "logvar": logvar})

    latents = inputs("vae.latents", 2, 4, 5, 7) * 4
    parts = ["conv_in", "mid_block", *(f"up_blocks.{i}" for i in range(4))]
    with Recorder(model.decoder, parts) as outputs:
        image = model.decode(latents).sample
    first = {name: outputs[name] for name in ("conv_in", "mid_block", "up_blocks.0")}
    write_tensors(GOLDEN / "modules/vae_decode.safetensors", {"latents": latents, **first, "image": image})

    # Two rows and three columns of tiles, the last ones cut off; some blend with blended neighbours.
    latents = inputs("vae.tiled_latents", 1, 4, 11, 14) * 4
    model.enable_tiling()
    image = model.decode(latents).sample
    model.disable_tiling()
    write_tensors(GOLDEN / "modules/vae_decode_tiled.safetensors", {"latents": latents, "image": image})


def make_modules() -> None:
    make_text_encoders()
    make_unet_goldens()
    make_vae_goldens()


def liveliness() -> None:
    """Print mean and standard deviation of every output, to see that none is dead."""
    from safetensors.numpy import load_file

    for path in sorted([*GOLDEN.glob("modules/*.safetensors"), *GOLDEN.glob("unets/*/golden.safetensors")]):
        print(path.relative_to(GOLDEN))
        for name, values in load_file(path).items():
            print(f"  {name:24} {str(values.shape):20} mean {np.mean(values):9.3f} std {np.std(values):9.3f}")


if __name__ == "__main__":
    liveliness()
