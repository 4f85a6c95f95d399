//! Signed pictures, as a user meets them. The certificates in `support/c2pa` are nobody's: a P-256 key whose
//! certificate is for `emailProtection`, issued by a root that was then thrown away; and a root itself.

#![cfg(feature = "c2pa")]

mod support;

use std::path::{Path, PathBuf};

use sdxl_testing::golden;
use serde_json::Value;
use support::{sdxl, text};
use tempfile::TempDir;

fn pem(name: &str) -> String {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/support/c2pa")
        .join(name);
    path.to_str().unwrap().to_string()
}

fn generate(folder: &Path, certificate: &str, key: &str, more: &[&str]) -> std::process::Output {
    let model = golden("base");
    let mut args = vec!["generate", "a fox", "--model", model.to_str().unwrap()];
    args.extend(["--precision", "f32", "--steps", "1", "--seed", "5"]);
    args.extend(["--width", "64", "--height", "64"]);
    args.extend(["--c2pa-certificate", certificate, "--c2pa-key", key]);
    args.extend(more);
    sdxl(folder, &args)
}

fn show(folder: &Path, file: &str) -> Value {
    let shown = sdxl(folder, &["show", file, "--json"]);
    assert!(shown.status.success(), "{}", text(&shown.stderr));
    serde_json::from_slice(&shown.stdout).unwrap()
}

#[test]
fn signed_pictures_of_every_format_hold_until_they_are_changed() {
    let dir = TempDir::new().unwrap();
    let folder = dir.path();
    for name in ["a.png", "a.jpg", "a.webp"] {
        let (certificate, key) = (pem("certificate.pem"), pem("key.pem"));
        let made = generate(folder, &certificate, &key, &["--output", name]);
        assert!(made.status.success(), "{}", text(&made.stderr));
        let said = show(folder, name);
        assert_eq!(said["c2pa"]["valid"], true, "{name}: {said}");
        assert_eq!(said["c2pa"]["signed_by"], "Nobody");
        assert!(
            (said["c2pa"]["generator"].as_str().unwrap()).starts_with("sdxl "),
            "{said}"
        );
        // What else a picture says is still there.
        assert_eq!(said["recipe"]["request"]["seed"][0], 5, "{name}: {said}");

        let mut bytes = std::fs::read(folder.join(name)).unwrap();
        let at = find(&bytes, b"a fox");
        bytes[at] = b'A';
        std::fs::write(folder.join(name), bytes).unwrap();
        let said = show(folder, name);
        assert_eq!(said["c2pa"]["valid"], false, "{name}: {said}");
        assert!(
            (said["c2pa"]["problems"].to_string()).contains("assertion.dataHash.mismatch"),
            "{said}"
        );
        let shown = sdxl(folder, &["show", name]);
        assert!(text(&shown.stdout).contains("content credentials: NOT valid"));
    }
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    // JPEG's and WebP's `parameters` are UTF-16; the recipe in XMP is not.
    bytes.windows(what.len()).position(|w| w == what).unwrap()
}

#[test]
fn certificates_that_do_not_serve_are_refused_before_the_work() {
    let dir = TempDir::new().unwrap();
    let refused = |certificate: &str, key: &str| {
        let made = generate(dir.path(), certificate, key, &["--output", "a.png"]);
        assert_eq!(made.status.code(), Some(2), "{}", text(&made.stderr));
        assert!(!dir.path().join("a.png").exists());
        text(&made.stderr)
    };
    let (certificate, key) = (pem("certificate.pem"), pem("key.pem"));
    let (root, root_key) = (pem("self_signed.pem"), pem("self_signed.key.pem"));
    // A root may issue certificates, not sign pictures.
    assert!(refused(&root, &root_key).contains("signatures made with it do not hold"));
    // Another one's key.
    assert!(refused(&certificate, &root_key).contains("signatures made with it do not hold"));
    assert!(refused(&key, &key).contains("no chain of certificates"));
    assert!(refused(&certificate, &certificate).contains("no private key"));
    assert!(refused("none.pem", &key).contains("there is no such file"));
}
