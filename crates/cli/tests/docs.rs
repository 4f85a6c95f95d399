//! README.md and docs/: their commands work, their links lead to files and headings, the README is
//! short, and docs/cli.md is what the program says of itself.
//!
//! The program is run for every line of a `sh` block that begins with `sdxl`, page by page, in a
//! folder of its own for each page: a command may use the files of those above it. A block that
//! needs a download is marked `sh download`, one that takes minutes `sh slow`; neither is run.

mod support;

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use support::{sdxl, text};
use tempfile::TempDir;

/// The pages below docs/ that have to be there, with a command that works at their beginning.
const TOPICS: [&str; 12] = [
    "adding-a-kernel",
    "adding-a-scheduler",
    "cli",
    "fidelity",
    "images",
    "library",
    "loras",
    "memory",
    "models",
    "prompts",
    "recipes",
    "sampling",
];

/// The one page that begins with a measurement, which takes minutes.
const MEASUREMENTS: &str = "docs/performance.md";

/// Files beside the pages whose links are followed, too.
const OTHERS: [&str; 3] = ["ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"];

/// Programs that lines of `sh` blocks may begin with and that are not run here: they build and
/// test this project, or time it beside other programs.
const NOT_RUN: [&str; 4] = ["cargo", "git", "pip", "python"];

/// The line of the README that runs the program from its source.
const FROM_SOURCE: &str = "cargo run --release -- ";

const README_LINES: usize = 120;
const README_WORDS: usize = 700;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A file in Markdown.
struct Page {
    /// Its path below the repository.
    name: String,
    text: String,
}

/// A block between lines of three backticks.
struct Fence {
    /// The words behind the opening backticks.
    info: String,
    /// Lines with their numbers in the file.
    lines: Vec<(usize, String)>,
    /// Whether a heading of a section stands above it.
    in_section: bool,
}

/// A line of a `sh` block.
struct Command {
    line: usize,
    text: String,
    /// Arguments for the program; none where another program is meant.
    args: Option<Vec<String>>,
}

impl Page {
    fn read(name: &str) -> Page {
        let text = fs::read_to_string(root().join(name));
        Page {
            name: name.to_owned(),
            text: text.unwrap_or_else(|error| panic!("{name}: {error}")),
        }
    }

    /// The lines outside of fences, numbered, and the fences.
    fn parts(&self) -> (Vec<(usize, &str)>, Vec<Fence>) {
        let (mut prose, mut fences) = (Vec::new(), Vec::new());
        let mut open: Option<Fence> = None;
        let mut in_section = false;
        for (line, text) in (1..).zip(self.text.lines()) {
            match (&mut open, text.strip_prefix("```")) {
                (Some(_), Some("")) => fences.extend(open.take()),
                (Some(fence), _) => fence.lines.push((line, text.to_owned())),
                (None, Some(info)) => {
                    open = Some(Fence {
                        info: info.to_owned(),
                        lines: Vec::new(),
                        in_section,
                    });
                }
                (None, None) => {
                    in_section |= text.starts_with("## ");
                    prose.push((line, text));
                }
            }
        }
        assert!(open.is_none(), "{}: a block is not closed", self.name);
        (prose, fences)
    }

    /// The commands of its `sh` blocks that are run here, in their order.
    fn commands(&self) -> Vec<Command> {
        let (_, fences) = self.parts();
        let runs = fences.iter().filter(|fence| self.is_run(&fence.info));
        runs.flat_map(|fence| commands(&self.name, &fence.lines))
            .collect()
    }

    /// Whether the commands of a block are run; a mark that nobody knows fails, so that a slip of
    /// the pen leaves no command out.
    fn is_run(&self, info: &str) -> bool {
        match info {
            "sh" => true,
            "sh download" | "sh slow" | "rust" | "text" | "json" => false,
            other => panic!(
                "{}: ```{other} is none of the blocks that CONTRIBUTING.md names",
                self.name
            ),
        }
    }

    /// The names by which links find its headings, as GitHub makes them.
    fn anchors(&self) -> HashSet<String> {
        let (prose, _) = self.parts();
        let headings = prose.iter().filter(|(_, line)| line.starts_with('#'));
        headings
            .map(|(_, line)| anchor(line.trim_start_matches('#')))
            .collect()
    }
}

/// The name by which links find a heading: lower case, hyphens for blanks, no punctuation.
fn anchor(heading: &str) -> String {
    let kept = heading
        .trim()
        .chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
    let kept: String = kept.collect();
    kept.to_lowercase().replace(' ', "-")
}

/// The README and all pages below docs/.
fn pages() -> Vec<Page> {
    let folder = fs::read_dir(root().join("docs")).unwrap();
    let names = folder.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names
        .filter(|name| name.ends_with(".md"))
        .map(|name| format!("docs/{name}"))
        .collect();
    names.push("README.md".into());
    names.sort();
    names.iter().map(|name| Page::read(name)).collect()
}

/// The commands in the lines of a block: comments are left out, and lines that end in a backslash
/// go on in the next.
fn commands(page: &str, lines: &[(usize, String)]) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut joined: Option<(usize, String)> = None;
    for (line, part) in lines {
        let (line, so_far) = joined.take().unwrap_or((*line, String::new()));
        let text = so_far + part.trim_start();
        match text.strip_suffix('\\') {
            Some(text) => joined = Some((line, text.to_owned())),
            None => commands.extend(command(page, line, &text)),
        }
    }
    assert!(joined.is_none(), "{page}: a block ends in a backslash");
    commands
}

/// The command of a line; none where it is empty or a comment.
fn command(page: &str, line: usize, text: &str) -> Option<Command> {
    let from_source = text.strip_prefix(FROM_SOURCE);
    let meant = from_source.map_or_else(|| text.to_owned(), |args| format!("sdxl {args}"));
    let words = shlex::split(&meant);
    let words = words.unwrap_or_else(|| panic!("{page}:{line}: a quote is open: {text}"));
    let first = words.first()?.as_str();
    for word in &words {
        let shell = ["|", "&&", "||", ";", "&", ">", ">>", "<", "2>&1"];
        assert!(
            !shell.contains(&word.as_str()) && !word.starts_with(['$', '~']),
            "{page}:{line}: {word} needs a shell, and this test has none: {text}"
        );
    }
    let ours = first == "sdxl";
    assert!(
        ours || NOT_RUN.contains(&first),
        "{page}:{line}: begins neither with sdxl nor with {NOT_RUN:?}: {text}"
    );
    Some(Command {
        line,
        text: text.to_owned(),
        args: ours.then(|| words[1..].to_vec()),
    })
}

/// Runs the commands of a page in an empty folder.
fn run(page: &Page) -> Result<usize, String> {
    let folder = TempDir::new().unwrap();
    let mut count = 0;
    for Command { line, text, args } in page.commands() {
        let Some(args) = args else { continue };
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let start = Instant::now();
        let done = sdxl(folder.path(), &args);
        if !done.status.success() {
            return Err(format!(
                "{}:{line}: {text}\n{}\n{}{}",
                page.name,
                done.status,
                self::text(&done.stdout),
                self::text(&done.stderr)
            ));
        }
        println!(
            "{:6.2} s  {}:{line}",
            start.elapsed().as_secs_f64(),
            page.name
        );
        count += 1;
    }
    Ok(count)
}

#[test]
fn every_command_works() {
    let pages = pages();
    let failures: Vec<String> = thread::scope(|scope| {
        let started: Vec<_> = pages
            .iter()
            .map(|page| (page, scope.spawn(|| run(page))))
            .collect();
        let ended = started.into_iter().map(|(page, thread)| {
            let ran = thread.join().unwrap_or_else(|_| Err("see above".into()));
            match ran {
                Ok(0) if page.name != MEASUREMENTS => {
                    Err(format!("{}: no command was found", page.name))
                }
                other => other,
            }
        });
        ended.filter_map(Result::err).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_page_begins_with_a_command() {
    let pages = pages();
    for topic in TOPICS {
        let name = format!("docs/{topic}.md");
        assert!(
            pages.iter().any(|page| page.name == name),
            "there is no {name}"
        );
    }
    for page in pages.iter().filter(|page| page.name != MEASUREMENTS) {
        let (_, fences) = page.parts();
        let first = fences.first();
        let first = first.unwrap_or_else(|| panic!("{}: no command", page.name));
        let begins = page.is_run(&first.info) && !first.in_section;
        let commands = commands(&page.name, &first.lines);
        assert!(
            begins && commands.first().is_some_and(|c| c.args.is_some()),
            "{}: the first block, before any section, is to begin with a command of the program",
            page.name
        );
    }
}

#[test]
fn the_readme_is_short() {
    let readme = Page::read("README.md").text;
    let (lines, words) = (readme.lines().count(), readme.split_whitespace().count());
    println!("README.md: {lines} lines, {words} words");
    assert!(
        lines <= README_LINES && words <= README_WORDS,
        "README.md has {lines} lines and {words} words; at most {README_LINES} and {README_WORDS}: \
         move what is too much to a page below docs/"
    );
}

/// The targets of links and pictures in a line.
fn targets(line: &str) -> impl Iterator<Item = &str> {
    let behind = line.split("](").skip(1);
    behind.filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
}

#[test]
fn links_lead_to_files_and_headings() {
    let others = OTHERS.map(Page::read);
    let mut followed = 0;
    for page in pages().iter().chain(&others) {
        let here = root().join(&page.name);
        let (prose, _) = page.parts();
        for (line, target) in
            (prose.iter()).flat_map(|(n, text)| targets(text).map(move |t| (n, t)))
        {
            if target.contains("://") {
                continue;
            }
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let at = if path.is_empty() {
                here.clone()
            } else {
                here.with_file_name(path)
            };
            assert!(
                at.exists(),
                "{}:{line}: {target} leads to no file",
                page.name
            );
            if !heading.is_empty() {
                let there = Page {
                    name: at.display().to_string(),
                    text: fs::read_to_string(&at).unwrap(),
                };
                assert!(
                    there.anchors().contains(heading),
                    "{}:{line}: {target} leads to no heading",
                    page.name
                );
            }
            followed += 1;
        }
    }
    assert!(followed > 20, "only {followed} links were found");
}

/// The page that is generated. Where the program can sign pictures it has two flags more, which the
/// page leaves to docs/recipes.md.
#[cfg(not(feature = "c2pa"))]
mod command_line {
    use std::fmt::Write;
    use std::fs;
    use std::process::Command;

    use super::{anchor, root, text};

    const BEGINNING: &str = "\
# The command line

```sh
sdxl --help
```

Everything that the program takes, in its own words, under diffusers' names and with diffusers' defaults.
`sdxl COMMAND --help` prints the same. This page is generated: see
[CONTRIBUTING.md](../CONTRIBUTING.md#documentation).
";

    /// Adds the help of a command, and of all below it, to `helps`: words and text.
    fn collect(words: &[&str], helps: &mut Vec<(String, String)>) {
        let done = Command::new(env!("CARGO_BIN_EXE_sdxl"))
            .args(words)
            .arg("--help")
            .env("COLUMNS", "100") // counts where no terminal is written to
            .output()
            .unwrap();
        assert!(done.status.success(), "{words:?} --help");
        let help = text(&done.stdout);
        let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
        let name = [&["sdxl"], words].concat().join(" ");
        helps.push((name, lines.join("\n").trim_end().to_owned()));
        let below = lines.iter().skip_while(|line| **line != "Commands:");
        for line in below.skip(1).take_while(|line| !line.is_empty()) {
            // The second line of a description stands further in than a name.
            let name = line
                .strip_prefix("  ")
                .filter(|name| !name.starts_with(' '));
            match name.and_then(|name| name.split(' ').next()) {
                None | Some("help") => {}
                Some(name) => collect(&[words, &[name]].concat(), helps),
            }
        }
    }

    fn page() -> String {
        let mut helps = Vec::new();
        collect(&[], &mut helps);
        assert!(helps.len() > 15, "only {} commands were found", helps.len());
        let mut page = format!("{BEGINNING}\n");
        for (name, help) in &helps {
            let about = help.split("\n\n").next().unwrap_or_default();
            let about = about.replace('\n', " ");
            writeln!(page, "- [`{name}`](#{}): {about}", anchor(name)).unwrap();
        }
        for (name, help) in &helps {
            write!(page, "\n## {name}\n\n```text\n{help}\n```\n").unwrap();
        }
        page
    }

    #[test]
    fn the_page_is_what_the_program_says() {
        let path = root().join("docs/cli.md");
        let now = page();
        if std::env::var_os("SDXL_UPDATE_DOCS").is_some() {
            fs::write(&path, &now).unwrap();
        }
        let stored = fs::read_to_string(&path).unwrap_or_default();
        let mut lines = (1..).zip(stored.lines().zip(now.lines()));
        let unlike = lines.find(|(_, (stored, now))| stored != now);
        assert!(
            stored == now,
            "docs/cli.md is not what the program says now, first at {unlike:?} (line, there, now); \
             SDXL_UPDATE_DOCS=1 cargo test -p sdxl-cli --test docs writes it again"
        );
    }
}

#[test]
fn blocks_and_their_commands_are_found() {
    let page = Page {
        name: "page".into(),
        text:
            "# Page\n\n```sh\n# first\nsdxl generate \"a (b)1.3\" \\\n    -o a.png  # a comment\n\
               cargo test\n```\n\n## Part One, or `two`\n\n```sh download\nsdxl never\n```\n\
               ```sh\ncargo run --release -- show a.png\n```\nsdxl is no command here\n"
                .into(),
    };
    let found: Vec<_> = page.commands();
    let found: Vec<_> = found.into_iter().map(|c| (c.line, c.args)).collect();
    let args = |words: &[&str]| Some(words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
    assert_eq!(
        found,
        [
            (5, args(&["generate", "a (b)1.3", "-o", "a.png"])),
            (7, None),
            (16, args(&["show", "a.png"])),
        ]
    );
    let (_, fences) = page.parts();
    let places: Vec<_> = fences.iter().map(|fence| fence.in_section).collect();
    assert_eq!(places, [false, true, true]);
    assert!(page.anchors().contains("part-one-or-two"));
    let links = "see [a](b.md#c) and ![d](e.png), not [f] (g)";
    assert_eq!(targets(links).collect::<Vec<_>>(), ["b.md#c", "e.png"]);
}

#[test]
#[should_panic(expected = "needs a shell")]
fn a_command_for_a_shell_is_refused() {
    command("page", 1, "sdxl show a.png | less");
}

#[test]
#[should_panic(expected = "is none of the blocks")]
fn a_block_with_an_unknown_mark_is_refused() {
    let page = Page {
        name: "page".into(),
        text: "```sh donwload\nsdxl show\n```\n".into(),
    };
    page.commands();
}

#[test]
fn a_command_that_fails_is_told_with_its_place_and_its_output() {
    let page = Page {
        name: "page".into(),
        text: "```sh\nsdxl aspects\nsdxl show nothing.png\n```\n".into(),
    };
    let told = run(&page).unwrap_err();
    for part in [
        "page:3",
        "sdxl show nothing.png",
        "exit status: 2",
        "nothing.png: ",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}
