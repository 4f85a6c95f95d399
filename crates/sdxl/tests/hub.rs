//! Models from a hub, against one that runs in the test.
#![cfg(feature = "hub")]

#[path = "support/hub_server.rs"]
mod hub_server;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hub_server::{Fault, Model, Server, git_sha1, sha256};
use sdxl::hub::{
    DownloadEvent, FetchOptions, FoundModel, Hub, HubError, ModelKind, ModelName, Purpose,
    Settings, scan,
};
use sdxl::{Error, Part, Precision};
use serde_json::json;
use tempfile::TempDir;

/// Bytes that are no pattern.
fn noise(seed: u64, n: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..n).map(|_| next()).collect()
}

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const UNET16: &str = "unet/diffusion_pytorch_model.fp16.safetensors";
const VAE16: &str = "vae/diffusion_pytorch_model.fp16.safetensors";

/// A repository shaped like SDXL's; what is in the weights is nobody's concern here.
fn model() -> Model {
    let index = json!({
        "_class_name": "StableDiffusionXLPipeline",
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    });
    let mut model = Model::default();
    let mut add = |name: &str, bytes: Vec<u8>| model.files.insert(name.to_string(), bytes);
    add("README.md", b"# a model".to_vec());
    add("model_index.json", index.to_string().into_bytes());
    add("scheduler/scheduler_config.json", b"{}".to_vec());
    add("sd_xl_base_1.0.safetensors", noise(1, 5_000));
    add("unet/openvino_model.bin", noise(2, 5_000));
    let stem = |part: &str| match part {
        "unet" | "vae" => "diffusion_pytorch_model",
        _ => "model",
    };
    for (i, part) in ["text_encoder", "text_encoder_2", "unet", "vae"]
        .iter()
        .enumerate()
    {
        let size = if *part == "unet" { 1_500_000 } else { 40_000 };
        let stem = stem(part);
        add(
            &format!("{part}/config.json"),
            format!("{{\"of\": \"{part}\"}}").into_bytes(),
        );
        add(
            &format!("{part}/{stem}.safetensors"),
            noise(10 + i as u64, 2 * size),
        );
        add(
            &format!("{part}/{stem}.fp16.safetensors"),
            noise(20 + i as u64, size),
        );
    }
    for folder in ["tokenizer", "tokenizer_2"] {
        add(
            &format!("{folder}/vocab.json"),
            format!("{{\"{folder}\": 0}}").into_bytes(),
        );
        add(&format!("{folder}/merges.txt"), b"#version: 0.2\n".to_vec());
    }
    model
}

struct Place {
    server: Server,
    _dir: TempDir,
    settings: Settings,
    waits: Mutex<Vec<Duration>>,
}

fn place() -> Place {
    let dir = TempDir::new().unwrap();
    let server = Server::start();
    let settings = Settings {
        endpoint: server.endpoint.clone(),
        cache: dir.path().join("hub"),
        token: None,
        offline: false,
        certificates: None,
        tries: 3,
        pause: Duration::from_millis(10),
        silence: Duration::from_secs(5),
    };
    Place {
        server,
        _dir: dir,
        settings,
        waits: Mutex::default(),
    }
}

impl Place {
    fn hub(&self) -> Hub {
        Hub::new(self.settings.clone())
    }

    fn told(&self, event: &DownloadEvent<'_>) {
        if let DownloadEvent::Waiting { pause, .. } = event {
            self.waits.lock().unwrap().push(*pause);
        }
    }

    fn get(&self, name: &str) -> sdxl::Result<FoundModel> {
        let name = ModelName::parse(name).unwrap();
        self.hub().get(&name, &want(), &|event| self.told(&event))
    }

    fn pull(&self, name: &str) -> sdxl::Result<FoundModel> {
        let name = ModelName::parse(name).unwrap();
        self.hub().pull(&name, &want(), &|event| self.told(&event))
    }

    fn folder(&self) -> PathBuf {
        self.settings.cache.join("models--org--name")
    }
}

fn want() -> FetchOptions {
    FetchOptions {
        purpose: Purpose::Checkpoint,
        precision: Precision::Bf16,
        variant: None,
        replaced: Vec::new(),
    }
}

/// The error of the hub that this is, and what it says.
fn refused<T>(result: sdxl::Result<T>) -> (HubError, String) {
    match result {
        Err(Error::Hub(error)) => {
            let text = error.to_string();
            (error, text)
        }
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was not refused"),
    }
}

fn speaks(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

#[test]
fn a_pull_brings_what_runs_into_pythons_layout() {
    let place = place();
    let model = model();
    let commit = place.server.publish("org/name", model.clone());
    let found = place.get("org/name").unwrap();
    let snapshot = place.folder().join("snapshots").join(&commit);
    assert_eq!(found.path, snapshot);
    assert_eq!(found.name.to_string(), format!("org/name@{commit}"));
    assert_eq!(found.variant.as_deref(), Some("fp16"));
    assert_eq!(
        fs::read_to_string(place.folder().join("refs/main")).unwrap(),
        commit
    );

    let mut there = Vec::new();
    for (file, bytes) in &model.files {
        let path = snapshot.join(file);
        if !path.exists() {
            continue;
        }
        there.push(file.as_str());
        assert!(fs::read(&path).unwrap() == *bytes, "{file}");
        let hash = match file.ends_with(".safetensors") {
            true => sha256(bytes),
            false => git_sha1(bytes),
        };
        let up = "../".repeat(2 + file.matches('/').count());
        let link = fs::read_link(&path).unwrap();
        assert_eq!(link, Path::new(&format!("{up}blobs/{hash}")), "{file}");
    }
    assert_eq!(there.len(), 14, "{there:?}");
    assert!(there.contains(&UNET16) && !there.contains(&UNET));
    // Nothing half done stays behind.
    let blobs = fs::read_dir(place.folder().join("blobs")).unwrap();
    let names: Vec<_> = blobs
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().all(|n| !n.contains('.')), "{names:?}");
    // Both merges.txt are one blob.
    assert_eq!(names.len(), 13);

    place.server.seen();
    assert_eq!(place.get("org/name").unwrap().path, snapshot);
    assert_eq!(
        place.get(&format!("org/name@{commit}")).unwrap().path,
        snapshot
    );
    assert!(
        place.server.seen().is_empty(),
        "what is here is not asked for"
    );
    // Asked for, but not fetched again.
    place.pull("org/name").unwrap();
    let seen = place.server.seen();
    assert!(
        seen.iter().all(|s| !s.storage) && seen.len() == 1,
        "{seen:?}"
    );
}

#[test]
fn a_new_commit_is_for_those_who_pull() {
    let place = place();
    let mut model = model();
    let first = place.server.publish("org/name", model.clone());
    place.get("org/name").unwrap();
    model
        .files
        .insert("unet/config.json".into(), b"{\"new\": 1}".to_vec());
    let second = place.server.publish("org/name", model);
    assert_eq!(place.get("org/name").unwrap().name.revision(), first);
    place.server.seen();
    assert_eq!(place.pull("org/name").unwrap().name.revision(), second);
    let fetched = place.server.seen();
    // Contents that have not changed do not come again.
    assert!(fetched.iter().all(|s| !s.storage), "{fetched:?}");
    assert_eq!(place.get("org/name").unwrap().name.revision(), second);
    assert_eq!(
        place
            .get(&format!("org/name@{first}"))
            .unwrap()
            .name
            .revision(),
        first
    );
}

#[test]
fn the_token_is_shown_to_the_hub_and_to_nobody_else() {
    let mut place = place();
    place.server.publish(
        "org/name",
        Model {
            private: true,
            gated: true,
            ..model()
        },
    );
    place.server.set_token("hf_right");
    let (error, text) = refused(place.get("org/name"));
    assert!(matches!(error, HubError::NoModel { token: false, .. }));
    speaks(&text, &["org/name", "private", "HF_TOKEN"]);
    assert!(error.is_usage());

    place.settings.token = Some("hf_wrong".into());
    let (error, text) = refused(place.get("org/name"));
    assert!(matches!(error, HubError::BadToken { .. }), "{error:?}");
    speaks(&text, &["token", "HF_TOKEN"]);

    place.settings.token = Some("hf_right".into());
    place.server.seen();
    place.get("org/name").unwrap();
    for seen in place.server.seen() {
        let shown = seen.headers.get("authorization");
        match seen.storage {
            true => assert_eq!(shown, None, "{seen:?}"),
            false => assert_eq!(shown.map(String::as_str), Some("Bearer hf_right")),
        }
    }
}

#[test]
fn a_gated_model_says_where_to_agree() {
    let place = place();
    place.server.publish(
        "org/name",
        Model {
            gated: true,
            ..model()
        },
    );
    let (error, text) = refused(place.get("org/name"));
    assert!(
        matches!(error, HubError::Gated { token: false, .. }),
        "{error:?}"
    );
    let page = format!("{}/org/name", place.server.endpoint);
    speaks(&text, &["gated", &page, "HF_TOKEN"]);
    assert!(
        place.waits.lock().unwrap().is_empty(),
        "nobody is kept waiting for that"
    );
}

#[test]
fn what_is_not_there_is_said() {
    let place = place();
    place.server.publish("org/name", model());
    let (error, text) = refused(place.get("org/other"));
    assert!(matches!(error, HubError::NoModel { .. }));
    speaks(&text, &["org/other", "spelling"]);
    let (error, text) = refused(place.get("org/name@v9"));
    assert!(matches!(error, HubError::NoRevision { .. }), "{error:?}");
    speaks(&text, &["v9", "branch"]);
    let (error, text) = refused(place.get("org/name/other.safetensors"));
    assert!(matches!(error, HubError::NoFile { .. }), "{error:?}");
    speaks(&text, &["other.safetensors", "sd_xl_base_1.0.safetensors"]);

    // Other pipelines are refused before their weights have come.
    let mut other = model();
    let index = json!({ "_class_name": "FluxPipeline" });
    other
        .files
        .insert("model_index.json".into(), index.to_string().into_bytes());
    place.server.publish("org/flux", other);
    place.server.seen();
    let text = place.get("org/flux").unwrap_err().to_string();
    speaks(&text, &["FluxPipeline", "not for Stable Diffusion XL"]);
    assert!(place.server.seen().iter().all(|s| !s.storage));

    let mut pickles = model();
    let pickle = pickles.files.remove(UNET16).unwrap();
    pickles.files.remove(UNET);
    pickles
        .files
        .insert("unet/diffusion_pytorch_model.bin".into(), pickle);
    place.server.publish("org/pickles", pickles);
    let (error, text) = refused(place.get("org/pickles"));
    assert!(matches!(error, HubError::NoFile { .. }));
    speaks(&text, &[UNET, "pickle"]);
}

#[test]
fn a_cut_connection_goes_on_where_it_was() {
    let place = place();
    let model = model();
    place.server.publish("org/name", model.clone());
    let hash = sha256(&model.files[UNET16]);
    // More cuts than tries: each brought something.
    for _ in 0..5 {
        place
            .server
            .fail(&format!("storage/{hash}"), Fault::Cut(250_000));
    }
    let found = place.get("org/name").unwrap();
    assert!(fs::read(found.path.join(UNET16)).unwrap() == model.files[UNET16]);
    let parts: Vec<Option<String>> = (place.server.seen().into_iter())
        .filter(|s| s.storage && s.path.contains(&hash))
        .map(|s| s.headers.get("range").cloned())
        .collect();
    let expected: Vec<Option<String>> = (0..6)
        .map(|i| (i > 0).then(|| format!("bytes={}-", i * 250_000)))
        .collect();
    assert_eq!(parts, expected);
}

#[test]
fn a_pull_that_was_given_up_goes_on_another_day() {
    let place = place();
    let model = model();
    place.server.publish("org/name", model.clone());
    let hash = sha256(&model.files[UNET16]);
    let storage = format!("storage/{hash}");
    for upto in [600_000, 0, 0] {
        place.server.fail(&storage, Fault::Cut(upto));
    }
    let (error, text) = refused(place.get("org/name"));
    assert!(matches!(error, HubError::Lost { .. }), "{error:?}");
    assert!(!error.is_usage());
    speaks(&text, &[UNET16, "3 times", "kept"]);
    let left = place
        .folder()
        .join("blobs")
        .join(format!("{hash}.incomplete"));
    assert_eq!(fs::metadata(&left).unwrap().len(), 600_000);
    assert!(
        !place.folder().join("refs/main").exists(),
        "not before it is whole"
    );

    place.server.seen();
    let found = place.get("org/name").unwrap();
    assert!(fs::read(found.path.join(UNET16)).unwrap() == model.files[UNET16]);
    assert!(!left.exists());
    let again = place.server.seen();
    let again: Vec<_> = again.iter().filter(|s| s.path.contains(&hash)).collect();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].headers["range"], "bytes=600000-");
}

#[test]
fn silence_is_a_cut_too() {
    let mut place = place();
    place.settings.silence = Duration::from_millis(400);
    let model = model();
    place.server.publish("org/name", model.clone());
    let hash = sha256(&model.files[UNET16]);
    place
        .server
        .fail(&format!("storage/{hash}"), Fault::Stall(100_000));
    let began = Instant::now();
    let found = place.get("org/name").unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    assert!(fs::read(found.path.join(UNET16)).unwrap() == model.files[UNET16]);
}

#[test]
fn a_server_that_cannot_go_on_begins_anew() {
    let place = place();
    let model = model();
    place.server.publish("org/name", model.clone());
    let storage = format!("storage/{}", sha256(&model.files[UNET16]));
    place.server.fail(&storage, Fault::Cut(600_000));
    place.server.fail(&storage, Fault::Whole);
    let found = place.get("org/name").unwrap();
    assert!(fs::read(found.path.join(UNET16)).unwrap() == model.files[UNET16]);

    // One that begins anew each time and never ends gets nowhere, and is not tried for ever.
    let place = self::place();
    place.server.publish("org/name", model);
    place.server.fail(&storage, Fault::Cut(600_000));
    for _ in 0..9 {
        place.server.fail(&storage, Fault::WholeCut(500_000));
    }
    let (error, _) = refused(place.get("org/name"));
    assert!(
        matches!(error, HubError::Lost { tries: 3, .. }),
        "{error:?}"
    );
    assert_eq!(place.server.faults_left(), 7);
}

#[test]
fn other_contents_than_the_hub_says_are_never_kept() {
    let place = place();
    let model = model();
    place.server.publish("org/name", model.clone());
    let hash = sha256(&model.files[UNET16]);
    let storage = format!("storage/{hash}");
    place.server.fail(&storage, Fault::Garble);
    place.server.fail(&storage, Fault::Garble);
    let (error, text) = refused(place.get("org/name"));
    assert!(matches!(error, HubError::WrongHash { .. }), "{error:?}");
    speaks(&text, &[UNET16, &hash, "another network"]);
    let blobs = place.folder().join("blobs");
    assert!(!blobs.join(&hash).exists());
    assert!(!blobs.join(format!("{hash}.incomplete")).exists());

    // What another day left is damaged: it is thrown away and fetched once more.
    fs::write(
        blobs.join(format!("{hash}.incomplete")),
        noise(99, 1_000_000),
    )
    .unwrap();
    let found = place.get("org/name").unwrap();
    assert!(fs::read(found.path.join(UNET16)).unwrap() == model.files[UNET16]);

    // Small files, too: Git's hash.
    let place = self::place();
    place.server.publish("org/name", model);
    let config = "resolve-cache/models/org/name/";
    for _ in 0..3 {
        place.server.fail(config, Fault::Garble);
    }
    let (error, _) = refused(place.get("org/name"));
    assert!(matches!(error, HubError::WrongHash { .. }), "{error:?}");
}

#[test]
fn too_many_requests_are_waited_for() {
    let place = place();
    place.server.publish("org/name", model());
    let wait = |seconds| Fault::Status(429, vec![("Retry-After", seconds)]);
    place.server.fail("/api/models", wait("1"));
    let began = Instant::now();
    place.get("org/name").unwrap();
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(*place.waits.lock().unwrap(), [Duration::from_secs(1)]);

    place.server.fail("/api/models", wait("3600"));
    let (error, text) = refused(place.pull("org/name"));
    assert!(
        matches!(error, HubError::Busy { seconds: 3600, .. }),
        "{error:?}"
    );
    speaks(&text, &["3600 s", "429", "HF_TOKEN"]);

    // A server that has a bad moment.
    place.waits.lock().unwrap().clear();
    place.server.fail("/api/models", Fault::Status(502, vec![]));
    place.server.fail("/api/models", Fault::Status(502, vec![]));
    place.pull("org/name").unwrap();
    let waits = [10, 20].map(Duration::from_millis);
    assert_eq!(*place.waits.lock().unwrap(), waits);
    for _ in 0..3 {
        place.server.fail("/api/models", Fault::Status(502, vec![]));
    }
    let (error, text) = refused(place.pull("org/name"));
    assert!(
        matches!(error, HubError::Lost { tries: 3, .. }),
        "{error:?}"
    );
    speaks(&text, &["502", "3 times"]);
}

#[test]
fn a_link_to_the_storage_that_has_grown_old_is_asked_for_again() {
    let place = place();
    let model = model();
    place.server.publish("org/name", model.clone());
    let storage = format!("storage/{}", sha256(&model.files[UNET16]));
    place.server.fail(&storage, Fault::Status(403, vec![]));
    place.get("org/name").unwrap();
    assert_eq!(place.waits.lock().unwrap().len(), 1);
}

#[test]
fn a_mirror_that_stores_the_files_itself() {
    let place = place();
    let model = model();
    place.server.publish("org/name", model.clone());
    place.server.mirror();
    let found = place.get("org/name").unwrap();
    assert!(fs::read(found.path.join(UNET16)).unwrap() == model.files[UNET16]);
    assert!(place.server.seen().iter().all(|s| !s.storage));
}

#[test]
fn a_hub_out_of_reach_and_one_that_is_none() {
    let mut place = place();
    place.server.publish("org/name", model());
    place.settings.endpoint = "http://127.0.0.1:1".into();
    let (error, text) = refused(place.get("org/name"));
    assert!(matches!(error, HubError::Lost { .. }), "{error:?}");
    speaks(&text, &["127.0.0.1:1", "connection", "HF_ENDPOINT"]);

    // Such as a page that wants a login.
    place.settings.endpoint = place.server.endpoint.clone();
    let login = vec![("Content-Type", "text/html")];
    place.server.fail("/api/models", Fault::Status(200, login));
    let (error, text) = refused(place.get("org/name"));
    assert!(matches!(error, HubError::Odd { .. }), "{error:?}");
    speaks(&text, &["proxy", "HF_ENDPOINT"]);
    let around = vec![("Location", "/api/models/org/name/revision/main?blobs=true")];
    for _ in 0..11 {
        place
            .server
            .fail("/api/models", Fault::Status(302, around.clone()));
    }
    let (error, _) = refused(place.get("org/name"));
    assert!(matches!(error, HubError::Odd { .. }), "{error:?}");
}

#[test]
fn a_disk_that_is_too_small_is_found_before_anything_comes() {
    let place = place();
    place.server.publish("org/name", model());
    let path = format!("/resolve/{}/{UNET16}", hub_server::commit(&model()));
    place.server.fail(&path, Fault::Long(1 << 60));
    place.server.seen();
    let (error, text) = refused(place.get("org/name"));
    assert!(matches!(error, HubError::DiskFull { .. }), "{error:?}");
    speaks(&text, &["GB", "HF_HUB_CACHE", "sdxl models rm"]);
    assert!(place.server.seen().iter().all(|s| !s.storage));
}

#[test]
fn offline_means_offline() {
    let mut place = place();
    let commit = place.server.publish("org/name", model());
    place.settings.offline = true;
    let (error, text) = refused(place.get("org/name"));
    assert!(matches!(error, HubError::Offline { .. }), "{error:?}");
    assert!(error.is_usage());
    speaks(&text, &["org/name", "HF_HUB_OFFLINE", "models--org--name"]);
    assert!(place.server.seen().is_empty());

    place.settings.offline = false;
    place.get("org/name").unwrap();
    place.settings.offline = true;
    place.server.seen();
    let found = place.get("org/name").unwrap();
    assert_eq!(found.name.revision(), commit);
    assert_eq!(found.variant.as_deref(), Some("fp16"));
    assert_eq!(place.pull("org/name").unwrap().path, found.path);
    // A run that needs more says what.
    fs::remove_file(found.path.join(VAE16)).unwrap();
    let (_, text) = refused(place.get("org/name"));
    speaks(&text, &[VAE16]);
    let full = FetchOptions {
        precision: Precision::F32,
        ..want()
    };
    let name = ModelName::parse("org/name").unwrap();
    let (_, text) = refused(place.hub().get(&name, &full, &|_| {}));
    speaks(&text, &["text_encoder/model.safetensors", UNET]);
    assert!(place.server.seen().is_empty());
}

#[test]
fn that_there_is_nothing_better_is_remembered() {
    let mut place = place();
    let mut model = model();
    model
        .files
        .retain(|name, _| !name.ends_with("model.safetensors"));
    place.server.publish("org/name", model);
    let full = FetchOptions {
        precision: Precision::F32,
        ..want()
    };
    let name = ModelName::parse("org/name").unwrap();
    let found = place.hub().get(&name, &full, &|_| {}).unwrap();
    assert_eq!(found.variant, None);
    assert!(found.path.join(UNET16).is_file());
    place.settings.offline = true;
    place.hub().get(&name, &full, &|_| {}).unwrap();
}

#[test]
fn precision_variant_and_vae_decide_what_comes() {
    let place = place();
    place.server.publish("org/name", model());
    let name = ModelName::parse("org/name").unwrap();
    let get = |want: &FetchOptions| place.hub().get(&name, want, &|_| {}).unwrap();
    let vae = get(&FetchOptions {
        purpose: Purpose::Vae,
        ..want()
    });
    assert!(vae.path.join(VAE16).is_file() && !vae.path.join(UNET16).exists());
    let full = get(&FetchOptions {
        precision: Precision::F32,
        replaced: vec![Part::Vae],
        ..want()
    });
    assert_eq!(full.variant, None);
    assert!(full.path.join(UNET).is_file() && !full.path.join(UNET16).exists());
    assert!(
        !full
            .path
            .join("vae/diffusion_pytorch_model.safetensors")
            .exists()
    );
    // A UNet that stands in may need to know how this one is built; of the VAE nothing is needed.
    let bare = self::place();
    bare.server.publish("org/name", model());
    let text_only = FetchOptions {
        replaced: vec![Part::UNet, Part::Vae],
        ..want()
    };
    let found = bare.hub().get(&name, &text_only, &|_| {}).unwrap();
    assert!(found.path.join("unet/config.json").is_file());
    assert!(!found.path.join(UNET).exists() && !found.path.join(UNET16).exists());
    assert!(found.path.join("text_encoder").is_dir() && !found.path.join("vae").exists());
    // Wanted whole, the rest comes.
    let found = bare.hub().get(&name, &want(), &|_| {}).unwrap();
    assert!(found.path.join(UNET16).is_file() && found.path.join(VAE16).is_file());
    // The whole weights are here now, so a run of 16 bits fetches none.
    place.server.seen();
    let half = get(&FetchOptions {
        replaced: vec![Part::Vae],
        ..want()
    });
    assert_eq!(half.variant, None);
    assert!(place.server.seen().is_empty());
    // Unless they are asked for.
    let named = get(&FetchOptions {
        variant: Some("fp16".into()),
        ..want()
    });
    assert_eq!(named.variant.as_deref(), Some("fp16"));
    assert!(named.path.join(UNET16).is_file());
    let none = FetchOptions {
        variant: Some("bf16".into()),
        ..want()
    };
    let (error, text) = refused(place.hub().get(&name, &none, &|_| {}));
    assert!(matches!(error, HubError::NoFile { .. }));
    speaks(&text, &["bf16", "`variant`"]);
}

#[test]
fn one_file_of_a_model() {
    let place = place();
    let model = model();
    place.server.publish("org/name", model.clone());
    let file = "sd_xl_base_1.0.safetensors";
    let found = place.get(&format!("org/name/{file}")).unwrap();
    assert!(found.path.ends_with(file));
    assert!(fs::read(&found.path).unwrap() == model.files[file]);
    assert_eq!(place.server.seen().iter().filter(|s| s.storage).count(), 1);
}

#[test]
fn several_files_come_at_once_and_the_pace_is_told() {
    let place = place();
    let model = model();
    place.server.publish("org/name", model.clone());
    place.server.set_delay(Duration::from_millis(300));
    let told = Mutex::new(Vec::new());
    let name = ModelName::parse("org/name").unwrap();
    let hear = |event: DownloadEvent<'_>| match event {
        DownloadEvent::Begin { files, bytes, .. } => {
            told.lock().unwrap().push(("".into(), files as u64, bytes))
        }
        DownloadEvent::File { path, done, size } => {
            told.lock().unwrap().push((path.to_string(), done, size));
        }
        DownloadEvent::Waiting { .. } => {}
    };
    place.hub().get(&name, &want(), &hear).unwrap();
    assert!(
        place.server.most_at_once() >= 2,
        "{}",
        place.server.most_at_once()
    );
    let told = told.into_inner().unwrap();
    let size = model.files[UNET16].len() as u64;
    let unet: Vec<u64> = told.iter().filter(|t| t.0 == UNET16).map(|t| t.1).collect();
    assert!(
        unet.len() > 2 && unet.is_sorted() && unet.last() == Some(&size),
        "{unet:?}"
    );
    // The index by itself, then the rest.
    let begins: Vec<u64> = told
        .iter()
        .filter(|t| t.0.is_empty())
        .map(|t| t.1)
        .collect();
    assert_eq!(begins, [1, 13]);
}

#[test]
fn a_list_says_what_is_there() {
    let place = place();
    place.server.publish("org/name", model());
    let mut refiner = model();
    let index = String::from_utf8(refiner.files["model_index.json"].clone()).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&index).unwrap();
    index["text_encoder"] = json!([null, null]);
    refiner
        .files
        .insert("model_index.json".into(), index.to_string().into_bytes());
    place.server.publish("org/refiner", refiner);
    let found = place.get("org/name").unwrap();
    place.get("org/refiner").unwrap();
    // As Python leaves other things there.
    let other = place
        .settings
        .cache
        .join("models--org--llm/snapshots")
        .join("a".repeat(40));
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("config.json"), "{}").unwrap();
    fs::create_dir_all(place.settings.cache.join("datasets--org--set/snapshots")).unwrap();
    let all = scan(&place.settings.cache);
    let names: Vec<(&str, String)> = all
        .iter()
        .map(|of| (of.repo.as_str(), of.kind.to_string()))
        .collect();
    assert_eq!(names.len(), 3);
    assert_eq!(names[0], ("org/llm", "not for this program".to_string()));
    assert_eq!(
        names[1],
        ("org/name", "Stable Diffusion XL base".to_string())
    );
    assert_eq!(
        names[2],
        ("org/refiner", "Stable Diffusion XL refiner".to_string())
    );
    assert_eq!(all[1].revisions, ["main"]);
    assert_eq!(all[1].snapshot, found.path);
    let bytes: u64 = (all[1].files.keys())
        .map(|f| fs::metadata(found.path.join(f)).unwrap().len())
        .sum();
    assert_eq!(all[1].bytes(), bytes);
    assert!(all[0].kind == ModelKind::Other(None));
}

#[test]
fn removing_frees_what_nothing_else_needs() {
    let place = place();
    let mut model = model();
    let first = place.server.publish("org/name", model.clone());
    place.pull("org/name").unwrap();
    model.files.insert(VAE16.into(), noise(50, 60_000));
    let second = place.server.publish("org/name", model.clone());
    place.pull("org/name").unwrap();
    let hub = place.hub();
    let name = |text: &str| ModelName::parse(text).unwrap();
    // Of the first revision only the VAE is its own. A list's seven digits are enough.
    let removal = hub
        .removal(&name(&format!("org/name@{}", &first[..7])))
        .unwrap();
    assert_eq!(removal.bytes, 40_000);
    removal.carry_out().unwrap();
    assert!(!place.folder().join("snapshots").join(&first).exists());
    let found = place.get("org/name").unwrap();
    assert_eq!(found.name.revision(), second);
    for file in [UNET16, VAE16, "model_index.json"] {
        assert!(fs::read(found.path.join(file)).unwrap() == model.files[file]);
    }
    let (error, _) = refused(hub.removal(&name("org/name@v9")));
    assert!(matches!(error, HubError::NotCached { .. }));
    let (error, text) = refused(hub.removal(&name("org/other")));
    assert!(matches!(error, HubError::NotCached { .. }));
    speaks(&text, &["org/other", "sdxl models pull org/other"]);

    let removal = hub.removal(&name("org/name")).unwrap();
    assert!(removal.bytes > 1_500_000);
    removal.carry_out().unwrap();
    assert!(!place.folder().exists());
    assert!(
        !place
            .settings
            .cache
            .join(".locks/models--org--name")
            .exists()
    );
}

#[cfg(unix)]
#[test]
fn contents_that_python_shares_between_models_are_used_and_freed_with_the_last() {
    use std::os::unix::fs::symlink;
    let place = place();
    let model = model();
    let unet = sha256(&model.files[UNET16]);
    let cache = &place.settings.cache;
    let xet = "ab".repeat(32);
    for name in ["org/name", "org/copy"] {
        place.server.publish(name, model.clone());
        place.get(name).unwrap();
    }
    // What Python makes of a file that came over Xet.
    let store = cache.join("blobs/ab");
    fs::create_dir_all(&store).unwrap();
    fs::write(cache.join("blobs/.huggingface-shared-blobs"), "1\n").unwrap();
    let blob = |name: &str| cache.join(format!("models--org--{name}/blobs/{unet}"));
    fs::rename(blob("name"), store.join(&xet)).unwrap();
    fs::remove_file(blob("copy")).unwrap();
    let mut refs = String::new();
    for name in ["name", "copy"] {
        symlink(format!("../../blobs/ab/{xet}"), blob(name)).unwrap();
        refs.push_str(&format!("models--org--{name}/blobs/{unet}\n"));
    }
    fs::write(store.join(format!("{xet}.refs")), refs).unwrap();

    let hub = place.hub();
    let name = |text: &str| ModelName::parse(text).unwrap();
    place.server.seen();
    let found = place.get("org/name").unwrap();
    assert!(fs::read(found.path.join(UNET16)).unwrap() == model.files[UNET16]);
    assert!(place.server.seen().is_empty());
    let verified = hub.verify(&name("org/name"), &mut |_, _| {}).unwrap();
    assert!(
        verified.broken.is_empty() && verified.good == 13,
        "{verified:?}"
    );
    hub.removal(&name("org/name")).unwrap().carry_out().unwrap();
    assert!(store.join(&xet).exists(), "the copy still needs it");
    let found = place.get("org/copy").unwrap();
    assert!(fs::read(found.path.join(UNET16)).unwrap() == model.files[UNET16]);
    hub.removal(&name("org/copy")).unwrap().carry_out().unwrap();
    assert!(!store.join(&xet).exists());
    assert!(!store.join(format!("{xet}.refs")).exists());
}

#[test]
fn damage_is_found_and_mended() {
    let place = place();
    let model = model();
    place.server.publish("org/name", model.clone());
    let found = place.get("org/name").unwrap();
    let hub = place.hub();
    let name = ModelName::parse("org/name").unwrap();
    let mut read = 0;
    let verified = hub.verify(&name, &mut |_, bytes| read += bytes).unwrap();
    assert_eq!((verified.good, verified.broken.len()), (13, 0));
    assert!(read > 1_500_000);

    let flip = |file: &str| {
        let path = fs::canonicalize(found.path.join(file)).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes[1] ^= 1;
        fs::write(&path, bytes).unwrap();
    };
    flip(UNET16);
    flip("unet/config.json");
    let gone = fs::canonicalize(found.path.join("vae/config.json")).unwrap();
    fs::remove_file(gone).unwrap();
    let verified = hub.verify(&name, &mut |_, _| {}).unwrap();
    let mut broken: Vec<&str> = verified.broken.iter().map(|b| b.file.as_str()).collect();
    broken.sort();
    assert_eq!(broken, ["unet/config.json", UNET16, "vae/config.json"]);
    for one in &verified.broken {
        one.remove().unwrap();
    }
    place.server.seen();
    let found = place.get("org/name").unwrap();
    assert_eq!(place.server.seen().iter().filter(|s| s.storage).count(), 1);
    let verified = hub.verify(&name, &mut |_, _| {}).unwrap();
    assert_eq!((verified.good, verified.broken.len()), (13, 0));
    assert!(fs::read(found.path.join(UNET16)).unwrap() == model.files[UNET16]);
}
