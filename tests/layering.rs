//! The shape of `src/`: which module may import which, where heavy dependencies live, how long a file may be.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every module with the modules it may import, lowest layer first.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("metrics", &[]),
    ("tasks", &[]),
    ("sys", &[]),
    ("waits", &[]),
    ("content", &["sys"]),
    ("store", &["content", "sys", "metrics", "tasks"]),
    ("net", &["content", "store", "metrics", "tasks"]),
    ("torrent", &["content", "store", "metrics", "tasks", "waits"]),
    ("sources", &["content", "net", "torrent", "metrics", "tasks"]),
    ("download", &["content", "store", "sources", "metrics", "tasks", "waits"]),
    ("publish", &["content", "store", "net", "metrics", "tasks"]),
    (
        "node",
        &[
            "content", "store", "net", "torrent", "sources", "download", "publish", "metrics",
            "tasks",
        ],
    ),
    ("config", &["node"]),
    ("fs", &["content", "node", "metrics", "tasks"]),
    ("control", &["content", "node", "metrics", "tasks"]),
    ("gateway", &["content", "node", "metrics", "tasks"]),
];

/// Heavy dependencies and the modules that may name each: one, but for the two servers of HTTP.
const HOMES_OF: &[(&str, &[&str])] = &[
    ("libp2p", &["net"]),
    ("rustls", &["net"]),
    ("librqbit", &["torrent"]),
    ("sled", &["store"]),
    ("reqwest", &["sources"]),
    ("fuser", &["fs"]),
    ("axum", &["control", "gateway"]),
    ("mime_guess", &["gateway"]),
];

/// Longest file in `src/`, its tests not counted.
const MAX_LINES: usize = 500;

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// The modules that a text names behind `crate::`, alone or in a group `crate::{a::b, c}`.
fn imported(text: &str) -> Vec<String> {
    let code: String = code_lines(text).collect::<Vec<_>>().join("\n");
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let Some(group) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = 0;
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' if depth == 0 => {
                    found.push(word(&group[start..at]));
                    start = at + 1;
                }
                '}' => {
                    found.push(word(&group[start..at]));
                    break;
                }
                _ => {}
            }
        }
    }
    found.retain(|module| !module.is_empty());
    found
}

#[test]
fn imports_are_found_alone_and_in_groups() {
    let text = "use crate::{a::{x, y}, b,\n c::d,\n};\nfn f(z: crate::e::F) {}\n// crate::g";
    assert_eq!(imported(text), ["a", "b", "c", "e"]);
}

#[test]
fn modules_import_only_what_the_table_allows() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut bad = Vec::new();
    for file in rust_files(&src).iter().filter(|f| !f.ends_with("lib.rs")) {
        let rel = file.strip_prefix(&src).unwrap();
        let text = fs::read_to_string(file).unwrap();
        let module = rel.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(name, _)| *name == module) else {
            bad.push(format!("{module} is missing from MAY_IMPORT"));
            continue;
        };
        for dep in
            imported(&text).iter().filter(|dep| *dep != module && !allowed.contains(&dep.as_str()))
        {
            bad.push(format!("{}: {module} may not import {dep}", rel.display()));
        }
        for (krate, homes) in HOMES_OF.iter().filter(|(_, homes)| !homes.contains(&module)) {
            if code_lines(&text).any(|line| line.contains(&format!("{krate}::"))) {
                bad.push(format!("{}: {krate} belongs to {}", rel.display(), homes.join(", ")));
            }
        }
    }
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[test]
fn the_table_is_acyclic() {
    for (at, (module, allowed)) in MAY_IMPORT.iter().enumerate() {
        for dep in *allowed {
            assert!(
                MAY_IMPORT[..at].iter().any(|(name, _)| name == dep),
                "{module} imports {dep}, listed later or nowhere"
            );
        }
    }
}

#[test]
fn no_file_is_too_long() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in rust_files(&src) {
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap().lines().count();
        assert!(code <= MAX_LINES, "{} has {code} lines", file.display());
    }
}
