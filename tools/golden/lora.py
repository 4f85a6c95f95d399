"""LoRAs and their relatives on the tiny base checkpoint: `lora/`.

`NAME.safetensors` are adapters in the forms that people have, with random weights;
`runs.safetensors` holds the final latents of diffusers with peft, under the names in
`cases.json`: which adapters at which scales. `blocks.safetensors` and `blocks.json` are the same
with the dictionaries of scales that `set_adapters` takes. LoHa and LoKr, which diffusers does not load,
are peft's own layers, with the keys that LyCORIS gives them.
"""

import copy
import json

import peft
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from files import GOLDEN, versions, write_tensors, write_text
from weights import normal

FOLDER = GOLDEN / "lora"
RANK, ALPHA = 4, 3.0
REQUEST = {"prompt": "a lighthouse at dusk", "negative_prompt": "rain", "steps": 4, "seed": 11}

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
CONVOLUTION = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")


def random(name: str, *shape: int, gain: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(normal(77, name, shape)) * gain


def modules(pipe) -> dict[str, torch.nn.Module]:
    """Every module with a weight, as `part/name`; text encoders with the published prefix."""
    found = {}
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, module in getattr(pipe, part).named_modules():
            if getattr(module, "weight", None) is not None and module.weight.ndim in (2, 4):
                if part != "unet" and not name.startswith("text_"):
                    name = f"text_model.{name}"
                found[f"{part}/{name}"] = module
    return found


KOHYA = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}


def kohya_key(part: str, name: str) -> str:
    return KOHYA[part] + name.replace(".", "_")


def sgm_keys() -> dict[str, str]:
    """Original module names by the folder's, from `single/tiny_base.json`."""
    told = json.loads((GOLDEN / "single/tiny_base.json").read_text())["tensors"]
    prefix = "model.diffusion_model."
    names = {}
    for key, entry in told.items():
        if key.startswith(prefix):
            [source] = entry["holds"]
            names[source.removesuffix(".weight")] = key.removeprefix(prefix).removesuffix(".weight")
    return names


def pair(key: str, weight: torch.Tensor, gain: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`down` and `up` of a weight."""
    out, *inner = weight.shape
    down = random(f"{key}.down", RANK, *inner, gain=1 / (sum(inner) or 1) ** 0.5)
    up = random(f"{key}.up", out, RANK, *[1] * (len(inner) - 1), gain=gain)
    return down, up


def lora(pipe, name: str, chosen, key_of, gain: float, alpha: float | None = ALPHA, dora: bool = False) -> None:
    tensors = {}
    for path, module in modules(pipe).items():
        if not chosen(path):
            continue
        part, inner = path.split("/", 1)
        key = key_of(part, inner)
        down, up = pair(f"{name}.{path}", module.weight, gain)
        peft_names = "." in key
        tensors[f"{key}.{'lora_A' if peft_names else 'lora_down'}.weight"] = down
        tensors[f"{key}.{'lora_B' if peft_names else 'lora_up'}.weight"] = up
        if alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(alpha)
        if dora:
            shape = [-1] + [1] * (module.weight.ndim - 1)
            norm = module.weight.detach().flatten(1).norm(dim=1).view(shape)
            tensors[f"{key}.dora_scale"] = norm * (1 + random(f"{name}.{path}.dora", *norm.shape, gain=0.1))
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, FOLDER / f"{name}.safetensors", metadata={"format": "pt"})


def lycoris(pipe, name: str, config: peft.PeftConfig) -> StableDiffusionXLPipeline:
    """A UNet with peft's layers, random; their weights are saved under LyCORIS's keys."""
    changed = copy.copy(pipe)
    changed.unet = copy.deepcopy(pipe.unet)
    peft.inject_adapter_in_model(config, changed.unet, "default")
    kinds = [k for k in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")]
    kinds += ["lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"]
    tensors = {}
    for path, module in changed.unet.named_modules():
        for kind in kinds:
            held = getattr(module, kind, None)
            if isinstance(held, torch.nn.ParameterDict) and "default" in held:
                key = kohya_key("unet", path)
                shape = held["default"].shape
                held["default"].data = random(f"{name}.{path}.{kind}", *shape, gain=0.5)
                tensors[f"{key}.{kind}"] = held["default"].data.clone()
                tensors[f"{key}.alpha"] = torch.tensor(float(config.alpha))
    assert tensors
    save_file(tensors, FOLDER / f"{name}.safetensors", metadata={"format": "pt"})
    return changed


def set_scale(unet: torch.nn.Module, scale: float) -> None:
    for module in unet.modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            module.set_scale("default", scale)


def dora_in_peft_names(pipe) -> None:
    """`dora_peft`: diffusers leaves magnitudes out of the files of others, but reads its own."""
    kohya = load_file(FOLDER / "dora.safetensors")
    tensors = {}
    for path, module in modules(pipe).items():
        part, name = path.split("/", 1)
        key = kohya_key(part, name)
        if f"{key}.dora_scale" in kohya:
            tensors[f"{part}.{name}.lora_A.weight"] = kohya[f"{key}.lora_down.weight"]
            tensors[f"{part}.{name}.lora_B.weight"] = kohya[f"{key}.lora_up.weight"]
            convolution = module.weight.ndim == 4
            magnitude = kohya[f"{key}.dora_scale"].flatten()
            magnitude = magnitude[None, :, None, None] if convolution else magnitude
            tensors[f"{part}.{name}.lora_magnitude_vector"] = magnitude.contiguous()
    save_file(tensors, FOLDER / "dora_peft.safetensors", metadata={"format": "pt"})


def run(pipe) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(REQUEST["seed"])
    return pipe(
        prompt=REQUEST["prompt"],
        negative_prompt=REQUEST["negative_prompt"],
        num_inference_steps=REQUEST["steps"],
        generator=generator,
        output_type="latent",
    ).images


def load() -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(GOLDEN / "base", dtype=torch.float32, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_loras() -> None:
    pipe = load()
    original = sgm_keys()

    def of(part: str, names) -> callable:
        return lambda path: path.startswith(f"{part}/") and path.endswith(names)

    def sgm(part: str, name: str) -> str:
        return KOHYA["unet"] + original[f"{part}/{name}"].replace(".", "_")

    attention, convolution = of("unet", ATTENTION), of("unet", CONVOLUTION)
    first, second = of("text_encoder", TEXT), of("text_encoder_2", TEXT)

    def part_of(path: str, *blocks: str) -> bool:
        return attention(path) and path.startswith(tuple(f"unet/{block}" for block in blocks))

    lora(pipe, "kohya", lambda p: attention(p) or first(p) or second(p), kohya_key, 0.3)
    lora(pipe, "kohya_text", lambda p: first(p) or second(p), kohya_key, 0.6)
    lora(pipe, "sgm_convolution", lambda p: convolution(p) or attention(p), sgm, 0.3)
    lora(pipe, "convolution", convolution, kohya_key, 0.3, alpha=None)
    lora(pipe, "peft", lambda p: part_of(p, "down") or first(p) or second(p), lambda p, n: f"{p}.{n}", 0.3, alpha=None)
    lora(pipe, "dora", lambda p: part_of(p, "up_blocks.1", "mid") or convolution(p) and "down" in p, kohya_key, 0.3, alpha=None, dora=True)
    dora_in_peft_names(pipe)

    cases = [(name, {name: scale}) for name in ("kohya", "peft", "dora_peft") for scale in (0.0, 0.5, 1.0)]
    cases += [(name, {name: 1.0}) for name in ("kohya_text", "sgm_convolution", "convolution")]
    cases += [("two", {"kohya": 0.7, "convolution": -0.4}), ("two_dora", {"dora_peft": 0.6, "peft": 1.3})]
    cases = [(f"{name}_{'_'.join(str(s) for s in scales.values())}", scales) for name, scales in cases]
    results = {"none": run(pipe)}
    for label, scales in cases:
        pipe = load()
        for name in scales:
            pipe.load_lora_weights(load_file(FOLDER / f"{name}.safetensors"), adapter_name=name)
        pipe.set_adapters(list(scales), list(scales.values()))
        results[label] = run(pipe)

    targets = r"(mid_block|up_blocks\.1).*\.(to_q|to_k|to_out\.0|proj_in|ff\.net\.0\.proj|conv1|conv_shortcut)"
    dims = {"r": 4, "alpha": 3, "target_modules": targets, "init_weights": False}
    # peft divides by the rank even where nothing has one, LyCORIS does not: equal at alpha = r
    equal = dims | {"r": 2, "alpha": 2}
    for name, config in {
        "loha": peft.LoHaConfig(**dims),
        "loha_tucker": peft.LoHaConfig(**dims, use_effective_conv2d=True),
        "lokr": peft.LoKrConfig(**equal, decompose_factor=2),
        "lokr_both": peft.LoKrConfig(**equal, decompose_both=True, decompose_factor=8),
        "lokr_tucker": peft.LoKrConfig(**equal, use_effective_conv2d=True, decompose_factor=2),
    }.items():
        changed = lycoris(load(), name, config)
        for scale in (0.5, 1.0):
            set_scale(changed.unet, scale)
            label = f"{name}_{scale}"
            results[label] = run(changed)
            cases.append((label, {name: scale}))
    for label, latents in results.items():
        far = (latents - results["none"]).norm() / results["none"].norm()
        print(f"  {label}: {far:.3f} from none, {latents.abs().max():.2f}")
    write_tensors(FOLDER / "runs.safetensors", results)
    lines = [json.dumps({"name": label, "adapters": scales}) for label, scales in cases]
    head = json.dumps({"versions": versions(), "peft": peft.__version__, "request": REQUEST})[:-1]
    write_text(FOLDER / "cases.json", f'{head}, "cases": [\n' + ",\n".join(lines) + "\n]}\n")


BLOCKS = {
    "text": {"kohya": {"unet": 0.5, "text_encoder": 0}},
    "attention": {
        "kohya": {
            "unet": {"down": 0.5, "mid": 0.2, "up": {"block_0": [0.1, 0.9, -0.3], "block_1": 0.7}},
            "text_encoder": 0.4,
            "text_encoder_2": 1.2,
        }
    },
    "convolution": {"sgm_convolution": {"unet": {"down": {"block_1": 0.3, "block_2": [0.9]}, "mid": [0], "up": [0.2, 0.6, 1.1]}}},
    "lists": {"sgm_convolution": {"unet": {"down": [0.2, 0.8]}}},
    "two": {"kohya": {"unet": {"mid": 0, "up": {"block_1": [0, 1, 0]}}}, "convolution": -0.4},
}


def make_lora_blocks() -> None:
    results = {}
    for label, adapters in BLOCKS.items():
        pipe = load()
        for name in adapters:
            pipe.load_lora_weights(load_file(FOLDER / f"{name}.safetensors"), adapter_name=name)
        plain = [w if isinstance(w, float) else 1.0 for w in adapters.values()]
        pipe.set_adapters(list(adapters), plain)
        whole = run(pipe)
        pipe.set_adapters(list(adapters), copy.deepcopy(list(adapters.values())))
        results[label] = run(pipe)
        far = (results[label] - whole).norm() / whole.norm()
        print(f"  {label}: {far:.3f} from scales of 1, {results[label].abs().max():.2f}")
    write_tensors(FOLDER / "blocks.safetensors", results)
    lines = [json.dumps({"name": label, "adapters": adapters}) for label, adapters in BLOCKS.items()]
    head = json.dumps({"versions": versions(), "peft": peft.__version__})[:-1]
    write_text(FOLDER / "blocks.json", f'{head}, "cases": [\n' + ",\n".join(lines) + "\n]}\n")
