"""Whole runs of the pipeline: `runs/runs.json` and `runs/NAME.safetensors`."""

import json
from unittest.mock import patch

import diffusers
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl import pipeline_stable_diffusion_xl as pipeline_module

from files import GOLDEN, versions, write_tensors, write_text
from modules import inputs
from run_cases import CASES

SAME_NAME = (
    "prompt",
    "prompt_2",
    "negative_prompt",
    "negative_prompt_2",
    "width",
    "height",
    "guidance_scale",
    "guidance_rescale",
    "clip_skip",
    "timesteps",
    "sigmas",
    "eta",
    "denoising_end",
)
OTHER_NAME = {"steps": "num_inference_steps", "num_images": "num_images_per_prompt"}
# [W, H] in a request as on the command line, (height, width) in diffusers
SIZES = ("original_size", "target_size", "negative_original_size", "negative_target_size")
CROPS = ("crops_coords_top_left", "negative_crops_coords_top_left")  # [top, left] in both
HANDLED = ("seed", "scheduler", "scheduler_options", "latents")


def load_pipeline(weights: str | None) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(GOLDEN / "base", dtype=torch.float32, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    if weights:
        dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[weights]
        for part in (pipe.unet, pipe.vae):
            part.to(dtype).to(torch.float32)
    return pipe


def arguments(case: dict) -> dict:
    """A request in diffusers' words, with fresh generators."""
    name, request = case["name"], case["request"]
    unknown = set(request) - {*SAME_NAME, *OTHER_NAME, *SIZES, *CROPS, *HANDLED}
    assert not unknown, unknown
    given = {key: request[key] for key in SAME_NAME if key in request}
    given |= {other: request[key] for key, other in OTHER_NAME.items() if key in request}
    given |= {key: tuple(reversed(request[key])) for key in SIZES if key in request}
    given |= {key: tuple(request[key]) for key in CROPS if key in request}
    seed = request["seed"]
    if case.get("global_generator"):
        given["generator"] = torch.manual_seed(seed)
    elif isinstance(seed, list):
        given["generator"] = [torch.Generator("cpu").manual_seed(one) for one in seed]
    else:
        given["generator"] = torch.Generator("cpu").manual_seed(seed)
    if request.get("latents"):
        shape = (request.get("num_images", 1), 4, request.get("height", 64) // 8, request.get("width", 64) // 8)
        given["latents"] = inputs(f"{name}.latents", *shape)
    return given


def run(pipe: StableDiffusionXLPipeline, case: dict) -> dict[str, torch.Tensor]:
    """Everything recorded of one case: see the README for the names."""
    given = arguments(case)
    noises, calls, steps = [], [], []

    def draw(*args, **kwargs):
        noises.append(randn_tensor(*args, **kwargs))
        return noises[-1]

    def keep_call(_module, args, kwargs):
        added = kwargs["added_cond_kwargs"]
        calls.append({"timestep": args[1], "encoder_hidden_states": kwargs["encoder_hidden_states"], **added})

    def keep_step(_pipe, _i, _t, tensors):
        steps.append(tensors["latents"])
        return {}

    randn_tensor = pipeline_module.randn_tensor
    hook = pipe.unet.register_forward_pre_hook(keep_call, with_kwargs=True)
    with patch.object(pipeline_module, "randn_tensor", draw):
        latents = pipe(**given, output_type="latent", callback_on_step_end=keep_step).images
    hook.remove()
    tensors = {"latents": latents, "timesteps": torch.stack([call["timestep"].float() for call in calls])}
    if "latents" in given:
        tensors["initial_latents"] = given["latents"]
    else:
        [tensors["noise"]] = noises
    if case.get("trace"):
        tensors |= {key: calls[0][key] for key in ("encoder_hidden_states", "text_embeds", "time_ids")}
        tensors["steps"] = torch.stack(steps)
    if case.get("image"):
        tensors["image"] = pipe(**arguments(case), output_type="pt").images
    return tensors


def set_scheduler(pipe: StableDiffusionXLPipeline, published: dict, request: dict) -> None:
    """The request's scheduler from the checkpoint's config and the request's options."""
    scheduler_class = getattr(diffusers, request.get("scheduler", "EulerDiscreteScheduler"))
    pipe.scheduler = scheduler_class.from_config(published, **request.get("scheduler_options", {}))


def make_runs() -> None:
    # the refiner's folder must be one that diffusers reads, too
    StableDiffusionXLImg2ImgPipeline.from_pretrained(GOLDEN / "refiner", add_watermarker=False)

    folder = GOLDEN / "runs"
    for old in folder.glob("*.safetensors") if folder.exists() else ():
        old.unlink()
    pipes = {weights: load_pipeline(weights) for weights in (None, "f16", "bf16")}
    published = json.loads((GOLDEN / "base/scheduler/scheduler_config.json").read_text())
    lines = []
    for case in CASES:
        pipe = pipes[case.get("weights")]
        set_scheduler(pipe, published, case["request"])
        write_tensors(folder / f"{case['name']}.safetensors", run(pipe, case))
        entry = {key: value for key, value in case.items() if key not in ("image", "trace", "global_generator")}
        entry["request"] = {key: value for key, value in entry["request"].items() if value is not None}
        lines.append(json.dumps(entry))
    assert len({case["name"] for case in CASES}) == len(CASES)
    head = json.dumps({"versions": versions()})[:-1]
    write_text(folder / "runs.json", f'{head}, "runs": [\n' + ",\n".join(lines) + "\n]}\n")
