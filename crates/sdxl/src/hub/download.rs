//! Fetching files: several at once, each where it was left off, each checked.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::cache::{RepoFolder, make_folder_of};
use super::digest::{Hasher, Id};
use super::error::HubError;
use super::event::DownloadEvent;
use super::http::{About, Answer, Client, Failure, Method, Watch, encode};
use super::listing::Listing;

/// Files that are fetched at the same time.
const AT_ONCE: usize = 4;

/// Fetches files of one model at one commit into its cache folder.
pub(super) struct Downloader<'a> {
    pub client: &'a Client,
    pub folder: &'a RepoFolder,
    pub listing: &'a Listing,
    pub repo: &'a str,
    pub watch: &'a Watch<'a>,
}

/// A file that is to be fetched, as the hub describes it.
struct Described {
    file: String,
    url: String,
    /// The name of the file's contents in the cache (the hub's ETag).
    etag: String,
    size: u64,
    id: Option<Id>,
}

impl Downloader<'_> {
    /// Brings `files` into the snapshot, but for those that are there.
    ///
    /// # Errors
    /// If several occur, the first that happened.
    pub(super) fn bring(&self, files: &[String]) -> Result<(), HubError> {
        let snapshot = self.folder.snapshot(&self.listing.commit);
        let missing: Vec<&String> = (files.iter())
            .filter(|file| !self.is_there(&snapshot.join(file), file))
            .collect();
        let described = self.each(&missing, &|file| self.describe(file))?;
        let mut to_come: Vec<&Described> = described.iter().collect();
        // The largest first: the last file to end is then a small one.
        to_come.sort_by_key(|d| std::cmp::Reverse(d.size));
        self.check_disk(&to_come)?;
        self.each(&to_come, &|described| self.fetch(described))?;
        Ok(())
    }

    /// Does the same with every item, several at once; results come in the order of the items.
    fn each<T: Sync, R: Send>(
        &self,
        items: &[T],
        work: &(dyn Fn(&T) -> Result<R, HubError> + Sync),
    ) -> Result<Vec<R>, HubError> {
        let next = AtomicUsize::new(0);
        let done = Mutex::new(Vec::new());
        let failed = Mutex::new(None);
        let stopped: &AtomicBool = &self.watch.stopped;
        std::thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(items.len()) {
                scope.spawn(|| {
                    while !stopped.load(Ordering::Relaxed) {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(item) = items.get(index) else {
                            return;
                        };
                        match work(item) {
                            Ok(result) => lock(&done).push((index, result)),
                            Err(error) => {
                                stopped.store(true, Ordering::Relaxed);
                                lock(&failed).get_or_insert(error);
                            }
                        }
                    }
                });
            }
        });
        if let Some(error) = failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(error);
        }
        let mut done = done.into_inner().unwrap_or_else(|e| e.into_inner());
        done.sort_by_key(|(index, _)| *index);
        Ok(done.into_iter().map(|(_, result)| result).collect())
    }

    /// Whether the snapshot has a file, of the size that the hub says.
    fn is_there(&self, path: &Path, file: &str) -> bool {
        let size = self.listing.files.get(file).and_then(|f| f.size);
        fs::metadata(path).is_ok_and(|m| m.is_file() && size.is_none_or(|s| s == m.len()))
    }

    fn about<'a>(&'a self, file: &'a str) -> About<'a> {
        About {
            repo: self.repo,
            revision: &self.listing.commit,
            file: Some(file),
        }
    }

    /// Asks what a file is. The list says most of it; the name that the contents have in the
    /// cache is what the server says here, as it is for Python.
    fn describe(&self, file: &str) -> Result<Described, HubError> {
        let commit = &self.listing.commit;
        let path = format!("{}/resolve/{commit}/{}", self.repo, encode(file, true));
        let url = self.client.url(&path);
        let odd = |what: &str| HubError::Odd {
            url: url.clone(),
            what: what.to_string(),
        };
        let answer = self.client.retry(&url, self.watch, &mut || {
            self.client.send(Method::Head, &url, self.about(file), 0)
        })?;
        if answer.header("x-repo-commit").is_some_and(|c| c != commit) {
            return Err(odd("the file is of another commit than the one asked for"));
        }
        let etag = answer.header("x-linked-etag").or(answer.header("etag"));
        let etag = etag.map(|e| e.trim_start_matches("W/").trim_matches('"').to_string());
        let plain =
            |e: &String| !e.is_empty() && e.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        let etag = etag
            .filter(plain)
            .ok_or_else(|| odd("the answer does not say which contents the file has (ETag)"))?;
        let listed = self.listing.files.get(file);
        let number = |name: &str| {
            answer
                .header(name)
                .and_then(|text| text.parse::<u64>().ok())
        };
        // The length of a redirect is its own.
        let length = number("content-length").filter(|_| answer.status < 300);
        let size = number("x-linked-size")
            .or(length)
            .or(listed.and_then(|l| l.size))
            .ok_or_else(|| odd("the answer does not say how large the file is"))?;
        let id = Id::parse(&etag).or(listed.and_then(|l| l.id.clone()));
        if let (Some(id), Some(listed)) = (&id, listed.and_then(|l| l.id.as_ref()))
            && id != listed
        {
            return Err(odd("the file is not the one that the hub lists"));
        }
        Ok(Described {
            file: file.to_string(),
            url,
            etag,
            size,
            id,
        })
    }

    /// Gives the number of bytes of a file that are still to come.
    fn rest(&self, d: &Described) -> u64 {
        let size = |path: &Path| fs::metadata(path).map_or(0, |m| m.len());
        if size(&self.folder.blob(&d.etag)) == d.size {
            return 0;
        }
        d.size
            .saturating_sub(size(&self.folder.incomplete(&d.etag)))
    }

    fn check_disk(&self, files: &[&Described]) -> Result<(), HubError> {
        let needed: u64 = files.iter().map(|d| self.rest(d)).sum();
        let begin = DownloadEvent::Begin {
            repo: self.repo,
            commit: &self.listing.commit,
            files: files.len(),
            bytes: needed,
        };
        let folder = self.folder.path();
        let there = folder.ancestors().find(|path| path.is_dir());
        // What the system does not say cannot be compared.
        let free = there.and_then(|path| fs4::available_space(path).ok());
        if let Some(free) = free.filter(|free| *free < needed) {
            let path = folder;
            return Err(HubError::DiskFull { path, needed, free });
        }
        if needed > 0 {
            (self.watch.told)(begin);
        }
        Ok(())
    }

    /// Fetches one file and links it into the snapshot.
    fn fetch(&self, d: &Described) -> Result<(), HubError> {
        let blob = self.folder.blob(&d.etag);
        make_folder_of(&blob)?;
        let lock = self.folder.lock(&d.etag);
        // Another model's file, another process, or another revision's.
        if fs::metadata(&blob).map_or(0, |m| m.len()) != d.size || !blob.exists() {
            self.fetch_blob(d)?;
        }
        self.folder.link(&d.etag, &self.listing.commit, &d.file)?;
        drop(lock);
        Ok(())
    }

    fn fetch_blob(&self, d: &Described) -> Result<(), HubError> {
        let path = self.folder.incomplete(&d.etag);
        let failed = |e: std::io::Error| HubError::cache(&path, &e);
        let mut part = PartialFile::open(&path, d).map_err(failed)?;
        for again in [false, true] {
            if part.have < d.size {
                self.client.retry(&d.url, self.watch, &mut || {
                    part.take(
                        |from| {
                            self.client
                                .send(Method::Get, &d.url, self.about(&d.file), from)
                        },
                        self.watch,
                    )
                })?;
            }
            let Some((expected, found)) = part.differs() else {
                break;
            };
            // What was left of another day may have been damaged; what came just now twice is not.
            part.restart().map_err(failed)?;
            if again {
                let _ = fs::remove_file(&path);
                return Err(HubError::WrongHash {
                    file: d.file.clone(),
                    expected,
                    found,
                });
            }
        }
        part.file.sync_data().map_err(failed)?;
        let blob = self.folder.blob(&d.etag);
        fs::rename(&path, &blob).map_err(|e| HubError::cache(&blob, &e))
    }
}

/// A file that has come so far.
struct PartialFile<'a> {
    d: &'a Described,
    path: &'a Path,
    file: File,
    have: u64,
    /// The most it ever had: a server that begins anew each time gets nowhere.
    furthest: u64,
    hasher: Option<Hasher>,
}

impl<'a> PartialFile<'a> {
    /// Opens what is there of a file, or begins one.
    fn open(path: &'a Path, d: &'a Described) -> std::io::Result<PartialFile<'a>> {
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(false);
        let mut part = PartialFile {
            d,
            path,
            file: file.open(path)?,
            have: 0,
            furthest: 0,
            hasher: None,
        };
        let there = part.file.metadata()?.len();
        part.restart_from(if there > d.size { 0 } else { there })?;
        Ok(part)
    }

    /// Throws everything away.
    fn restart(&mut self) -> std::io::Result<()> {
        self.restart_from(0)
    }

    /// Keeps the first `have` bytes, which are hashed again.
    fn restart_from(&mut self, have: u64) -> std::io::Result<()> {
        self.file.set_len(have)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = self.d.id.as_ref().map(|id| id.hasher(self.d.size));
        let mut piece = vec![0; 1 << 20];
        self.have = 0;
        while self.have < have {
            let n = self.file.read(&mut piece)?;
            if n == 0 {
                break;
            }
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&piece[..n]);
            }
            self.have += n as u64;
        }
        self.furthest = self.furthest.max(self.have);
        Ok(())
    }

    /// Sends the request for the rest and writes down what comes, until it ends or breaks.
    fn take(
        &mut self,
        send: impl Fn(u64) -> Result<Answer, Failure>,
        watch: &Watch<'_>,
    ) -> Result<(), Failure> {
        let answer = send(self.have)?;
        let begins = answer.header("content-range").map(|range| {
            let prefix = format!("bytes {}-", self.have);
            range.starts_with(&prefix)
        });
        let broken = |path: &Path, e: std::io::Error| Failure::Final(HubError::cache(path, &e));
        match (answer.status, begins) {
            (206, Some(true)) => {}
            // The whole file, whatever was asked for.
            (200, _) => self.restart().map_err(|e| broken(self.path, e))?,
            _ => {
                self.restart().map_err(|e| broken(self.path, e))?;
                return Err(Failure::lost(
                    "the server does not go on where it was asked to",
                ));
            }
        }
        let mut body = answer.body.into_reader();
        let mut piece = vec![0; 256 << 10];
        loop {
            if watch.stopped.load(Ordering::Relaxed) {
                return Err(Failure::lost("stopped"));
            }
            let moved = self.have > self.furthest;
            let lost = |why: String| Failure::Lost { why, moved };
            match body.read(&mut piece) {
                Ok(0) if self.have == self.d.size => return Ok(()),
                Ok(0) => {
                    self.furthest = self.furthest.max(self.have);
                    return Err(lost("the connection was cut".to_string()));
                }
                // Its hash will not be the right one.
                Ok(n) if self.have + n as u64 > self.d.size => return Ok(()),
                Ok(n) => {
                    (self.file.write_all(&piece[..n])).map_err(|e| broken(self.path, e))?;
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&piece[..n]);
                    }
                    self.have += n as u64;
                    (watch.told)(DownloadEvent::File {
                        path: &self.d.file,
                        done: self.have,
                        size: self.d.size,
                    });
                }
                Err(error) => {
                    self.furthest = self.furthest.max(self.have);
                    return Err(lost(error.to_string()));
                }
            }
        }
    }

    /// The hash that the file should have and the one it has, where they are two.
    fn differs(&mut self) -> Option<(String, String)> {
        let found = self.hasher.take().map(Hasher::finish);
        let right = self.have == self.d.size && found == self.d.id;
        let text = |id: &Option<Id>| id.as_ref().map_or("unknown", Id::text).to_string();
        (!right).then(|| (text(&self.d.id), text(&found)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
