"""Make the golden files: `python tools/golden/make.py [STAGE ...]`, all stages by default.

Needs the packages of `requirements.txt`. What it writes depends on nothing but
these; running it again writes the same files (on another kind of CPU, outputs
differ in the last bits).
"""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import diffusers
import torch
import transformers

import bf16
import checkpoints
import conditioning
import gguf_file
import inversion
import lora
import modules
import pixels
import prompts
import refined
import runs
import single_file
import tokens
import vocab

HERE = Path(__file__).resolve().parent


def make_checkpoints() -> None:
    checkpoints.make_base()
    checkpoints.make_refiner()
    checkpoints.make_inpaint()
    checkpoints.make_unets()


def program(name: str):
    """A stage that is a program of its own: schedulers and noise need no checkpoint."""
    return lambda: subprocess.run([sys.executable, HERE / name], check=True)


# in the order in which they need one another
STAGES = {
    "vocab": vocab.make_vocab,
    "checkpoints": make_checkpoints,
    "single": single_file.make_single_files,
    "tokens": tokens.make_tokens,
    "modules": modules.make_modules,
    "bf16": bf16.make_bf16,
    "runs": runs.make_runs,
    "prompts": prompts.make_prompts,
    "conditioning": conditioning.make_conditioning,
    "inversion": inversion.make_inversions,
    "pixels": pixels.make_pixels,
    "refined": refined.make_refined,
    "lora": lora.make_loras,
    "lora_blocks": lora.make_lora_blocks,
    "gguf": gguf_file.make_gguf,
    "schedulers": program("schedulers.py"),
    "noise": program("noise.py"),
    "watermark": program("watermark.py"),
}


def check_versions() -> None:
    """Stop unless the installed packages are the pinned ones: numbers of another
    version would silently become the reference."""
    for line in (HERE / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, wanted = line.split("==")
            installed = version(name).split("+")[0]  # without torch's build tag
            if installed != wanted:
                sys.exit(f"{name} {wanted} is needed, {installed} is installed: see tools/golden/requirements.txt")


def main() -> None:
    wanted = sys.argv[1:] or list(STAGES)
    unknown = [stage for stage in wanted if stage not in STAGES]
    if unknown:
        sys.exit(f"no stage called {', '.join(unknown)}; there are: {', '.join(STAGES)}")
    check_versions()
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    # one thread, so that sums are taken in the same order everywhere
    torch.set_num_threads(1)
    for stage in STAGES:
        if stage in wanted:
            print(stage, flush=True)
            STAGES[stage]()


if __name__ == "__main__":
    main()
