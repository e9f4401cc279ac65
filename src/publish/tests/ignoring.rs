//! What is ignored: hidden files, and what rule files name.

use tokio::time::sleep;

use super::*;

pub(super) const REST: Duration = Duration::from_secs(60);

impl Bench {
    pub(super) fn state(&self, ino: UploadIno) -> UploadState {
        self.uploads.state(ino).unwrap()
    }

    pub(super) fn find(&self, path: &str) -> UploadIno {
        let step = |dir, name| self.uploads.lookup(dir, OsStr::new(name)).unwrap().ino;
        path.split('/').fold(UploadIno::ROOT, step)
    }

    fn replace(&self, ino: UploadIno, data: &[u8]) {
        let handle = self.uploads.open_file(ino, TRUNCATE).unwrap();
        self.write(handle, 0, data);
        self.uploads.release(handle);
    }

    fn mv(&self, from: (UploadIno, &str), to: (UploadIno, &str)) {
        let (from_name, to_name) = (OsStr::new(from.1), OsStr::new(to.1));
        self.uploads.rename(from.0, from_name, to.0, to_name, RenameMode::Replace).unwrap();
    }

    /// Returns whether the store can give anybody the bytes.
    pub(super) fn is_served(&self, data: &[u8]) -> bool {
        // What nobody owns goes, so that what is left is what is kept for others.
        self.store.gc().unwrap();
        self.store.object(&id_of(data)).unwrap().is_some()
    }

    pub(super) async fn restart_with(self, patterns: &[&str]) -> Self {
        let ignore = IgnorePatterns::new(patterns.iter().copied()).unwrap();
        Self::open_with(self.kill().await, ignore)
    }
}

fn entry(name: &'static str, data: &[u8]) -> (&'static str, ContentId, u64) {
    (name, id_of(data), data.len() as u64)
}

fn directory(entries: &[(&str, ContentId, u64)]) -> ContentId {
    let mut builder = DirectoryBuilder::new(ImportParams::DEFAULT);
    entries.iter().for_each(|(name, id, tsize)| builder.add(name, *id, *tsize));
    builder.finish(Metadata::default()).root
}

#[tokio::test(start_paused = true)]
async fn hidden_files_are_usable_durable_and_never_published() {
    let bench = Bench::new();
    let dir = bench.mkdir(UploadIno::ROOT, "d");
    bench.put_in(dir, "a", b"public");
    let env = bench.put_in(dir, ".env", b"KEY=1");
    let git = bench.mkdir(dir, ".git");
    let config = bench.put_in(git, "config", b"token");
    let lock = bench.put("~$report.docx", b"my name");
    bench.uploads.symlink(git, OsStr::new("link"), Path::new("x"), 1, 2).unwrap();
    sleep(REST).await;
    let root = bench.uploads.cid(dir).await.unwrap();
    assert_eq!(root, directory(&[entry("a", b"public")]));
    for ino in [env, git, config, lock] {
        assert_eq!(bench.state(ino), UploadState::Ignored);
        let none = tokio::time::timeout(Duration::from_millis(1), bench.uploads.cid(ino)).await;
        assert!(matches!(none, Ok(Err(PublishError::Ignored))), "{none:?}");
    }
    let heard = bench.heard.take();
    assert!(heard.iter().all(|h| h.starts_with("+d ") || h.starts_with("+d/a ")), "{heard:?}");
    assert_eq!(bench.uploads.published(), [("d".to_owned(), root)]);
    bench.replace(config, b"another token");
    sleep(REST).await;
    let link = crate::content::symlink("x", Metadata::default());
    let bench = bench.restart().await;
    sleep(REST).await;
    assert_eq!(bench.read(env), b"KEY=1");
    assert_eq!(bench.read(config), b"another token");
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), root);
    for data in [&b"KEY=1"[..], b"token", b"another token", b"my name"] {
        assert!(bench.store.block(&id_of(data)).unwrap().is_none());
    }
    assert!(bench.store.block(link.cid()).unwrap().is_none());
    assert_eq!(bench.heard.take(), [] as [String; 0]);
    let closed = tokio::time::timeout(REST, bench.uploads.close(REST)).await;
    assert!(closed.is_ok(), "nothing is waited for that is not hashed");
}

#[tokio::test(start_paused = true)]
async fn a_rename_to_a_visible_name_publishes() {
    let bench = Bench::new();
    // As rsync, editors and browsers do.
    let ino = bench.put(".f.Xa81Zq", &bytes(2 * LEAF, 1));
    sleep(REST).await;
    bench.rename(".f.Xa81Zq", "f");
    assert_eq!(bench.uploads.cid(ino).await.unwrap(), id_of(&bytes(2 * LEAF, 1)));
    let next = bench.put(".f.Bq77aa", b"next");
    bench.rename(".f.Bq77aa", "f");
    assert_eq!(bench.uploads.cid(next).await.unwrap(), id_of(b"next"));
    let dir = bench.mkdir(UploadIno::ROOT, ".d");
    let sub = bench.mkdir(dir, "sub");
    bench.put_in(sub, "a", b"a");
    bench.uploads.symlink(sub, OsStr::new("link"), Path::new("a"), 1, 2).unwrap();
    sleep(REST).await;
    bench.rename(".d", "d");
    let link = crate::content::symlink("a", Metadata::default());
    let sub = directory(&[entry("a", b"a"), ("link", *link.cid(), link.data().len() as u64)]);
    assert_eq!(bench.uploads.cid(bench.find("d/sub")).await.unwrap(), sub);
    bench.uploads.cid(dir).await.unwrap();
    assert!(bench.store.block(link.cid()).unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_rename_to_a_hidden_name_withdraws() {
    let bench = Bench::new();
    let (data, layered) = (bytes(3 * LEAF, 1), bytes(20 * LEAF, 2));
    let file = bench.put("f", &data);
    let dir = bench.mkdir(UploadIno::ROOT, "d");
    let large = bench.put_in(dir, "large", &layered);
    bench.uploads.cid(large).await.unwrap();
    bench.uploads.cid(file).await.unwrap();
    // A layer over what was published, which somebody reads.
    let reader = bench.uploads.open_file(large, READ).unwrap();
    let writer = bench.uploads.open_file(large, WRITE).unwrap();
    bench.write(writer, 5, b"changed");
    bench.uploads.release(writer);
    let mut changed = layered.clone();
    changed[5..12].copy_from_slice(b"changed");
    sleep(REST).await;
    assert_eq!(bench.uploads.cid(large).await.unwrap(), id_of(&changed));
    assert!(bench.is_served(&data) && bench.is_served(&changed));
    bench.heard.take();
    bench.rename("f", ".f");
    bench.rename("d", ".d");
    assert_eq!(bench.uploads.published(), []);
    sleep(REST).await;
    let heard = bench.heard.take();
    assert!(heard.contains(&format!("-{}", id_of(&data))), "{heard:?}");
    assert!(heard.iter().all(|event| event.starts_with('-')), "{heard:?}");
    bench.uploads.release(reader);
    assert!(!bench.is_served(&data) && !bench.is_served(&changed));
    let bench = bench.restart().await;
    sleep(REST).await;
    assert_eq!((bench.read(file), bench.read(large)), (data.clone(), changed.clone()));
    bench.store.gc().unwrap();
    assert!(bench.store.object(&id_of(&data)).unwrap().is_none());
    assert_eq!((bench.read(file), bench.read(large)), (data.clone(), changed.clone()));
    // And back.
    bench.rename(".f", "f");
    bench.rename(".d", "d");
    assert_eq!(bench.uploads.cid(file).await.unwrap(), id_of(&data));
    assert_eq!(bench.uploads.cid(large).await.unwrap(), id_of(&changed));
}

#[tokio::test(start_paused = true)]
async fn a_file_hidden_while_it_is_hashed_is_not_published() {
    let bench = Bench::new();
    let data = bytes(LEAF, 1);
    let ino = bench.put("f", &data);
    let asking = bench.uploads.cid(ino);
    let hiding = async { bench.rename("f", ".f") };
    // The one that asks hurries the file; both orders of the two are right.
    let (_, ()) = tokio::join!(asking, hiding);
    sleep(REST).await;
    assert!(!bench.is_served(&data));
    assert_eq!(bench.state(ino), UploadState::Ignored);
    assert_eq!(bench.read(ino), data);
}

#[tokio::test(start_paused = true)]
async fn rule_files_hold_at_once_and_when_they_change() {
    let bench = Bench::new();
    let dir = bench.mkdir(UploadIno::ROOT, "d");
    let (log, txt) = (bench.put_in(dir, "a.log", b"log"), bench.put_in(dir, "a.txt", b"text"));
    let well_known = bench.mkdir(dir, ".well-known");
    bench.put_in(well_known, "x", b"x");
    let both = [entry("a.log", b"log"), entry("a.txt", b"text")];
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), directory(&both));
    let rules = bench.put_in(dir, ".chiralignore", b"*.log\n!.well-known\n");
    assert_eq!(bench.state(log), UploadState::Ignored);
    let x = directory(&[entry("x", b"x")]);
    assert_eq!(bench.uploads.cid(well_known).await.unwrap(), x);
    let (_, tsize) = {
        let names = bench.uploads.inner.names();
        dirs::link_of(names.tree.get(well_known).unwrap()).unwrap()
    };
    let known = (".well-known", x, tsize);
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), directory(&[known, both[1]]));
    bench.replace(rules, b"*.txt\n");
    assert_ne!(bench.state(log), UploadState::Ignored);
    assert_eq!(bench.state(txt), UploadState::Ignored);
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), directory(&both[..1]));
    let bench = bench.restart().await;
    assert_eq!(bench.state(txt), UploadState::Ignored);
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), directory(&both[..1]));
    // Written beside and moved over it, cut, moved away, removed.
    bench.put_in(dir, ".chiralignore.swp", b"*.log");
    bench.mv((dir, ".chiralignore.swp"), (dir, ".chiralignore"));
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), directory(&both[1..]));
    let rules = bench.find("d/.chiralignore");
    bench.uploads.setattr(rules, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap();
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), directory(&both));
    bench.replace(rules, b"a.*");
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), directory(&[]));
    bench.mv((dir, ".chiralignore"), (UploadIno::ROOT, ".chiralignore"));
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), directory(&[]));
    bench.unlink(".chiralignore");
    assert_eq!(bench.uploads.cid(dir).await.unwrap(), directory(&both));
}

#[tokio::test(start_paused = true)]
async fn other_settings_are_followed_at_the_next_start() {
    let bench = Bench::new();
    let (env, raw) = (bench.put(".env", b"KEY=1"), bench.put("a.raw", &bytes(2 * LEAF, 4)));
    sleep(REST).await;
    assert!(bench.is_served(&bytes(2 * LEAF, 4)));
    let bench = bench.restart_with(&["*.raw"]).await;
    assert_eq!(bench.state(raw), UploadState::Ignored);
    assert_eq!(bench.uploads.cid(env).await.unwrap(), id_of(b"KEY=1"));
    sleep(REST).await;
    assert!(!bench.is_served(&bytes(2 * LEAF, 4)));
    let mut heard = bench.heard.take();
    heard.sort();
    assert_eq!(heard, ["+.env 5".to_owned(), format!("-{}", id_of(&bytes(2 * LEAF, 4)))]);
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.cid(raw).await.unwrap(), id_of(&bytes(2 * LEAF, 4)));
    sleep(REST).await;
    assert_eq!(bench.state(env), UploadState::Ignored);
    assert!(!bench.is_served(b"KEY=1"));
    assert_eq!(bench.read(env), b"KEY=1");
}

#[tokio::test(start_paused = true)]
async fn imports_leave_out_what_is_ignored_unless_asked() {
    let bench = Bench::new();
    let source = tempfile::tempdir().unwrap();
    let put = |name: &str| std::fs::write(source.path().join(name), name).unwrap();
    std::fs::create_dir_all(source.path().join(".git")).unwrap();
    ["a", ".env", ".git/config", "a.log"].into_iter().for_each(put);
    std::fs::write(source.path().join(".chiralignore"), "*.log").unwrap();
    let import = async |bench: &Bench, name: &str, hidden| {
        let options = ImportOptions { name: Some(name.into()), replace: false, hidden };
        bench.uploads.import_path(source.path(), options, |_, _, _| {}).await.unwrap()
    };
    let plain = import(&bench, "plain", false).await;
    assert_eq!(plain.root, directory(&[entry("a", b"a")]));
    assert_eq!((plain.skipped.count, plain.skipped.by_rules), (4, 1));
    assert!(bench.uploads.lookup(bench.find("plain"), OsStr::new(".env")).is_err());
    let hidden = import(&bench, ".hidden", true).await;
    assert_eq!((hidden.skipped.count, hidden.skipped.by_rules), (1, 1));
    let names = |bench: &Bench, imported| -> Vec<_> {
        bench.uploads.entries_of(imported).map(|(_, name)| name).collect()
    };
    let all = names(&bench, &hidden);
    assert_eq!(all.len(), 6, "{all:?}");
    // What was asked for stays that over restarts; what comes later follows the rules.
    let bench = bench.restart().await;
    let (top, env) = (bench.find(".hidden"), bench.find(".hidden/.env"));
    assert_eq!(bench.uploads.cid(top).await.unwrap(), hidden.root);
    bench.put_in(top, ".later", b"later");
    assert_eq!(bench.uploads.cid(top).await.unwrap(), hidden.root);
    // An editor's way to save goes on with what was asked for, and its backup does not.
    bench.mv((top, ".env"), (top, ".env~"));
    assert_eq!(bench.state(env), UploadState::Ignored);
    bench.mv((top, ".env~"), (top, ".env"));
    assert_eq!(bench.state(env), UploadState::Ignored, "the name was given up");
    let saved = bench.put_in(top, ".env.tmp", b"KEY=2");
    bench.uploads.want(env, false).await.unwrap();
    bench.mv((top, ".env.tmp"), (top, ".env"));
    assert_eq!(bench.uploads.cid(saved).await.unwrap(), id_of(b"KEY=2"));
}

#[tokio::test(start_paused = true)]
async fn what_is_named_is_published_whatever_hides_it() {
    let bench = Bench::new();
    let git = bench.mkdir(UploadIno::ROOT, ".git");
    let hooks = bench.mkdir(git, "hooks");
    let hook = bench.put_in(hooks, "commit", b"#!");
    bench.uploads.fsync(hook).unwrap();
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.want(hook, false).await.unwrap().count, 0);
    assert_eq!(bench.uploads.cid(hook).await.unwrap(), id_of(b"#!"));
    assert_eq!(bench.state(hooks), UploadState::Ignored);
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.cid(hook).await.unwrap(), id_of(b"#!"));
    bench.put_in(git, ".secret", b"secret");
    assert_eq!(bench.uploads.want(git, false).await.unwrap().first, [Path::new(".git/.secret")]);
    let root = bench.uploads.cid(git).await.unwrap();
    assert_eq!(bench.uploads.want(git, true).await.unwrap().count, 0);
    assert_ne!(bench.uploads.cid(git).await.unwrap(), root);
    // Moving it to a hidden place takes all of that back.
    bench.mkdir(UploadIno::ROOT, ".trash");
    bench.mv((UploadIno::ROOT, ".git"), (bench.find(".trash"), "git"));
    assert_eq!(bench.state(hook), UploadState::Ignored);
    bench.mv((bench.find(".trash"), "git"), (UploadIno::ROOT, "git"));
    assert_eq!(bench.state(hook), UploadState::Published);
    assert_eq!(bench.state(bench.find("git/.secret")), UploadState::Ignored);
}

#[tokio::test(start_paused = true)]
async fn each_name_of_a_file_is_published_or_not() {
    let bench = Bench::new();
    let (d, e) = (bench.mkdir(UploadIno::ROOT, "d"), bench.mkdir(UploadIno::ROOT, "e"));
    let ino = bench.put_in(d, "a", b"text");
    bench.uploads.link(ino, e, OsStr::new("b")).unwrap();
    bench.uploads.link(ino, e, OsStr::new(".hidden")).unwrap();
    let (with, without) = (directory(&[entry("b", b"text")]), directory(&[]));
    assert_eq!(bench.uploads.cid(d).await.unwrap(), directory(&[entry("a", b"text")]));
    assert_eq!(bench.uploads.cid(e).await.unwrap(), with);
    // Rules over one of the names, and then over all; the rule file has two names itself.
    let rules = bench.put_in(d, ".chiralignore", b"a");
    assert_eq!(bench.uploads.cid(d).await.unwrap(), without);
    assert_eq!(bench.uploads.cid(e).await.unwrap(), with);
    bench.uploads.link(rules, e, OsStr::new(".chiralignore")).unwrap();
    bench.replace(rules, b"[ab]");
    assert_eq!(bench.uploads.cid(e).await.unwrap(), without);
    assert_eq!(bench.state(ino), UploadState::Ignored);
    sleep(REST).await;
    assert!(!bench.is_served(b"text"));
    let bench = bench.restart().await;
    assert_eq!(bench.uploads.cid(e).await.unwrap(), without);
    bench.uploads.unlink(e, OsStr::new(".chiralignore")).unwrap();
    assert_eq!(bench.uploads.cid(e).await.unwrap(), with);
    assert_eq!(bench.uploads.cid(d).await.unwrap(), without);
    assert_eq!(bench.read(ino), b"text");
}
