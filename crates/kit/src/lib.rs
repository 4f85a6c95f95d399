//! The parts that every front end of `sdxl` needs beside the library: opening a model by name,
//! remembering the hashes of its files, repeating a recipe, and naming and writing pictures.
//!
//! It prints nothing and knows no flags: progress goes to callbacks, warnings are returned, and an
//! [`Error`] names the knob that it is about.
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//! use sdxl::{Event, Inputs, Request, image::Format, pipeline};
//! use sdxl_kit::{Destination, Fetch, ModelOptions, PictureWriter, Session, destination};
//!
//! let request = Request { prompt: vec!["a lighthouse at dusk".into()], ..Request::default() };
//! let options = ModelOptions { model: Some("demo".into()), ..ModelOptions::default() };
//! let session = Session::open(&options, &[&request], Fetch::Missing(&|_| {}))?;
//! let pipeline = session.load(&mut |warning| eprintln!("{warning}"))?;
//! let inputs = Inputs::read(&request)?;
//! let request = pipeline::resolve(session.checkpoint(), session.refiner(), &request, &inputs)?;
//! let scheduler = pipeline::build_scheduler(session.checkpoint(), &request)?;
//!
//! let output = Some(Path::new("lighthouse.png"));
//! let encoding = destination::encoding(output, None, None)?;
//! let place = Destination::new(output, encoding.format(), request.images(), false)?;
//! let recipe = session.recipe(request.clone(), scheduler.info().class, &inputs);
//! let mut pictures = PictureWriter::new(place, encoding, recipe).with_hashes_of(&session);
//! pipeline.generate_from(&request, &inputs, &mut |event| {
//!     if let Event::Picture { index, picture, vae_tiled, .. } = event {
//!         match pictures.write(index - 1, picture, vae_tiled) {
//!             Ok(Some(written)) => println!("{}", written.path.display()),
//!             Ok(None) => {}
//!             Err(error) => eprintln!("{error}"),
//!         }
//!     }
//!     ControlFlow::Continue(())
//! })?;
//! # Ok::<(), sdxl_kit::Error>(())
//! ```

/// Version of this program, as recipes name it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

pub mod destination;
mod environment;
pub mod error;
pub mod files;
pub mod hashes;
pub mod model;
pub mod pictures;
pub mod replay;
pub mod session;

pub use destination::Destination;
pub use environment::hub;
pub use error::{Error, Result};
pub use model::{Model, ModelRef};
pub use pictures::{PictureWriter, Written};
pub use session::{Fetch, ModelOptions, Session};
