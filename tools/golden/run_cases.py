"""Requests of the whole runs, in the words of the command line.

A case is a name, the request and, where asked for, `image` (also decode),
`trace` (also keep what the UNet was given and the latents after every step),
`weights` (round the UNet's and the VAE's weights to `f16` or `bf16` first) and
`global_generator` (the seed is that of torch's global generator).
"""

CAT = "a photo of a cat wearing a red hat, sitting on a wooden bench"
FOX = "an astronaut fox, watercolor!"
TOWN = "a small town by the sea at night, lights in the windows, stars"
UGLY = "blurry, low quality, text!"
LONG = ", ".join(f"detail number {i} of a very long prompt" for i in range(12))


def case(name: str, request: dict, **extra) -> dict:
    return {"name": name, "checkpoint": "base", **extra, "request": {"prompt": CAT, "seed": 0, "steps": 4, **request}}


def scheduler(name: str, request: dict | None = None, scheduler: str = "EulerDiscreteScheduler", **options) -> dict:
    """A run with another scheduler or other options of it."""
    given = {"scheduler": scheduler, "scheduler_options": options} if options else {"scheduler": scheduler}
    return case(name, {"negative_prompt": UGLY, "seed": 7, **given, **(request or {})})


# Every class, with what makes it draw noise, or without what leaves the noise to chance.
CLASSES = {
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "KDPM2DiscreteScheduler": {},
    "KDPM2AncestralDiscreteScheduler": {},
    "LMSDiscreteScheduler": {},
    "DDIMScheduler": {"eta": 0.5},
    "DDPMScheduler": {},
    "PNDMScheduler": {},
    "DPMSolverMultistepScheduler": {"scheduler_options": {"algorithm_type": "sde-dpmsolver++"}},
    "DPMSolverSinglestepScheduler": {},
    "DPMSolverSDEScheduler": {"scheduler_options": {"noise_sampler_seed": 5}},
    "DEISMultistepScheduler": {},
    "UniPCMultistepScheduler": {},
    "LCMScheduler": {},
    "TCDScheduler": {"eta": 0.3},
    "EDMEulerScheduler": {},
    "EDMDPMSolverMultistepScheduler": {},
    "SASolverScheduler": {},
    # It leads from an image to noise, and the pipeline runs it all the same.
    "DDIMInverseScheduler": {},
}


def picture(name: str, request: dict) -> dict:
    """A small picture with a scheduler class."""
    return scheduler(f"class_{name}", {"steps": 5, "width": 48, "height": 32, **request}, name) | {"image": True}


CASES = [
    case("default", {"steps": 6}, image=True, trace=True),
    case("wide", {"width": 80, "height": 48, "negative_prompt": UGLY, "seed": 1}, image=True, trace=True),
    # 468 latents: the last 16 noise values come from a fresh draw; odd at every level
    case("odd", {"width": 104, "height": 72, "seed": 2}, image=True),
    case("tall_thin", {"width": 8, "height": 96, "seed": 3}),
    case("one_step", {"steps": 1, "seed": 4}),
    case("eight_steps", {"steps": 8, "seed": 4, "negative_prompt": UGLY}),
    case("seed_above_32_bits", {"seed": 2**32 + 5}),
    # guidance
    case("guidance_0", {"guidance_scale": 0.0, "negative_prompt": UGLY}),
    case("guidance_1", {"guidance_scale": 1.0, "negative_prompt": UGLY}),
    case("guidance_1_01", {"guidance_scale": 1.01, "negative_prompt": UGLY}),
    case("guidance_12", {"guidance_scale": 12.0, "negative_prompt": UGLY}),
    case("rescale", {"guidance_scale": 7.5, "guidance_rescale": 0.7, "negative_prompt": UGLY}),
    case(
        "rescale_several",  # each image by its own deviations
        {"prompt": [CAT, FOX], "guidance_scale": 9.0, "guidance_rescale": 1.0, "seed": 5},
    ),
    case("rescale_without_guidance", {"guidance_scale": 1.0, "guidance_rescale": 0.7}),
    # texts
    case("negative_absent", {"seed": 6}),
    case("negative_empty", {"seed": 6, "negative_prompt": ""}),
    case("negative_text", {"seed": 6, "negative_prompt": UGLY}),
    case("prompt_empty", {"seed": 6, "prompt": "", "negative_prompt": UGLY}),
    case("prompt_long", {"seed": 6, "prompt": LONG, "negative_prompt": LONG + " " + UGLY}),
    case("prompt_2", {"seed": 6, "prompt_2": TOWN, "negative_prompt": UGLY}, trace=True),
    case("prompt_2_empty", {"seed": 6, "prompt_2": "", "negative_prompt": UGLY}),
    case("negative_prompt_2", {"seed": 6, "negative_prompt": UGLY, "negative_prompt_2": "dark, noisy"}),
    case("negative_prompt_2_alone", {"seed": 6, "negative_prompt_2": "dark, noisy"}),
    case(
        "all_four_texts",
        {"seed": 6, "prompt_2": TOWN, "negative_prompt": UGLY, "negative_prompt_2": "dark, noisy"},
    ),
    case("clip_skip_1", {"seed": 6, "negative_prompt": UGLY, "clip_skip": 1}, trace=True),
    case("clip_skip_2", {"seed": 6, "negative_prompt": UGLY, "clip_skip": 2}),
    # several images
    case("two_images", {"num_images": 2, "seed": 8, "negative_prompt": UGLY}),
    case(
        "prompts",
        {"prompt": [CAT, FOX, TOWN, "", LONG], "negative_prompt": UGLY, "seed": 9, "width": 48, "height": 32},
        image=True,
    ),
    case(
        "prompts_own_negatives",
        {"prompt": [CAT, FOX, TOWN], "negative_prompt": [UGLY, "", "dark"], "seed": 9, "width": 48, "height": 32},
    ),
    case(
        "prompts_lists_of_all",
        {
            "prompt": [CAT, FOX],
            "prompt_2": [TOWN, CAT],
            "negative_prompt": [UGLY, "dark"],
            "negative_prompt_2": ["dark", "noisy"],
            "seed": 9,
            "width": 48,
            "height": 32,
        },
    ),
    case(
        "prompts_two_images",
        {"prompt": [CAT, FOX], "num_images": 2, "negative_prompt": UGLY, "seed": 10, "width": 48, "height": 32},
    ),
    case("prompts_without_guidance", {"prompt": [CAT, FOX], "guidance_scale": 1.0, "seed": 10}),
    case("seeds", {"num_images": 3, "seed": [11, 0, 2**40], "negative_prompt": UGLY}),
    case("seeds_odd", {"prompt": [CAT, FOX], "seed": [12, 13], "width": 40, "height": 72, "steps": 2}),
    # micro-conditioning
    case(
        "sizes",
        {
            "original_size": [768, 1344],
            "target_size": [1024, 512],
            "crops_coords_top_left": [16, 40],
            "negative_prompt": UGLY,
            "seed": 14,
        },
        trace=True,
    ),
    case(
        "sizes_negative",
        {
            "original_size": [768, 1344],
            "target_size": [1024, 512],
            "crops_coords_top_left": [16, 40],
            "negative_original_size": [256, 320],
            "negative_target_size": [640, 576],
            "negative_crops_coords_top_left": [8, 0],
            "negative_prompt": UGLY,
            "seed": 14,
        },
        trace=True,
    ),
    # with only one of the two sizes all negative ids are ignored
    case("sizes_negative_half", {"negative_original_size": [256, 320], "negative_prompt": UGLY, "seed": 14}),
    # conditioning rows of the batch are negative, positive, negative, positive
    # while its embeddings are all negative ones, then all positive ones
    case(
        "sizes_negative_prompts",
        {
            "prompt": [CAT, FOX, TOWN],
            "original_size": [768, 1344],
            "negative_original_size": [256, 320],
            "negative_target_size": [640, 576],
            "negative_prompt": UGLY,
            "seed": 15,
            "width": 48,
            "height": 32,
        },
        trace=True,
    ),
    case(
        "sizes_negative_two_images",
        {
            "num_images": 2,
            "original_size": [768, 1344],
            "negative_original_size": [256, 320],
            "negative_target_size": [640, 576],
            "seed": 15,
            "width": 48,
            "height": 32,
        },
    ),
    case(
        "sizes_negative_without_guidance",
        {
            "prompt": [CAT, FOX],
            "guidance_scale": 1.0,
            "negative_original_size": [256, 320],
            "negative_target_size": [640, 576],
            "seed": 15,
        },
    ),
    # where a run starts and ends
    case("latents", {"latents": True, "negative_prompt": UGLY, "width": 80, "height": 48}),
    case("latents_two", {"latents": True, "num_images": 2, "negative_prompt": UGLY}),
    case("denoising_end", {"steps": 10, "denoising_end": 0.8, "negative_prompt": UGLY, "seed": 16}, trace=True),
    case("denoising_end_early", {"steps": 7, "denoising_end": 0.35, "negative_prompt": UGLY, "seed": 16}),
    case("timesteps", {"steps": None, "timesteps": [999, 850, 620, 300, 50], "negative_prompt": UGLY, "seed": 17}),
    case(
        "sigmas",
        {"steps": None, "sigmas": [14.6, 6.0, 2.5, 1.1, 0.3, 0.0], "negative_prompt": UGLY, "seed": 17},
        trace=True,
    ),
    # options of the published scheduler
    scheduler("karras", {"steps": 5}, use_karras_sigmas=True),
    scheduler("exponential", use_exponential_sigmas=True),
    scheduler("beta", use_beta_sigmas=True),
    scheduler("v_prediction", prediction_type="v_prediction"),
    scheduler("sample_prediction", prediction_type="sample"),
    scheduler("trailing", timestep_spacing="trailing"),
    scheduler("linspace", {"steps": 5}, timestep_spacing="linspace"),
    scheduler("steps_offset_0", steps_offset=0),
    scheduler("final_sigma_min", final_sigmas_type="sigma_min"),
    scheduler("karras_range", use_karras_sigmas=True, sigma_min=0.05, sigma_max=10.0, timestep_spacing="trailing"),
    scheduler(
        "zero_snr",
        {"guidance_rescale": 0.7},
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
    ),
    # other schedulers, where the pipeline's part in them shows: draws in the
    # steps, eta, two evaluations a step
    scheduler("euler_ancestral", scheduler="EulerAncestralDiscreteScheduler"),
    scheduler("euler_ancestral_seeds", {"num_images": 2, "seed": [7, 8]}, scheduler="EulerAncestralDiscreteScheduler"),
    scheduler("heun", scheduler="HeunDiscreteScheduler"),
    scheduler("heun_denoising_end", {"steps": 5, "denoising_end": 0.6}, scheduler="HeunDiscreteScheduler"),
    scheduler("ddim", scheduler="DDIMScheduler"),
    scheduler("ddim_eta", {"eta": 0.5}, scheduler="DDIMScheduler"),
    scheduler("dpmpp_2m_karras", {"steps": 5}, scheduler="DPMSolverMultistepScheduler", use_karras_sigmas=True),
    scheduler("unipc", {"steps": 5}, scheduler="UniPCMultistepScheduler"),
    scheduler("lcm", {"guidance_scale": 1.0}, scheduler="LCMScheduler"),
    # whole pictures of every class
    *(picture(name, request) for name, request in CLASSES.items()),
    # without a seed of its own its noise is that of a seed drawn from the global generator
    scheduler("dpm_sde_own_seed", {"width": 48, "height": 32}, "DPMSolverSDEScheduler") | {"global_generator": True},
    # weights of half precision, computed in single
    case("f16_weights", {"steps": 6}, weights="f16", image=True),
    case("bf16_weights", {"steps": 6}, weights="bf16", image=True),
]
