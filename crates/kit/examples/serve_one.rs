//! Serves one request over HTTP and ends: progress and previews as lines of JSON, the picture as a file.
//! A client that goes away cancels the run.
//!
//! `curl --no-buffer --data '{"prompt": ["a red circle"], "steps": 20}' http://127.0.0.1:7860`

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

use sdxl::{Event, Inputs, Pipeline, Request, Run};
use sdxl_kit::{Destination, FetchPolicy, ModelOptions, PictureWriter, Session, destination};
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let options = ModelOptions {
        model: std::env::args_os().nth(1).map(Into::into),
        ..ModelOptions::default()
    };
    let session = Session::open(&options, &[], FetchPolicy::Missing(&|_| {}))?;
    let pipeline = session.load(&mut |warning| eprintln!("warning: {warning}"))?;
    let listener = TcpListener::bind("127.0.0.1:7860")?;
    println!("listening on http://{}", listener.local_addr()?);
    let (mut client, _) = listener.accept()?;
    let body = read_body(&client)?;
    match prepare(&pipeline, &body) {
        // Everything that can be refused is refused here: the field and what to do are known.
        Err(error) => {
            let told = json!({"error": error.to_string(), "field": error.field()});
            write!(client, "HTTP/1.0 422 Unprocessable Content\r\n\r\n{told}\n")?;
        }
        Ok(run) => {
            write!(client, "HTTP/1.0 200 OK\r\n\r\n")?;
            make(&session, run, &mut client)?;
        }
    }
    Ok(())
}

fn prepare(pipeline: &Pipeline, body: &[u8]) -> sdxl::Result<Run> {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let request = Request::from_json(&json)?;
    pipeline.prepare(&request, Inputs::read(&request)?)
}

/// Makes the pictures and tells of them as they come.
fn make(session: &Session, mut run: Run, client: &mut TcpStream) -> sdxl_kit::Result<()> {
    let encoding = destination::encoding(None, None, None)?;
    let place = Destination::new(None, encoding.format(), run.request().images(), false)?;
    let recipe = session.recipe_of(&run);
    let mut pictures = PictureWriter::new(place, encoding, recipe).with_hashes_of(session);
    let cancel = run.cancel_token();
    while let Some(event) = run.step()? {
        let told = match event {
            Event::Step(step) => {
                let small = step.preview()?.remove(0);
                json!({"step": step.index, "of": step.total, "width": small.width, "rgb": small.data})
            }
            Event::Picture(p) => json!(pictures.write(p.index - 1, p.picture, p.vae_tiled)?),
            _ => continue,
        };
        if writeln!(client, "{told}").is_err() {
            cancel.cancel();
        }
    }
    Ok(())
}

fn read_body(client: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut reader = BufReader::new(client);
    let (mut line, mut length) = (String::new(), 0);
    while reader.read_line(&mut line)? > 2 {
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0).min(1 << 20);
        }
        line.clear();
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(body)
}
