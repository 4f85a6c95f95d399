//! The files of a crate depend on one another in one direction.
//!
//! A file depends on another if it names something that is defined there, by a `use` line or by a
//! path in its text. A name that is only handed on (`pub use`) belongs to the file that defines it,
//! and unit tests do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Files that may need one another, each group with the reason.
const ALLOWED: [(&str, &[&str]); 1] = [
    // A tensor names the device that has its values, and a device's operators take tensors.
    ("sdxl", &["device", "tensor"]),
];

/// The text without comments and unit tests.
fn code(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or(""));
    let code = lines.collect::<Vec<_>>().join("\n");
    code.split("#[cfg(test)]\nmod ")
        .next()
        .unwrap_or("")
        .to_string()
}

/// The single paths of a `use` tree, each with the name that it is used by: `a::{b, c::d as e}` is
/// `a::b` as `b` and `a::c::d` as `e`.
fn paths_of(tree: &str) -> Vec<(String, String)> {
    let tree: String = tree.replace(" as ", "@").split_whitespace().collect();
    let Some((before, inner)) = tree.split_once('{') else {
        let (path, alias) = tree.split_once('@').unwrap_or((&tree, ""));
        let last = path.rsplit("::").next().unwrap_or("");
        let name = if alias.is_empty() { last } else { alias };
        return vec![(path.to_string(), name.to_string())];
    };
    let inner = inner.strip_suffix('}').expect("braces of a use tree match");
    let (mut depth, mut branches) = (0, vec![String::new()]);
    for c in inner.chars() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        match (c, branches.last_mut()) {
            (',', _) if depth == 0 => branches.push(String::new()),
            (_, Some(branch)) => branch.push(c),
            _ => {}
        }
    }
    let branches = branches.iter().filter(|branch| !branch.is_empty());
    branches
        .flat_map(|branch| paths_of(&format!("{before}{branch}")))
        .collect()
}

/// The modules of a crate by their paths, and of each what it names.
struct Crate {
    modules: BTreeSet<Vec<String>>,
    /// The names that modules hand on (`pub use`), and the paths that they stand for.
    handed_on: BTreeMap<Vec<String>, Vec<String>>,
    named: BTreeMap<Vec<String>, Vec<Vec<String>>>,
}

impl Crate {
    fn read(source: &Path) -> Crate {
        let mut files = Vec::new();
        collect(source, &mut files);
        let module = |file: &Path| -> Vec<String> {
            let inside = file.strip_prefix(source).unwrap().with_extension("");
            let parts = inside
                .iter()
                .map(|part| part.to_string_lossy().into_owned());
            parts
                .filter(|part| part != "lib" && part != "main")
                .collect()
        };
        let mut all = Crate {
            modules: files.iter().map(|file| module(file)).collect(),
            handed_on: BTreeMap::new(),
            named: BTreeMap::new(),
        };
        for file in &files {
            let (from, text) = (module(file), code(&std::fs::read_to_string(file).unwrap()));
            all.add(&from, &text);
        }
        all
    }

    fn add(&mut self, from: &[String], text: &str) {
        let mut named = Vec::new();
        let (mut rest, mut outside) = (text, String::new());
        while let Some(at) = rest.find("use ") {
            let line = rest[..at].rsplit('\n').next().unwrap_or("").trim();
            let end = rest[at..].find(';').map_or(rest.len(), |end| at + end);
            outside += &rest[..at];
            if !line.is_empty() && !line.starts_with("pub") {
                // Some other word that ends so.
                (outside, rest) = (outside + "use ", &rest[at + 4..]);
                continue;
            }
            for (path, name) in paths_of(&rest[at + 4..end]) {
                match self.absolute(from, &path) {
                    Some(path) if line.is_empty() => named.push(path),
                    Some(path) => {
                        self.handed_on.insert([from, &[name]].concat(), path);
                    }
                    None => {}
                }
            }
            rest = &rest[end..];
        }
        outside += rest;
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for word in outside.split(|c| !is_path(c)) {
            if (["crate::", "super::", "self::"].iter()).any(|root| word.starts_with(root)) {
                named.extend(self.absolute(from, word.trim_end_matches(':')));
            }
        }
        self.named.insert(from.to_vec(), named);
    }

    /// The path from the crate's root; nothing for names of other crates.
    fn absolute(&self, from: &[String], path: &str) -> Option<Vec<String>> {
        let mut parts: Vec<String> = path.split("::").map(str::to_string).collect();
        let mut base = from.to_vec();
        match parts[0].as_str() {
            "crate" => base.clear(),
            "self" => {}
            "super" => {
                while parts.get(1).is_some_and(|part| part == "super") {
                    base.pop();
                    parts.remove(0);
                }
                base.pop();
            }
            first => {
                let child = [from, &[first.to_string()]].concat();
                return (self.modules.contains(&child)).then(|| [from, &parts].concat());
            }
        }
        Some([base, parts.split_off(1)].concat())
    }

    /// The module that defines what is at `path`.
    fn home(&self, path: &[String]) -> Vec<String> {
        let longest = (0..=path.len())
            .rev()
            .find(|n| self.modules.contains(&path[..*n]));
        let module = &path[..longest.unwrap_or(0)];
        let name = path.get(..module.len() + 1).unwrap_or(module);
        match self.handed_on.get(name) {
            Some(other) => self.home(&[other, &path[name.len()..]].concat()),
            None => module.to_vec(),
        }
    }

    /// The files that each file depends on.
    fn arrows(&self) -> BTreeMap<String, BTreeSet<String>> {
        let homes = |from: &Vec<String>, named: &Vec<Vec<String>>| {
            let homes = named.iter().map(|path| self.home(path));
            let others = homes.filter(|home| home != from && !home.is_empty());
            others.map(|home| home.join("::")).collect()
        };
        let arrows = self
            .named
            .iter()
            .map(|(from, named)| (from.join("::"), homes(from, named)));
        arrows.collect()
    }
}

fn collect(folder: &Path, files: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => collect(&path, files),
            false if path.extension().is_some_and(|extension| extension == "rs") => {
                files.push(path)
            }
            false => {}
        }
    }
}

/// Everything that can be reached from a file.
fn reached(arrows: &BTreeMap<String, BTreeSet<String>>, from: &str) -> BTreeSet<String> {
    let (mut all, mut open) = (BTreeSet::new(), vec![from.to_string()]);
    while let Some(file) = open.pop() {
        for next in arrows.get(&file).into_iter().flatten() {
            if all.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    all
}

/// The groups of files that need one another.
fn circles(arrows: &BTreeMap<String, BTreeSet<String>>) -> BTreeSet<Vec<String>> {
    let all: BTreeMap<_, _> = arrows
        .keys()
        .map(|file| (file, reached(arrows, file)))
        .collect();
    let in_circle = all
        .iter()
        .filter(|(file, reached)| reached.contains(**file));
    in_circle
        .map(|(file, reached)| {
            let back = |other: &&String| all.get(other).is_some_and(|r| r.contains(*file));
            reached.iter().filter(back).cloned().collect()
        })
        .collect()
}

#[test]
fn files_depend_on_one_another_in_one_direction() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    for name in ["kernels", "sdxl", "kit", "cli"] {
        let arrows = Crate::read(&crates.join(name).join("src")).arrows();
        assert!(arrows.len() > 8, "{name}: the files were not found");
        found.extend(circles(&arrows).into_iter().map(|circle| (name, circle)));
    }
    let allowed: Vec<(&str, Vec<String>)> = (ALLOWED.iter())
        .map(|(name, files)| (*name, files.iter().map(|file| file.to_string()).collect()))
        .collect();
    assert_eq!(found, allowed, "these files need one another");
}

#[test]
fn a_circle_is_found_wherever_a_name_is_written() {
    let module = |name: &str| vec![name.to_string()];
    let mut three = Crate {
        modules: ["", "a", "b", "c"]
            .map(|m| if m.is_empty() { vec![] } else { module(m) })
            .into(),
        handed_on: BTreeMap::new(),
        named: BTreeMap::new(),
    };
    three.add(&[], "pub use c::{Other, Thing as That};\nmod a;");
    three.add(
        &module("a"),
        "use std::{fmt, io};\nuse crate::{b::{self, B}, Other};",
    );
    three.add(&module("b"), "fn f() -> super::That { b }");
    assert!(circles(&three.arrows()).is_empty());
    three.add(&module("c"), &code("// crate::b\nfn f() { crate::a::g() }"));
    let circle = ["a", "b", "c"].map(str::to_string).to_vec();
    assert_eq!(circles(&three.arrows()), BTreeSet::from([circle]));
    three.add(
        &module("b"),
        &code("#[cfg(test)]\nmod tests { use crate::a; }"),
    );
    assert_eq!(circles(&three.arrows()).len(), 1);
}
