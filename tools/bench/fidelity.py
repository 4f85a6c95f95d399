"""How far diffusers and this program are from diffusers in f32, in each precision, on one checkpoint.

    pip install -r tools/bench/requirements.txt
    cargo build --release
    python tools/bench/fidelity.py CHECKPOINT --size 512

Every run takes one Euler step from the same noise, at the highest noise level and without guidance:
what it adds to the noise is then one prediction of the UNet, for a prompt that its own text encoders
read. Each run is a process of its own. Prints a Markdown table of the relative L2 distances of those
predictions.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a photo of an astronaut riding a horse on mars"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


def reference(options):
    """Writes what diffusers makes; runs in a process of its own."""
    from diffusers import DiffusionPipeline, EulerDiscreteScheduler

    pipeline = DiffusionPipeline.from_pretrained(
        options.checkpoint, torch_dtype=DTYPES[options.reference], variant=options.variant
    )
    # The one step is then from the highest level to none.
    pipeline.scheduler = EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    start = load_file(options.start)["latents"].to(DTYPES[options.reference])
    latents = pipeline(
        PROMPT,
        height=options.size,
        width=options.size,
        num_inference_steps=1,
        guidance_scale=1.0,
        latents=start,
        output_type="latent",
    ).images
    # x - sigma * prediction, and x = sigma' * noise
    start = start.float() * float(pipeline.scheduler.init_noise_sigma)
    save_file({"latents": latents.float().contiguous(), "start": start}, options.to)


def run(options, folder, program, precision):
    to = folder / f"{program}-{precision}.safetensors"
    if program == "diffusers":
        command = [sys.executable, __file__, options.checkpoint, "--reference", precision]
        command += ["--size", str(options.size), "--start", options.start, "--to", to]
        if options.variant:
            command += ["--variant", options.variant]
    else:
        command = [options.sdxl, "generate", PROMPT, "--model", options.checkpoint]
        command += ["--width", str(options.size), "--height", str(options.size)]
        command += ["--latents", options.start, "--precision", precision]
        command += ["--output-latents", to, "-o", folder / f"{precision}.png", "--overwrite"]
        command += ["--guidance-scale", "1", "--steps", "1", "--scheduler", "EulerDiscreteScheduler"]
        command += ["--scheduler-option", "timestep_spacing=trailing"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    return load_file(to)


def distance(a, b):
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a folder as diffusers saves them")
    parser.add_argument("--variant", help="of its files, such as fp16")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--sdxl", type=Path, default=ROOT / "target/release/sdxl")
    parser.add_argument("--runs", nargs="+", metavar="PROGRAM:PRECISION",
                        default=["diffusers:bf16", "sdxl:f32", "sdxl:bf16", "sdxl:int8"])
    for name in ("--reference", "--start", "--to"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reference:
        reference(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        options.start = folder / "start.safetensors"
        side = options.size // 8
        noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(0))
        save_file({"latents": noise}, options.start)
        exact = run(options, folder, "diffusers", "f32")
        start = exact["start"]
        exact = exact["latents"] - start
        print("| program | precision | distance from diffusers in f32 |")
        print("|---|---|---|")
        for name in options.runs:
            program, precision = name.split(":")
            found = run(options, folder, program, precision)["latents"] - start
            print(f"| {program} | {precision} | {distance(found, exact):.2e} |", flush=True)


if __name__ == "__main__":
    main()
