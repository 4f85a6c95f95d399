"""Runs that start from a picture or end in a refiner: `refined/cases.json` and
`refined/latents.safetensors`, which holds the final latents of every case by its name."""

import json

import diffusers
import numpy as np
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLInpaintPipeline, StableDiffusionXLPipeline
from PIL import ImageOps

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


def run(models: Models, case: dict) -> dict[str, torch.Tensor]:
    request = case["request"]
    given = plain_arguments(case)
    fraction = request.get("denoising_fraction")
    if case.get("refiner") and not ({"denoising_end", "denoising_start", "refiner_strength"} & set(request)):
        fraction = fraction or 0.8
    end, start = request.get("denoising_end", fraction), request.get("denoising_start", fraction)

    first = dict(given)
    if "init_image" in request:
        pipe = models.pipeline(StableDiffusionXLImg2ImgPipeline, case["model"], request)
        first |= {"image": picture(pipe, request), **scores(request)}
        first |= given_of({"strength": request.get("strength")})
        if not case.get("refiner"):
            first |= given_of({"denoising_start": start})
    else:
        pipe = models.pipeline(StableDiffusionXLPipeline, case["model"], request)
        first |= {key: request[key] for key in ("width", "height") if key in request}
    first |= given_of({"denoising_end": end})
    latents = pipe(**first, output_type="latent").images

    if case.get("refiner"):
        pipe = models.pipeline(StableDiffusionXLImg2ImgPipeline, "refiner", request)
        second = {**given, "image": latents, **scores(request)}
        second |= given_of({"strength": request.get("refiner_strength"), "denoising_start": start})
        latents = pipe(**second, output_type="latent").images
    tensors = {"latents": latents}
    if case.get("image"):
        scaled = latents / pipe.vae.config.scaling_factor
        with torch.no_grad():
            tensors["image"] = pipe.image_processor.postprocess(pipe.vae.decode(scaled).sample, output_type="pt")
    return tensors


def make_refined() -> None:
    models = Models()
    tensors, lines = {}, []
    for case in CASES:
        made = run(models, case)
        tensors |= {f"{case['name']}.{key}": value.detach() for key, value in made.items()}
        entry = {key: value for key, value in case.items() if key != "image"}
        entry["request"] = {key: value for key, value in entry["request"].items() if value is not None}
        lines.append(json.dumps(entry))
    assert len({case["name"] for case in CASES}) == len(CASES)
    write_tensors(FOLDER / "latents.safetensors", tensors)
    head = json.dumps({"versions": versions()})[:-1]
    write_text(FOLDER / "cases.json", f'{head}, "cases": [\n' + ",\n".join(lines) + "\n]}\n")
