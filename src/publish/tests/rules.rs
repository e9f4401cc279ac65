//! Trees with rules under random changes, held against a plain map and the ids of the same trees without what is ignored.

use proptest::prelude::*;
use tokio::time::sleep;

use super::{ignoring::REST, *};

/// A change of a tree whose names are few, so that they meet.
#[derive(Clone, Debug)]
enum Change {
    Put(usize, usize, u8),
    Mkdir(usize, usize),
    Move(usize, usize, usize, usize),
    Exchange(usize, usize, usize, usize),
    Remove(usize, usize),
    Rules(usize, usize),
    Restart(usize),
}

const NAMES: [&str; 8] = ["a", "b", ".h", "c.log", "d", ".g", "e~", "sub"];
const RULES: [&str; 6] = ["", "*.log\n", "!.h\n", "/a\nsub/b\n", "d/\n!*.log\n", "*\n!a\n"];
const SETTINGS: [&[&str]; 3] = [&[".*", "*~"], &[], &["b", "/sub/a"]];

fn change() -> impl Strategy<Value = Change> {
    let dir = || 0usize..6;
    let name = || 0..NAMES.len();
    prop_oneof![
        4 => (dir(), name(), any::<u8>()).prop_map(|(d, n, b)| Change::Put(d, n, b)),
        3 => (dir(), name()).prop_map(|(d, n)| Change::Mkdir(d, n)),
        4 => (dir(), name(), dir(), name()).prop_map(|(a, b, c, d)| Change::Move(a, b, c, d)),
        1 => (dir(), name(), dir(), name()).prop_map(|(a, b, c, d)| Change::Exchange(a, b, c, d)),
        1 => (dir(), name()).prop_map(|(d, n)| Change::Remove(d, n)),
        3 => (dir(), 0..RULES.len()).prop_map(|(d, r)| Change::Rules(d, r)),
        1 => (0..SETTINGS.len()).prop_map(Change::Restart),
    ]
}

/// The same tree as a plain map from paths to contents; directories have none.
type Model = std::collections::BTreeMap<Vec<String>, Option<Vec<u8>>>;

/// The directories of the model, the root first.
fn dirs(model: &Model) -> Vec<Vec<String>> {
    let below = model.iter().filter(|(_, data)| data.is_none()).map(|(path, _)| path.clone());
    std::iter::once(vec![]).chain(below).collect()
}

/// What git would say of a path, asked of the library of git's rules for the whole tree at once.
fn is_ignored(model: &Model, settings: &[&str], path: &[String]) -> bool {
    (1..=path.len()).any(|len| {
        let (path, is_dir) = (&path[..len], model[&path[..len]].is_none());
        for depth in (0..len).rev() {
            let rules = [&path[..depth], &[".chiralignore".to_owned()]].concat();
            let Some(Some(text)) = model.get(&rules) else { continue };
            let text = std::str::from_utf8(text).unwrap();
            if let Some(ignored) = says(text.lines(), &path[depth..], is_dir) {
                return ignored;
            }
        }
        says(settings.iter().copied(), path, is_dir) == Some(true)
    })
}

fn says<'a>(lines: impl Iterator<Item = &'a str>, path: &[String], is_dir: bool) -> Option<bool> {
    let mut builder = ::ignore::gitignore::GitignoreBuilder::new("/r");
    lines.for_each(|line| assert!(builder.add_line(None, line).is_ok()));
    let path = Path::new("/r").join(path.join("/"));
    match builder.build().unwrap().matched(path, is_dir) {
        ::ignore::Match::None => None,
        found => Some(found.is_ignore()),
    }
}

/// Id and Tsize of a file.
fn built(data: &[u8]) -> (ContentId, u64) {
    let mut builder = FileBuilder::new(ImportParams::DEFAULT);
    for leaf in data.chunks(LEAF) {
        builder.push(ContentId::raw(sha2_256(leaf)), leaf.len() as u64);
    }
    let built = builder.finish(Metadata::default());
    (built.root, built.tsize)
}

/// The id of the model's tree without what is ignored.
fn id_below(model: &Model, settings: &[&str], dir: &[String]) -> (ContentId, u64) {
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    let children = model.iter().filter(|(path, _)| path.len() == dir.len() + 1);
    for (path, data) in children.filter(|(path, _)| path.starts_with(dir)) {
        if is_ignored(model, settings, path) {
            continue;
        }
        let (id, tsize) = match data {
            Some(data) => built(data),
            None => id_below(model, settings, path),
        };
        builder.add(path.last().unwrap(), id, tsize);
    }
    let built = builder.finish(Metadata::default());
    (built.root, built.tsize)
}

fn remove(model: &mut Model, path: &[String]) {
    model.retain(|other, _| !other.starts_with(path));
}

fn move_below(model: &mut Model, from: &[String], to: &[String]) {
    let moved: Vec<_> = model.keys().filter(|path| path.starts_with(from)).cloned().collect();
    for path in moved {
        let data = model.remove(&path).unwrap();
        model.insert([to, &path[from.len()..]].concat(), data);
    }
}

/// Does one change to both; what the tree refuses changes neither.
async fn step(bench: Bench, model: &mut Model, settings: &mut usize, change: &Change) -> Bench {
    let all = dirs(model);
    let place = |dir: usize, name: &str| {
        let dir = &all[dir % all.len()];
        let at = dir.iter().fold(UploadIno::ROOT, |at, name| {
            bench.uploads.lookup(at, OsStr::new(name)).unwrap().ino
        });
        (at, [dir.as_slice(), &[name.to_owned()]].concat())
    };
    let rename = |(a, b): (usize, usize), (c, d): (usize, usize), mode| {
        let (from, from_path) = place(a, NAMES[b]);
        let (to, to_path) = place(c, NAMES[d]);
        let (from_name, to_name) = (OsStr::new(NAMES[b]), OsStr::new(NAMES[d]));
        let done = bench.uploads.rename(from, from_name, to, to_name, mode).is_ok();
        (done && from_path != to_path).then_some((from_path, to_path))
    };
    let put = |model: &mut Model, (dir, path): (UploadIno, Vec<String>), data: &[u8]| {
        if model.get(&path).is_some_and(Option::is_none) {
            return;
        }
        let name = OsString::from(path.last().unwrap());
        let (_, handle) = bench.uploads.create(dir, &name, 0o644, 1, 2, false, TRUNCATE).unwrap();
        bench.write(handle, 0, data);
        bench.uploads.release(handle);
        model.insert(path, Some(data.to_vec()));
    };
    match change {
        Change::Put(dir, name, byte) => {
            // Some of several leaves, so that they have objects with layers.
            let len = if byte % 4 == 0 { 2 * LEAF + 1 } else { 9 };
            put(model, place(*dir, NAMES[*name]), &bytes(len, (*byte).into()));
        }
        Change::Rules(dir, rules) => {
            put(model, place(*dir, ".chiralignore"), RULES[*rules].as_bytes());
        }
        Change::Mkdir(dir, name) => {
            let (at, path) = place(*dir, NAMES[*name]);
            if bench.uploads.mkdir(at, OsStr::new(NAMES[*name]), 0o755, 1, 2).is_ok() {
                model.insert(path, None);
            }
        }
        Change::Move(a, b, c, d) => {
            if let Some((from, to)) = rename((*a, *b), (*c, *d), RenameMode::Replace) {
                remove(model, &to);
                move_below(model, &from, &to);
            }
        }
        Change::Exchange(a, b, c, d) => {
            if let Some((from, to)) = rename((*a, *b), (*c, *d), RenameMode::Exchange) {
                let aside = vec!["aside".to_owned()];
                move_below(model, &to, &aside);
                move_below(model, &from, &to);
                move_below(model, &aside, &from);
            }
        }
        Change::Remove(dir, name) => {
            let (at, path) = place(*dir, NAMES[*name]);
            if bench.uploads.inner.remove_tree(at, OsStr::new(NAMES[*name])).is_ok() {
                remove(model, &path);
            }
        }
        Change::Restart(which) => {
            *settings = *which;
            bench.uploads.fsync(UploadIno::ROOT).unwrap();
            return bench.restart_with(SETTINGS[*which]).await;
        }
    }
    bench
}

/// The model without contents, for messages.
fn shown(model: &Model) -> Vec<(String, Option<usize>)> {
    model.iter().map(|(path, data)| (path.join("/"), data.as_ref().map(Vec::len))).collect()
}

async fn check(bench: &Bench, model: &Model, settings: &[&str]) {
    let root = bench.uploads.cid(UploadIno::ROOT).await.unwrap();
    assert!(root == id_below(model, settings, &[]).0, "{:?}", shown(model));
    for (path, data) in model {
        let ino = bench.find(&path.join("/"));
        let ignored = is_ignored(model, settings, path);
        assert_eq!(
            bench.state(ino) == UploadState::Ignored,
            ignored,
            "{path:?} in {:?}",
            shown(model)
        );
        if let Some(data) = data {
            assert!(bench.read(ino) == *data, "{path:?}");
        }
    }
}

/// Nothing that is only ignored is in the store.
fn check_served(bench: &Bench, model: &Model, settings: &[&str]) {
    let files = || model.iter().filter_map(|(path, data)| Some((path, data.as_ref()?)));
    let published: std::collections::HashSet<_> =
        files().filter(|(path, _)| !is_ignored(model, settings, path)).map(|(_, d)| d).collect();
    for (path, data) in files().filter(|(_, data)| !published.contains(data)) {
        assert!(!bench.is_served(data), "{path:?} in {:?}", shown(model));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn trees_are_those_without_what_is_ignored(
        changes in prop::collection::vec((change(), any::<bool>()), 1..25),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut model, mut settings) = (Model::new(), 0);
            let mut bench = Bench::new().restart_with(SETTINGS[0]).await;
            for (change, look) in &changes {
                bench = step(bench, &mut model, &mut settings, change).await;
                if *look {
                    check(&bench, &model, SETTINGS[settings]).await;
                }
            }
            sleep(REST).await;
            check(&bench, &model, SETTINGS[settings]).await;
            bench.uploads.fsync(UploadIno::ROOT).unwrap();
            check_served(&bench, &model, SETTINGS[settings]);
            bench.kill().await;
        });
    }
}
