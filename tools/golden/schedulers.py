"""Trajectories of every scheduler of diffusers under a closed-form denoiser.

Writes golden/schedulers/<Class>.safetensors with the numbers of all cases one after the other:
`timesteps` (f64), `sigmas` (f32, one more than timesteps, where the class has them) and `samples`
(f32, [evaluations + 1, batch, channels, height, width]: the start and every sample after it). The
metadata key `golden` is a JSON object: the `versions` that made it, and `cases` as the tests need
them: configuration (what differs from `base`), plan, seeds, shape, number of evaluations and
`init_noise_sigma`.

    python tools/golden/schedulers.py [Class ...]
"""

import contextlib
import inspect
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

from scheduler_cases import CASES, SDXL

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


@contextlib.contextmanager
def exact_functions():
    """Within it the logarithms, exponentials and roots of PyTorch are rounded correctly. PyTorch's own
    are up to 0.85 ulp off, which depends on the maker of the processor (they are those of Intel's
    MKL), and a few trajectories magnify the last bit."""
    names = ["log", "exp", "expm1", "sqrt"]
    stock = {name: getattr(torch, name) for name in names}
    methods = {name: getattr(torch.Tensor, name) for name in names}
    power = torch.Tensor.__pow__

    def rounded(function):
        return lambda x: function(x.double()).to(x.dtype)

    for name in names:
        setattr(torch, name, rounded(stock[name]))
        setattr(torch.Tensor, name, rounded(methods[name]))
    root = rounded(methods["sqrt"])
    torch.Tensor.__pow__ = lambda x, e: root(x) if e == 0.5 else power(x, e)
    try:
        yield
    finally:
        for name in names:
            setattr(torch, name, stock[name])
            setattr(torch.Tensor, name, methods[name])
        torch.Tensor.__pow__ = power


def accepts(function, name):
    return name in inspect.signature(function).parameters


def run(cls, case):
    config = {**SDXL, **case["config"]}
    options = {k: config.pop(k) for k in list(config) if k in case.get("step_options", [])}
    scheduler = cls.from_config({"_class_name": cls.__name__, **config})
    plan = case["plan"]
    seeds = case.get("seeds", [7])
    if case.get("global_generator"):
        generator = torch.manual_seed(seeds[0])
    else:
        generators = [torch.Generator("cpu").manual_seed(s) for s in seeds]
        generator = generators[0] if len(generators) == 1 else generators
    shape = tuple(case.get("shape", [1, 4, 2, 2]))

    # As the pipelines do it: set_timesteps, cut, begin index, start, loop.
    if "timesteps" in plan:
        scheduler.set_timesteps(timesteps=plan["timesteps"])
        steps = len(scheduler.timesteps)
    elif "sigmas" in plan:
        # As an array: not every class takes a list.
        scheduler.set_timesteps(sigmas=np.array(plan["sigmas"]))
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
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None:
        sigmas = sigmas[begin : begin + len(timesteps) + 1].float()
    return timesteps.double(), sigmas, samples.float(), float(scheduler.init_noise_sigma)


def main():
    check_versions()
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    OUT.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or CASES:
        tensors = {"timesteps": [], "sigmas": [], "samples": []}
        cases = []
        for i, case in enumerate(CASES[name]()):
            try:
                exact = exact_functions() if case.get("exact") else contextlib.nullcontext()
                with exact:
                    timesteps, sigmas, samples, init = run(getattr(diffusers, name), case)
            except Exception as e:
                raise RuntimeError(f"{name} case {i}: {case}") from e
            tensors["timesteps"].append(timesteps)
            tensors["samples"].append(samples.flatten())
            if sigmas is not None:
                tensors["sigmas"].append(sigmas)
            cases.append({**case, "evaluations": len(timesteps), "init_noise_sigma": init})
        tensors = {k: torch.cat(v) for k, v in tensors.items() if v}
        # One key, because the order of several is not kept.
        about = {"versions": VERSIONS, "base": SDXL, "cases": cases}
        about = {"golden": json.dumps(about, separators=(",", ":"))}
        save_file(tensors, OUT / f"{name}.safetensors", about)
        (OUT / f"{name}.safetensors").chmod(0o644)
        size = (OUT / f"{name}.safetensors").stat().st_size
        print(f"{name}: {len(cases)} cases, {size} bytes")


if __name__ == "__main__":
    main()
