//! The real binary, as a user and a script meet it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

/// The binary with a home, and nothing else, of its own.
fn chiral(home: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_chiral"))
        .env_clear()
        .env("HOME", home)
        .args(args)
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[track_caller]
fn fails_with(output: &Output, code: i32, words: &[&str]) {
    let text = err(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
}

#[test]
fn every_command_that_needs_a_daemon_says_so_with_code_4() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("file");
    fs::write(&file, "x").unwrap();
    let file = file.to_str().unwrap();
    let id = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    for args in [
        &["id"][..],
        &["status"],
        &["peers"],
        &["transfers"],
        &["events"],
        &["connect", "/ip4/127.0.0.1/tcp/1"],
        &["add", file],
        &["get", id],
        &["cat", id],
        &["ls", id],
        &["pin", "ls"],
        &["pin", "add", id],
        &["provide", id],
        &["store", "verify"],
        &["store", "gc"],
    ] {
        let output = chiral(home.path(), args);
        fails_with(&output, 4, &["no daemon runs on", "chiral mount"]);
        assert_eq!(out(&output), "", "{args:?}");
    }
}

#[test]
fn wrong_usage_ends_with_code_2() {
    let home = tempfile::tempdir().unwrap();
    fails_with(&chiral(home.path(), &["frobnicate"]), 2, &["frobnicate"]);
    fails_with(&chiral(home.path(), &["cat"]), 2, &["<ID>"]);
    fails_with(&chiral(home.path(), &["cat", "no-id"]), 2, &["no-id"]);
    fails_with(&chiral(home.path(), &["connect", "127.0.0.1:4001"]), 2, &["127.0.0.1:4001"]);
    fails_with(&chiral(home.path(), &["--log", "=x=", "config", "show"]), 2, &["=x="]);
    let missing = home.path().join("none");
    let missing = missing.to_str().unwrap();
    fails_with(&chiral(home.path(), &["mount", missing]), 2, &["does not exist", "mkdir -p"]);
    let mount = home.path().join("mount");
    fs::create_dir(&mount).unwrap();
    let (mount, data) = (mount.to_str().unwrap(), mount.join("data"));
    let nested = chiral(home.path(), &["mount", mount, "--data-dir", data.to_str().unwrap()]);
    fails_with(&nested, 2, &["lie in one another"]);
    let listen = chiral(home.path(), &["mount", mount, "--listen", "4001"]);
    fails_with(&listen, 2, &["--listen", "4001"]);
}

/// Every way to have no home. The daemon would keep its private key in the folder that it was started in.
#[test]
fn without_a_home_a_data_folder_must_be_named() {
    let here = tempfile::tempdir().unwrap();
    fs::create_dir(here.path().join("mnt")).unwrap();
    let run = |homes: &[(&str, &str)], args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_chiral"));
        command.env_clear().envs(homes.iter().copied()).args(args).current_dir(here.path());
        command.output().unwrap()
    };
    let none: [&[(&str, &str)]; 4] = [
        &[],
        &[("HOME", "")],
        &[("HOME", "relative"), ("XDG_DATA_HOME", "data")],
        &[("CHIRAL_DATA_DIR", "")],
    ];
    for homes in none {
        for args in [
            &["mount", "mnt"][..],
            &["mount", "--background", "mnt"],
            &["umount", "mnt"],
            &["status"],
            &["add", "mnt"],
            &["config", "show"],
            &["config", "check"],
        ] {
            fails_with(&run(homes, args), 2, &["no data folder", "--data-dir", "CHIRAL_DATA_DIR"]);
        }
        // These touch none.
        for args in [&["add", "--only-hash", "mnt"][..], &["man"], &["completions", "bash"]] {
            assert!(run(homes, args).status.success(), "{homes:?} {args:?}");
        }
        assert_eq!(fs::read_dir(here.path()).unwrap().count(), 1, "{homes:?}");
    }
    let named = run(&[], &["config", "show", "--data-dir", "/data"]);
    assert!(out(&named).contains("data_dir = \"/data\""), "{named:?}");
    let named = run(&[("CHIRAL_DATA_DIR", "/data")], &["id"]);
    fails_with(&named, 4, &["no daemon runs on /data"]);
    fs::write(here.path().join("chiral.toml"), "data_dir = \"/filed\"\n").unwrap();
    fails_with(&run(&[], &["--config", "chiral.toml", "id"]), 4, &["no daemon runs on /filed"]);
    fs::write(here.path().join("chiral.toml"), "data_dir = \"~/chiral\"\n").unwrap();
    fails_with(
        &run(&[], &["--config", "chiral.toml", "id"]),
        2,
        &["chiral.toml:1", "not an absolute path"],
    );
}

#[test]
fn a_mistake_in_the_configuration_names_file_line_and_key() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("chiral.toml");
    fs::write(&file, "[store]\nmin_fre = \"1 GiB\"\n").unwrap();
    let name = file.to_str().unwrap();
    let words = [&format!("{name}:2:1"), "`min_fre`", "`min_free`"];
    fails_with(&chiral(home.path(), &["config", "check", name]), 2, &words);
    fails_with(&chiral(home.path(), &["--config", name, "status"]), 2, &words);
    fails_with(&chiral(home.path(), &["config", "check", "/nowhere.toml"]), 2, &["/nowhere.toml"]);

    fs::write(&file, "[store]\nmin_free = \"1 GiB\"\n").unwrap();
    assert!(chiral(home.path(), &["config", "check", name]).status.success());
}

#[test]
fn the_shown_configuration_is_one_that_can_be_used() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/chiral");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("chiral.toml"), "[network]\nprivate = true\n").unwrap();
    let shown = chiral(home.path(), &["config", "show", "--data-dir", "/data"]);
    let text = out(&shown);
    for line in ["data_dir = \"/data\"", "private = true", "lookup_timeout = \"30s\""] {
        assert!(text.contains(line), "{text}");
    }
    let file = home.path().join("shown.toml");
    fs::write(&file, &text).unwrap();
    let again = chiral(home.path(), &["config", "show", "--config", file.to_str().unwrap()]);
    assert_eq!(out(&again), text);
    assert_eq!(out(&chiral(home.path(), &["config", "--data-dir", "/data"])), text);
    assert!(chiral(home.path(), &["config", "check"]).status.success());
    fs::write(folder.join("chiral.toml"), "[network]\nprivat = true\n").unwrap();
    fails_with(&chiral(home.path(), &["config", "check"]), 2, &["chiral.toml:2:1", "`privat`"]);
    fs::write(folder.join("chiral.toml"), "").unwrap();
    let json = chiral(home.path(), &["--json", "config", "show"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["download"]["max_chunk_retries"], 3);
}

#[test]
fn only_hash_gives_the_ids_of_ipfs_add_without_a_daemon() {
    let home = tempfile::tempdir().unwrap();
    let tree = home.path().join("tree");
    fs::create_dir_all(tree.join("empty")).unwrap();
    fs::write(tree.join("hello.txt"), "hello world\n").unwrap();
    fs::write(tree.join("nothing"), "").unwrap();
    let only = |args: &[&str]| out(&chiral(home.path(), &[&["add", "--only-hash"], args].concat()));

    let file = tree.join("hello.txt");
    let hello = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4";
    assert_eq!(only(&[file.to_str().unwrap()]), format!("{hello}  hello.txt\n"));
    let nothing = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    let empty = "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354";
    let lines = only(&[tree.to_str().unwrap()]);
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[0], format!("{empty}  tree/empty"));
    assert_eq!(lines[1], format!("{hello}  tree/hello.txt"));
    assert_eq!(lines[2], format!("{nothing}  tree/nothing"));
    let root = lines[3].strip_suffix("  tree").unwrap();
    assert_eq!(only(&["-Q", tree.to_str().unwrap()]).trim_end(), root);
    let json = only(&["--json", "-Q", tree.to_str().unwrap()]);
    assert_eq!(json.trim_end(), format!(r#"{{"cid":"{root}","name":"tree"}}"#));
}

/// A tree with hidden files; its ids are those that Kubo 0.44 gives.
fn hidden_tree(dir: &Path) -> std::path::PathBuf {
    let tree = dir.join("t");
    fs::create_dir_all(tree.join(".hid")).unwrap();
    fs::create_dir(tree.join("sub")).unwrap();
    for (name, text) in
        [("a", "a\n"), (".env", "h\n"), (".hid/x", "g\n"), ("sub/.s", "s\n"), ("sub/n", "s2\n")]
    {
        fs::write(tree.join(name), text).unwrap();
    }
    symlink("a", tree.join("l")).unwrap();
    tree
}

const WITHOUT_HIDDEN: &str = "bafybeifvuak4jl7glkaoymhjcpda5pnw3axoeuajkw7wkfzht3dstyv53a";
const WITH_HIDDEN: &str = "bafybeie3eolivhvd45idzdcym5yqrwsohqqesdhppbjn34xxh25me3o4ou";

#[test]
fn only_hash_leaves_out_hidden_files_as_ipfs_does() {
    let home = tempfile::tempdir().unwrap();
    let tree = hidden_tree(home.path());
    let hash = |args: &[&str]| {
        let path = tree.to_str().unwrap();
        chiral(home.path(), &[&["add", "--only-hash", "-Q"], args, &[path]].concat())
    };
    let plain = hash(&["-r"]);
    assert_eq!(out(&plain).trim_end(), WITHOUT_HIDDEN);
    let said = err(&plain);
    assert!(
        said.contains("skipped 3 hidden files (-H publishes them): t/.env, t/.hid, t/sub/.s"),
        "{said}"
    );
    let hidden = hash(&["-r", "-H"]);
    assert_eq!((out(&hidden).trim_end(), err(&hidden).as_str()), (WITH_HIDDEN, ""));
    // What is named itself is asked for.
    let named = tree.join(".hid");
    let named = named.to_str().unwrap();
    let id = out(&chiral(home.path(), &["add", "--only-hash", "-Q", named]));
    assert_eq!(id.trim_end(), "bafybeibvcafrkfx4qhqhxoevpgybtof7lq6e76kg2tyust2so5rgqbub6i");
    // The rules of the configuration and of the tree itself.
    let folder = home.path().join(".config/chiral");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("chiral.toml"), "[upload]\nignore = []\n").unwrap();
    assert_eq!(out(&hash(&[])).trim_end(), WITH_HIDDEN);
    fs::write(tree.join(".chiralignore"), ".*\n!.well-known\n").unwrap();
    let plain = hash(&["-H"]);
    assert_eq!(out(&plain).trim_end(), WITHOUT_HIDDEN);
    assert!(err(&plain).contains("skipped 4 files that .chiralignore names"), "{}", err(&plain));
    fs::write(folder.join("chiral.toml"), "[upload]\nignore = [\".*\", \"{a\"]\n").unwrap();
    fails_with(&hash(&[]), 2, &["chiral.toml:2:", "`{a` is not a pattern of .gitignore"]);
}

#[test]
fn bytes_from_pipes_are_hashed_and_links_to_them_never() {
    let home = tempfile::tempdir().unwrap();
    let run = |script: &str| {
        let mut command = Command::new("bash");
        command.env_clear().env("HOME", home.path()).env("PATH", std::env::var_os("PATH").unwrap());
        command.env("C", env!("CARGO_BIN_EXE_chiral")).args(["-c", script]);
        let output = command.current_dir(home.path()).output().unwrap();
        assert!(output.status.success(), "{script}: {}", err(&output));
        out(&output).trim_end().to_owned()
    };
    let text = "bafkreifz42hbx2r6lmm4u2zptc3tuvfxhwvpvisqjbeqfyezqlqhuexhgm";
    let named = |name: &str| format!("{text}  {name}");
    assert_eq!(run("echo text | $C add --only-hash -"), named(text));
    assert_eq!(run("echo text | $C add --only-hash /dev/stdin"), named(text));
    assert_eq!(run("echo text > f; $C add --only-hash /dev/stdin < f"), named(text));
    assert_eq!(run("$C add --only-hash <(echo text)"), named(text));
    assert_eq!(run("echo text | $C add --only-hash --name n -"), named("n"));
    assert_eq!(run("mkfifo p; echo text > p & $C add --only-hash p"), named("p"));
    assert_eq!(run("ln -s p q; echo text > p & $C add --only-hash q"), named("q"));
    // A link to a file is a link, as for `ipfs add`, unless what it leads to is wanted.
    run("ln -s f l; $C add --only-hash l 2>said; grep -q dereference-args said");
    assert!(!run("$C add --only-hash l 2>/dev/null").contains(text));
    assert_eq!(run("$C add --only-hash --dereference-args l"), named("f"));
    assert_eq!(run("! $C add --only-hash /dev/null 2>&1 | grep -v 'only files'"), "");
}

#[test]
fn only_hash_agrees_with_published_vectors() {
    let home = tempfile::tempdir().unwrap();
    let id = |path: &Path| {
        let output = chiral(home.path(), &["add", "--only-hash", "-Q", path.to_str().unwrap()]);
        out(&output).trim_end().to_owned()
    };
    let zeros = home.path().join("zeros");
    fs::write(&zeros, vec![0; 262_145]).unwrap();
    assert_eq!(id(&zeros), "bafybeigllfqgfpqydppr6cmv56g7ax4wyhruzswvcefv6j5kj77nzttfki");

    let dir = home.path().join("dir");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("hello.txt"), "hello world\n").unwrap();
    assert_eq!(id(&dir), "bafybeidhkumeonuwkebh2i4fc7o7lguehauradvlk57gzake6ggjsy372a");

    let files = home.path().join("files");
    fs::create_dir_all(files.join("foo")).unwrap();
    fs::create_dir_all(files.join("bar")).unwrap();
    fs::write(files.join("foo/baz"), "some text\n").unwrap();
    symlink("files/foo/baz", files.join("bar/baz")).unwrap();
    symlink("files/does/not/exist", files.join("bad")).unwrap();
    assert_eq!(id(&files), "bafybeibyhlx64cklod6isy3h7tsmr4qvam3ae3b74n3hfes5bythjrwyua");
}

#[test]
fn completions_and_manual_pages_are_made_for_every_shell_and_command() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            out(&chiral(home.path(), &["completions", shell])).contains("only-hash"),
            "{shell}"
        );
    }
    assert!(out(&chiral(home.path(), &["man"])).contains(".TH chiral"));
    assert!(out(&chiral(home.path(), &["man", "mount"])).contains("private"));
    assert!(out(&chiral(home.path(), &["man", "pin", "add"])).contains("A name for people"));
    fails_with(&chiral(home.path(), &["man", "nothing"]), 2, &["no such command: nothing"]);
    fails_with(&chiral(home.path(), &["man", "pin", "x"]), 2, &["no such command: pin x"]);
}

#[test]
fn detaching_what_is_not_mounted_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().to_str().unwrap();
    fails_with(&chiral(home.path(), &["umount", path]), 1, &[path, "not a mount"]);
}
