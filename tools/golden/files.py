"""Where golden files lie and how they are written.

Files come out byte for byte the same when nothing changed, so that running the
makers again leaves a clean working tree on the machine that made them.
"""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

GOLDEN = Path(__file__).resolve().parents[2] / "golden"

PACKAGES = ("diffusers", "transformers", "tokenizers", "torch", "numpy")


def versions() -> str:
    """The reference's versions in one string, the metadata of every golden file."""
    return ", ".join(f"{name} {version(name)}" for name in PACKAGES)


def write_json(path: Path, value) -> None:
    """Write `value` as indented JSON, the way the published config files are written."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")


def write_tensors(path: Path, tensors: dict) -> None:
    """Write inputs and outputs of the reference (torch or numpy) with its versions.

    One metadata key only: the writer does not promise an order for several.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {name: np.ascontiguousarray(np.asarray(tensor)) for name, tensor in tensors.items()}
    save_file(arrays, path, metadata={"versions": versions()})


def write_weights(path: Path, arrays: dict) -> None:
    """Write a checkpoint file; published ones carry `format: pt` and nothing else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(arrays, path, metadata={"format": "pt"})


def link(path: Path, target: str) -> None:
    """Make `path` a relative symbolic link, replacing one that is there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        path.unlink()
    path.symlink_to(target)
