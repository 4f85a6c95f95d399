"""Runs that start from a picture or end in a refiner: `refined/cases.json` and
`refined/latents.safetensors`, which holds the final latents of every case by its name."""

import json

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from PIL import Image, ImageOps

import runs
from files import GOLDEN, versions, write_tensors, write_text
from pixels import FOLDER, MASKS, PICTURES, RESIZE_MODES
from refined_cases import CASES

# What the pipelines of diffusers know by the same names.
SAME_NAME = ("aesthetic_score", "negative_aesthetic_score")
PLAIN = {*runs.SAME_NAME, *runs.OTHER_NAME, *runs.SIZES, *runs.CROPS, "seed"} - {"denoising_end", "width", "height"}
# Of a refiner too, where there are two models.
HANDLED = {
    "scheduler",
    "scheduler_options",
    "width",
    "height",
    "init_image",
    "resize_mode",
    "strength",
    "mask",
    "mask_blur",
    "invert_mask",
    "mask_crop_padding",
    "denoising_end",
    "denoising_start",
    "denoising_fraction",
    "refiner_strength",
    "vae_tiling",
    "upscale",
    "upscale_strength",
    "upscale_method",
    "guidance_schedule",
    "guidance_interval",
}


class Models:
    """The pipelines of diffusers over one set of networks for each checkpoint."""

    def __init__(self) -> None:
        self.parts = {}
        classes = {
            "base": StableDiffusionXLPipeline,
            "refiner": StableDiffusionXLImg2ImgPipeline,
            "inpaint": StableDiffusionXLInpaintPipeline,
        }
        for name, pipeline in classes.items():
            pipe = pipeline.from_pretrained(GOLDEN / name, dtype=torch.float32, add_watermarker=False)
            self.parts[name] = pipe.components

    def pipeline(self, pipeline, model: str, request: dict):
        """A pipeline with a fresh scheduler, as the request wants it."""
        published = json.loads((GOLDEN / model / "scheduler/scheduler_config.json").read_text())
        options = {}
        if model == "refiner":
            options = {"requires_aesthetics_score": True, "force_zeros_for_empty_prompt": False}
        pipe = pipeline(**self.parts[model], add_watermarker=False, **options)
        pipe.set_progress_bar_config(disable=True)
        runs.set_scheduler(pipe, published, request)
        if request.get("vae_tiling") == "on":
            pipe.vae.enable_tiling()
        else:
            pipe.vae.disable_tiling()
        return pipe


def plain_arguments(case: dict) -> dict:
    """What all pipelines are told alike, with fresh generators."""
    request = case["request"]
    unknown = set(request) - PLAIN - HANDLED - set(SAME_NAME)
    assert not unknown, unknown
    plain = {key: request[key] for key in request if key in PLAIN and request[key] is not None}
    given = runs.arguments(case["name"], plain)
    given.setdefault("guidance_scale", 5.0)
    return given


def given_of(keys: dict) -> dict:
    return {key: value for key, value in keys.items() if value is not None}


def picture(pipe, request: dict):
    """The input picture at the size of the run."""
    image = PICTURES[request["init_image"]]
    if "width" not in request:
        return image
    mode = RESIZE_MODES[request.get("resize_mode", "stretch")]
    return pipe.image_processor.resize(image, request["height"], request["width"], resize_mode=mode)


def scores(request: dict) -> dict:
    return {key: request[key] for key in SAME_NAME if key in request}


def mask_of(pipe, request: dict):
    """The mask as a user of diffusers would make it ready."""
    mask = MASKS[request["mask"]]
    if request.get("invert_mask"):
        mask = ImageOps.invert(mask)
    if "mask_blur" in request:
        mask = pipe.mask_processor.blur(mask, request["mask_blur"])
    return mask


class Guidance:
    """Guidance scales that change from step to step: what a pipeline reads as its
    `guidance_scale`, after counting the steps by the calls of the UNet. 1 is none."""

    def __init__(self, request: dict, order: int, steps: list[int]) -> None:
        self.request, self.order, self.steps = request, order, steps
        self.stage, self.calls = -1, 0

    def next_stage(self) -> None:
        self.stage += 1
        self.calls = 0

    def count(self, *_):
        self.calls += 1

    def scale(self) -> float:
        step = sum(self.steps[: self.stage]) + (self.calls - 1) // self.order
        steps = sum(self.steps)
        start, end = self.request.get("guidance_interval", (0.0, 1.0))
        if not start <= step / steps < end:
            return 1.0
        scales = self.request.get("guidance_schedule", [self.request.get("guidance_scale", 5.0)])
        return float(np.interp(step / max(steps - 1, 1) * (len(scales) - 1), range(len(scales)), scales))


def with_guidance(pipe, guidance: Guidance | None):
    """The pipeline, reading its scale from `guidance` at every step."""
    if guidance is None:
        return pipe
    pipe.__class__ = type(
        pipe.__class__.__name__,
        (pipe.__class__,),
        {"guidance_scale": property(lambda _: guidance.scale()), "do_classifier_free_guidance": True},
    )
    guidance.next_stage()
    return pipe


def stages_of(models: Models, case: dict, guidance: Guidance | None, lengths: list[int]) -> dict[str, torch.Tensor]:
    """Everything recorded of one case; appends how many steps each stage took."""
    request = case["request"]
    given = plain_arguments(case)
    fraction = request.get("denoising_fraction")
    if case.get("refiner") and not ({"denoising_end", "denoising_start", "refiner_strength"} & set(request)):
        fraction = fraction or 0.8
    end, start = request.get("denoising_end", fraction), request.get("denoising_start", fraction)
    size = {key: request[key] for key in ("width", "height") if key in request}

    def stage(pipe, arguments: dict):
        """The last latents, or the finished pictures."""
        kept = []

        def keep(_pipe, _i, _t, tensors):
            kept.append(tensors["latents"])
            return {}

        hook = pipe.unet.register_forward_pre_hook(guidance.count) if guidance else None
        made = with_guidance(pipe, guidance)(**{"output_type": "latent", **arguments}, callback_on_step_end=keep).images
        if hook:
            hook.remove()
        lengths.append(-(-len(kept) // pipe.scheduler.order))
        return kept[-1], made

    first = dict(given)
    if "mask" in request:
        pipe = models.pipeline(StableDiffusionXLInpaintPipeline, case["model"], request)
        image = PICTURES[request["init_image"]]
        # without a size this pipeline takes the checkpoint's
        first |= {"width": image.width, "height": image.height, **size}
        first |= {"image": image, "mask_image": mask_of(pipe, request), **scores(request)}
        first |= given_of({"strength": request.get("strength"), "denoising_start": start})
        if "mask_crop_padding" in request:
            first |= {"padding_mask_crop": request["mask_crop_padding"], "output_type": "pil"}
    elif "init_image" in request:
        pipe = models.pipeline(StableDiffusionXLImg2ImgPipeline, case["model"], request)
        first |= {"image": picture(pipe, request), **scores(request)}
        first |= given_of({"strength": request.get("strength")})
        if not case.get("refiner"):
            first |= given_of({"denoising_start": start})
    else:
        pipe = models.pipeline(StableDiffusionXLPipeline, case["model"], request)
        first |= size
    first |= given_of({"denoising_end": end})
    latents, made = stage(pipe, first)

    def refine(latents):
        pipe = models.pipeline(StableDiffusionXLImg2ImgPipeline, "refiner", request)
        second = {**given, "image": latents, **scores(request)}
        second |= given_of({"strength": request.get("refiner_strength"), "denoising_start": start})
        return pipe, stage(pipe, second)[0]

    two_stage = "refiner_strength" in request
    if case.get("refiner") and not two_stage:
        pipe, latents = refine(latents)
    if "upscale" in request:
        again = models.pipeline(StableDiffusionXLImg2ImgPipeline, case["model"], request)
        larger = [int(side * 8 * request["upscale"]) // 8 * 8 for side in latents.shape[2:]]
        if request.get("upscale_method") == "latent":
            grid = [side // 8 for side in larger]
            image = torch.nn.functional.interpolate(latents, size=grid, mode="bilinear")
        else:
            assert far_from_rounding(pipe, latents), f"{case['name']}: choose another seed"
            image = [one.resize(larger[::-1], Image.Resampling.LANCZOS) for one in decoded(pipe, latents, "pil")]
        latents, _ = stage(again, {**given, "image": image, "strength": request["upscale_strength"]})
        pipe = again
    if case.get("refiner") and two_stage:
        pipe, latents = refine(latents)

    tensors = {"latents": latents}
    if case.get("image"):
        if "mask_crop_padding" in request:
            tensors["image"] = torch.from_numpy(np.stack([np.array(one) for one in made]))
        else:
            tensors["image"] = torch.from_numpy((255 * decoded(pipe, latents, "np")).round().astype(np.uint8))
    return tensors


def far_from_rounding(pipe, latents) -> bool:
    """Whether no value of the picture between two passes is so near the middle of two levels of
    255 that an error in its last bits would round it the other way: one such pixel moves the
    second pass by 1e-4, and would make the test one of luck."""
    levels = 255 * decoded(pipe, latents, "np")
    inside = levels[(levels > 0) & (levels < 255)]
    return np.abs(inside - np.floor(inside) - 0.5).min() > 1e-3


def decoded(pipe, latents, output_type: str):
    with torch.no_grad():
        pictures = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return pipe.image_processor.postprocess(pictures, output_type=output_type)


def run(models: Models, case: dict) -> dict[str, torch.Tensor]:
    request = case["request"]
    lengths = []
    if not {"guidance_schedule", "guidance_interval"} & set(request):
        return stages_of(models, case, None, lengths)
    # a first run tells how many steps there are
    stages_of(models, case, None, lengths)
    order = getattr(diffusers, request.get("scheduler", "EulerDiscreteScheduler")).order
    return stages_of(models, case, Guidance(request, order, lengths), [])


def make_refined() -> None:
    models = Models()
    tensors, lines = {}, []
    for case in CASES:
        made = run(models, case)
        tensors |= {f"{case['name']}.{key}": value for key, value in made.items()}
        entry = {key: value for key, value in case.items() if key != "image"}
        entry["request"] = {key: value for key, value in entry["request"].items() if value is not None}
        lines.append(json.dumps(entry))
    assert len({case["name"] for case in CASES}) == len(CASES)
    write_tensors(FOLDER / "latents.safetensors", tensors)
    head = json.dumps({"versions": versions()})[:-1]
    write_text(FOLDER / "cases.json", f'{head}, "cases": [\n' + ",\n".join(lines) + "\n]}\n")
