//! Stable Diffusion XL image generation with the numbers of the diffusers library.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use sdxl::{Event, Inputs, Pipeline, Request};
//!
//! let pipeline = Pipeline::open("stable-diffusion-xl-base-1.0").load()?;
//! let request = Request { prompt: vec!["a lighthouse at dusk".into()], ..Default::default() };
//! let run = pipeline.prepare(&request, Inputs::default())?; // everything that can be refused is
//! let output = run.start(&mut |event| {
//!     if let Event::Step(step) = event {
//!         println!("step {} of {}", step.index, step.total);
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! let picture = &output.images[0]; // width, height and RGB bytes
//! # Ok::<(), sdxl::Error>(())
//! ```
//!
//! Modules follow the path of the data: [`request`] → [`text`] → [`noise`] →
//! [`pipeline`] (the denoising loop, with [`scheduler`]) → [`image`].

pub mod device;
pub mod error;
pub mod files;
#[cfg(feature = "hub")]
pub mod hub;
pub mod image;
pub mod inputs;
pub mod latents_file;
pub mod memory;
pub mod named;
pub mod noise;
pub mod pipeline;
pub mod profile;
pub mod prompt;
pub mod recipe;
pub mod request;
pub mod scheduler;
pub mod tensor;
pub mod text;
pub mod units;
pub mod warning;
pub mod watermark;
pub mod weights;

mod cancel;
mod hint;
mod latents;
mod precision;
mod python_json;
mod sniff;

// What is hidden from the documentation, here and in modules below, is for the project's own tests
// and benchmark, which look inside of networks and files. It changes without notice.
#[doc(hidden)]
pub mod model;
#[doc(hidden)]
pub mod noise_schedule;
#[doc(hidden)]
pub mod ops;

#[doc(hidden)]
pub use cancel::OrCancelled;
pub use cancel::{Cancel, Cancelled};
pub use error::{Class, Error, Result};
pub use image::{Picture, Pixels};
pub use inputs::Inputs;
pub use latents::Latents;
pub use named::Named;
pub use noise::Rng;
pub use pipeline::{Event, Offload, Output, Pipeline, Run, RunState};
pub use precision::Precision;
pub use recipe::Recipe;
pub use request::{
    ExtendMargins, PooledFrom, PromptSyntax, PromptWeighting, Request, ResizeMode, Size,
    UpscaleMethod, VaeTiling,
};
pub use warning::{Warning, WarningKind};
pub use weights::lora::Lora;
pub use weights::{Checkpoint, CheckpointKind, InversionFile, OpenOptions, Part};
