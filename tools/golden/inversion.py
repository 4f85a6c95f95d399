"""Textual inversions as files: `inversion/`.

`NAME.safetensors` hold vectors for the tiny base checkpoint in the forms that people have.
`cases.json` is `{"versions", "embeddings", "compel", "plain", "runs"}`: `embeddings` are the files with
their tokens, in the order in which diffusers' `load_textual_inversion` loaded them into both text
encoders; `compel` has prompts as `conditioning/cases.json` does (without `resolved`), encoded with
Compel's `DiffusersTextualInversionManager`; `plain` has `[positive, negative]` prompts encoded by the
pipeline itself; `runs` are requests whose final latents are in `states.safetensors`, by their names.
"""

import json
import warnings
from importlib.metadata import version

import torch
from compel import CompelForSDXL, DiffusersTextualInversionManager
from safetensors.torch import load_file, save_file

import conditioning
import runs
from files import GOLDEN, versions, write_tensors, write_text
from weights import normal

FOLDER = GOLDEN / "inversion"

# file, its token, and the second file where each text encoder has one of its own
FILES = [
    ("toy", "<cat-toy>", None),
    ("OldStyle", "OldStyle", None),
    ("learned_embeds", "<sks>", "learned_embeds_2"),
]

COMPEL = [
    "<cat-toy>",
    "a photo of <cat-toy>",
    "a photo of <CAT-toy> and an oldstyle picture",
    "OldStyle",
    "in OldStyle, <sks> on a table",
    "a <cat-toy>+ in the style of OldStyle",
    "a (<cat-toy>)0.6 on a (table)1.2, <sks>",
    "(a <cat-toy> on a table)1.3, (OldStyle)0.4",
    "OldStyle OldStyle <cat-toy> dog-",
    "<sks>- <sks>-- (<cat-toy>)0.2",
    "<sks><cat-toy>",
    "an oldstyles picture",
    '("a <cat-toy>", "a dog in OldStyle").blend(0.5, 0.5)',
    '("<sks>", "a <cat-toy> in (OldStyle)0.5").and(1, 0.7)',
    "word " * 72 + "<cat-toy> and <cat-toy>+ (OldStyle)0.5",
    "word " * 74 + "<cat-toy> and after. " + "OldStyle " * 80,
    "no word of them",
    "",
]

PLAIN = [
    ["a photo of <cat-toy>", "OldStyle"],
    ["(<cat-toy>) in OldStyle:1.2", "<sks>, <cat-toy>"],
    ["a fox", "<cat-toy> oldstyle"],
    ["word " * 73 + "<cat-toy>", "<sks> " * 80],
]

RUNS = [
    {
        "name": "plain",
        "request": {
            "prompt": "a photo of <cat-toy> in OldStyle",
            "negative_prompt": "<sks>, rain",
            "prompt_syntax": "plain",
            "seed": 3,
            "steps": 4,
        },
    },
    {
        "name": "compel",
        "request": {
            "prompt": "a (<cat-toy>)1.3 in OldStyle-, long. " + "word " * 80,
            "negative_prompt": "(<sks>)0.5, <cat-toy>",
            "seed": 4,
            "steps": 4,
        },
    },
]


def random(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(normal(78, name, shape)) * 0.5


def make_files() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, count, dtype in (("toy", 3, torch.float32), ("OldStyle", 1, torch.float16)):
        pair = {key: random(f"{name}.{key}", count, width).to(dtype) for key, width in (("clip_l", 8), ("clip_g", 16))}
        save_file(pair, FOLDER / f"{name}.safetensors")
    for name, width in (("learned_embeds", 8), ("learned_embeds_2", 16)):
        save_file({"<sks>": random(name, width)}, FOLDER / f"{name}.safetensors", metadata={"format": "pt"})


def load() -> "StableDiffusionXLPipeline":
    pipe = runs.load_pipeline(None)
    one = {"text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer}
    two = {"text_encoder": pipe.text_encoder_2, "tokenizer": pipe.tokenizer_2}
    for name, token, second in FILES:
        path = FOLDER / f"{name}.safetensors"
        if second:
            pipe.load_textual_inversion(str(path), **one)
            pipe.load_textual_inversion(str(FOLDER / f"{second}.safetensors"), **two)
        else:
            held = {key: value.float() for key, value in load_file(path).items()}
            pipe.load_textual_inversion(held["clip_l"], token=token, **one)
            pipe.load_textual_inversion(held["clip_g"], token=token, **two)
    return pipe


@torch.no_grad()
def make_cases() -> None:
    pipe = load()
    manager = DiffusersTextualInversionManager(pipe)
    encoders = conditioning.Encoders()
    encoders.tokenizers = [pipe.tokenizer, pipe.tokenizer_2]
    encoders.models = [pipe.text_encoder, pipe.text_encoder_2]
    encoders.set_compels(manager)
    tensors = {}

    def keep(name: str, tensor: torch.Tensor) -> str:
        tensors[name] = tensor
        return name

    compel_lines = [
        {
            "prompt": prompt,
            "truncated": keep(f"compel.{i}.truncated", encoders.states(prompt, True)),
            "whole": keep(f"compel.{i}.whole", encoders.states(prompt, False)),
            "pooled": keep(f"compel.{i}.pooled", encoders.pooled(prompt)),
        }
        for i, prompt in enumerate(COMPEL)
    ]
    plain_lines = []
    for i, (prompt, negative) in enumerate(PLAIN):
        made = pipe.encode_prompt(prompt, negative_prompt=negative, do_classifier_free_guidance=True)
        names = ("states", "negative_states", "pooled", "negative_pooled")
        entry = {name: keep(f"plain.{i}.{name}", tensor[0]) for name, tensor in zip(names, made)}
        plain_lines.append({"prompt": prompt, "negative_prompt": negative} | entry)
    compel = CompelForSDXL(pipe, textual_inversion_manager=manager)
    encode = pipe.encode_prompt
    for case in RUNS:
        request = dict(case["request"])
        if request.pop("prompt_syntax", "compel") == "compel":
            made = compel(request["prompt"], negative_prompt=request["negative_prompt"])
            pipe.encode_prompt = conditioning.encoded(encode, made)
        keep(case["name"], runs.run(pipe, {"name": case["name"], "request": request})["latents"])
        pipe.encode_prompt = encode
    write_tensors(FOLDER / "states.safetensors", tensors)
    embeddings = [f"{name}.safetensors:{token}" for first, token, second in FILES for name in (first, second) if name]
    lines = {"compel": compel_lines, "plain": plain_lines, "runs": RUNS}
    head = json.dumps({"versions": f"{versions()}, compel {version('compel')}", "embeddings": embeddings})[:-1]
    body = ",\n".join(f'"{key}": [\n' + ",\n".join(json.dumps(line) for line in all) + "\n]" for key, all in lines.items())
    write_text(FOLDER / "cases.json", f"{head},\n{body}}}\n")


def make_inversions() -> None:
    make_files()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        make_cases()
