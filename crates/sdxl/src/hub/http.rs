//! Requests to a hub: where the token may go, what an answer means, and when to try again.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Request};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::error::HubError;
use super::event::DownloadEvent;
use super::settings::Settings;

/// Longer than this nobody is kept waiting in front of a bar that does not move.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// Redirects in a row.
const REDIRECTS: usize = 10;

/// The listener of a pull, and whether the pull has failed in another thread.
pub(super) struct Watch<'a> {
    pub told: &'a (dyn Fn(DownloadEvent<'_>) + Sync),
    pub stopped: AtomicBool,
}

impl Watch<'_> {
    /// Waits, but not for a pull that has failed in the meantime.
    fn pause(&self, pause: Duration) {
        let until = Instant::now() + pause;
        while Instant::now() < until && !self.stopped.load(Ordering::Relaxed) {
            let left = until.saturating_duration_since(Instant::now());
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// The subject of a request, for messages.
#[derive(Clone, Copy)]
pub(super) struct About<'a> {
    pub repo: &'a str,
    pub revision: &'a str,
    pub file: Option<&'a str>,
}

/// Why an attempt failed.
pub(super) enum Failure {
    /// Another attempt may do better. `moved`: this one got further than any before it.
    Lost { why: String, moved: bool },
    /// The server wants a pause, of this length where it says so.
    Busy(Option<Duration>),
    /// Nothing will change by trying.
    Final(HubError),
}

impl Failure {
    pub(super) fn lost(why: impl Into<String>) -> Failure {
        Failure::Lost {
            why: why.into(),
            moved: false,
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Method {
    Head,
    Get,
}

/// An answer that is none of refusal.
pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

/// Speaks with one hub.
pub(super) struct Client {
    agent: Agent,
    endpoint: String,
    token: Option<String>,
    tries: u32,
    pause: Duration,
}

impl Client {
    /// # Errors
    /// A file of certificates that cannot be used.
    pub(super) fn new(settings: &Settings) -> Result<Client, HubError> {
        let mut config = Agent::config_builder()
            // Redirects are followed here, because the token must not go along to every host.
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("sdxl/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(settings.silence))
            .timeout_connect(Some(settings.silence))
            .timeout_recv_response(Some(settings.silence))
            // A whole file may take hours; what must not happen is that nothing comes.
            .timeout_per_read(Some(settings.silence));
        if let Some(path) = &settings.certificates {
            let pem = fs::read(path).map_err(|e| HubError::cache(path, &e))?;
            let certificates = parse_pem(&pem).filter_map(|item| match item {
                Ok(PemItem::Certificate(one)) => Some(one),
                _ => None,
            });
            let roots = RootCerts::from(certificates);
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Client {
            agent: config.build().new_agent(),
            endpoint: settings.endpoint.clone(),
            token: settings.token.clone(),
            tries: settings.tries.max(1),
            pause: settings.pause,
        })
    }

    /// The address of `path` at the hub.
    pub(super) fn url(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    /// Sends one request, from byte `from` on, and follows where it leads. The answer to a `HEAD`
    /// is the hub's last, which describes the file, not that of a storage it points to.
    pub(super) fn send(
        &self,
        method: Method,
        url: &str,
        about: About<'_>,
        from: u64,
    ) -> Result<Answer, Failure> {
        let mut url = url.to_string();
        for _ in 0..=REDIRECTS {
            let ours = origin(&url) == origin(&self.endpoint);
            let odd = |what: String| {
                let url = url.clone();
                Failure::Final(HubError::Odd { url, what })
            };
            let verb = match method {
                Method::Head => "HEAD",
                Method::Get => "GET",
            };
            // Compressed, a file would not be as long as the hub says.
            let mut request =
                (Request::builder().method(verb).uri(&url)).header("accept-encoding", "identity");
            if let (true, Some(token)) = (ours, &self.token) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let request = request.body(()).map_err(|e| odd(e.to_string()))?;
            let response = match self.agent.run(request) {
                Ok(response) => response,
                Err(error) => return Err(failure(error, &url)),
            };
            let (parts, body) = response.into_parts();
            let (status, headers) = (parts.status.as_u16(), parts.headers);
            if (300..400).contains(&status)
                && let Some(target) = header(&headers, "location")
            {
                let target = join(&url, target);
                // The storage may be another path of the same host, as with mirrors.
                let described = headers.contains_key("x-linked-etag");
                let leaves = origin(&target) != origin(&self.endpoint);
                if method == Method::Head && (described || leaves) {
                    return Ok(Answer {
                        status,
                        headers,
                        body,
                    });
                }
                if url.starts_with("https:") && !target.starts_with("https:") {
                    return Err(odd(format!("it leads to {target}, which is not encrypted")));
                }
                url = target;
                continue;
            }
            // 416: there is nothing from that byte on.
            if (200..300).contains(&status) || from > 0 && status == 416 {
                return Ok(Answer {
                    status,
                    headers,
                    body,
                });
            }
            return Err(self.refusal(&url, ours, about, status, &headers));
        }
        Err(Failure::Final(HubError::Odd {
            url,
            what: format!("more than {REDIRECTS} redirects"),
        }))
    }

    /// Gives the failure that an answer stands for, where it is not what was asked for.
    fn refusal(
        &self,
        url: &str,
        ours: bool,
        about: About<'_>,
        status: u16,
        headers: &HeaderMap,
    ) -> Failure {
        let pause = asked_pause(headers);
        if status == 429 || status == 503 && pause.is_some() {
            return Failure::Busy(pause);
        }
        // A storage's refusal is mostly a link that has grown old: the hub gives a new one.
        if !ours || status == 408 || status >= 500 {
            return Failure::lost(format!("the server answers {status}"));
        }
        let code = header(headers, "x-error-code").unwrap_or_default();
        let message = header(headers, "x-error-message").unwrap_or_default();
        let repo = about.repo.to_string();
        let token = self.token.is_some();
        Failure::Final(match (code, status, about.file) {
            ("GatedRepo", ..) => HubError::Gated {
                page: self.url(&repo),
                repo,
                token,
            },
            ("RevisionNotFound", ..) => HubError::NoRevision {
                repo,
                revision: about.revision.to_string(),
            },
            ("EntryNotFound", _, Some(file)) | ("", 404, Some(file)) => HubError::NoFile {
                repo,
                file: file.to_string(),
                hint: None,
            },
            (_, 401, _) if token && message.contains("Invalid credentials") => HubError::BadToken {
                endpoint: self.endpoint.clone(),
            },
            (_, 403, _) => HubError::Forbidden {
                url: url.to_string(),
                message: message.to_string(),
            },
            // A hub does not tell a stranger a private model from one that does not exist.
            ("RepoNotFound", ..) | (_, 401 | 404, _) => HubError::NoModel {
                repo,
                endpoint: self.endpoint.clone(),
                token,
            },
            _ => HubError::Status {
                url: url.to_string(),
                status,
                message: match message {
                    "" => String::new(),
                    text => format!(" ({text})"),
                },
            },
        })
    }

    /// Tries until `attempt` succeeds, fails for good, or brings nothing several times in a row.
    pub(super) fn retry<T>(
        &self,
        url: &str,
        watch: &Watch<'_>,
        attempt: &mut dyn FnMut() -> Result<T, Failure>,
    ) -> Result<T, HubError> {
        let mut failed = 0;
        loop {
            let (why, pause) = match attempt() {
                Ok(value) => return Ok(value),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Busy(pause)) => {
                    failed += 1;
                    let pause = pause.unwrap_or_else(|| self.backoff(failed));
                    if pause > LONGEST_WAIT || failed >= self.tries {
                        return Err(HubError::Busy {
                            endpoint: self.endpoint.clone(),
                            seconds: pause.as_secs_f64().ceil() as u64,
                            token: self.token.is_some(),
                        });
                    }
                    ("too many requests (429)".to_string(), pause)
                }
                Err(Failure::Lost { why, moved }) => {
                    failed = if moved { 1 } else { failed + 1 };
                    if failed >= self.tries && !moved {
                        return Err(HubError::Lost {
                            url: url.to_string(),
                            why,
                            tries: failed,
                        });
                    }
                    (why, self.backoff(failed))
                }
            };
            let event = DownloadEvent::Waiting {
                url,
                why: &why,
                pause,
            };
            (watch.told)(event);
            watch.pause(pause);
            if watch.stopped.load(Ordering::Relaxed) {
                return Err(HubError::Lost {
                    url: url.to_string(),
                    why,
                    tries: failed,
                });
            }
        }
    }

    fn backoff(&self, failed: u32) -> Duration {
        self.pause * 2u32.saturating_pow(failed.saturating_sub(1).min(6))
    }
}

/// Gives the failure that a request's error stands for, where no answer came.
fn failure(error: ureq::Error, url: &str) -> Failure {
    let url = url.to_string();
    match error {
        // It comes as one of the connection's, and will come again.
        ureq::Error::Io(error) if error.to_string().contains("certificate") => {
            let why = error.to_string();
            Failure::Final(HubError::Certificate { url, why })
        }
        ureq::Error::Io(error) => Failure::lost(error.to_string()),
        ureq::Error::Timeout(_)
        | ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Protocol(_) => Failure::lost(error.to_string()),
        // Such as an address that is none.
        _ => Failure::Final(HubError::Odd {
            url,
            what: error.to_string(),
        }),
    }
}

/// Reads how long the server asks to wait: `Retry-After`, or the `t` of
/// `RateLimit: "api";r=0;t=55`.
fn asked_pause(headers: &HeaderMap) -> Option<Duration> {
    if let Some(text) = header(headers, "retry-after") {
        return text.parse().ok().map(Duration::from_secs);
    }
    let limit = header(headers, "ratelimit")?;
    let seconds = limit
        .split(';')
        .find_map(|part| part.trim().strip_prefix("t="))?;
    seconds.parse().ok().map(Duration::from_secs)
}

/// Scheme, host and port of an address.
fn origin(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return String::new();
    };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    format!("{scheme}://{host}").to_ascii_lowercase()
}

/// Gives the address that `Location: target` of an answer from `url` leads to.
fn join(url: &str, target: &str) -> String {
    let base = origin(url);
    if target.contains("://") {
        target.to_string()
    } else if let Some(rest) = target.strip_prefix("//") {
        let scheme = url.split("://").next().unwrap_or("https");
        format!("{scheme}://{rest}")
    } else if target.starts_with('/') {
        format!("{base}{target}")
    } else {
        let path = url.split(['?', '#']).next().unwrap_or(url);
        let folder = match path.rfind('/') {
            Some(at) if at > base.len() => &path[..at],
            _ => &base,
        };
        format!("{folder}/{target}")
    }
}

/// A text as a part of an address; with `slashes`, `/` stays.
pub(super) fn encode(text: &str, slashes: bool) -> String {
    let mut out = String::new();
    for b in text.bytes() {
        let plain = b.is_ascii_alphanumeric() || b"-_.~".contains(&b) || slashes && b == b'/';
        match plain {
            true => out.push(b as char),
            false => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say() {
        let from = "https://hub.example/a/b/c?x=/y";
        for (target, leads) in [
            ("https://cdn.example/z", "https://cdn.example/z"),
            ("//cdn.example/z", "https://cdn.example/z"),
            ("/z?q", "https://hub.example/z?q"),
            ("z", "https://hub.example/a/b/z"),
        ] {
            assert_eq!(join(from, target), leads);
        }
        assert_eq!(join("https://hub.example", "z"), "https://hub.example/z");
    }

    #[test]
    fn a_host_is_told_from_one_that_looks_like_it() {
        let hub = origin("https://hub.example");
        assert_eq!(origin("https://HUB.example/x"), hub);
        for other in [
            "http://hub.example/x",
            "https://hub.example:8443/x",
            "https://hub.example@evil.example/x",
            "https://hub.example.evil.example/x",
            "https://evil.example/https://hub.example",
            "hub.example",
        ] {
            assert_ne!(origin(other), hub, "{other}");
        }
    }

    #[test]
    fn the_server_says_how_long_to_wait() {
        let pause = |name: &'static str, value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap());
            asked_pause(&headers).map(|d| d.as_secs())
        };
        assert_eq!(pause("retry-after", "120"), Some(120));
        assert_eq!(pause("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), None);
        assert_eq!(pause("ratelimit", "\"api\";r=0;t=55"), Some(55));
        assert_eq!(pause("date", "120"), None);
    }

    #[test]
    fn names_become_parts_of_addresses() {
        assert_eq!(encode("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(encode("a b/\u{e9}?.json", true), "a%20b/%C3%A9%3F.json");
    }
}
