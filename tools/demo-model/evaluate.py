"""Measures a checkpoint on held-out captions: how often background, colour, shape and count come out right.

    python evaluate.py --model DIR                       # through our own binary
    python evaluate.py --model DIR --backend diffusers   # through diffusers

Captions are combinations of background, colour and shape that training never saw. Prints a Markdown table.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

import numpy as np
from PIL import Image

import analyse
import draw


def with_sdxl(args, captions, folder, *flags):
    """Runs our binary in batches; picture i of a batch belongs to its i-th prompt. `flags` come on top."""
    paths = []
    for start in range(0, len(captions), args.batch):
        batch = captions[start : start + args.batch]
        out = os.path.join(folder, f"{start:04d}")
        os.makedirs(out)
        seeds = ",".join(str(args.seed + start + i) for i in range(len(batch)))
        command = [args.binary, "generate", *batch, "--model", args.model, "--steps", str(args.steps),
                   "--prompt-syntax", "plain", "--json", "--output", out]
        for flag, value in (("--guidance-scale", str(args.guidance_scale)), ("--seed", seeds)):
            command += [] if flag in flags else [flag, value]
        command += flags
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
        made = json.loads(done.stdout)["images"]
        if [m["prompt"] for m in made] != batch:
            raise SystemExit(f"{len(batch)} prompts gave {len(made)} pictures, or in another order")
        paths += [m["path"] for m in made]
    return [Image.open(p).convert("RGB") for p in paths]


def with_diffusers(args, captions):
    import torch
    from diffusers import StableDiffusionXLPipeline
    from diffusers.models.attention_processor import AttnProcessor

    torch.set_num_threads(args.threads)
    pipe = StableDiffusionXLPipeline.from_pretrained(args.model, torch_dtype=torch.float32)
    pipe.unet.set_attn_processor(AttnProcessor())
    pipe.set_progress_bar_config(disable=True)
    images = []
    for start in range(0, len(captions), args.batch):
        batch = captions[start : start + args.batch]
        generators = [torch.Generator("cpu").manual_seed(args.seed + start + i) for i in range(len(batch))]
        images += pipe(batch, num_inference_steps=args.steps, guidance_scale=args.guidance_scale, generator=generators).images
    return images


def contact_sheet(images, path, columns=12):
    w, h = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (w + 4) + 4, rows * (h + 4) + 4), (255, 255, 255))
    for i, image in enumerate(images):
        sheet.paste(image, (4 + (i % columns) * (w + 4), 4 + (i // columns) * (h + 4)))
    sheet.save(path)


def table(scenes, results):
    kinds = {"all": list(range(len(scenes)))}
    for i, s in enumerate(scenes):
        n = sum(len(g["at"]) for g in s["groups"])
        name = "pair" if s["kind"] == "pair" else {1: "one", 2: "two", 3: "three"}[n]
        kinds.setdefault(name, []).append(i)
    lines = ["| captions | pictures | background | colour | shape | count | position |", "|---|---|---|---|---|---|---|"]
    for name, members in kinds.items():
        cells = []
        for what in ("background", "colour", "shape", "count", "position"):
            values = [results[i][what] for i in members if what in results[i]]
            cells.append(f"{100 * np.mean(values):.1f} %" if values else "")
        lines.append(f"| {name} | {len(members)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--backend", choices=["sdxl", "diffusers"], default="sdxl")
    parser.add_argument("--binary", default="sdxl")
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sheet", help="also write the pictures as one contact sheet")
    args = parser.parse_args()
    pairs = draw.evaluation_set(args.captions)
    captions, scenes = [p[0] for p in pairs], [p[1] for p in pairs]
    started = time.time()
    if args.backend == "diffusers":
        images = with_diffusers(args, captions)
    else:
        with tempfile.TemporaryDirectory() as folder:
            images = with_sdxl(args, captions, folder)
    results = [analyse.judge(s, i) for s, i in zip(scenes, images)]
    print(f"{args.captions} held-out captions, {args.steps} steps, guidance {args.guidance_scale}, "
          f"{args.backend}, {time.time() - started:.0f} s\n")
    print(table(scenes, results))
    if args.sheet:
        contact_sheet(images, args.sheet)


if __name__ == "__main__":
    main()
