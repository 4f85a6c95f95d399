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
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
ZERO_SNR = {"rescale_betas_zero_snr": True, **V, **TRAILING}
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
LINEAR = {"beta_schedule": "linear"}
THRESHOLDING = {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5}
CLIP = {"clip_sample": True, "clip_sample_range": 1.2}
SHORT_TABLE = {"trained_betas": [0.0005 + 0.0002 * i for i in range(100)], "num_train_timesteps": 100}


def cases(core, extra=(), plans=(), **common):
    """The option sets `core` at 4, 10 and 25 steps, `extra` at 1, 2 and 5, and single `plans`, each
    (options, plan[, other fields of the case])."""
    for options in core:
        for steps in (4, 10, 25):
            yield {"config": options, "plan": {"steps": steps}, **common}
    for options in extra:
        for steps in (1, 2, 5):
            yield {"config": options, "plan": {"steps": steps}, **common}
    for options, plan, *other in plans:
        yield {"config": options, "plan": plan, **common, **(other[0] if other else {})}


def exact(cases):
    """Cases of schedulers that magnify the last bits of PyTorch's logarithms and roots, which depend
    on the maker of the processor: with functions that round correctly."""
    for case in cases:
        yield {**case, "exact": True}


# Two images whose size is no multiple of 16 values, from one generator and from two.
BATCH = {"shape": [2, 4, 3, 3], "seeds": [11]}
LIST = {"shape": [2, 4, 3, 3], "seeds": [11, 2**40 + 5]}


def cuts(options=None):
    """Plans that image to image, the base and the refiner cut, and batches."""
    options = options or {}
    plans = [
        {"steps": 10, "strength": 0.3},
        {"steps": 7, "strength": 0.75},
        {"steps": 7, "strength": 1.0},
        {"steps": 10, "denoising_end": 0.8},
        {"steps": 10, "denoising_start": 0.8},
        {"steps": 9, "denoising_end": 0.55},
        {"steps": 9, "denoising_start": 0.55},
        {"steps": 20, "denoising_start": 0.3, "denoising_end": 0.7},
    ]
    return [
        *((options, plan) for plan in plans),
        (options, {"steps": 4}, BATCH),
        (options, {"steps": 4}, LIST),
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
        *cuts(),
        *cuts(KARRAS)[:2],
        ({}, {"timesteps": AYS_TIMESTEPS}),
        ({}, {"sigmas": AYS_SIGMAS}),
        ({}, {"timesteps": AYS_TIMESTEPS, "strength": 0.5}),
        ({}, {"sigmas": [10.0, 3.0, 1.0, 0.5]}),
        (churn, {"steps": 6}, {"step_options": list(churn)}),
        ({**churn, **V}, {"steps": 6}, {"step_options": list(churn)}),
        ({**churn, **SAMPLE}, {"steps": 6}, {"step_options": list(churn)}),
        (SHORT_TABLE, {"steps": 5}),
    ]
    yield from cases(core, extra, plans)


def euler_ancestral():
    core = [{}, LINSPACE, TRAILING, V, COSINE, {**V, **LINSPACE}]
    yield from cases(core, [LINEAR], [*cuts(), (SHORT_TABLE, {"steps": 5})])
    # The first step goes from a level of 4096 to one of 5, and keeps four digits.
    yield from cases([ZERO_SNR], tolerance=1e-4)


def heun():
    core = [{}, KARRAS, {**EXPONENTIAL, **TRAILING}, BETA, {**V, **LINSPACE}, {**SAMPLE, **TRAILING}]
    extra = [CLIP, {"beta_schedule": "exp"}, COSINE, LINEAR]
    plans = [
        *cuts(),
        *cuts(KARRAS)[3:6],
        ({}, {"timesteps": AYS_TIMESTEPS}),
        ({}, {"timesteps": AYS_TIMESTEPS, "strength": 0.8}),
    ]
    yield from cases(core, extra, plans)


def kdpm2():
    core = [{}, KARRAS, {**EXPONENTIAL, **TRAILING}, BETA, {**V, **LINSPACE}, TRAILING]
    yield from cases(core, [COSINE, LINEAR, {**KARRAS, **LINSPACE}], [*cuts(), *cuts(KARRAS)[3:6]])


def kdpm2_ancestral():
    # Two steps on the Karras curve go from 14.6 to 0.03 at once, and what is left of the difference of
    # squares there is good to two digits; so are timesteps of levels near the lowest.
    yield from exact(kdpm2())
    yield from cases([{}, {**EXPONENTIAL, **TRAILING}], [LINEAR])


def lms():
    core = [{}, KARRAS, {**EXPONENTIAL, **TRAILING}, BETA, {**V, **LINSPACE}, {**SAMPLE, **TRAILING}]
    plans = [*cuts(), ({"order": 2}, {"steps": 6}, {"step_options": ["order"]})]
    yield from cases(core, [COSINE, LINEAR], plans)


def dpmsolver_sde():
    seed = {"noise_sampler_seed": 5}
    core = [
        seed,
        {**seed, **KARRAS},
        {**seed, **EXPONENTIAL, **TRAILING},
        {**seed, **BETA},
        {**seed, **V, **LINSPACE},
        {"noise_sampler_seed": 2**40 + 11, **KARRAS, **LINSPACE},
    ]
    plans = [
        *cuts(seed),
        ({"noise_sampler_seed": [3, 4]}, {"steps": 4}, BATCH),
        ({**seed, "s_noise": 0.9}, {"steps": 4}, {"step_options": ["s_noise"]}),
        # Without a seed it draws one from the global generator, which is then that of the latents.
        (KARRAS, {"steps": 4}, {"global_generator": True}),
    ]
    # Noise is that of a path at times rounded to 1e-6, and times are logarithms taken back: the last
    # bit decides the time, and 1e-6 of time is 1e-3 of the path.
    yield from exact(cases(core, [{**seed, **COSINE}], plans))
    for case in cases([seed, {**seed, **V, **LINSPACE}]):
        yield {**case, "tolerance": 2e-3}


def ddim():
    core = [{}, TRAILING, LINSPACE, V, ZERO_SNR, {**SAMPLE, **CLIP}]
    extra = [
        THRESHOLDING,
        {"set_alpha_to_one": True},
        {**CLIP, "steps_offset": 0},
        COSINE,
        LINEAR,
    ]
    clipped = {**CLIP, "use_clipped_model_output": True}
    plans = [
        *cuts(),
        *(({}, {"steps": steps, "eta": 1.0}) for steps in (4, 10)),
        (TRAILING, {"steps": 5, "eta": 0.5}, LIST),
        (V, {"steps": 5, "eta": 0.5, "strength": 0.6}),
        (clipped, {"steps": 5}, {"step_options": ["use_clipped_model_output"]}),
        (SHORT_TABLE, {"steps": 5}),
    ]
    yield from cases(core, extra, plans)


def ddim_inverse():
    core = [{}, TRAILING, V, ZERO_SNR, {**SAMPLE, **CLIP}, {"set_alpha_to_one": True}]
    plans = [({}, {"steps": 4}, BATCH)]
    yield from cases(core, [COSINE, LINEAR, {"steps_offset": 0}], plans)


def ddpm():
    core = [{}, TRAILING, {**V, **LINSPACE}, ZERO_SNR, {**SAMPLE, **CLIP}, THRESHOLDING]
    extra = [
        {"variance_type": "fixed_small_log"},
        {"variance_type": "fixed_large"},
        {"beta_schedule": "sigmoid", "beta_start": 0.0001, "beta_end": 0.02},
        {"beta_schedule": "laplace"},
        COSINE,
        LINEAR,
    ]
    plans = [*cuts(), ({}, {"timesteps": AYS_TIMESTEPS}), (LINSPACE, {"steps": 3}, LIST)]
    yield from cases(core, extra, plans)


def pndm():
    core = [
        {},
        TRAILING,
        LINSPACE,
        V,
        {"skip_prk_steps": False},
        {"skip_prk_steps": False, **V, **LINSPACE},
    ]
    extra = [{"set_alpha_to_one": True}, COSINE, LINEAR]
    yield from cases(core, extra, [*cuts(), ({"skip_prk_steps": False, **TRAILING}, {"steps": 6})])


def solver_extra():
    return [
        THRESHOLDING,
        COSINE,
        LINEAR,
        {**KARRAS, **COSINE},
        {"lower_order_final": False},
        {**FLOW, "flow_shift": 3.0},
    ]


def dpmsolver_multistep():
    sde = {"algorithm_type": "sde-dpmsolver++"}
    noise = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    sde_noise = {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"}
    third, heun, first = {"solver_order": 3}, {"solver_type": "heun"}, {"solver_order": 1}
    core = [
        {},
        KARRAS,
        {**third, **TRAILING},
        {**sde, **KARRAS},
        {**V, **LINSPACE},
        {**ZERO_SNR, **third},
        EXPONENTIAL,
        {**BETA, **heun},
        {**noise, **third},
        {"use_lu_lambdas": True, **third},
    ]
    extra = [
        *solver_extra(),
        first,
        SAMPLE,
        {**heun, **SAMPLE},
        {**sde, **heun},
        {**sde, **third, **TRAILING},
        {**noise, **heun, **V},
        {**noise, **SAMPLE, **THRESHOLDING},
        {**sde_noise},
        {**sde_noise, **heun, **V},
        {**sde_noise, **first},
        {"final_sigmas_type": "sigma_min", "euler_at_final": True, **third},
        {"use_lu_lambdas": True, **COSINE},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **sde},
        {"algorithm_type": "deis", "solver_type": "bh2", "final_sigmas_type": "sigma_min"},
        {"lambda_min_clipped": -5.1, **LINSPACE},
    ]
    plans = [
        *cuts(),
        *cuts({**sde, **KARRAS})[:3],
        (sde, {"steps": 5}, LIST),
        ({}, {"timesteps": AYS_TIMESTEPS}),
        ({}, {"timesteps": AYS_TIMESTEPS, "strength": 0.5}),
        ({"euler_at_final": True, "final_sigmas_type": "sigma_min"}, {"steps": 16}),
        ({"lower_order_final": False, **third, **LINSPACE}, {"steps": 6}),
        ({**third, "final_sigmas_type": "sigma_min"}, {"steps": 15}),
        ({"lambda_min_clipped": -5.1, **TRAILING}, {"steps": 6}),
        (SHORT_TABLE, {"steps": 5}),
    ]
    yield from cases(core, extra, plans)


def dpmsolver_singlestep():
    sde = {"algorithm_type": "sde-dpmsolver++"}
    noise = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
    third, heun = {"solver_order": 3}, {"solver_type": "heun"}
    core = [
        {},
        KARRAS,
        third,
        {**sde, **KARRAS},
        {**V, **heun},
        {**third, **heun, **EXPONENTIAL},
        {**BETA, "final_sigmas_type": "sigma_min"},
        {**noise, **third},
    ]
    extra = [
        THRESHOLDING,
        COSINE,
        LINEAR,
        {"lower_order_final": True},
        {**FLOW, "flow_shift": 3.0},
        {"solver_order": 1},
        {**sde, **third},
        {**sde, **third, **heun},
        {**sde, **heun},
        {**noise, **heun, **V},
        {**noise, **third, **heun, **SAMPLE},
        {"lambda_min_clipped": -5.1},
    ]
    plans = [
        *cuts(),
        *cuts({**third, **KARRAS})[:3],
        ({}, {"timesteps": AYS_TIMESTEPS}),
        *((third, {"steps": steps}) for steps in (3, 6, 7, 8)),
        *(({**third, "final_sigmas_type": "sigma_min"}, {"steps": steps}) for steps in (6, 7, 8)),
    ]
    yield from cases(core, extra, plans)


def deis():
    third = {"solver_order": 3}
    core = [{}, KARRAS, {**V, **LINSPACE}, EXPONENTIAL, {**BETA, **third}]
    extra = [*solver_extra(), SAMPLE, {"solver_order": 1}, {"algorithm_type": "dpmsolver++"}]
    plans = [*cuts(), *cuts(third)[:2]]
    yield from cases(core, extra, plans)
    # The coefficients of third order are small differences.
    yield from cases([{**third, **TRAILING}], tolerance=2e-5)
    yield from exact(cases([{**third, **TRAILING}, {**BETA, **third}], [{**FLOW, **third}]))


def unipc():
    third, bh1 = {"solver_order": 3}, {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}
    noise = {"predict_x0": False, "final_sigmas_type": "sigma_min"}
    core = [
        {},
        KARRAS,
        {**third, **TRAILING},
        {**V, **LINSPACE},
        EXPONENTIAL,
        {**BETA, **third},
        {**ZERO_SNR, **third},
        bh1,
        {**noise, **third},
    ]
    flow = {**FLOW, "flow_shift": 3.0}
    extra = [
        THRESHOLDING,
        COSINE,
        LINEAR,
        {**KARRAS, **COSINE},
        SAMPLE,
        {"solver_order": 1},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"disable_corrector": [0, 2]},
        {**KARRAS, "final_sigmas_type": "sigma_min", "sigma_min": 0.05, "sigma_max": 10.0},
        {**noise, **V},
        {**noise, **SAMPLE, "solver_type": "bh1"},
        {**third, **bh1},
        flow,
        {**flow, **KARRAS},
        {"solver_type": "midpoint"},
    ]
    plans = [
        *cuts(),
        *cuts({**third, **KARRAS})[:3],
        (flow, {"sigmas": [1.0, 0.8, 0.5, 0.2]}),
        ({**flow, "shift_terminal": 0.1, "final_sigmas_type": "sigma_min"}, {"steps": 5}),
        ({"solver_order": 4}, {"steps": 8}),
    ]
    yield from cases(core, extra, plans)


def sa_solver():
    third = {"predictor_order": 3, "corrector_order": 4}
    noise = {"algorithm_type": "noise_prediction"}
    core = [
        {},
        KARRAS,
        {**V, **LINSPACE},
        EXPONENTIAL,
        {**noise, **BETA},
        {"predictor_order": 1, "corrector_order": 1},
    ]
    extra = [
        *solver_extra(),
        SAMPLE,
        {**noise, **V},
        {**noise, **SAMPLE, **third},
        {"predictor_order": 4, "corrector_order": 3},
        {"predictor_order": 1, "corrector_order": 3},
        {"lambda_min_clipped": -5.1},
    ]
    plans = [*cuts(), *cuts(KARRAS)[:2], *cuts({**third, **noise})[:2]]
    yield from cases(core, extra, plans)
    # The coefficients of higher orders are small differences.
    yield from cases([{**third, **TRAILING}], tolerance=2e-5)
    yield from exact(cases([{**third, **TRAILING}, {**third, **noise}]))


def lcm():
    core = [
        {},
        {"timestep_scaling": 5.0},
        {"original_inference_steps": 100},
        V,
        {**SAMPLE, **CLIP},
        {**ZERO_SNR},
    ]
    extra = [THRESHOLDING, COSINE, LINEAR, {"original_inference_steps": 30}]
    plans = [*cuts(), ({}, {"timesteps": [999, 759, 499, 259]}), (SHORT_TABLE, {"steps": 5})]
    yield from cases(core, extra, plans)


def tcd():
    core = [{}, {"original_inference_steps": 100}, V, SAMPLE, ZERO_SNR, COSINE]
    plans = [
        *cuts(),
        *(({}, {"steps": steps, "eta": 0.3}) for steps in (1, 2, 4, 8)),
        *((V, {"steps": steps, "eta": 1.0}) for steps in (4, 8)),
        (SAMPLE, {"steps": 4, "eta": 0.7}, LIST),
        ({}, {"timesteps": [999, 759, 499, 259], "eta": 0.3}),
    ]
    yield from cases(core, [LINEAR], plans)


def edm_euler():
    churn = {"s_churn": 1.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.01}
    exponential = {"sigma_schedule": "exponential"}
    core = [
        {},
        V,
        exponential,
        {"sigma_min": 0.02, "sigma_max": 14.6, "rho": 5.0},
        {"sigma_data": 1.0},
        {"final_sigmas_type": "sigma_min"},
    ]
    plans = [
        ({}, {"steps": 7, "strength": 0.75}),
        ({}, {"steps": 4}, LIST),
        (churn, {"steps": 6}, {"step_options": list(churn)}),
    ]
    yield from cases(core, [{**exponential, **V}], plans)


def edm_dpmsolver():
    sde = {"algorithm_type": "sde-dpmsolver++"}
    third, heun = {"solver_order": 3}, {"solver_type": "heun"}
    core = [
        {},
        V,
        {"sigma_schedule": "exponential", **third},
        {"sigma_min": 0.02, "sigma_max": 14.6, "rho": 5.0},
        {**sde, **heun},
        # Without euler_at_final 15 steps and more divide by zero: sigma_min comes twice.
        {"final_sigmas_type": "sigma_min", "euler_at_final": True, **third},
    ]
    extra = [
        {"sigma_data": 1.0},
        THRESHOLDING,
        heun,
        sde,
        {"solver_order": 1},
        {"lower_order_final": False, **third},
        {"final_sigmas_type": "sigma_min", **third},
    ]
    plans = [({}, {"steps": 7, "strength": 0.75}), (sde, {"steps": 4}, LIST)]
    yield from cases(core, extra, plans)


CASES = {
    "EulerDiscreteScheduler": euler,
    "EulerAncestralDiscreteScheduler": euler_ancestral,
    "HeunDiscreteScheduler": heun,
    "KDPM2DiscreteScheduler": kdpm2,
    "KDPM2AncestralDiscreteScheduler": kdpm2_ancestral,
    "LMSDiscreteScheduler": lms,
    "DPMSolverSDEScheduler": dpmsolver_sde,
    "DDIMScheduler": ddim,
    "DDIMInverseScheduler": ddim_inverse,
    "DDPMScheduler": ddpm,
    "PNDMScheduler": pndm,
    "DPMSolverMultistepScheduler": dpmsolver_multistep,
    "DPMSolverSinglestepScheduler": dpmsolver_singlestep,
    "DEISMultistepScheduler": deis,
    "UniPCMultistepScheduler": unipc,
    "SASolverScheduler": sa_solver,
    "LCMScheduler": lcm,
    "TCDScheduler": tcd,
    "EDMEulerScheduler": edm_euler,
    "EDMDPMSolverMultistepScheduler": edm_dpmsolver,
}
