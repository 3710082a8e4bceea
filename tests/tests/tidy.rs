//! House rules that no compiler checks, held over every tracked file.

use std::path::Path;

use rkube_tests::repo;

/// A source file has one idea; past this it has two.
const FILE_MAX_LINES: usize = 620;
/// Files that may be longer, with the reason beside each: none so far.
const LONG_FILES: &[&str] = &[];
/// The only folders with unsafe code.
const UNSAFE_IN: &[&str] = &["runtime/sys/", "runtime/keeper/"];

struct Source {
    name: String,
    text: String,
}

fn sources(extension: &str) -> Vec<Source> {
    let names = repo::tracked_files().expect("git lists files");
    names
        .into_iter()
        .filter(|name| Path::new(name).extension().is_some_and(|e| e == extension))
        .map(|name| {
            let text = std::fs::read_to_string(repo::source_root().join(&name)).expect("UTF-8");
            Source { name, text }
        })
        .collect()
}

/// Fails with every finding at once.
fn none(findings: Vec<String>) {
    assert!(
        findings.is_empty(),
        "{} findings:\n  {}",
        findings.len(),
        findings.join("\n  ")
    );
}

/// Code of a line, without what follows `//`.
fn code_of(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// Whether a word stands alone in a piece of code.
fn has_word(code: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .any(|(at, _)| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

#[test]
fn files_are_short() {
    let mut found = Vec::new();
    for source in sources("rs")
        .iter()
        .filter(|s| !LONG_FILES.contains(&s.name.as_str()))
    {
        let lines = source.text.lines().count();
        if lines > FILE_MAX_LINES {
            found.push(format!(
                "{}: {lines} lines, at most {FILE_MAX_LINES}",
                source.name
            ));
        }
    }
    none(found);
}

#[test]
fn unsafe_code_is_where_it_may_be() {
    let mut found = Vec::new();
    for source in sources("rs")
        .iter()
        .filter(|s| !UNSAFE_IN.iter().any(|d| s.name.starts_with(d)))
    {
        for (at, line) in source.text.lines().enumerate() {
            // `unsafe` followed by a block, function, implementation or extern.
            let code = code_of(line);
            let opens = [
                "unsafe {",
                "unsafe fn",
                "unsafe impl",
                "unsafe extern",
                "unsafe trait",
            ];
            let quoted = code.contains('"');
            if !quoted && has_word(code, "unsafe") && opens.iter().any(|o| code.contains(o)) {
                found.push(format!("{}:{}: {}", source.name, at + 1, line.trim()));
            }
        }
    }
    none(found);
}

#[test]
fn nothing_is_left_to_do() {
    // Put together here, so that this file does not find itself.
    let marks = [
        ["todo", "!("],
        ["unimplemented", "!("],
        ["FIX", "ME"],
        ["XX", "X:"],
    ];
    let mut found = Vec::new();
    for source in sources("rs") {
        for (at, line) in source.text.lines().enumerate() {
            if marks.iter().any(|m| line.contains(&m.concat())) {
                found.push(format!("{}:{}: {}", source.name, at + 1, line.trim()));
            }
        }
    }
    none(found);
}

#[test]
fn no_path_of_this_machine_is_in_the_tree() {
    let root = repo::source_root();
    let root = root.canonicalize().expect("the source tree is there");
    let mut marks = vec![root.to_string_lossy().into_owned()];
    // The tree often lies in a work folder; its other children are as foreign.
    if let Some(parent) = root.parent().filter(|p| p.components().count() > 1) {
        marks.push(format!("{}/{}", parent.display(), ["wt", "-"].concat()));
        marks.push(format!("{}/{}", parent.display(), ["sha", "red/"].concat()));
    }
    let mut found = Vec::new();
    for name in repo::tracked_files().expect("git lists files") {
        let bytes = std::fs::read(repo::source_root().join(&name)).expect("a tracked file");
        let text = String::from_utf8_lossy(&bytes);
        for (at, line) in text.lines().enumerate() {
            if marks.iter().any(|m| line.contains(m.as_str())) {
                found.push(format!("{name}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    none(found);
}

#[test]
fn every_crate_says_what_it_is() {
    let mut found = Vec::new();
    for source in sources("rs") {
        let root_file = source.name.ends_with("src/lib.rs");
        let lines = source
            .text
            .lines()
            .take_while(|l| l.starts_with("//!"))
            .count();
        if root_file && lines < 2 {
            found.push(format!(
                "{}: begins with {lines} lines of `//!`",
                source.name
            ));
        }
    }
    none(found);
}
