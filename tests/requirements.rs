//! `tests/REQUIREMENTS.md` maps every requirement to tests; a row that is marked done must name tests that exist.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path};

/// Names of all functions under `#[test]` or `#[tokio::test]` in the tree that run, none that is ignored.
fn test_names(dir: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            test_names(&path, names);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            names.extend(tests_in(&text));
        }
    }
}

fn tests_in(text: &str) -> Vec<String> {
    let (mut is_test, mut is_ignored) = (false, false);
    let mut names = Vec::new();
    for line in text.lines().map(str::trim) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        is_ignored |= line.starts_with("#[ignore");
        let function = line.split_once("fn ").filter(|(before, _)| {
            ["", "pub", "async", "const", "unsafe"].contains(&before.trim_end())
        });
        if let Some((_, rest)) = function {
            if is_test && !is_ignored {
                names.extend(rest.split(['(', '<']).next().map(str::to_owned));
            }
            (is_test, is_ignored) = (false, false);
        }
    }
    names
}

#[test]
fn tests_that_are_ignored_hold_nothing() {
    let text = "#[test]\nfn a() {}\n#[test]\n#[ignore = \"slow\"]\nfn b() {}\n#[ignore]\n#[tokio::test(x)]\nasync fn c() {}\n\
                fn d() {}\n#[tokio::test]\nasync fn e() {}\n";
    assert_eq!(tests_in(text), ["a", "e"]);
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
