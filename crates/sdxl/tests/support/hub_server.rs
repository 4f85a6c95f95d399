//! A model hub on this machine, as far as pulling asks of one: a list of files, redirects to a
//! storage on another port, and whatever can go wrong on the way.

#![allow(dead_code)] // each test binary uses its own part of this module

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha1::Digest;

/// A model of the hub.
#[derive(Clone, Default)]
pub(crate) struct Model {
    pub(crate) files: BTreeMap<String, Vec<u8>>,
    /// Shown to nobody without the token.
    pub(crate) private: bool,
    /// Listed, but its files are for those only who agreed.
    pub(crate) gated: bool,
}

/// What the server does in the place of the right thing, once.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Ends the connection after so many bytes of the body.
    Cut(usize),
    /// Sends so many bytes of the body, and nothing more for a while.
    Stall(usize),
    /// Answers with a status and headers.
    Status(u16, Vec<(&'static str, &'static str)>),
    /// Sends other bytes of the right number.
    Garble,
    /// Sends everything where a part was asked for.
    Whole,
    /// The same, and ends the connection after so many bytes.
    WholeCut(usize),
    /// Says that the file is as long as this.
    Long(u64),
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) storage: bool,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
}

#[derive(Default)]
struct State {
    models: Mutex<BTreeMap<String, Model>>,
    faults: Mutex<Vec<(String, Fault)>>,
    seen: Mutex<Vec<Seen>>,
    token: Mutex<Option<String>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    /// Whether the storage is behind the hub's own address.
    mirror: AtomicBool,
    /// How long the storage waits before it answers.
    delay: Mutex<Duration>,
}

/// A hub and its storage.
pub(crate) struct Server {
    pub(crate) endpoint: String,
    storage: String,
    state: Arc<State>,
}

/// The commit that `main` is at while a model has these files.
pub(crate) fn commit(model: &Model) -> String {
    let mut sha = sha1::Sha1::new();
    for (name, bytes) in &model.files {
        sha.update(name);
        sha.update(bytes);
    }
    hex(&sha.finalize())
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&sha2::Sha256::digest(bytes))
}

pub(crate) fn git_sha1(bytes: &[u8]) -> String {
    let mut sha = sha1::Sha1::new();
    sha.update(format!("blob {}\0", bytes.len()));
    sha.update(bytes);
    hex(&sha.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn is_lfs(name: &str) -> bool {
    name.ends_with(".safetensors")
}

impl Server {
    pub(crate) fn start() -> Server {
        let state = Arc::new(State::default());
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (hub, storage) = (listen(), listen());
        let address = |l: &TcpListener| format!("http://{}", l.local_addr().unwrap());
        let server = Server {
            endpoint: address(&hub),
            storage: address(&storage),
            state: Arc::clone(&state),
        };
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let state = Arc::clone(&state);
            let storage = server.storage.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (state, storage) = (Arc::clone(&state), storage.clone());
                    std::thread::spawn(move || {
                        let _ = answer(&state, stream, is_storage, &storage);
                    });
                }
            });
        }
        server
    }

    /// Puts a model onto the hub, or other files into one.
    pub(crate) fn publish(&self, name: &str, model: Model) -> String {
        let commit = commit(&model);
        self.state
            .models
            .lock()
            .unwrap()
            .insert(name.to_string(), model);
        commit
    }

    /// The next request whose path contains `path` goes wrong. `storage` before a path means
    /// the storage's.
    pub(crate) fn fail(&self, path: &str, fault: Fault) {
        self.state
            .faults
            .lock()
            .unwrap()
            .push((path.to_string(), fault));
    }

    /// Faults that have not happened.
    pub(crate) fn faults_left(&self) -> usize {
        self.state.faults.lock().unwrap().len()
    }

    /// The token that the hub accepts.
    pub(crate) fn set_token(&self, token: &str) {
        *self.state.token.lock().unwrap() = Some(token.to_string());
    }

    /// From now on nothing leads to another address, as with some mirrors.
    pub(crate) fn mirror(&self) {
        self.state.mirror.store(true, Ordering::SeqCst);
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        *self.state.delay.lock().unwrap() = delay;
    }

    /// The requests since the last time this was asked.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.seen.lock().unwrap())
    }

    /// The most requests to the storage that were open at the same time.
    pub(crate) fn most_at_once(&self) -> usize {
        self.state.most_at_once.load(Ordering::SeqCst)
    }
}

fn answer(state: &State, stream: TcpStream, storage: bool, at: &str) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_string();
    let path = words.next().unwrap_or_default().to_string();
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.to_string());
    }
    let seen = Seen {
        storage,
        method,
        path,
        headers,
    };
    state.seen.lock().unwrap().push(seen.clone());
    let key = format!("{}{}", if storage { "storage" } else { "" }, seen.path);
    let fault = {
        let mut faults = state.faults.lock().unwrap();
        let at = faults
            .iter()
            .position(|(path, _)| key.contains(path.as_str()));
        at.map(|at| faults.remove(at).1)
    };
    let mut reply = Reply {
        stream,
        head: seen.method == "HEAD",
    };
    if let Some(Fault::Status(status, headers)) = &fault {
        return reply.send(*status, headers, b"", None);
    }
    if storage {
        let open = state.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        state.most_at_once.fetch_max(open, Ordering::SeqCst);
        let delay = *state.delay.lock().unwrap();
        std::thread::sleep(delay);
        let result = from_storage(state, &seen, fault, &mut reply);
        state.at_once.fetch_sub(1, Ordering::SeqCst);
        return result;
    }
    from_hub(state, &seen, fault, at, &mut reply)
}

fn from_storage(
    state: &State,
    seen: &Seen,
    fault: Option<Fault>,
    reply: &mut Reply,
) -> std::io::Result<()> {
    let hash = seen
        .path
        .trim_start_matches('/')
        .split('?')
        .next()
        .unwrap_or_default();
    let models = state.models.lock().unwrap().clone();
    let mut files = models.values().flat_map(|m| m.files.values());
    let Some(bytes) = files.find(|bytes| sha256(bytes) == hash) else {
        return reply.send(404, &[], b"", None);
    };
    reply.file(bytes, seen, &[], fault)
}

fn from_hub(
    state: &State,
    seen: &Seen,
    fault: Option<Fault>,
    storage: &str,
    reply: &mut Reply,
) -> std::io::Result<()> {
    let token = state.token.lock().unwrap().clone();
    let shown = (seen.headers.get("authorization")).map(|v| v.trim_start_matches("Bearer "));
    let trusted = shown.is_some() && shown == token.as_deref();
    if shown.is_some() && !trusted {
        let message = [(
            "X-Error-Message",
            "Invalid credentials in Authorization header",
        )];
        return reply.send(401, &message, b"", None);
    }
    let path = seen.path.split('?').next().unwrap_or_default();
    let parts: Vec<&str> = path.trim_start_matches('/').splitn(7, '/').collect();
    if let ["stored", _] = parts.as_slice() {
        let seen = Seen {
            path: path.replace("/stored", ""),
            ..seen.clone()
        };
        return from_storage(state, &seen, fault, reply);
    }
    let (name, what, rest) = match parts.as_slice() {
        ["api", "models", org, name, "revision", rest @ ..] => {
            (format!("{org}/{name}"), "list", rest.join("/"))
        }
        ["api", "resolve-cache", "models", org, name, rest @ ..] => {
            (format!("{org}/{name}"), "cache", rest.join("/"))
        }
        [org, name, "resolve", rest @ ..] => (format!("{org}/{name}"), "resolve", rest.join("/")),
        _ => return reply.send(404, &[], b"", None),
    };
    let model = state.models.lock().unwrap().get(&name).cloned();
    let Some(model) = model.filter(|m| !m.private || trusted) else {
        // As the hub answers strangers, and those it knows.
        let status = if trusted { 404 } else { 401 };
        return reply.send(status, &[("X-Error-Code", "RepoNotFound")], b"", None);
    };
    let commit = commit(&model);
    let (revision, file) = match what {
        "list" => (rest.as_str(), ""),
        _ => rest.split_once('/').unwrap_or((&rest, "")),
    };
    if revision != "main" && revision != commit {
        return reply.send(404, &[("X-Error-Code", "RevisionNotFound")], b"", None);
    }
    if what == "list" {
        let siblings: Vec<_> = (model.files.iter())
            .map(|(name, bytes)| {
                let mut file = serde_json::json!({
                    "rfilename": name, "size": bytes.len(), "blobId": git_sha1(bytes),
                });
                if is_lfs(name) {
                    file["lfs"] = serde_json::json!({
                        "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134,
                    });
                }
                file
            })
            .collect();
        let list = serde_json::json!({ "id": name, "sha": commit, "siblings": siblings });
        return reply.send(200, &[], list.to_string().as_bytes(), None);
    }
    if model.gated && !trusted {
        let message = [("X-Error-Code", "GatedRepo")];
        let status = if shown.is_some() { 403 } else { 401 };
        return reply.send(status, &message, b"", None);
    }
    let Some(bytes) = model.files.get(file) else {
        return reply.send(404, &[("X-Error-Code", "EntryNotFound")], b"", None);
    };
    let size = match fault {
        Some(Fault::Long(size)) => size,
        _ => bytes.len() as u64,
    };
    let (size, etag) = (size.to_string(), format!("\"{}\"", git_sha1(bytes)));
    let linked = format!("\"{}\"", sha256(bytes));
    let commit_header = ("X-Repo-Commit", commit.as_str());
    if is_lfs(file) {
        let mirror = state.mirror.load(Ordering::SeqCst);
        let storage = if mirror { "/stored" } else { storage };
        let location = format!("{storage}/{}?signature=x", sha256(bytes));
        let headers = [
            commit_header,
            ("X-Linked-Size", &size),
            ("X-Linked-Etag", &linked),
            ("ETag", "\"of-the-redirect\""),
            ("Location", &location),
        ];
        return reply.send(302, &headers, b"Found. Redirecting", None);
    }
    if what == "resolve" {
        let location = format!("/api/resolve-cache/models/{name}/{commit}/{file}");
        let headers = [
            commit_header,
            ("ETag", etag.as_str()),
            ("Location", &location),
        ];
        return reply.send(307, &headers, b"Temporary Redirect", None);
    }
    reply.file(bytes, seen, &[commit_header, ("ETag", &etag)], fault)
}

struct Reply {
    stream: TcpStream,
    head: bool,
}

impl Reply {
    /// Answers. `upto`: how much of the body is sent.
    fn send(
        &mut self,
        status: u16,
        headers: &[(&str, &str)],
        body: &[u8],
        upto: Option<usize>,
    ) -> std::io::Result<()> {
        let mut text = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("Connection: close\r\n\r\n");
        self.stream.write_all(text.as_bytes())?;
        if !self.head {
            self.stream.write_all(&body[..upto.unwrap_or(body.len())])?;
        }
        self.stream.flush()
    }

    /// Sends a file, or the part of it that was asked for.
    fn file(
        &mut self,
        bytes: &[u8],
        seen: &Seen,
        headers: &[(&str, &str)],
        fault: Option<Fault>,
    ) -> std::io::Result<()> {
        let mut headers = headers.to_vec();
        let from: Option<usize> = seen.headers.get("range").and_then(|range| {
            let range = range.strip_prefix("bytes=")?.strip_suffix('-')?;
            range.parse().ok()
        });
        let from = from.filter(|_| !matches!(fault, Some(Fault::Whole | Fault::WholeCut(_))));
        let (status, start) = match from {
            Some(from) if from >= bytes.len() => return self.send(416, &headers, b"", None),
            Some(from) => (206, from),
            None => (200, 0),
        };
        let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
        if status == 206 {
            headers.push(("Content-Range", &range));
        }
        let mut body = bytes[start..].to_vec();
        match fault {
            Some(Fault::Cut(upto) | Fault::WholeCut(upto)) => {
                self.send(status, &headers, &body, Some(upto))
            }
            Some(Fault::Stall(upto)) => {
                self.send(status, &headers, &body, Some(upto))?;
                std::thread::sleep(Duration::from_secs(20));
                Ok(())
            }
            Some(Fault::Garble) => {
                body.iter_mut().for_each(|b| *b ^= 0x55);
                self.send(status, &headers, &body, None)
            }
            _ => self.send(status, &headers, &body, None),
        }
    }
}
