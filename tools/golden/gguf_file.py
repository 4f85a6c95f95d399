"""GGUF files: `gguf/`.

`blocks.safetensors`: random blocks of every type that is read, as bytes, and what the gguf
package makes of them; values, and the blocks it makes of those. `unet.gguf`: the UNet of `base/` as stable-diffusion.cpp writes it: original names;
blocks where a row holds whole ones, F16 for other matrices and convolutions, F32 for what has one axis.
`reshaped.gguf`: as ComfyUI's converter does: no prefix, and one convolution laid out as a matrix
for its blocks' sake. `latents.safetensors`: diffusers' final latents with these UNets, for the request
of `lora/`.
"""

import json

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file

import lora
from files import GOLDEN, write_tensors

FOLDER = GOLDEN / "gguf"
TYPES = [Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K]
# where a block keeps its scales in f16, which random bytes would make infinite
SCALES = {Type.Q4_0: [0], Type.Q4_1: [0, 2], Type.Q5_0: [0], Type.Q5_1: [0, 2], Type.Q8_0: [0], Type.Q2_K: [80, 82],
          Type.Q3_K: [108], Type.Q4_K: [0, 2], Type.Q5_K: [0, 2], Type.Q6_K: [208]}


def make_blocks() -> None:
    rng = np.random.default_rng(5)
    tensors = {}
    for kind in TYPES:
        _, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = rng.integers(0, 256, (6, size), dtype=np.uint8)
        for at in SCALES[kind]:
            blocks[:, at : at + 2] = rng.normal(0, 0.05, (6, 1)).astype(np.float16).view(np.uint8)
        tensors[f"{kind.name}.bytes"] = blocks
        tensors[f"{kind.name}.values"] = gguf.quants.dequantize(blocks, kind)
    # values and the blocks that the package makes of them: ordinary ones, zeros, one far from the others, halves
    plain = rng.normal(0, 0.05, (8, 32)).astype(np.float32)
    plain[1] = 0
    plain[2] *= np.where(np.arange(32) == 7, 40, 1)
    plain[3] = rng.integers(-8, 9, 32) / 16
    plain[4] = np.abs(plain[4]) + 1
    tensors["encoded.values"] = plain
    for kind in TYPES[:5]:
        tensors[f"{kind.name}.encoded"] = gguf.quants.quantize(plain, kind)
    write_tensors(FOLDER / "blocks.safetensors", tensors)


def original_unet() -> dict[str, tuple[str, np.ndarray]]:
    """The tiny UNet's tensors by their original names, without the prefix, each with the folder's name."""
    told = json.loads((GOLDEN / "single/tiny_base.json").read_text())["tensors"]
    weights = load_file(GOLDEN / "base/unet/diffusion_pytorch_model.safetensors")
    found = {}
    for key, entry in told.items():
        if key.startswith("model.diffusion_model."):
            [source] = entry["holds"]
            name = source.removeprefix("unet/")
            found[key.removeprefix("model.diffusion_model.")] = (name, weights[name].numpy())
    return found


def write(name: str, prefix: str, kinds: list[Type], reshaped: str | None) -> dict[str, torch.Tensor]:
    """Writes a file; returns what its weights are, with the folder's names."""
    writer = gguf.GGUFWriter(FOLDER / f"{name}.gguf", "sdxl")
    writer.add_array("a.list.of.texts", ["one", "two"])
    values, turn = {}, 0
    for key, (folder_name, tensor) in original_unet().items():
        stored = tensor
        if key == reshaped:
            stored = tensor.reshape(-1, 256)
            writer.add_array(f"comfy.gguf.orig_shape.{prefix}{key}", list(tensor.shape))
        if stored.ndim == 1:
            writer.add_tensor(prefix + key, stored.astype(np.float32))
            back = stored
        elif stored.shape[-1] % 32 == 0:
            kind, turn = kinds[turn % len(kinds)], turn + 1
            blocks = gguf.quants.quantize(stored, kind)
            writer.add_tensor(prefix + key, blocks, raw_dtype=kind)
            back = gguf.quants.dequantize(blocks, kind)
        else:
            half = stored.astype(np.float16)
            writer.add_tensor(prefix + key, half)
            back = half.astype(np.float32)
        values[folder_name] = torch.from_numpy(back.reshape(tensor.shape).copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def make_gguf() -> None:
    FOLDER.mkdir(exist_ok=True)
    make_blocks()
    convolution = next(k for k, (_, t) in original_unet().items() if t.ndim == 4 and t.size % 256 == 0 and t.shape[-1] == 3)
    files = {
        "unet": write("unet", "model.diffusion_model.", [Type.Q8_0], None),
        "reshaped": write("reshaped", "", [Type.Q5_1, Type.Q4_0, Type.Q8_0], convolution),
    }
    results = {}
    plain = lora.run(lora.load())
    for name, values in files.items():
        pipe = lora.load()
        pipe.unet.load_state_dict(values)
        results[name] = lora.run(pipe)
        far = (results[name] - plain).norm() / plain.norm()
        print(f"  {name}: {far:.4f} from the original")
    write_tensors(FOLDER / "latents.safetensors", results)
