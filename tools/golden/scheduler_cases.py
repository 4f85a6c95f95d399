"""Which option sets of which scheduler the golden trajectories cover."""

SDXL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
}

AYS_TIMESTEPS = [999, 845, 730, 587, 443, 310, 193, 116, 53, 13]
AYS_SIGMAS = [14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.0]

LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
TRAILING = {"timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
EXPONENTIAL = {"use_exponential_sigmas": True}
BETA = {"use_beta_sigmas": True}
V = {"prediction_type": "v_prediction"}
SAMPLE = {"prediction_type": "sample"}
ZERO_SNR = {"rescale_betas_zero_snr": True, **V, **TRAILING}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
LINEAR = {"beta_schedule": "linear"}


def cases(core, extra=(), plans=(), few=(1, 2, 5), **common):
    """The option sets `core` at 4, 10 and 25 steps, `extra` at a few steps, and single `plans`,
    each (options, plan, other fields of the case)."""
    for options in core:
        for steps in (4, 10, 25):
            yield {"config": {**SDXL, **options}, "plan": {"steps": steps}, **common}
    for options in extra:
        for steps in few:
            yield {"config": {**SDXL, **options}, "plan": {"steps": steps}, **common}
    for options, plan, *other in plans:
        fields = {**common, **(other[0] if other else {})}
        yield {"config": {**SDXL, **options}, "plan": plan, **fields}


# Two images whose size is no multiple of 16 values, from one generator and from two.
BATCH = {"shape": [2, 4, 3, 3], "seeds": [11]}
LIST = {"shape": [2, 4, 3, 3], "seeds": [11, 2**40 + 5]}

CUTS = [
    ({}, {"steps": 10, "strength": 0.3}),
    ({}, {"steps": 7, "strength": 0.75}),
    ({}, {"steps": 7, "strength": 1.0}),
    ({}, {"steps": 10, "denoising_end": 0.8}),
    ({}, {"steps": 10, "denoising_start": 0.8}),
    ({}, {"steps": 9, "denoising_end": 0.55}),
    ({}, {"steps": 9, "denoising_start": 0.55}),
    ({}, {"steps": 20, "denoising_start": 0.3, "denoising_end": 0.7}),
    ({}, {"steps": 4}, BATCH),
    ({}, {"steps": 4}, LIST),
]


def euler():
    churn = {"s_churn": 1.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.01}
    core = [{}, KARRAS, {**EXPONENTIAL, **TRAILING}, BETA, {**V, **LINSPACE}, ZERO_SNR]
    extra = [
        SAMPLE,
        {**KARRAS, "sigma_min": 0.05, "sigma_max": 10.0},
        {"interpolation_type": "log_linear"},
        {"final_sigmas_type": "sigma_min", **TRAILING},
        {"timestep_type": "continuous", **V},
        COSINE,
        LINEAR,
        {**KARRAS, **LINSPACE},
    ]
    plans = [
        *CUTS,
        ({}, {"timesteps": AYS_TIMESTEPS}),
        ({}, {"sigmas": AYS_SIGMAS}),
        ({}, {"timesteps": AYS_TIMESTEPS, "strength": 0.5}),
        ({}, {"sigmas": [10.0, 3.0, 1.0, 0.5]}),
        (churn, {"steps": 6}, {"step_options": list(churn)}),
        ({**churn, **V}, {"steps": 6}, {"step_options": list(churn)}),
        ({"trained_betas": [0.0005 + 0.0002 * i for i in range(100)], "num_train_timesteps": 100},
         {"steps": 5}),
    ]
    yield from cases(core, extra, plans)


CASES = {
    "EulerDiscreteScheduler": euler,
}
