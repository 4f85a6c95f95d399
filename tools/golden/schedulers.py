"""Trajectories of every scheduler of diffusers under a closed-form denoiser.

Writes golden/schedulers/<Class>.safetensors. For each case: `<n>.timesteps` (f64), `<n>.sigmas`
(f32, where the class has them) and `<n>.samples` (f32, [evaluations + 1, batch, channels, height,
width]: the start and every sample after it). The metadata key `cases` describes each case as the
tests need it: configuration, plan, seeds and `init_noise_sigma`.

    python tools/golden/schedulers.py [Class ...]
"""

import json
import sys
import warnings
from pathlib import Path

import diffusers
import numpy as np
import scipy
import torch
import torchsde
from safetensors.torch import save_file

from scheduler_cases import CASES

OUT = Path(__file__).resolve().parents[2] / "golden" / "schedulers"
VERSIONS = {
    "diffusers": "0.42.1",
    "torch": "2.15.0",
    "numpy": "2.4.6",
    "scipy": "1.17.1",
    "torchsde": "0.2.6",
}


def check_versions():
    have = {
        "diffusers": diffusers.__version__,
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "torchsde": torchsde.__version__,
    }
    if have != VERSIONS:
        raise SystemExit(f"the golden numbers are of {VERSIONS}, installed is {have}")


def denoiser(x, t):
    """What stands in for the UNet: rational, so that every machine computes the same."""
    u = float(t) / 1000.0
    x = x.double()
    pattern = torch.arange(x[0].numel(), dtype=torch.float64).reshape(x[0].shape) % 5 - 2
    out = x * (0.3 + 0.6 * u) + 0.25 * (1 - u) * pattern + 0.5 * x / (1 + x * x)
    return out.float()


def accepts(function, name):
    import inspect

    return name in inspect.signature(function).parameters


def run(cls, case):
    config = dict(case["config"])
    options = {k: config.pop(k) for k in list(config) if k in case.get("step_options", [])}
    scheduler = cls.from_config({"_class_name": cls.__name__, **config})
    plan = case["plan"]
    seeds = case.get("seeds", [7])
    generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
    generator = generators[0] if len(generators) == 1 else generators
    shape = tuple(case.get("shape", [1, 4, 2, 2]))

    # As the pipelines do it: set_timesteps, cut, begin index, start, loop.
    if "timesteps" in plan:
        scheduler.set_timesteps(timesteps=plan["timesteps"])
        steps = len(scheduler.timesteps)
    elif "sigmas" in plan:
        scheduler.set_timesteps(sigmas=plan["sigmas"])
        steps = len(scheduler.timesteps)
    else:
        steps = plan["steps"]
        scheduler.set_timesteps(steps)
    trained = scheduler.config.num_train_timesteps
    begin = 0
    if "denoising_start" in plan:
        cutoff = int(round(trained - plan["denoising_start"] * trained))
        kept = (scheduler.timesteps < cutoff).sum().item()
        if scheduler.order == 2 and kept % 2 == 0:
            kept += 1
        begin = len(scheduler.timesteps) - kept
    elif "strength" in plan:
        begin = (steps - min(int(steps * plan["strength"]), steps)) * scheduler.order
    timesteps = scheduler.timesteps[begin:]
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    if "denoising_end" in plan:
        cutoff = int(round(trained - plan["denoising_end"] * trained))
        timesteps = timesteps[: len([t for t in timesteps if t >= cutoff])]

    randn = diffusers.utils.torch_utils.randn_tensor
    noise = randn(shape, generator=generator, dtype=torch.float32)
    if "strength" in plan:
        original = torch.linspace(-1, 1, noise.numel()).reshape(shape)
        x = scheduler.add_noise(original, noise, timesteps[:1].repeat(shape[0]))
    elif "denoising_start" in plan:
        x = noise * 2
    else:
        x = noise * scheduler.init_noise_sigma

    extra = dict(options)
    if accepts(scheduler.step, "eta"):
        extra["eta"] = plan.get("eta", 0.0)
    if accepts(scheduler.step, "generator"):
        extra["generator"] = generator
    samples = [x]
    for t in timesteps:
        out = denoiser(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, **extra, return_dict=False)[0]
        samples.append(x)
    samples = torch.stack(samples)
    if not torch.isfinite(samples).all():
        raise ValueError(f"{cls.__name__} {case}: not finite")
    tensors = {"timesteps": timesteps.double().clone(), "samples": samples.float()}
    if getattr(scheduler, "sigmas", None) is not None and "Scheduler" in cls.__name__:
        sigmas = scheduler.sigmas[begin : begin + len(timesteps) + 1].float().clone()
        tensors["sigmas"] = sigmas
    return tensors, float(scheduler.init_noise_sigma)


def main():
    check_versions()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or CASES:
        tensors, cases = {}, []
        for i, case in enumerate(CASES[name]()):
            try:
                numbers, init = run(getattr(diffusers, name), case)
            except Exception as e:
                raise RuntimeError(f"{name} case {i}: {case}") from e
            tensors.update({f"{i}.{k}": v.contiguous() for k, v in numbers.items()})
            cases.append({**case, "init_noise_sigma": init})
        metadata = {"cases": json.dumps(cases), **VERSIONS}
        save_file(tensors, OUT / f"{name}.safetensors", metadata)
        size = (OUT / f"{name}.safetensors").stat().st_size
        print(f"{name}: {len(cases)} cases, {size} bytes")


if __name__ == "__main__":
    main()
