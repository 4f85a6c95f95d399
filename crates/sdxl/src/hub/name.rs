//! Names of models on a hub: `ORG/NAME[/FILE][@REVISION]`.

use std::fmt;

/// A model on a hub, or one file of it, at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// `ORG/NAME`.
    pub repo: String,
    /// One `.safetensors` file of the repository, with `/` between folders.
    pub file: Option<String>,
    /// A branch, a tag or a commit; the hub's `main` where none is named.
    pub revision: Option<String>,
}

impl ModelName {
    /// Reads a name. `None` where the text cannot be one, as most paths cannot.
    ///
    /// The hub's rule for `ORG` and `NAME`: up to 96 letters, digits, `-`, `_` and `.` in all,
    /// neither `--` nor `..`, no `-` or `.` at an end. A revision may have `/` in it
    /// (`refs/pr/3`), so it comes last.
    pub fn parse(text: &str) -> Option<ModelName> {
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        if revision.is_some_and(|r| !is_revision(r)) {
            return None;
        }
        let mut parts = path.splitn(3, '/');
        let (org, name, file) = (parts.next()?, parts.next()?, parts.next());
        let allowed = |part: &str| {
            let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
            let ends = |c: char| c == '-' || c == '.';
            !part.is_empty()
                && part.bytes().all(word)
                && !part.starts_with(ends)
                && !part.ends_with(ends)
        };
        let repo = format!("{org}/{name}");
        let twice = repo.contains("--") || repo.contains("..");
        if !allowed(org) || !allowed(name) || twice || repo.len() > 96 {
            return None;
        }
        // A file that is not there, rather than a repository called like one.
        if file.is_none() && is_weight_file(name) {
            return None;
        }
        if file.is_some_and(|f| !f.ends_with(".safetensors") || !is_relative(f)) {
            return None;
        }
        Some(ModelName {
            repo,
            file: file.map(str::to_string),
            revision: revision.map(str::to_string),
        })
    }

    /// The revision to ask for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// The same model at `commit`.
    pub fn at(&self, commit: &str) -> ModelName {
        ModelName {
            revision: Some(commit.to_string()),
            ..self.clone()
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        Ok(())
    }
}

/// Whether a path from elsewhere stays inside the folder that it is joined to, on any system.
pub(super) fn is_relative(path: &str) -> bool {
    let plain = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains(['\\', ':', '\0'])
    };
    path.split('/').all(plain)
}

/// Whether a text is a commit's full hash, which never comes to mean another state.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

fn is_revision(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/' | b'+');
    text.bytes().all(word) && is_relative(text)
}

fn is_weight_file(name: &str) -> bool {
    let endings = [".safetensors", ".ckpt", ".gguf", ".pt", ".pth", ".bin"];
    let name = name.to_ascii_lowercase();
    endings.iter().any(|ending| name.ends_with(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_printed_alike() {
        for text in [
            "stabilityai/stable-diffusion-xl-base-1.0",
            "org/name@main",
            "org/name@refs/pr/3",
            "org/name@462165984030d82259a11f4367a4eed129e94a7b",
            "org/name/file.safetensors",
            "org/name/folder/file.safetensors@v1.0",
        ] {
            assert_eq!(ModelName::parse(text).unwrap().to_string(), text);
        }
        let name = ModelName::parse("a/b/c/d.safetensors@x/y").unwrap();
        assert_eq!(name.repo, "a/b");
        assert_eq!(name.file.as_deref(), Some("c/d.safetensors"));
        assert_eq!(name.revision(), "x/y");
        assert_eq!(ModelName::parse("a/b").unwrap().revision(), "main");
    }

    #[test]
    fn paths_are_no_names() {
        for text in [
            "",
            "demo",
            "/",
            "a/",
            "/a/b",
            "./a",
            "a/b/",
            "../a/b",
            "a/..",
            "a/b/c",
            "a/b@",
            "a/b@../c",
            "a/b@c//d",
            "a--b/c",
            "a/.b",
            "-a/b",
            "a/b/../c.safetensors",
            "models/base.safetensors",
            "models/BASE.CKPT",
            "a b/c",
            "a/b\u{e9}",
            "C:\\a/b",
            "a/b/c\\d.safetensors",
        ] {
            assert_eq!(ModelName::parse(text), None, "{text}");
        }
        assert_eq!(ModelName::parse(&format!("a/{}", "b".repeat(95))), None);
    }
}
