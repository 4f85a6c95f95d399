//! A finished picture is never thrown away: a name that was taken and a folder that is gone by the
//! time it is written.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use sdxl_testing::{golden, read_png};
use support::text;
use tempfile::TempDir;

/// Makes `out/a.png` in `folder`, and does `meddle` in the midst of the run. Gives the exit code and
/// what was said on standard output and standard error.
fn generate(folder: &Path, meddle: impl FnOnce()) -> (Option<i32>, String, String) {
    fs::create_dir(folder.join("out")).unwrap();
    fs::create_dir(folder.join("tmp")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_sdxl"))
        .args(["generate", "a cat", "--seed", "7", "--steps", "60"])
        .args(["--precision", "f32", "--output", "out/a.png", "--model"])
        .arg(golden("base"))
        .current_dir(folder)
        .env("XDG_CACHE_HOME", folder.join("cache"))
        .env("TMPDIR", folder.join("tmp"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut said = Vec::new();
    for line in lines.by_ref() {
        said.push(line.unwrap());
        if said.last().unwrap().contains("step 1/") {
            break;
        }
    }
    meddle();
    said.extend(lines.map(Result::unwrap));
    let output = child.wait_with_output().unwrap();
    (output.status.code(), text(&output.stdout), said.join("\n"))
}

#[test]
fn a_name_that_was_taken_meanwhile() {
    let dir = TempDir::new().unwrap();
    let named = dir.path().join("out/a.png");
    let taken = || fs::write(&named, "somebody else's").unwrap();
    let (code, told, said) = generate(dir.path(), taken);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(told, "out/a (2).png\n");
    assert!(said.contains("warning: out/a.png: this name was taken meanwhile"));
    assert_eq!(fs::read(&named).unwrap(), b"somebody else's");
    assert!(read_png(&dir.path().join("out/a (2).png")).0 > 0);
}

#[test]
fn a_folder_that_is_gone() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path().join("out");
    let (code, told, said) = generate(dir.path(), || fs::remove_dir(&folder).unwrap());
    // The picture is there, but not where a script would look for it.
    assert_eq!(code, Some(1), "{said}");
    let kept = dir.path().join("tmp/a.png");
    assert_eq!(Path::new(told.trim_end()), kept);
    assert!(read_png(&kept).0 > 0);
    assert!(said.contains("warning: out/a.png was not written"));
    let last = said.lines().last().unwrap();
    assert!(last.contains("tmp/a.png"), "{last}");
}
