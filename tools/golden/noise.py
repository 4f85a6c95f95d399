"""torch.randn of CPU generators, and Brownian increments of torchsde: golden/noise/torch.safetensors.

    python tools/golden/noise.py
"""

import json
import warnings
from pathlib import Path

import torch
import torchsde
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "golden" / "noise"
VERSIONS = {"torch": "2.15.0", "torchsde": "0.2.6"}


def main():
    have = {"torch": torch.__version__.split("+")[0], "torchsde": torchsde.__version__}
    if have != VERSIONS:
        raise SystemExit(f"the golden numbers are of {VERSIONS}, installed is {have}")
    warnings.simplefilter("ignore")
    OUT.mkdir(parents=True, exist_ok=True)
    tensors, draws, paths = {}, [], []

    # Seeds and the sizes drawn one after the other. Sizes below 16 leave half a pair behind.
    for seed, sizes in [
        (0, [64]),
        (42, [16, 17, 31, 468]),
        (5489, [1, 1, 3, 20, 2, 15, 16]),
        (2**32 + 7, [40]),
        (2**64 - 1, [33, 5, 700]),
    ]:
        generator = torch.Generator("cpu").manual_seed(seed)
        values = [torch.randn(n, generator=generator) for n in sizes]
        # A seed drawn afterwards shows where the integer stream stands.
        after = torch.randint(0, 2**63 - 1, [], generator=generator).item()
        tensors[f"draw.{len(draws)}"] = torch.cat(values)
        draws.append({"seed": seed, "sizes": sizes, "after": after})

    # A whole picture's latents, of which some values are kept.
    generator = torch.Generator("cpu").manual_seed(1234)
    tensors["picture"] = torch.randn(1, 4, 128, 128, generator=generator).flatten()[::509].clone()

    for entropy, low, high, queries in [
        (5, 0.0291675, 14.6146469, [[14.6146469, 7.1], [7.1, 3.3], [3.3, 0.0291675], [14.6146469, 3.3]]),
        (2**40 + 11, 0.041314, 4.117119, [[4.117119, 2.5], [2.5, 1.0001], [0.3, 0.2]]),
        (0, 0.5, 1.0, [[1.0, 0.75], [0.75, 0.5], [0.9999995, 0.5000004]]),
        (2**63 - 2, 0.05, 80.0, [[80.0, 0.05], [60.0, 59.999999]]),
    ]:
        # The pipelines hold these times in f32.
        low, high = torch.tensor(low).item(), torch.tensor(high).item()
        tree = torchsde.BrownianInterval(
            t0=low, t1=high, size=(1, 4, 2, 2), dtype=torch.float32, entropy=entropy,
            tol=1e-6, pool_size=24, halfway_tree=True,
        )
        queries = [[torch.tensor(t).item() for t in q] for q in queries]
        values = [-tree(t1, t0) for t0, t1 in queries]
        tensors[f"path.{len(paths)}"] = torch.stack(values)
        paths.append({"entropy": entropy, "low": low, "high": high, "queries": queries})

    # One key, because the order of several is not kept.
    about = {"versions": VERSIONS, "draws": draws, "paths": paths}
    save_file(tensors, OUT / "torch.safetensors", {"golden": json.dumps(about)})
    (OUT / "torch.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
