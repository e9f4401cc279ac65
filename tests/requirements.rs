//! `tests/REQUIREMENTS.md` maps every requirement to tests; a row that is marked done must name tests that exist.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path};

/// Names of all functions under `#[test]` or `#[tokio::test]`, and of scripts' lanes, in the tree.
fn test_names(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            test_names(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[test") || line.starts_with("#[tokio::test") {
                    is_test = true;
                } else if let Some(at) = line.find("fn ").filter(|_| is_test) {
                    let name = line[at + 3..].split(['(', '<']).next().unwrap();
                    names.insert(name.to_owned());
                    is_test = false;
                }
            }
        }
    }
}

#[test]
fn every_row_that_is_done_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut names = BTreeSet::new();
    for dir in ["src", "tests", "mountd"] {
        test_names(&root.join(dir), &mut names);
    }
    let table = fs::read_to_string(root.join("tests/REQUIREMENTS.md")).unwrap();
    let mut bad = Vec::new();
    let mut rows = 0;
    for line in table.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [id, state, tests, ..] = cells[..] else {
            bad.push(format!("not three cells: {line}"));
            continue;
        };
        if id == "id" || id.starts_with('-') {
            continue;
        }
        rows += 1;
        let tests: Vec<_> = tests
            .split(',')
            .map(|t| t.trim().trim_matches('`'))
            .filter(|t| !t.is_empty())
            .collect();
        if state == "done" && tests.is_empty() {
            bad.push(format!("{id} is done without a test"));
        }
        bad.extend(
            tests.iter().filter(|t| !names.contains(**t)).map(|t| format!("{id}: no test `{t}`")),
        );
    }
    assert!(rows > 30, "only {rows} rows were found");
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}
