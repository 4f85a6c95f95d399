"""Make the golden files: `python tools/golden/make.py [STAGE ...]`, all stages by default.

Needs the packages of `requirements.txt`. What it writes depends on nothing but
these; running it again writes the same files (on another kind of CPU, outputs
differ in the last bits).
"""

import sys

import torch

import checkpoints
import modules
import tokens
import vocab


def make_checkpoints() -> None:
    checkpoints.make_base()
    checkpoints.make_refiner()
    checkpoints.make_unets()


STAGES = {
    "vocab": vocab.make_vocab,
    "checkpoints": make_checkpoints,
    "tokens": tokens.make_tokens,
    "modules": modules.make_modules,
}


def main() -> None:
    # one thread, so that sums are taken in the same order everywhere
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(STAGES)
    unknown = [stage for stage in wanted if stage not in STAGES]
    if unknown:
        sys.exit(f"no stage called {', '.join(unknown)}; there are: {', '.join(STAGES)}")
    for stage in STAGES:
        if stage in wanted:
            print(stage, flush=True)
            STAGES[stage]()


if __name__ == "__main__":
    main()
