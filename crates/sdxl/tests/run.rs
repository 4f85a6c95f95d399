//! A run as a value: stepped, saved, resumed, cancelled, evaluated together with others, previewed.

mod support;

use std::ops::ControlFlow;

use sdxl::files::read_json;
use sdxl::{
    Cancel, Error, Event, Inputs, Offload, Output, Picture, Pipeline, Precision, Request, Run,
    RunState,
};
use sdxl_testing::{demo, golden};
use serde_json::{Value, json};
use support::load;

fn request(fields: Request) -> Request {
    Request {
        prompt: match fields.prompt.is_empty() {
            true => vec!["a lighthouse, (at dusk)1.2".into()],
            false => fields.prompt.clone(),
        },
        seed: match fields.seed.is_empty() {
            true => vec![7],
            false => fields.seed.clone(),
        },
        ..fields
    }
}

/// Makes the rest of a run, step by step.
fn finish(mut run: Run) -> Output {
    let mut images: Vec<Picture> = Vec::new();
    while let Some(event) = run.step().unwrap() {
        if let Event::Picture(made) = event {
            images.push(made.picture.clone());
        }
    }
    run.output(images)
}

/// Stores a state and reads it back.
fn stored(run: &Run) -> RunState {
    RunState::from_bytes(&run.save().unwrap().to_bytes().unwrap()).unwrap()
}

/// Saves a run after each of its steps, resumes it in `other`, which shares nothing with `pipeline`, and
/// compares the rest with what the run makes without a stop. Gives the number of states.
fn resumes_everywhere(pipeline: &Pipeline, other: &Pipeline, request: &Request) -> usize {
    let inputs = || Inputs::read(request).unwrap();
    let whole = finish(pipeline.prepare(request, inputs()).unwrap());
    let mut run = pipeline.prepare(request, inputs()).unwrap();
    let mut states = vec![stored(&run)];
    while let Some(event) = run.step().unwrap() {
        let matters = matches!(event, Event::Step(_) | Event::Picture(_));
        if matters {
            states.push(stored(&run));
        }
    }
    for (i, state) in states.iter().enumerate() {
        let given_out = state.pictures_given_out();
        let resumed = other.resume(state.clone(), inputs()).unwrap();
        assert!(resumed.evaluations_done() >= i.min(run.evaluations()) || given_out > 0);
        assert_eq!(resumed.request(), &whole.request);
        let rest = finish(resumed);
        assert!(rest.latents == whole.latents, "latents after state {i}");
        assert!(
            rest.images == whole.images[given_out..],
            "pictures after state {i}"
        );
    }
    states.len()
}

#[test]
fn every_scheduler_goes_on_after_every_evaluation() {
    let (pipeline, other) = (
        load(golden("base"), Precision::F32),
        load(golden("base"), Precision::F32),
    );
    for info in sdxl::scheduler::all() {
        let request = request(Request {
            scheduler: Some(info.names[0].into()),
            steps: 4,
            ..Request::default()
        });
        match pipeline.prepare(&request, Inputs::default()) {
            Ok(_) => {
                let states = resumes_everywhere(&pipeline, &other, &request);
                // The beginning, each evaluation, the picture.
                assert!(states >= 4 + 2, "{}: {states} states", info.class);
            }
            // The inverse of DDIM goes from pictures to noise.
            Err(error) => panic!("{}: {error}", info.class),
        }
    }
}

fn with_refiner(offload: Offload) -> Pipeline {
    let opening = Pipeline::open(golden("base")).refiner(golden("refiner"));
    let opening = opening.precision(Precision::F32).offload(offload);
    opening.load().unwrap()
}

/// The path of a picture of the goldens.
fn picture(field: &str) -> std::path::PathBuf {
    let file: Value = read_json(&golden("refined/cases.json")).unwrap();
    let cases = file["cases"].as_array().unwrap();
    let with_mask = cases.iter().find(|c| c["request"]["mask"].is_string());
    let name = with_mask.unwrap()["request"][field].as_str().unwrap();
    golden(&format!("refined/{name}.png"))
}

#[test]
fn runs_of_several_stages_go_on_after_every_evaluation() {
    let (kept, spared) = (with_refiner(Offload::None), with_refiner(Offload::Model));
    for request in [
        Request {
            steps: 5,
            scheduler: Some("euler_a".into()),
            ..Request::default()
        },
        Request {
            steps: 4,
            refiner_strength: Some(0.5),
            upscale: Some(1.5),
            seed: vec![3, 4],
            num_images: 2,
            ..Request::default()
        },
        Request {
            steps: 5,
            init_image: Some(picture("init_image")),
            mask: Some(picture("mask")),
            strength: Some(0.8),
            scheduler: Some("dpm++_sde".into()),
            keep_unmasked: true,
            ..Request::default()
        },
    ] {
        // What is saved with networks in memory goes on where they come and go, and the other way.
        let request = self::request(request);
        resumes_everywhere(&kept, &spared, &request);
        resumes_everywhere(&spared, &kept, &request);
    }
}

/// A size at which two pictures are a group, and four where networks come and go.
fn large(seed: Vec<u64>, scheduler: &str) -> Request {
    request(Request {
        seed,
        scheduler: Some(scheduler.into()),
        width: Some(704),
        height: Some(704),
        steps: 2,
        num_images: 3,
        ..Request::default()
    })
}

#[test]
fn groups_of_pictures_have_the_numbers_of_one_batch() {
    let open = |offload| {
        let opening = Pipeline::open(golden("base")).precision(Precision::F32);
        opening.offload(offload).load().unwrap()
    };
    let (grouped, together) = (open(Offload::None), open(Offload::Model));
    for (seeds, scheduler) in [
        (vec![5], "euler_a"),
        (vec![5, 6, 7], "ddpm"),
        (vec![5], "dpm++_sde"),
        (vec![5, 6, 7], "dpm++_sde"),
    ] {
        let request = large(seeds, scheduler);
        let run = |pipeline: &Pipeline, group: usize| {
            let run = pipeline.prepare(&request, Inputs::default()).unwrap();
            assert_eq!(run.plan().group, group);
            let mut order = Vec::new();
            let output = run.start(&mut |event| {
                match event {
                    Event::Step(step) => order.push(('s', step.index)),
                    Event::Picture(made) => order.push(('p', made.index)),
                    _ => {}
                }
                ControlFlow::Continue(())
            });
            (output.unwrap(), order)
        };
        let ((apart, order), (at_once, _)) = (run(&grouped, 2), run(&together, 3));
        assert!(apart.latents == at_once.latents, "{scheduler}");
        assert!(apart.images == at_once.images, "{scheduler}");
        // A group is given out before the next begins.
        let first_picture = order.iter().position(|(what, _)| *what == 'p').unwrap();
        let last_step = order.iter().rposition(|(what, _)| *what == 's').unwrap();
        assert!(first_picture < last_step, "{order:?}");
        let steps: Vec<usize> = (order.iter().filter(|(what, _)| *what == 's'))
            .map(|(_, index)| *index)
            .collect();
        assert_eq!(steps, (1..=steps.len()).collect::<Vec<_>>());
    }
    // And they go on after every step, also in the middle of a group.
    resumes_everywhere(&grouped, &together, &large(vec![5], "euler_a"));
}

#[test]
fn runs_evaluated_together_are_those_alone() {
    for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
        let pipeline = load(golden("base"), precision);
        let requests = [
            request(Request {
                prompt: vec!["a lighthouse".into()],
                steps: 3,
                ..Request::default()
            }),
            request(Request {
                prompt: vec!["two cats, (asleep)1.3 ".repeat(30)],
                negative_prompt: vec!["rain".into()],
                seed: vec![1, 2],
                num_images: 2,
                steps: 5,
                scheduler: Some("dpm++_2m_karras".into()),
                guidance_rescale: 0.5,
                ..Request::default()
            }),
            request(Request {
                steps: 2,
                guidance_scale: 1.0,
                scheduler: Some("heun".into()),
                ..Request::default()
            }),
            // Of another size: beside them.
            request(Request {
                steps: 2,
                width: Some(96),
                height: Some(64),
                ..Request::default()
            }),
        ];
        let prepare = |r: &Request| pipeline.prepare(r, Inputs::default()).unwrap();
        let alone: Vec<Output> = requests.iter().map(|r| finish(prepare(r))).collect();
        let mut runs: Vec<Run> = requests.iter().map(prepare).collect();
        let mut images: Vec<Vec<Picture>> = vec![Vec::new(); runs.len()];
        let mut calls = 0;
        loop {
            let mut all: Vec<&mut Run> = runs.iter_mut().collect();
            let events = Pipeline::step_together(&mut all);
            let mut over = true;
            for (event, images) in events.into_iter().zip(&mut images) {
                let event = event.unwrap();
                over &= event.is_none();
                if let Some(Event::Picture(made)) = event {
                    images.push(made.picture.clone());
                }
            }
            calls += 1;
            if over {
                break;
            }
        }
        assert!(calls < 20, "{calls} calls");
        for ((run, images), alone) in runs.into_iter().zip(images).zip(alone) {
            let together = run.output(images);
            assert!(together.latents == alone.latents, "{precision}");
            assert!(together.images == alone.images, "{precision}");
        }
    }
}

#[test]
fn a_cancelled_run_goes_on_from_its_state() {
    let pipeline = load(golden("base"), Precision::F32);
    let request = request(Request {
        steps: 4,
        ..Request::default()
    });
    let whole = finish(pipeline.prepare(&request, Inputs::default()).unwrap());
    let mut run = pipeline.prepare(&request, Inputs::default()).unwrap();
    let token = run.cancel_token();
    while run.evaluations_done() < 2 {
        run.step().unwrap();
    }
    token.cancel();
    assert!(matches!(run.step(), Err(Error::Cancelled)));
    assert_eq!(run.evaluations_done(), 2);
    let resumed = pipeline.resume(stored(&run), Inputs::default()).unwrap();
    assert!(finish(resumed).images == whole.images);
    // The run itself goes on too, with a token that nobody used.
    run.set_cancel_token(Cancel::new());
    assert!(finish(run).latents == whole.latents);
}

#[test]
fn a_state_of_something_else_is_refused() {
    let pipeline = load(golden("base"), Precision::F32);
    let request = request(Request {
        steps: 2,
        ..Request::default()
    });
    let run = pipeline.prepare(&request, Inputs::default()).unwrap();
    let state = run.save().unwrap();
    let refused = |pipeline: &Pipeline, inputs: Inputs, word: &str| {
        let error = pipeline.resume(state.clone(), inputs).err().unwrap();
        assert_eq!(error.field(), Some("state"), "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    let none = Inputs::default;
    refused(
        &load(golden("base"), Precision::Bf16),
        none(),
        "precision f32",
    );
    let lora = sdxl::Lora::new(golden("lora/kohya.safetensors"), 0.5);
    refused(&pipeline.with_loras(&[lora]).unwrap(), none(), "weights");
    let picture = Inputs {
        init_image: Some(sdxl::Pixels::new(8, 8, 3, vec![0; 192])),
        ..none()
    };
    refused(&pipeline, picture, "input");
    let whole = state.to_bytes().unwrap();
    for bytes in [&b""[..], b"nonsense", &whole[..100]] {
        let error = RunState::from_bytes(bytes).err().unwrap();
        assert_eq!(error.field(), Some("state"), "{error}");
    }
    // A picture's state is small.
    assert!(whole.len() < 100_000, "{}", whole.len());
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    let pipeline = load(golden("base"), Precision::F32);
    let request = request(Request {
        steps: 3,
        num_images: 2,
        scheduler: Some("dpm++_sde".into()),
        ..Request::default()
    });
    let mut run = pipeline.prepare(&request, Inputs::default()).unwrap();
    while run.evaluations_done() < 2 {
        run.step().unwrap();
    }
    let good = serde_json::to_value(run.save().unwrap()).unwrap();
    let resume = |state: &Value| -> sdxl::Result<Run> {
        let state: RunState = serde_json::from_value(state.clone()).unwrap();
        pipeline.resume(state, Inputs::default())
    };
    resume(&good).unwrap();
    let shape = &good["work"]["latents"]["shape"];
    let changes: &[(&[&str], Value)] = &[
        (&["format"], json!(9)),
        (&["group"], json!(1)),
        (&["stage"], json!(1)),
        (&["stage"], json!(7)),
        (&["given_out"], json!(1)),
        (&["given_out"], json!(99)),
        (&["arrangement", "group"], json!(0)),
        (&["arrangement", "group"], json!(1)),
        (&["arrangement", "tile"], json!(1)),
        (&["scheduler", "index"], json!(6)),
        (&["scheduler", "index"], json!(0)),
        (&["scheduler", "class"], json!("DDIMScheduler")),
        (&["scheduler", "seeds"], json!([1, 2, 3])),
        (
            &["finished"],
            json!([{"shape": [1, 1, 1, 1], "data": [0.0]}]),
        ),
        (&["work"], Value::Null),
        (
            &["work", "latents"],
            json!({"shape": [1, 1, 1, 1], "data": [0.0]}),
        ),
        (&["noise", "part"], json!({"first": 0, "count": 1, "of": 2})),
        (&["request", "steps"], json!(4)),
        (&["made_by", "version"], json!("0.0.1")),
    ];
    assert_eq!(shape.as_array().unwrap().len(), 4);
    for (place, value) in changes {
        let mut state = good.clone();
        let field = place.iter().fold(&mut state, |at, key| &mut at[*key]);
        *field = value.clone();
        let bytes = serde_json::from_value::<RunState>(state.clone())
            .unwrap()
            .to_bytes();
        let read = RunState::from_bytes(&bytes.unwrap());
        // Refused when it is taken up or, where only the scheduler knows, at the next step.
        let refused = read
            .and_then(|state| pipeline.resume(state, Inputs::default()))
            .and_then(|mut run| {
                while run.step()?.is_some() {}
                Ok(())
            });
        assert!(refused.is_err(), "{place:?} {value} was taken");
    }
}

#[test]
fn previews_look_like_the_pictures() {
    let pipeline = load(demo("base"), Precision::F32);
    let request = request(Request {
        prompt: vec!["a red circle to the left of a blue star on a yellow background".into()],
        steps: 12,
        ..Request::default()
    });
    let mut previews = Vec::new();
    let output = pipeline
        .generate(&request, &mut |event| {
            if let Event::Step(step) = event {
                previews.push(step.preview().unwrap().remove(0));
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!(previews.len(), 12);
    let picture = &output.images[0].pixels;
    let small = sdxl::image::resize::lanczos(picture, picture.width / 8, picture.height / 8);
    let distance = |preview: &sdxl::Pixels| -> f64 {
        assert_eq!((preview.width, preview.height), (small.width, small.height));
        let squares = (preview.data.iter().zip(&small.data))
            .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2));
        (squares.sum::<f64>() / small.data.len() as f64).sqrt()
    };
    let distances: Vec<f64> = previews.iter().map(distance).collect();
    // Of 255: the last one has the picture's colours, and it comes near bit by bit.
    assert!(distances[11] < 30.0, "{distances:.1?}");
    assert!(distances[5] < distances[0], "{distances:.1?}");
    assert!(distances[11] < 0.6 * distances[0], "{distances:.1?}");
}
