"""Requests of the runs that start from a picture, end in a refiner, or both.

In the words of the command line, as in `run_cases.py`; `init_image` and `mask` are names of
pictures in `golden/refined`. `model` is the checkpoint (base unless said), `refiner` is there
where base and refiner run together. `image` keeps the finished picture too.
"""

from run_cases import CAT, FOX, TOWN, UGLY


def case(name: str, request: dict, model: str = "base", **extra) -> dict:
    given = {"prompt": CAT, "negative_prompt": UGLY, "seed": 0, "steps": 5, **request}
    return {"name": name, "model": model, **extra, "request": given}


SCHEDULERS = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "kdpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras_trailing": (
        "DPMSolverMultistepScheduler",
        {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
    ),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_2s": ("DPMSolverSinglestepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}


def by_scheduler(kind: str, model: str, names: list[str], request: dict, **extra) -> list[dict]:
    cases = []
    for name in names:
        scheduler, options = SCHEDULERS[name]
        given = {**request, "scheduler": scheduler}
        if options:
            given["scheduler_options"] = options
        cases.append(case(f"{kind}.{name}", given, model, **extra))
    return cases


SQUARE, WIDE, ODD, LARGE = ({"init_image": name} for name in ("square", "wide", "odd", "large"))
MASKED, WIDE_MASKED = {"mask": "square_mask"}, {"mask": "wide_mask"}
SMALL = {"width": 16, "height": 16}
SEVERAL = {"prompt": [CAT, FOX], "num_images": 2, "seed": 3}
SIZES = {
    "original_size": [768, 1344],
    "crops_coords_top_left": [16, 40],
    "negative_original_size": [256, 320],
    "negative_crops_coords_top_left": [8, 24],
}

CASES = [
    # image to image
    *(
        case(f"img2img.{model}.{strength}", {**SQUARE, "strength": strength}, model)
        for model in ("base", "refiner")
        for strength in (0.3, 0.8, 1.0)
    ),
    case("img2img.base.default_strength", {**SQUARE, "steps": 10}),
    case("img2img.base.wide", {**WIDE, "strength": 0.6, "seed": 1}),
    case("img2img.refiner.wide", {**WIDE, "strength": 0.6, "seed": 1}, "refiner"),
    case("img2img.base.odd", {**ODD, "strength": 0.6, "seed": 1}),  # 67x45 becomes 64x40
    *(
        case(
            f"img2img.base.{mode}",
            {**ODD, "strength": 0.4, "resize_mode": mode, "width": 48, "height": 64},
        )
        for mode in ("stretch", "crop", "pad")
    ),
    case("img2img.base.several", {**SQUARE, **SEVERAL, "strength": 0.6}),
    case("img2img.refiner.several", {**SQUARE, **SEVERAL, "strength": 0.6}, "refiner"),
    case("img2img.base.seeds", {**WIDE, "num_images": 3, "seed": [5, 6, 7], "strength": 0.6}),
    case("img2img.base.no_guidance", {**SQUARE, "strength": 0.6, "guidance_scale": 1.0}),
    case("img2img.base.rescale", {**SQUARE, "strength": 0.6, "guidance_rescale": 0.7}),
    case("img2img.base.sizes", {**SQUARE, **SIZES, "target_size": [1024, 512], "strength": 0.6}),
    case("img2img.base.sizes_several", {**WIDE, **SIZES, **SEVERAL, "strength": 0.4}),
    case("img2img.refiner.sizes", {**SQUARE, **SIZES, "strength": 0.6}, "refiner"),
    case(
        "img2img.refiner.scores",
        {**SQUARE, "strength": 0.6, "aesthetic_score": 7.5, "negative_aesthetic_score": 1.0},
        "refiner",
    ),
    case("img2img.refiner.no_negative", {**SQUARE, "strength": 0.6, "negative_prompt": None}, "refiner"),
    case("img2img.refiner.prompt_2", {**SQUARE, "strength": 0.6, "prompt_2": TOWN}, "refiner"),
    case("img2img.base.tiled", {**LARGE, "strength": 0.6, "vae_tiling": "on"}),
    case("img2img.base.denoising_end", {**SQUARE, "strength": 0.8, "denoising_end": 0.7, "steps": 10}),
    case("img2img.refiner.denoising_start", {**SQUARE, "denoising_start": 0.6, "steps": 10}, "refiner"),
    case(
        "img2img.base.timesteps",
        {**SQUARE, "steps": None, "timesteps": [999, 850, 620, 300, 50], "strength": 0.7},
    ),
    *by_scheduler(
        "img2img",
        "base",
        [name for name in SCHEDULERS if name != "euler"],
        {**SQUARE, "strength": 0.65, "steps": 6},
    ),
    # base and refiner together
    *(
        one
        for fraction in (0.5, 0.8)
        for one in by_scheduler(
            f"ensemble.{fraction}", "base", list(SCHEDULERS), {"denoising_fraction": fraction, "steps": 10}, refiner=True
        )
    ),
    case("ensemble.default", {"steps": 6}, refiner=True, image=True),
    case("ensemble.separate", {"denoising_end": 0.7, "denoising_start": 0.6, "steps": 10}, refiner=True),
    case("ensemble.seven_steps", {"denoising_fraction": 0.35, "steps": 7}, refiner=True),
    case("ensemble.wide_several", {**SEVERAL, "width": 80, "height": 48}, refiner=True),
    case(
        "ensemble.seeds",
        {"num_images": 2, "seed": [1, 2], "scheduler": "EulerAncestralDiscreteScheduler"},
        refiner=True,
    ),
    case("ensemble.texts", {"prompt_2": TOWN, "negative_prompt_2": "dark", "clip_skip": 1, **SIZES}, refiner=True),
    case("ensemble.img2img", {**WIDE, "strength": 0.7, "denoising_fraction": 0.8, "steps": 10}, refiner=True),
    # the finished picture through the refiner
    case("two_stage.0.3", {"refiner_strength": 0.3, "steps": 8}, refiner=True),
    case("two_stage.0.8", {"refiner_strength": 0.8}, refiner=True),
    case("two_stage.wide_several", {**SEVERAL, "width": 80, "height": 48, "refiner_strength": 0.5}, refiner=True),
    case(
        "two_stage.seeds",
        {"num_images": 2, "seed": [1, 2], "refiner_strength": 0.5, "scheduler": "EulerAncestralDiscreteScheduler"},
        refiner=True,
    ),
    # inpainting: latents held to the picture, and a UNet that sees the mask
    *(
        one
        for model in ("base", "inpaint")
        for one in (
            case(f"inpaint.{model}.default", {**SQUARE, **MASKED, "steps": 6}, model, image=True),
            case(f"inpaint.{model}.0.6", {**SQUARE, **MASKED, "strength": 0.6}, model),
            case(f"inpaint.{model}.1.0", {**SQUARE, **MASKED, "strength": 1.0}, model),
            case(f"inpaint.{model}.wide", {**WIDE, **WIDE_MASKED, "strength": 0.7, "seed": 1}, model),
            case(f"inpaint.{model}.several", {**SQUARE, **MASKED, **SEVERAL, "strength": 0.7}, model),
            case(
                f"inpaint.{model}.seeds",
                {**WIDE, **WIDE_MASKED, "num_images": 2, "seed": [5, 6], "strength": 0.7},
                model,
            ),
            case(f"inpaint.{model}.no_guidance", {**SQUARE, **MASKED, "strength": 0.7, "guidance_scale": 1.0}, model),
            case(f"inpaint.{model}.inverted", {**SQUARE, **MASKED, "invert_mask": True, "strength": 0.7}, model),
            case(f"inpaint.{model}.tiled", {**LARGE, "mask": "large_mask", "vae_tiling": "on"}, model),
        )
    ),
    case("inpaint.base.blurred", {**SQUARE, **MASKED, "mask_blur": 4, "strength": 0.7}),
    case("inpaint.base.resized", {**WIDE, **WIDE_MASKED, "width": 64, "height": 72, "strength": 0.7}),
    case("inpaint.base.sizes", {**SQUARE, **MASKED, **SIZES, "strength": 0.7}),
    case("inpaint.base.denoising_end", {**SQUARE, **MASKED, "denoising_end": 0.7, "strength": 0.8, "steps": 10}),
    case("inpaint.base.denoising_start", {**SQUARE, **MASKED, "denoising_start": 0.4, "steps": 10}),
    case("inpaint.refiner.0.6", {**SQUARE, **MASKED, "strength": 0.6}, "refiner"),
    *(
        case(
            f"inpaint.{model}.crop_{padding}",
            {**LARGE, "mask": "large_mask", "mask_crop_padding": padding, "width": 64, "height": 64, "strength": 0.7},
            model,
            image=True,
        )
        for model in ("base", "inpaint")
        for padding in (0, 8)
    ),
    case(
        "inpaint.base.crop_blurred",
        {
            **LARGE,
            "mask": "large_mask",
            "mask_crop_padding": 4,
            "mask_blur": 3,
            "width": 72,
            "height": 64,
            "strength": 0.7,
        },
        image=True,
    ),
    *by_scheduler(
        "inpaint",
        "base",
        [name for name in SCHEDULERS if name != "euler"],
        {**SQUARE, **MASKED, "strength": 0.8, "steps": 6},
    ),
    *by_scheduler("inpaint9", "inpaint", ["euler_a", "dpmpp_2m_sde", "ddpm"], {**SQUARE, **MASKED, "strength": 0.8}),
    # once more at a higher size; small pictures and chosen seeds: see `far_from_rounding`
    case("upscale.lanczos", {**SMALL, "upscale": 2, "upscale_strength": 0.4, "steps": 6}),
    case("upscale.latent", {"upscale": 2, "upscale_strength": 0.6, "upscale_method": "latent", "steps": 6}),
    case("upscale.lanczos_wide", {"width": 24, "height": 16, "seed": 1, "upscale": 1.5, "upscale_strength": 0.5}),
    case("upscale.lanczos_several", {**SMALL, "num_images": 2, "upscale": 1.5, "upscale_strength": 0.5}),
    case(
        "upscale.latent_several",
        {**SEVERAL, "width": 80, "height": 48, "upscale": 1.5, "upscale_strength": 0.5, "upscale_method": "latent"},
    ),
    case(
        "upscale.seeds",
        {
            **SMALL,
            "num_images": 2,
            "seed": [1, 2],
            "upscale": 2.5,
            "upscale_strength": 0.5,
            "scheduler": "EulerAncestralDiscreteScheduler",
        },
    ),
    case("upscale.ensemble", {**SMALL, "upscale": 2, "upscale_strength": 0.5, "denoising_fraction": 0.5}, refiner=True),
    case("upscale.two_stage", {**SMALL, "upscale": 2, "upscale_strength": 0.5, "refiner_strength": 0.4}, refiner=True),
    # guidance that changes with the steps
    case("guidance.schedule", {"guidance_schedule": [9.0, 3.0, 5.0], "steps": 6}),
    case("guidance.each_step", {"guidance_schedule": [8.0, 1.0, 4.0, 6.0, 2.0]}),
    case("guidance.interval", {"guidance_interval": [0.2, 0.8]}),
    case("guidance.interval_rescale", {"guidance_interval": [0.0, 0.5], "guidance_rescale": 0.7, **SEVERAL}),
    case("guidance.heun", {"guidance_interval": [0.25, 0.75], "scheduler": "HeunDiscreteScheduler"}),
    case("guidance.img2img", {**SQUARE, "strength": 0.8, "guidance_schedule": [2.0, 8.0]}),
    case(
        "guidance.ensemble",
        {"guidance_interval": [0.3, 0.9], "denoising_fraction": 0.5, "steps": 10},
        refiner=True,
    ),
]
