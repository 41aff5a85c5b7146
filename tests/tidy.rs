//! Taste as failing tests: who may import whom, what the core may not touch, and what a file may look like.
//!
//! Reads the files that git knows or would add, and nothing else. Code is looked at without its comments and without its
//! `mod tests`, which may import what it likes.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Who may import whom, in order of dependence: a module names only modules above it, so there is no circle.
///
/// An entry stands for a module and all in it; `net::*` for what `net/mod.rs` itself defines; `::` for what `lib.rs`
/// re-exports, which is the public API.
const IMPORTS: &[(&str, &[&str])] = &[
    ("id", &[]),
    ("metrics", &[]),
    ("replica", &["id"]),
    ("error", &["id"]),
    ("mesh_key", &["id"]),
    ("config", &["id", "error", "mesh_key", "replica::batch"]),
    ("data_dir", &["id", "error", "config"]),
    ("wire", &["id", "replica"]),
    ("sim", &["id", "replica", "wire"]),
    ("aside", &["error"]),
    ("history", &["id", "error", "metrics", "config", "wire", "replica", "aside"]),
    (
        "subscription",
        &["id", "error", "history", "replica::batch", "replica::clock", "replica::ranges", "replica::version"],
    ),
    (
        "handle",
        &[
            "id",
            "error",
            "metrics",
            "config",
            "aside",
            "history",
            "subscription",
            "replica::batch",
            "replica::clock",
            "replica::control",
            "replica::event::Kept",
            "replica::keys",
            "replica::ranges",
            "replica::version",
        ],
    ),
    // How a peer was found and which interfaces are used are told to users in these very words.
    ("net::discovery", &["id", "error", "config", "mesh_key", "handle::FoundBy", "handle::Interface", "net::*"]),
    ("net::folder", &["id", "metrics", "net::*"]),
    ("net::gate", &["id", "mesh_key", "metrics", "wire", "net::*"]),
    (
        "net::publisher",
        &["id", "wire", "metrics", "replica::message", "replica::batch", "net::folder", "net::gate", "net::*"],
    ),
    (
        "net::link",
        &["aside", "id", "wire", "metrics", "replica::message", "replica::batch", "net::folder", "net::gate", "net::*"],
    ),
    ("net", &["aside", "id", "mesh_key", "metrics", "error", "config", "wire", "replica::message", "replica::batch"]),
    (
        "node",
        &[
            "id",
            "mesh_key",
            "metrics",
            "replica",
            "error",
            "config",
            "data_dir",
            "wire",
            "net",
            "aside",
            "history",
            "subscription",
            "handle",
        ],
    ),
    (
        "bridge",
        &[
            "id",
            "metrics",
            "error",
            "handle",
            "replica::batch",
            "replica::control",
            "net::folder",
            "net::gate",
            "net::link",
            "net::publisher",
            "net::*",
            "::",
        ],
    ),
    ("web", &["id", "metrics", "error", "config", "handle", "::"]),
    ("fuzz", &["id", "replica", "wire", "handle", "net::gate", "net::discovery", "web"]),
    ("count", &["id", "replica", "wire", "history", "subscription"]),
    ("cli", &[]),
    ("main", &["cli"]),
];

/// What would let the core do more than decide.
const NOT_IN_THE_CORE: &[&str] = &[
    "tokio",
    "std::fs",
    "std::thread",
    "std::io",
    "std::env",
    "Instant",
    "SystemTime",
    "rand",
    "getrandom",
    "RandomState",
    "TcpListener",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
    "UnixListener",
    "UnixDatagram",
    "ToSocketAddrs",
];

/// Files that may be longer than [`LINES_MAX`], each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// A file is a mechanism: it rarely needs more.
const LINES_MAX: usize = 700;

const TOP_LEVEL: &[&str] = &[
    ".ci",
    ".gitignore",
    "CHANGELOG.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "Makefile",
    "README.md",
    "clippy.toml",
    "deny.toml",
    "examples",
    "public",
    "rustfmt.toml",
    "src",
    "tests",
];

/// Work left undone, in any file.
const UNDONE: &[&str] =
    &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!"), concat!("unimple", "mented!")];

/// What is true on one machine only, or names where packages come from, in any file but lock files.
const ELSEWHERE: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/ro", "ot/"),
    concat!("crates", ".io"),
    concat!("npm", "js"),
    concat!("pypi", ".org"),
    concat!("debian", ".org"),
];

#[test]
fn modules_import_only_what_the_table_allows() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files("src/") {
        let module = module_of(&path);
        if module.is_empty() || path.ends_with("/tests.rs") {
            continue; // lib.rs shows everything; a `mod tests` may have a file of its own.
        }
        let Some((name, allowed)) = row_of(&module) else {
            wrong.push(format!("{path}: module `{module}` has no row in IMPORTS"));
            continue;
        };
        for import in imports(&module, &code_of(&text)) {
            if !within(&import, name) && !allowed.iter().any(|entry| allows(entry, &import)) {
                wrong.push(format!("{path}: `{name}` may not import `{import}`"));
            }
        }
    }
    report(wrong);
}

#[test]
fn import_table_has_no_circle() {
    for (place, (module, allowed)) in IMPORTS.iter().enumerate() {
        for entry in allowed.iter().filter(|entry| **entry != "::" && !entry.ends_with("::*")) {
            let above = IMPORTS[..place].iter().any(|(other, _)| within(entry, other));
            assert!(above, "`{module}` may import `{entry}`, which is not above it in the table");
        }
    }
}

#[test]
fn imports_are_found_in_all_their_forms() {
    let code = "use crate::id::{Run, Seq};\nuse crate::{wire, net::gate::{self, Limits}};\nuse super::clock::Hlc;\n\
                fn f(a: crate::handle::Handle) { self::g(); $crate::macros!(); } pub(crate) struct S;";
    let expected =
        ["id::Run", "id::Seq", "wire", "net::gate", "net::gate::Limits", "replica::clock::Hlc", "handle::Handle"];
    assert_eq!(imports("replica::batch", code), expected.into_iter().map(String::from).collect::<BTreeSet<_>>());
}

#[test]
fn core_has_no_io_no_clock_and_no_chance() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files("src/replica/") {
        let code = code_of(&text);
        for word in NOT_IN_THE_CORE.iter().filter(|word| has_word(&code, word)) {
            wrong.push(format!("{path}: `{word}` in the core"));
        }
    }
    report(wrong);
}

#[test]
fn no_code_is_unsafe() {
    let files = rust_files("");
    report(
        files
            .iter()
            .filter(|(_, text)| has_word(&strip_comments(text), concat!("un", "safe")))
            .map(|(path, _)| path.clone()),
    );
}

#[test]
fn files_are_short_and_say_what_they_are() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files("") {
        let lines = text.lines().count();
        let excused = LONG_FILES.iter().any(|(long, _)| *long == path);
        if path.starts_with("src/") && (lines > LINES_MAX) != excused {
            wrong.push(format!("{path}: {lines} lines; the limit is {LINES_MAX}, the exceptions are in LONG_FILES"));
        }
        if !text.starts_with("//! ") {
            wrong.push(format!("{path}: does not begin with `//! `"));
        }
    }
    report(wrong);
}

#[test]
fn nothing_is_left_undone() {
    report(mentions(UNDONE, |_| true));
}

#[test]
fn nothing_names_a_machine_or_a_registry() {
    report(mentions(ELSEWHERE, |path| !path.ends_with("Cargo.lock") && !path.ends_with("package-lock.json")));
}

#[test]
fn tests_wait_for_conditions_and_never_sleep() {
    let mut wrong = Vec::new();
    for (path, text) in rust_files("") {
        let tests = match path.split('/').next() {
            Some("src") => text.split_once("mod tests {").map_or("", |(_, tests)| tests),
            Some("tests") if !path.starts_with("tests/bench/") => text.as_str(),
            _ => "",
        };
        let code = strip_comments(tests);
        let allowed = usize::from(path == "tests/common/mod.rs"); // In `eventually`.
        let found =
            code.match_indices(concat!("sleep", "(")).filter(|(at, _)| !ends_in_ident(&code[..*at], &['_'])).count();
        if found > allowed {
            wrong.push(format!("{path}: sleeps; wait with `eventually`"));
        }
    }
    report(wrong);
}

#[test]
fn top_level_holds_only_what_every_repository_has() {
    let names: BTreeSet<String> =
        files().iter().map(|path| path.split('/').next().unwrap_or_default().to_string()).collect();
    report(names.into_iter().filter(|name| !TOP_LEVEL.contains(&name.as_str())));
}

/// Fails with everything that is wrong, not only the first.
fn report(wrong: impl IntoIterator<Item = String>) {
    let wrong: Vec<String> = wrong.into_iter().collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// Lines that hold one of `words`, in text files whose path is wanted.
fn mentions(words: &[&str], wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for path in files().into_iter().filter(|path| wanted(path)) {
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue }; // Not text.
        for (number, line) in text.lines().enumerate() {
            found.extend(
                words.iter().filter(|word| line.contains(**word)).map(|word| format!("{path}:{}: {word}", number + 1)),
            );
        }
    }
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What git knows or would add, and what is still there.
fn files() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git is there");
    assert!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).expect("paths are UTF-8");
    listed.lines().filter(|path| root().join(path).is_file()).map(String::from).collect()
}

fn rust_files(folder: &str) -> Vec<(String, String)> {
    let ours = files().into_iter().filter(|path| path.starts_with(folder) && path.ends_with(".rs"));
    ours.map(|path| (path.clone(), std::fs::read_to_string(root().join(path)).expect("Rust is UTF-8"))).collect()
}

/// `src/net/gate/mod.rs` is `net::gate`; `src/lib.rs` is nothing.
fn module_of(path: &str) -> String {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
    if path == "lib" { String::new() } else { path.replace('/', "::") }
}

/// The narrowest row for a module.
fn row_of(module: &str) -> Option<(&'static str, &'static [&'static str])> {
    IMPORTS.iter().filter(|(name, _)| within(module, name)).max_by_key(|(name, _)| name.len()).copied()
}

/// Whether `path` is `module` or in it.
fn within(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn allows(entry: &str, import: &str) -> bool {
    let is_item = |name: &str| !name.contains("::") && name.starts_with(char::is_uppercase);
    match entry.strip_suffix('*') {
        Some(module) => import.strip_prefix(module).is_some_and(is_item),
        None if entry == "::" => is_item(import),
        None => within(import, entry),
    }
}

/// Code without comments and without the unit tests at its end.
fn code_of(text: &str) -> String {
    strip_comments(text.split("#[cfg(test)]\nmod ").next().unwrap_or_default())
}

fn strip_comments(text: &str) -> String {
    let code = |line: &str| line.split_once("//").map_or(line, |(code, _)| code).to_string();
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}

fn is_ident(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn ends_in_ident(before: &str, also: &[char]) -> bool {
    before.ends_with(|c: char| is_ident(c) || also.contains(&c))
}

fn has_word(code: &str, word: &str) -> bool {
    code.match_indices(word)
        .any(|(at, _)| !ends_in_ident(&code[..at], &[]) && !code[at + word.len()..].starts_with(is_ident))
}

/// The paths inside the crate that `code` of `module` names, without `crate::`.
fn imports(module: &str, code: &str) -> BTreeSet<String> {
    let parent = module.rsplit_once("::").map_or("", |(parent, _)| parent);
    let mut found = BTreeSet::new();
    for (start, base) in [("crate::", ""), ("super::", parent)] {
        for (at, _) in code.match_indices(start) {
            if ends_in_ident(&code[..at], &['$', ':']) {
                continue;
            }
            let mut paths = Vec::new();
            tree(&code[at + start.len()..], base, &mut paths);
            found.extend(paths.into_iter().filter(|path| !path.is_empty()));
        }
    }
    found
}

/// Reads one use tree (`a::{b, c::d}`) below `base` into `paths`; answers what follows it.
fn tree<'a>(text: &'a str, base: &str, paths: &mut Vec<String>) -> &'a str {
    let join = |name: &str| if base.is_empty() { name.to_string() } else { format!("{base}::{name}") };
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(rest) = rest.strip_prefix('}') {
                return rest;
            }
            let before = rest.len();
            rest = tree(rest, base, paths).trim_start_matches(|c: char| c == ',' || c.is_whitespace());
            if rest.len() == before {
                return rest; // No use tree after all.
            }
        }
    }
    if let Some(rest) = text.strip_prefix('*') {
        paths.push(base.to_string());
        return rest;
    }
    let end = text.find(|c| !is_ident(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let base = if name == "self" { base.to_string() } else { join(name) };
    match rest.strip_prefix("::") {
        Some(below) if !below.starts_with('<') => tree(below, &base, paths),
        _ => {
            paths.push(base);
            rest
        }
    }
}
