"""What a picture takes of memory and time: diffusers with its ways to offload, and this program.

    pip install -r tools/bench/requirements.txt
    cargo build --release
    python tools/bench/memory.py CHECKPOINT --variant fp16 --size 1024 --steps 1

Each run is a process of its own, loading included, in bf16 with guidance and the same prompt and
steps. Prints a Markdown table: the most memory that the whole process had (`ru_maxrss`), its wall
time, and both as a share of diffusers' as it comes. diffusers offloads to the CPU what works on an
accelerator; asked without one it refuses, so the CPU is named to it as the accelerator. A run that
fails has what it said last of its error in the table.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a photo of an astronaut riding a horse on mars"
# What is written in the table, and the words that make it so.
OURS = {
    "all networks at once": ["--offload", "none"],
    "networks in turn (default)": [],
    "int8, networks in turn": ["--precision", "int8"],
    "sequential offload": ["--offload", "sequential"],
    "--memory 1200MB": ["--memory", "1200MB"],
    "--memory 400MB": ["--memory", "400MB"],
}
THEIRS = {"as it comes": "plain", "model offload": "model", "sequential offload": "sequential"}


def reference(options):
    """Makes a picture with diffusers; runs in a process of its own."""
    import torch
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(
        options.checkpoint, torch_dtype=torch.bfloat16, variant=options.variant
    )
    if options.reference == "model":
        pipeline.enable_model_cpu_offload(device="cpu")
    elif options.reference == "sequential":
        pipeline.enable_sequential_cpu_offload(device="cpu")
    pipeline(
        PROMPT,
        height=options.size,
        width=options.size,
        num_inference_steps=options.steps,
        generator=torch.Generator().manual_seed(1),
    ).images[0].save(options.to)


def measure(command):
    """Peak memory in bytes and seconds of a process, or what it said of its error."""
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            lines = output.read().decode(errors="replace").split("\n")
            lines = [line for line in lines if line.strip()]
            errors = [line for line in lines if "Error" in line]
            return (errors or lines or ["it printed nothing"])[-1:]
    unit = 1 if sys.platform == "darwin" else 1024
    return usage.ru_maxrss * unit, seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a folder as diffusers saves them")
    parser.add_argument("--variant", help="of its files, such as fp16")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--sdxl", type=Path, default=ROOT / "target/release/sdxl")
    for name in ("--reference", "--to"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reference:
        reference(options)
        return
    size, steps = str(options.size), str(options.steps)
    print(f"{size}x{size}, {steps} steps, guidance, bf16\n")
    print("| program | how | peak memory, MB | seconds | memory | time |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "picture.png"
        runs = []
        for how, mode in THEIRS.items():
            command = [sys.executable, __file__, options.checkpoint, "--size", size, "--steps", steps]
            command += ["--reference", mode, "--to", to]
            command += ["--variant", options.variant] if options.variant else []
            runs.append(("diffusers", how, command))
        for how, words in OURS.items():
            command = [options.sdxl, "generate", PROMPT, "--model", options.checkpoint, "--seed", "1"]
            command += ["--width", size, "--height", size, "--steps", steps, "-o", to, "--overwrite"]
            command += words if "--precision" in words else ["--precision", "bf16", *words]
            command += ["--variant", options.variant] if options.variant else []
            runs.append(("sdxl", how, command))
        plain = None
        for program, how, command in runs:
            found = measure(command)
            if len(found) == 1:
                print(f"| {program} | {how} | does not run: {found[0]} | | | |", flush=True)
                continue
            memory, seconds = found
            plain = plain or found
            shares = f"{memory / plain[0]:.2f} | {seconds / plain[1]:.2f}"
            print(f"| {program} | {how} | {memory / 1e6:.0f} | {seconds:.0f} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
