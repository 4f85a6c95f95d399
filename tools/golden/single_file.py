"""How a folder's tensors lie in one file with the original implementation's names: `single/`.

One JSON file each for the tiny checkpoints and for the published sizes. For every tensor
of the single file: its shape, the folder's tensors that it holds, with their shapes, and
`transposed` where it holds the transpose. The names are made up here and proved by
diffusers: its conversion functions must give back exactly the folder's tensors.
"""

import json
from types import SimpleNamespace

import diffusers.loaders.single_file_utils as conversion
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import configs
from files import GOLDEN, versions, write_text

RESNET = [
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("time_emb_proj", "emb_layers.1"),
    ("conv_shortcut", "skip_connection"),
]
UNET = [
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
]
OPEN_CLIP = [
    ("text_model.encoder.layers", "transformer.resblocks"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
]


def renamed(name: str, table: list[tuple[str, str]]) -> str:
    for theirs, original in table:
        name = name.replace(theirs, original)
    return name


def unet_name(name: str, config: dict) -> str:
    """A UNet tensor's original name, for levels of `layers_per_block` resnets each."""
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    block, *rest = name.split(".")
    if block == "mid_block":
        kind, index, *inner = rest
        place = 1 if kind == "attentions" else 2 * int(index)
        return ".".join([f"middle_block.{place}", renamed(".".join(inner), RESNET if kind == "resnets" else [])])
    if block not in ("down_blocks", "up_blocks"):
        return renamed(name, UNET)
    level, kind, index, *inner = rest
    level, index, inner = int(level), int(index), ".".join(inner)
    if kind == "resnets":
        inner = renamed(inner, RESNET)
    if block == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.{inner.replace('conv', 'op')}"
        return f"input_blocks.{1 + level * (layers + 1) + index}.{int(kind == 'attentions')}.{inner}"
    attends = config["up_block_types"][level].startswith("CrossAttn")
    if kind == "upsamplers":
        assert level < levels - 1
        return f"output_blocks.{level * (layers + 1) + layers}.{2 if attends else 1}.{inner}"
    return f"output_blocks.{level * (layers + 1) + index}.{int(kind == 'attentions')}.{inner}"


def vae_name(name: str, levels: int) -> str:
    half, block, *rest = name.split(".")
    if block == "mid_block":
        kind, index, *inner = rest
        inner = ".".join(inner)
        if kind == "resnets":
            return f"{half}.mid.block_{int(index) + 1}.{inner}"
        return f"{half}.mid.attn_1." + renamed(
            inner, [("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_", "")]
        )
    if block in ("down_blocks", "up_blocks"):
        level, kind, index, *inner = rest
        at = int(level) if block == "down_blocks" else levels - 1 - int(level)
        place = f"{half}.{block.removesuffix('_blocks')}.{at}"
        inner = ".".join(inner).replace("conv_shortcut", "nin_shortcut")
        return f"{place}.block.{index}.{inner}" if kind == "resnets" else f"{place}.{kind.removesuffix('rs')}.{inner}"
    return name.replace("conv_norm_out", "norm_out")


def single_file(parts: dict, refiner: bool) -> tuple[dict, dict]:
    """The single file's tensors, and of which of the folder's each is made."""
    tensors, made_of = {}, {}

    def put(name: str, tensor: torch.Tensor, sources: list[str], **how) -> None:
        assert name not in tensors, name
        tensors[name], made_of[name] = tensor, {"sources": sources, **how}

    for name, tensor in parts["unet"].items():
        put("model.diffusion_model." + unet_name(name, parts["unet_config"]), tensor, [f"unet/{name}"])
    for name, tensor in parts["vae"].items():
        attention = ".attentions." in name and tensor.ndim == 2
        stored = tensor[:, :, None, None] if attention else tensor
        put("first_stage_model." + vae_name(name, 4), stored, [f"vae/{name}"])
    for name, tensor in parts.get("text_encoder", {}).items():
        put(f"conditioner.embedders.0.transformer.{name}", tensor, [f"text_encoder/{name}"])
    prefix = f"conditioner.embedders.{0 if refiner else 1}.model."
    second = parts["text_encoder_2"]
    for name, tensor in second.items():
        source = f"text_encoder_2/{name}"
        if name == "text_projection.weight":
            put(prefix + "text_projection", tensor.T.contiguous(), [source], transposed=True)
        elif ".q_proj." in name:
            three = [name.replace("q_proj", f"{letter}_proj") for letter in "qkv"]
            fused = renamed(name, OPEN_CLIP).replace("self_attn.q_proj.", "attn.in_proj_")
            put(prefix + fused, torch.cat([second[n] for n in three]), [f"text_encoder_2/{n}" for n in three])
        elif ".k_proj." not in name and ".v_proj." not in name:
            put(prefix + renamed(name, OPEN_CLIP), tensor, [source])
    return tensors, made_of


def check(tensors: dict, parts: dict, refiner: bool) -> None:
    """diffusers must find the folder's tensors in the single file, all and exactly."""
    prefix = f"conditioner.embedders.{0 if refiner else 1}.model."
    config = SimpleNamespace(config=SimpleNamespace(hidden_size=0))
    back = {
        "unet": conversion.convert_ldm_unet_checkpoint(tensors, parts["unet_config"]),
        "vae": conversion.convert_ldm_vae_checkpoint(tensors, configs.VAE),
        "text_encoder_2": conversion.convert_open_clip_checkpoint(config, tensors, prefix),
    }
    if not refiner:
        back["text_encoder"] = conversion.convert_ldm_clip_checkpoint(tensors)
    for part, found in back.items():
        wanted = parts[part]
        assert set(found) == set(wanted), (part, set(found) ^ set(wanted))
        for name, tensor in found.items():
            assert tensor.shape == wanted[name].shape and tensor.dtype == wanted[name].dtype, name
            assert tensor.is_meta or torch.equal(tensor, wanted[name]), name


def write(name: str, parts: dict, refiner: bool) -> None:
    tensors, made_of = single_file(parts, refiner)
    check(tensors, parts, refiner)
    lines = []
    for key, tensor in tensors.items():
        entry = made_of[key]
        sources = {}
        for source in entry.pop("sources"):
            part, inner = source.split("/", 1)
            sources[source] = list(parts[part][inner].shape)
        record = {"shape": list(tensor.shape), "holds": sources, **entry}
        lines.append(f"{json.dumps(key)}: {json.dumps(record, separators=(',', ':'))}")
    head = json.dumps({"versions": versions()})[:-1]
    write_text(GOLDEN / f"single/{name}.json", f'{head}, "tensors": {{\n' + ",\n".join(lines) + "\n}}\n")


def tiny(folder: str, refiner: bool, unet_config: dict) -> dict:
    root = GOLDEN / folder
    parts = {"unet_config": unet_config}
    for part in ("unet", "vae", "text_encoder_2") + (() if refiner else ("text_encoder",)):
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        parts[part] = load_file(root / part / f"{stem}.safetensors")
    return parts


def published(refiner: bool) -> dict:
    """The published sizes, without values."""
    small = configs.UNET_REFINER if refiner else configs.UNET_BASE
    sizes = (
        {"block_out_channels": [384, 768, 1536, 1536], "attention_head_dim": [6, 12, 24, 24]}
        | {"transformer_layers_per_block": 4, "cross_attention_dim": 1280}
        | {"projection_class_embeddings_input_dim": 2560}
        if refiner
        else {"block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20]}
        | {"transformer_layers_per_block": [1, 2, 10], "cross_attention_dim": 2048}
        | {"projection_class_embeddings_input_dim": 2816}
    )
    unet_config = small | sizes | {"norm_num_groups": 32, "addition_time_embed_dim": 256, "sample_size": 128}
    vae_config = configs.VAE | {"block_out_channels": [128, 256, 512, 512], "norm_num_groups": 32, "sample_size": 1024}

    def clip(model_class, config: dict, hidden: int, layers: int, projection: int) -> dict:
        known = {k: v for k, v in config.items() if k not in ("architectures", "torch_dtype", "dropout")}
        known |= {"hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers}
        known |= {"num_attention_heads": hidden // 64, "projection_dim": projection}
        state = model_class(CLIPTextConfig(**known)).state_dict()
        return {n if n.startswith("text_") else f"text_model.{n}": t for n, t in state.items()}

    with torch.device("meta"):
        parts = {
            "unet_config": unet_config,
            "unet": UNet2DConditionModel.from_config(unet_config).state_dict(),
            "vae": AutoencoderKL.from_config(vae_config).state_dict(),
            "text_encoder_2": clip(CLIPTextModelWithProjection, configs.TEXT_ENCODER_2, 1280, 32, 1280),
        }
        if not refiner:
            parts["text_encoder"] = clip(CLIPTextModel, configs.TEXT_ENCODER, 768, 12, 768)
    return parts


def make_eight_bits() -> None:
    """Every 8-bit float there is, and what torch takes it for."""
    codes = torch.arange(256, dtype=torch.uint8)
    tensors = {}
    for name, dtype in (("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
        tensors[name] = codes.clone().view(dtype)
        tensors[f"{name}.values"] = codes.view(dtype).float()
    save_file(tensors, GOLDEN / "single/eight_bits.safetensors", metadata={"versions": versions()})


def make_single_files() -> None:
    make_eight_bits()
    write("tiny_base", tiny("base", False, configs.UNET_BASE), False)
    write("tiny_refiner", tiny("refiner", True, configs.UNET_REFINER), True)
    write("base", published(False), False)
    write("refiner", published(True), True)
