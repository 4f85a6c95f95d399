//! The parts that every front end of `sdxl` needs beside the library: opening a model by name,
//! remembering the hashes of its files, repeating a recipe, and naming and writing pictures.
//!
//! It prints nothing and knows no flags: progress goes to callbacks, warnings are returned, and an
//! [`Error`] names the knob that it is about.
//!
//! ```no_run
//! use std::path::Path;
//! use sdxl::{Event, Inputs, Request};
//! use sdxl_kit::{Destination, FetchPolicy, ModelOptions, PictureWriter, Session, destination};
//!
//! let request = Request { prompt: vec!["a lighthouse at dusk".into()], ..Request::default() };
//! let options = ModelOptions { model: Some("demo".into()), ..ModelOptions::default() };
//! let session = Session::open(&options, &[&request], FetchPolicy::Missing(&|_| {}))?;
//! let pipeline = session.load(&mut |warning| eprintln!("{warning}"))?;
//! let mut run = pipeline.prepare(&request, Inputs::read(&request)?)?;
//!
//! let output = Some(Path::new("lighthouse.png"));
//! let encoding = destination::encoding(output, None, None)?;
//! let place = Destination::new(output, encoding.format(), run.request().images(), false)?;
//! let recipe = session.recipe_of(&run);
//! let mut pictures = PictureWriter::new(place, encoding, recipe).with_hashes_of(&session);
//! while let Some(event) = run.step()? {
//!     if let Event::Picture(made) = event
//!         && let Some(written) = pictures.write(made.index - 1, made.picture, made.vae_tiled)?
//!     {
//!         println!("{}", written.path.display());
//!     }
//! }
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
pub mod state;

pub use destination::Destination;
pub use environment::hub;
pub use error::{Error, Result};
pub use model::{Model, ModelRef};
pub use pictures::{PictureWriter, Written};
pub use session::{FetchPolicy, ModelOptions, Session};
pub use state::StateFile;
