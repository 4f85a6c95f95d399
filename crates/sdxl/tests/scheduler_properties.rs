//! What holds for schedulers without a reference: exact solutions, names, options and errors.

use sdxl::Latents;
use sdxl::noise::{NoiseSource, Rng};
use sdxl::scheduler::{
    self, InferenceSteps, Randomness, Scheduler, SchedulerConfig, SchedulerError, Steps, build,
};
use serde_json::{Value, json};

const SHAPE: [usize; 4] = [1, 3, 4, 4];

type Options<'a> = &'a [(&'a str, Value)];

fn noise() -> NoiseSource {
    NoiseSource::new(Rng::TorchCpu, &[3]).unwrap()
}

fn config(name: &str, options: Options<'_>) -> SchedulerConfig {
    let mut config = SchedulerConfig::named(name).unwrap();
    for (option, value) in options {
        config.set(option, value.clone()).unwrap();
    }
    config
}

/// The deviation of the noise beside the image, for the sample that comes next: where samples are
/// scaled for the model, it shows in the scale.
fn sigma(scheduler: &Scheduler, sample: &Latents, input: &Latents) -> f64 {
    if sample == input {
        return f64::from(scheduler.sigmas()[scheduler.index()]);
    }
    let (x, y) = (f64::from(sample.data()[0]), f64::from(input.data()[0]));
    ((x / y).powi(2) - 1.0).sqrt()
}

/// The factor of the image in a sample.
fn alpha(sample: &Latents, input: &Latents, sigma: f64) -> f64 {
    if sample == input {
        1.0 / (sigma * sigma + 1.0).sqrt()
    } else {
        1.0
    }
}

/// Answers with the noise that `image` leaves in the sample.
fn answer(scheduler: &Scheduler, sample: &Latents, image: impl Fn(f64, f64) -> f64) -> Latents {
    let input = scheduler.scale_model_input(sample);
    let sigma = sigma(scheduler, sample, &input);
    let alpha = alpha(sample, &input, sigma);
    sample.map(|x| {
        let x = f64::from(x) / alpha;
        ((x - image(x, sigma)) / sigma) as f32
    })
}

/// A denoiser that always answers `X0` leads to `X0`, noise or not.
#[test]
fn a_known_image_is_reached() {
    const X0: f64 = 0.7;
    for info in scheduler::all() {
        if info.class.starts_with("EDM") || info.class == "DDIMInverseScheduler" {
            // Their models are scaled otherwise, or lead away from the image.
            continue;
        }
        for steps in [1, 2, 7, 20] {
            let mut config = SchedulerConfig::named(info.class).unwrap();
            if info.option("set_alpha_to_one").is_some() {
                config.set("set_alpha_to_one", true.into()).unwrap();
            }
            let plan = InferenceSteps {
                eta: 0.5,
                ..InferenceSteps::count(steps)
            };
            let mut scheduler = build(&config, &plan).unwrap();
            let mut noise = noise();
            let start = scheduler.init_noise_sigma();
            let mut sample = noise.draw(SHAPE).unwrap().map(|x| x * start);
            while scheduler.timestep().is_some() {
                let output = answer(&scheduler, &sample, |_, _| X0);
                sample = scheduler.step(&output, &sample, &mut noise).unwrap();
            }
            // These stop at the lowest noise level of training; TCD goes to its timestep 0.
            let last = match info.class {
                "DEISMultistepScheduler" | "SASolverScheduler" | "TCDScheduler" => 0.0292f32,
                // Its consistency function is not quite the identity at its last timestep.
                "LCMScheduler" => 1e-4,
                _ => 0.0,
            };
            for x in sample.data() {
                let error = (x - X0 as f32).abs();
                assert!(error < 5.0 * last + 2e-4, "{} {steps}: {x}", info.class);
            }
        }
    }
}

/// For Gaussian data of deviation `S` the best denoiser is known, and so is where each sample
/// leads: `x sqrt(S^2 + end^2) / sqrt(S^2 + start^2)`. Halving the steps makes the error of a
/// method of order p 2^p times smaller. Solvers of third order start with steps of first and second
/// order, whose error falls no faster than that of second order.
#[test]
fn errors_fall_with_the_order_of_the_method() {
    const S: f64 = 0.6;
    // The lowest level is left out: the last step is of first order for many.
    let error = |config: &SchedulerConfig, steps: usize, end: Option<f64>| {
        let plan = InferenceSteps {
            denoising_end: end,
            ..InferenceSteps::count(steps)
        };
        let mut scheduler = build(config, &plan).unwrap();
        let evaluations = scheduler.timesteps().len();
        let mut noise = noise();
        let first = f64::from(scheduler.sigmas()[0]);
        let one = Latents::new([1, 1, 1, 1], vec![1.0]);
        // In the coordinates of the sample.
        let scaled = scheduler.scale_model_input(&one) != one;
        let factor = |sigma: f64| {
            if scaled {
                1.0
            } else {
                1.0 / (1.0 + sigma * sigma).sqrt()
            }
        };
        let mut sample = one.map(|_| (first * factor(first)) as f32);
        while scheduler.index() + 1 < evaluations {
            let output = answer(&scheduler, &sample, |x, sigma| {
                x * S * S / (S * S + sigma * sigma)
            });
            sample = scheduler.step(&output, &sample, &mut noise).unwrap();
        }
        let last = f64::from(scheduler.sigmas()[scheduler.index()]);
        let deviation = |sigma: f64| (S * S + sigma * sigma).sqrt();
        let exact = first * deviation(last) / deviation(first) * factor(last);
        (f64::from(sample.data()[0]) / exact - 1.0).abs()
    };
    let linspace = [
        ("timestep_spacing", json!("linspace")),
        ("steps_offset", json!(0)),
    ];
    let leading = [
        ("timestep_spacing", json!("leading")),
        ("steps_offset", json!(0)),
    ];
    let third = [("solver_order", json!(3))];
    let heun = [("solver_type", json!("heun"))];
    let noise_solver = [
        ("algorithm_type", json!("dpmsolver")),
        ("final_sigmas_type", json!("sigma_min")),
    ];
    let cases: [(&str, Options<'_>, usize, i32); 15] = [
        ("euler_karras", &linspace, 33, 1),
        ("ddim", &leading, 50, 1),
        ("heun_karras", &linspace, 17, 2),
        ("dpm2_karras", &linspace, 17, 2),
        ("lms_karras", &linspace, 33, 2),
        ("pndm", &leading, 40, 2),
        ("dpm++_1m_exponential", &[], 33, 1),
        ("dpm++_2m_exponential", &[], 33, 2),
        ("dpm++_2m_exponential", &heun, 33, 2),
        ("dpm++_2m_exponential", &noise_solver, 33, 2),
        ("dpm++_3m_exponential", &[], 33, 2),
        ("dpm++_2s_exponential", &[], 33, 2),
        ("deis_exponential", &[], 33, 2),
        ("unipc_exponential", &[], 17, 2),
        ("unipc_exponential", &third, 17, 2),
    ];
    for (name, options, steps, order) in cases {
        let config = config(name, options);
        // Curves have one interval less than levels.
        let even = name == "ddim" || name == "pndm";
        // Evenly spaced timesteps are no smooth choice of levels near the end.
        let end = even.then_some(0.5);
        let double = if even { 2 * steps } else { 2 * steps - 1 };
        let (coarse, fine) = (error(&config, steps, end), error(&config, double, end));
        let ratio = coarse / fine;
        let expected = 2f64.powi(order);
        assert!(
            coarse > 1e-5 && fine < 0.05,
            "{name} {options:?}: {coarse:.1e} {fine:.1e}"
        );
        assert!(
            ratio > 0.8 * expected,
            "{name} {options:?}: {coarse:.2e} / {fine:.2e} = {ratio:.2}, not {expected}"
        );
    }
}

#[test]
fn every_class_builds_with_its_own_defaults() {
    for info in scheduler::all() {
        let object = json!({"_class_name": info.class});
        let config = SchedulerConfig::from_text(&object.to_string()).unwrap();
        let scheduler = build(&config, &InferenceSteps::count(5)).unwrap();
        assert!(scheduler.timesteps().len() >= 5, "{}", info.class);
        assert!(
            scheduler.sigmas().len() == scheduler.timesteps().len() + 1,
            "{}",
            info.class
        );
        for option in info.options() {
            let text = option.default;
            assert!(
                serde_json::from_str::<Value>(text).is_ok(),
                "{} {text}",
                info.class
            );
        }
        assert!(
            !info.when.is_empty() && info.when.len() < 100,
            "{}",
            info.when
        );
    }
}

/// Options with values other than the defaults.
fn options_to_try() -> Vec<(String, Value)> {
    let options = json!({
        "timestep_spacing": ["leading", "linspace", "trailing"],
        "use_karras_sigmas": [true],
        "use_exponential_sigmas": [true],
        "use_beta_sigmas": [true],
        "use_lu_lambdas": [true],
        "use_flow_sigmas": [true],
        "solver_order": [1, 3],
        "solver_type": ["heun", "bh1"],
        "algorithm_type": ["sde-dpmsolver++", "dpmsolver", "sde-dpmsolver", "noise_prediction"],
        "final_sigmas_type": ["sigma_min"],
        "prediction_type": ["v_prediction", "sample", "flow_prediction"],
        "rescale_betas_zero_snr": [true],
        "thresholding": [true],
        "clip_sample": [true],
        "steps_offset": [0],
        "lower_order_final": [false],
        "predict_x0": [false],
        "beta_schedule": ["linear", "squaredcos_cap_v2"],
        "skip_prk_steps": [false],
    });
    let mut all = Vec::new();
    for (option, values) in options.as_object().unwrap() {
        for value in values.as_array().unwrap() {
            all.push((option.clone(), value.clone()));
        }
    }
    all
}

/// Whatever is not refused gives numbers: every option, cut and few or many steps.
#[test]
fn what_is_accepted_gives_finite_numbers() {
    let options = options_to_try();
    let cuts = [
        InferenceSteps::count(1),
        InferenceSteps {
            strength: Some(0.6),
            ..InferenceSteps::count(1)
        },
        InferenceSteps {
            denoising_start: Some(0.4),
            ..InferenceSteps::count(1)
        },
        InferenceSteps {
            denoising_end: Some(0.6),
            ..InferenceSteps::count(1)
        },
    ];
    let mut runs = 0;
    for info in scheduler::all() {
        for (option, value) in &options {
            let mut config = SchedulerConfig::named(info.class).unwrap();
            if config.set(option, value.clone()).is_err() {
                continue;
            }
            for (steps, cut) in [1, 2, 3, 4, 15, 40, 1000]
                .into_iter()
                .flat_map(|s| cuts.iter().map(move |c| (s, c)))
            {
                let plan = InferenceSteps {
                    steps: Steps::Count(steps),
                    eta: 0.3,
                    ..cut.clone()
                };
                let Ok(mut scheduler) = build(&config, &plan) else {
                    continue;
                };
                let mut noise = noise();
                let start = scheduler.init_noise_sigma();
                let mut sample = noise.draw([1, 2, 2, 4]).unwrap().map(|x| x * start);
                for _ in 0..scheduler.timesteps().len().min(50) {
                    let input = scheduler.scale_model_input(&sample);
                    let output = input.map(|x| 0.5 * x / (1.0 + x * x) + 0.1);
                    sample = scheduler.step(&output, &sample, &mut noise).unwrap();
                    let finite = sample.data().iter().all(|x| x.is_finite());
                    assert!(finite, "{} {option} {value} {plan:?}", info.class);
                }
                runs += 1;
            }
        }
    }
    assert!(runs > 3000, "{runs}");
}

/// The same for every two options together.
#[test]
fn pairs_of_options_give_finite_numbers() {
    let options = options_to_try();
    let mut failures = Vec::new();
    let mut runs = 0;
    for info in scheduler::all() {
        for (i, first) in options.iter().enumerate() {
            for second in &options[i + 1..] {
                let mut config = SchedulerConfig::named(info.class).unwrap();
                let mut set = |(option, value): &(String, Value)| config.set(option, value.clone());
                if first.0 == second.0 || set(first).is_err() || set(second).is_err() {
                    continue;
                }
                for steps in [1, 2, 5, 15, 16] {
                    let Ok(mut scheduler) = build(&config, &InferenceSteps::count(steps)) else {
                        continue;
                    };
                    let mut noise = noise();
                    let start = scheduler.init_noise_sigma();
                    let mut sample = noise.draw([1, 1, 2, 2]).unwrap().map(|x| x * start);
                    while scheduler.timestep().is_some() {
                        let input = scheduler.scale_model_input(&sample);
                        let output = input.map(|x| 0.5 * x / (1.0 + x * x) + 0.1);
                        sample = scheduler.step(&output, &sample, &mut noise).unwrap();
                    }
                    if sample.data().iter().any(|x| !x.is_finite()) {
                        failures.push(format!("{} {first:?} {second:?} {steps}", info.class));
                    }
                    runs += 1;
                }
            }
        }
    }
    assert!(runs > 7000, "{runs}");
    assert!(
        failures.is_empty(),
        "{} of {runs}:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

/// The draws of a run tell whether a scheduler is what its description says.
#[test]
fn randomness_is_as_described() {
    for info in scheduler::all() {
        let mut config = SchedulerConfig::named(info.class).unwrap();
        if info.option("noise_sampler_seed").is_some() {
            continue;
        }
        let draws = |config: &SchedulerConfig, eta: f64| {
            let plan = InferenceSteps {
                eta,
                ..InferenceSteps::count(4)
            };
            let mut scheduler = build(config, &plan).unwrap();
            let mut noise = noise();
            let mut sample = Latents::zeros(SHAPE).map(|_| 1.0);
            while scheduler.timestep().is_some() {
                sample = scheduler
                    .step(&sample.clone(), &sample, &mut noise)
                    .unwrap();
            }
            noise != self::noise()
        };
        match info.randomness {
            Randomness::Deterministic => assert!(!draws(&config, 1.0), "{}", info.class),
            Randomness::Stochastic => assert!(draws(&config, 0.0), "{}", info.class),
            Randomness::Optional(how) => {
                assert!(!draws(&config, 0.0), "{}", info.class);
                let (option, _) = how.split_once(' ').unwrap();
                match option {
                    "s_churn" => config.set("s_churn", json!(2.0)).unwrap(),
                    "algorithm_type" => config.set(option, json!("sde-dpmsolver++")).unwrap(),
                    _ => assert_eq!(option, "eta"),
                }
                assert!(draws(&config, 1.0), "{}", info.class);
            }
        }
    }
}

#[test]
fn names_of_many_tongues_resolve() {
    let cases: &[(&str, &str, Options<'_>)] = &[
        ("euler", "EulerDiscreteScheduler", &[]),
        ("EulerDiscreteScheduler", "EulerDiscreteScheduler", &[]),
        ("Euler a", "EulerAncestralDiscreteScheduler", &[]),
        ("k_euler_a", "EulerAncestralDiscreteScheduler", &[]),
        ("dpm++_2m", "DPMSolverMultistepScheduler", &[]),
        (
            "DPM++ 2M Karras",
            "DPMSolverMultistepScheduler",
            &[("use_karras_sigmas", json!(true))],
        ),
        (
            "dpmpp_2m_k",
            "DPMSolverMultistepScheduler",
            &[("use_karras_sigmas", json!(true))],
        ),
        (
            "DPM++ 2M SDE Karras",
            "DPMSolverMultistepScheduler",
            &[
                ("algorithm_type", json!("sde-dpmsolver++")),
                ("use_karras_sigmas", json!(true)),
            ],
        ),
        (
            "DPM++ 3M SDE Exponential",
            "DPMSolverMultistepScheduler",
            &[
                ("solver_order", json!(3)),
                ("use_exponential_sigmas", json!(true)),
            ],
        ),
        ("DPM++ SDE", "DPMSolverSDEScheduler", &[]),
        ("dpm++_2s", "DPMSolverSinglestepScheduler", &[]),
        ("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", &[]),
        ("k_dpm_2", "KDPM2DiscreteScheduler", &[]),
        (
            "LMS Karras",
            "LMSDiscreteScheduler",
            &[("use_karras_sigmas", json!(true))],
        ),
        ("PLMS", "PNDMScheduler", &[]),
        ("UniPC", "UniPCMultistepScheduler", &[]),
        ("DDIM", "DDIMScheduler", &[]),
        (
            "ddim_trailing",
            "DDIMScheduler",
            &[("timestep_spacing", json!("trailing"))],
        ),
        (
            "Euler SGM Uniform",
            "EulerDiscreteScheduler",
            &[("timestep_spacing", json!("trailing"))],
        ),
        ("lcm", "LCMScheduler", &[]),
        ("tcd", "TCDScheduler", &[]),
        ("sa_solver", "SASolverScheduler", &[]),
        ("deis", "DEISMultistepScheduler", &[]),
    ];
    for (name, class, options) in cases {
        let config = SchedulerConfig::named(name).unwrap();
        assert_eq!(config.info().class, *class, "{name}");
        for (option, value) in *options {
            assert_eq!(config.get(option), Some(value), "{name}");
        }
        build(&config, &InferenceSteps::count(6)).unwrap();
    }
    // No name means two classes.
    let mut names: Vec<_> = scheduler::all().flat_map(|i| i.names).collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

/// The names go into the text that other tools read in pictures.
#[test]
fn names_of_a1111_are_its_own_and_resolve_to_their_classes() {
    let named: Vec<_> = scheduler::all()
        .filter_map(|info| Some((info.class, info.a1111?)))
        .collect();
    let expected = [
        ("EulerDiscreteScheduler", "Euler"),
        ("EulerAncestralDiscreteScheduler", "Euler a"),
        ("DPMSolverMultistepScheduler", "DPM++ 2M"),
        ("UniPCMultistepScheduler", "UniPC"),
        ("DPMSolverSDEScheduler", "DPM++ SDE"),
        ("DDIMScheduler", "DDIM"),
        ("HeunDiscreteScheduler", "Heun"),
        ("KDPM2DiscreteScheduler", "DPM2"),
        ("KDPM2AncestralDiscreteScheduler", "DPM2 a"),
        ("LMSDiscreteScheduler", "LMS"),
        ("PNDMScheduler", "PLMS"),
        ("LCMScheduler", "LCM"),
    ];
    assert_eq!(named, expected);
    for (class, name) in named {
        assert_eq!(scheduler::find(name).unwrap().class, class, "{name}");
    }
}

#[test]
fn a_configuration_moves_to_another_class_and_back() {
    let text = r#"{"_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1",
        "beta_schedule": "scaled_linear", "lambda_min_clipped": -Infinity, "use_karras_sigmas": true,
        "someone's \"key\"": "-Infinity", "timestep_spacing": "trailing", "steps_offset": 3,
        "_use_default_values": ["steps_offset"]}"#;
    let config = SchedulerConfig::from_text(text).unwrap();
    build(&config, &InferenceSteps::count(4)).unwrap();
    assert_eq!(config.get("steps_offset"), None);
    let euler = config.with_scheduler("euler_exponential").unwrap();
    assert_eq!(euler.get("use_karras_sigmas"), Some(&json!(false)));
    build(&euler, &InferenceSteps::count(4)).unwrap();
    // Keys that Euler does not have survive, and so does a stored configuration.
    let text = serde_json::to_string(&euler).unwrap();
    let again: SchedulerConfig = serde_json::from_str(&text).unwrap();
    assert_eq!(again, euler);
    assert_eq!(again.get("someone's \"key\""), Some(&json!("-Infinity")));
    let back = again.with_scheduler("DPMSolverMultistepScheduler").unwrap();
    assert_eq!(back.get("lambda_min_clipped"), Some(&json!("-Infinity")));
}

/// The message of the error that a configuration and a plan give.
fn refusal(name: &str, options: Options<'_>, plan: &InferenceSteps) -> String {
    match build(&config(name, options), plan) {
        Ok(_) => panic!("{name} {options:?} {plan:?} is accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn bad_names_and_options_are_refused_with_advice() {
    let unknown = |name| SchedulerConfig::named(name).unwrap_err().to_string();
    assert!(
        unknown("eular").contains("did you mean `euler`?"),
        "{}",
        unknown("eular")
    );
    assert!(
        unknown("DPM++ 2M Caras").contains("`dpm++_2"),
        "{}",
        unknown("DPM++ 2M Caras")
    );
    assert!(unknown("DPM adaptive").contains("unknown scheduler `DPM adaptive`"));
    let error = SchedulerConfig::named("ddim_karras")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("DDIMScheduler has no option `use_karras_sigmas`"),
        "{error}"
    );

    let mut euler = SchedulerConfig::named("euler").unwrap();
    let error = euler
        .set_text("use_karas_sigmas", "true")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("did you mean `use_karras_sigmas`?"),
        "{error}"
    );
    euler.set_text("use_karras_sigmas", "True").unwrap();
    euler.set_text("final_sigmas_type", "sigma_min").unwrap();
    euler.set_text("s_tmax", "10").unwrap();
    build(&euler, &InferenceSteps::count(4)).unwrap();

    let one = InferenceSteps::count(4);
    let cases: &[(&str, Options<'_>, &str)] = &[
        (
            "euler",
            &[("use_karras_sigmas", json!("yes"))],
            "use_karras_sigmas cannot be \"yes\"",
        ),
        (
            "euler",
            &[
                ("use_karras_sigmas", json!(true)),
                ("use_beta_sigmas", json!(true)),
            ],
            "use_karras_sigmas and use_beta_sigmas exclude one another",
        ),
        (
            "dpm++_2m",
            &[
                ("use_karras_sigmas", json!(true)),
                ("use_flow_sigmas", json!(true)),
            ],
            "exclude one another",
        ),
        (
            "euler",
            &[("prediction_type", json!("eps"))],
            "epsilon or v_prediction or sample",
        ),
        (
            "euler",
            &[("beta_start", json!(-1))],
            "beta_start cannot be -1",
        ),
        (
            "euler",
            &[("trained_betas", json!([0.1, 0.2]))],
            "a list of 1000 numbers",
        ),
        (
            "euler",
            &[("num_train_timesteps", json!(1))],
            "num_train_timesteps",
        ),
        ("euler", &[("steps_offset", json!(1000))], "steps_offset"),
        ("euler", &[("sigma_min", json!(0))], "sigma_min cannot be 0"),
        (
            "euler",
            &[("beta_start", json!(0.99)), ("beta_end", json!(0.99))],
            "check beta_start",
        ),
        (
            "dpm++_2m",
            &[("solver_order", json!(4))],
            "solver_order cannot be 4",
        ),
        (
            "dpm++_2m",
            &[("algorithm_type", json!("dpmsolver"))],
            "final_sigmas_type to sigma_min",
        ),
        (
            "dpm++_2m",
            &[("lambda_min_clipped", json!(100))],
            "lambda_min_clipped",
        ),
        (
            "unipc",
            &[("solver_type", json!("bh1"))],
            "bh1 needs final_sigmas_type sigma_min",
        ),
        (
            "unipc",
            &[("predict_x0", json!(false))],
            "predict_x0 false needs",
        ),
        (
            "unipc",
            &[("shift_terminal", json!(0.1))],
            "needs use_flow_sigmas",
        ),
        (
            "ddpm",
            &[("variance_type", json!("learned"))],
            "fixed_small or",
        ),
        (
            "sa_solver",
            &[("variance_type", json!("learned_range"))],
            "the UNet answers with no variance",
        ),
        (
            "deis",
            &[("use_dynamic_shifting", json!(true))],
            "other families of models",
        ),
        (
            "lcm",
            &[("original_inference_steps", json!(3))],
            "more than the 3 of the distillation",
        ),
        (
            "lcm",
            &[("rescale_betas_zero_snr", json!(true))],
            "prediction_type to v_prediction",
        ),
        (
            "pndm",
            &[("skip_prk_steps", json!(false))],
            "ask for more or set skip_prk_steps",
        ),
        ("edm_euler", &[("sigma_min", json!(100))], "below sigma_max"),
        (
            "ddim_inverse",
            &[("timestep_spacing", json!("linspace"))],
            "leading or trailing",
        ),
    ];
    for (name, options, expected) in cases {
        let steps = if *name == "pndm" {
            InferenceSteps::count(3)
        } else {
            one.clone()
        };
        let message = refusal(name, options, &steps);
        assert!(message.contains(expected), "{name}: {message}");
    }
}

#[test]
fn bad_plans_are_refused_with_advice() {
    let timesteps = |list: &[f64]| InferenceSteps::new(Steps::Timesteps(list.to_vec()));
    let sigmas = |list: &[f64]| InferenceSteps::new(Steps::Sigmas(list.to_vec()));
    let cut = |steps| InferenceSteps::count(steps);
    let cases: Vec<(&str, InferenceSteps, &str)> = vec![
        ("euler", InferenceSteps::count(0), "at least one step"),
        (
            "euler",
            InferenceSteps::count(1001),
            "1001 steps are more than the 1000 timesteps",
        ),
        ("dpm++_2m", InferenceSteps::count(1000), "ask for fewer"),
        (
            "ddim",
            InferenceSteps::count(1000),
            "steps_offset moves the first timestep beyond",
        ),
        ("euler", timesteps(&[]), "at least one step"),
        (
            "euler",
            timesteps(&[500.0, 600.0]),
            "timesteps must descend: 500 is followed by 600",
        ),
        ("euler", timesteps(&[500.0, f64::NAN]), "must descend"),
        (
            "euler",
            timesteps(&[1000.0, 5.0]),
            "a whole number from 0 to 999",
        ),
        ("euler", timesteps(&[10.5]), "a whole number"),
        (
            "ddim",
            timesteps(&[500.0, 1.0]),
            "DDIMScheduler does not take custom timesteps",
        ),
        (
            "dpm++_2m",
            sigmas(&[5.0, 0.0]),
            "does not take custom sigmas; use steps, or one of euler",
        ),
        ("euler", sigmas(&[5.0, 5.0, 0.0]), "sigmas must descend"),
        ("euler", sigmas(&[5.0, -1.0]), "not negative"),
        (
            "unipc",
            sigmas(&[5.0, 1.0]),
            "custom sigmas need use_flow_sigmas",
        ),
        (
            "euler_karras",
            timesteps(&[500.0, 1.0]),
            "exclude sigma curves",
        ),
        (
            "dpm++_2m_karras",
            timesteps(&[500.0, 1.0]),
            "exclude sigma curves",
        ),
        (
            "euler",
            InferenceSteps {
                strength: Some(0.05),
                ..cut(10)
            },
            "raise strength",
        ),
        (
            "euler",
            InferenceSteps {
                strength: Some(1.5),
                ..cut(10)
            },
            "strength: 1.5 is not from 0 to 1",
        ),
        (
            "euler",
            InferenceSteps {
                eta: f64::NAN,
                ..cut(10)
            },
            "eta: NaN is not from 0 to 1",
        ),
        (
            "euler",
            InferenceSteps {
                denoising_end: Some(1.0),
                ..cut(10)
            },
            "between 0 and 1",
        ),
        (
            "euler",
            InferenceSteps {
                denoising_start: Some(0.8),
                denoising_end: Some(0.5),
                ..cut(10)
            },
            "denoising_end: 0.5 is not above denoising_start, 0.8",
        ),
        (
            "euler",
            InferenceSteps {
                denoising_start: Some(0.99999),
                ..cut(3)
            },
            "use more steps or cut less",
        ),
    ];
    for (name, plan, expected) in cases {
        let message = refusal(name, &[], &plan);
        assert!(message.contains(expected), "{name} {plan:?}: {message}");
    }
}

#[test]
fn misuse_of_a_run_is_an_error() {
    let config = SchedulerConfig::named("heun").unwrap();
    let mut scheduler = build(&config, &InferenceSteps::count(2)).unwrap();
    let (sample, mut noise) = (Latents::zeros(SHAPE), noise());
    let other = Latents::zeros([2, 3, 4, 4]);
    let error = scheduler.step(&other, &sample, &mut noise).unwrap_err();
    assert!(matches!(error, SchedulerError::Shape { .. }), "{error}");
    scheduler.step(&sample, &sample, &mut noise).unwrap();

    // A state in the middle of a step, put into other hands.
    let state = scheduler.state().clone();
    let mut euler = build(
        &SchedulerConfig::named("euler").unwrap(),
        &InferenceSteps::count(2),
    )
    .unwrap();
    let error = euler.restore(state.clone()).unwrap_err();
    assert!(
        error.to_string().contains("it is of HeunDiscreteScheduler"),
        "{error}"
    );
    let error = scheduler.step(&other, &other, &mut noise).unwrap_err();
    assert!(
        error.to_string().contains("its latents are [1, 3, 4, 4]"),
        "{error}"
    );
    let mut stripped = state.clone();
    stripped.anchor = None;
    scheduler.restore(stripped).unwrap();
    let error = scheduler.step(&sample, &sample, &mut noise).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("it lacks the sample at the start"),
        "{error}"
    );
    let mut late = state.clone();
    late.index = 9;
    let error = scheduler.restore(late).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("9 evaluations are done, this run has 3"),
        "{error}"
    );

    scheduler.restore(state).unwrap();
    scheduler.step(&sample, &sample, &mut noise).unwrap();
    scheduler.step(&sample, &sample, &mut noise).unwrap();
    let error = scheduler.step(&sample, &sample, &mut noise).unwrap_err();
    assert_eq!(error, SchedulerError::Finished(3));
    assert_eq!(scheduler.add_noise(&sample, &sample), sample);
}

/// A multistep solver whose history was lost says so instead of failing.
#[test]
fn a_lost_history_is_an_error() {
    for name in ["dpm++_2m", "dpm++_3s", "deis", "unipc", "sa_solver", "pndm"] {
        let plan = InferenceSteps::count(8);
        let mut scheduler = build(&SchedulerConfig::named(name).unwrap(), &plan).unwrap();
        let mut noise = noise();
        let sample = noise.draw(SHAPE).unwrap();
        for _ in 0..3 {
            scheduler.step(&sample, &sample, &mut noise).unwrap();
        }
        let mut state = scheduler.state().clone();
        state.history.clear();
        scheduler.restore(state).unwrap();
        // Some can go on with a lower order; none may panic.
        let _ = scheduler.step(&sample, &sample, &mut noise);
    }
}
