//! The SHA-256 of files that were hashed before: reading a checkpoint's 7 GB again at every run
//! would take a core for seconds.
//!
//! A wrong hash in a recipe would be a lie. So a remembered one counts only while the file has the
//! same length, inode, and times of writing and of change (which no program can set back), and it is
//! remembered only where these were some time past when hashing began: within the clock's tick a
//! file can be written again without a trace.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use sdxl::Checkpoint;
use sdxl::files::{self, FileHash};
use sdxl::recipe;
use serde::{Deserialize, Serialize};
use tempfile::NamedTempFile;

use crate::environment;
use crate::error::Result;

/// Files that are remembered at most: those hashed last.
const MOST: usize = 256;

/// The time for which a file must have been left alone.
const SETTLED: Duration = Duration::from_secs(2);

/// A file as it was.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    path: PathBuf,
    bytes: u64,
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds since 1970.
    written: (i64, i64),
    changed: (i64, i64),
}

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    file: Stamp,
    sha256: String,
}

/// The hashes that are remembered.
#[derive(Debug, Clone)]
pub struct HashCache {
    // None: nothing can be remembered here.
    path: Option<PathBuf>,
}

impl HashCache {
    /// Names the hashes in the user's cache folder; without such a folder none are remembered.
    pub fn of_user() -> HashCache {
        HashCache {
            path: environment::hashes_file(),
        }
    }

    /// Hashes all weight files of a checkpoint and those added to it, as recipes name them
    /// ([`recipe::hash_weights`]).
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn hash_weights(&self, checkpoint: &Checkpoint) -> Result<Vec<FileHash>> {
        let hash = |path: &Path| self.hash_file(path);
        Ok(recipe::hash_weights(checkpoint, &hash)?)
    }

    /// Finds size (in bytes) and SHA-256 (in hexadecimal) of a file, remembered or read now.
    ///
    /// # Errors
    /// A file that cannot be read. A cache that cannot be is as good as none.
    pub fn hash_file(&self, path: &Path) -> sdxl::Result<(u64, String)> {
        let (Some(cache), Some(before)) = (&self.path, Stamp::of(path)) else {
            return files::hash_file(path);
        };
        if let Some(entry) = read(cache).into_iter().find(|e| e.file == before) {
            return Ok((before.bytes, entry.sha256));
        }
        let began = SystemTime::now();
        let (bytes, sha256) = files::hash_file(path)?;
        let same = Stamp::of(path).as_ref() == Some(&before) && bytes == before.bytes;
        if same && before.settled(began) {
            let entry = Entry {
                file: before,
                sha256: sha256.clone(),
            };
            // Without it the next run hashes again.
            let _ = remember(cache, entry);
        }
        Ok((bytes, sha256))
    }
}

impl Stamp {
    /// Looks at a file; nothing where the system does not tell files apart so.
    #[cfg(unix)]
    fn of(path: &Path) -> Option<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let path = std::fs::canonicalize(path).ok()?;
        let data = std::fs::metadata(&path).ok()?;
        // JSON has no other text than Unicode.
        path.to_str()?;
        Some(Stamp {
            path,
            bytes: data.len(),
            device: data.dev(),
            inode: data.ino(),
            written: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        })
    }

    #[cfg(not(unix))]
    fn of(_: &Path) -> Option<Stamp> {
        None
    }

    /// Whether it was left alone for long enough before `now`.
    fn settled(&self, now: SystemTime) -> bool {
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        let latest = now.saturating_sub(SETTLED).as_secs() as i64;
        self.written.0 < latest && self.changed.0 < latest
    }
}

/// Reads what is remembered; nothing where that is damaged.
fn read(cache: &Path) -> Vec<Entry> {
    let bytes = std::fs::read(cache).unwrap_or_default();
    let entries: Vec<Entry> = serde_json::from_slice(&bytes).unwrap_or_default();
    let is_hash =
        |e: &Entry| e.sha256.len() == 64 && e.sha256.bytes().all(|b| b.is_ascii_hexdigit());
    entries.into_iter().filter(is_hash).collect()
}

/// Writes an entry, through a file of another name, so that no reader sees half of one. Of two
/// programs that write at once, one's entry may be lost, and is found again another time.
fn remember(cache: &Path, entry: Entry) -> std::io::Result<()> {
    let mut entries = read(cache);
    entries.retain(|e| e.file.path != entry.file.path);
    entries.push(entry);
    let surplus = entries.len().saturating_sub(MOST);
    entries.drain(..surplus);
    let folder = cache.parent().unwrap_or(Path::new(""));
    std::fs::create_dir_all(folder)?;
    let file = NamedTempFile::new_in(folder)?;
    std::fs::write(file.path(), serde_json::to_vec(&entries)?)?;
    file.persist(cache).map_err(|e| e.error)?;
    Ok(())
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    const OLD: Duration = Duration::from_secs(3600);

    fn entry(file: Stamp) -> Entry {
        // Not the true one: so it shows where a hash comes from.
        let sha256 = "0".repeat(64);
        Entry { file, sha256 }
    }

    #[test]
    fn what_is_remembered_counts_only_for_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("new/hashes.json");
        let known = HashCache {
            path: Some(cache.clone()),
        };
        let path = dir.path().join("weights");
        std::fs::write(&path, "abc").unwrap();
        let truth = files::hash_file(&path).unwrap();
        // Written a moment ago: nothing is remembered.
        assert_eq!(known.hash_file(&path).unwrap(), truth);
        assert!(read(&cache).is_empty());
        let stamp = Stamp::of(&path).unwrap();
        remember(&cache, entry(stamp.clone())).unwrap();
        assert_eq!(known.hash_file(&path).unwrap(), (3, "0".repeat(64)));
        let others: [fn(&mut Stamp); 5] = [
            |s| s.bytes += 1,
            |s| s.inode += 1,
            |s| s.device += 1,
            |s| s.written.1 ^= 1,
            |s| s.changed.1 ^= 1,
        ];
        for change in others {
            let mut other = stamp.clone();
            change(&mut other);
            remember(&cache, entry(other)).unwrap();
            assert_eq!(read(&cache).len(), 1);
            assert_eq!(known.hash_file(&path).unwrap(), truth);
        }
        // Its length and times set back, it is still another file.
        remember(&cache, entry(stamp.clone())).unwrap();
        let written = std::fs::metadata(&path).unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, "xyz").unwrap();
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(written).unwrap();
        assert_eq!(Stamp::of(&path).unwrap().written, stamp.written);
        let now = files::hash_file(&path).unwrap();
        assert_eq!(known.hash_file(&path).unwrap(), now);
    }

    #[test]
    fn only_files_that_were_left_alone_are_settled() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("weights");
        std::fs::write(&path, "abc").unwrap();
        let stamp = Stamp::of(&path).unwrap();
        let now = SystemTime::now();
        assert!(!stamp.settled(now) && !stamp.settled(now - OLD));
        assert!(stamp.settled(now + OLD));
        let mut old = stamp.clone();
        old.written.0 -= 3600;
        // Its contents are old, but it was put there now.
        assert!(!old.settled(now));
    }

    #[test]
    fn a_damaged_or_crowded_cache_does_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("hashes.json");
        std::fs::write(&cache, "[{\"file\":").unwrap();
        assert!(read(&cache).is_empty());
        let path = dir.path().join("weights");
        std::fs::write(&path, "abc").unwrap();
        let stamp = Stamp::of(&path).unwrap();
        for i in 0..MOST + 3 {
            let path = PathBuf::from(format!("{i}"));
            remember(
                &cache,
                entry(Stamp {
                    path,
                    ..stamp.clone()
                }),
            )
            .unwrap();
        }
        let entries = read(&cache);
        assert_eq!(entries.len(), MOST);
        assert_eq!(entries[0].file.path, PathBuf::from("3"));
    }
}
