//! A daemon from its start in the background to its end, by the commands alone.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use tempfile::TempDir;

/// A data folder, a mountpoint and a home; a daemon that is left over is ended.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("mnt")).unwrap();
        Self { dir }
    }

    fn mountpoint(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// Runs a command; one that hangs is ended, and fails the test. Its arguments need not be text.
    fn chiral<A: AsRef<OsStr>>(&self, args: &[A]) -> Output {
        Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_chiral")])
            .args(args)
            .env("HOME", self.dir.path())
            .env("CHIRAL_DATA_DIR", self.dir.path().join("data"))
            .env_remove("XDG_DATA_HOME")
            .env_remove("XDG_CONFIG_HOME")
            .output()
            .unwrap()
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let output = self.chiral(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}: {error}", output.status);
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    fn mount(&self, more: &[&str]) -> Output {
        let mountpoint = self.mountpoint();
        let usual = ["mount", "--background", "--private", "--listen", "/ip4/127.0.0.1/tcp/0"];
        self.chiral(&[&usual, more, &[mountpoint.to_str().unwrap()]].concat())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.chiral(&["umount", self.mountpoint().to_str().unwrap()]);
    }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

#[test]
fn a_daemon_in_the_background_serves_its_commands_until_umount() {
    let lab = Lab::new();
    let mountpoint = lab.mountpoint();
    let mounted = lab.mount(&[]);
    assert!(mounted.status.success(), "{}", String::from_utf8_lossy(&mounted.stderr));
    let said = String::from_utf8(mounted.stdout).unwrap();
    assert_eq!(said, format!("mounted {}\n", mountpoint.display()));
    assert!(is_mounted(&mountpoint));

    let file = lab.dir.path().join("hello.txt");
    fs::write(&file, "hello world\n").unwrap();
    let hello = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4";
    assert_eq!(lab.ok(&["add", file.to_str().unwrap()]), format!("{hello}  hello.txt\n"));
    assert_eq!(lab.ok(&["cat", hello]), "hello world\n");
    assert_eq!(lab.ok(&["cat", hello, "--offset", "6", "--length", "3"]), "wor");
    assert_eq!(fs::read_to_string(mountpoint.join(hello)).unwrap(), "hello world\n");
    let under = mountpoint.join("upload/hello.txt");
    assert_eq!(lab.ok(&["add", "-Q", under.to_str().unwrap()]), format!("{hello}\n"));
    let copy = lab.dir.path().join("copy");
    lab.ok(&["get", hello, "-o", copy.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(copy).unwrap(), "hello world\n");

    let id = lab.json(&["id"]);
    let status = lab.json(&["status"]);
    assert_eq!(status["peer_id"], id["peer_id"]);
    assert_eq!(status["addresses"], id["addresses"]);
    assert!(!id["addresses"].as_array().unwrap().is_empty());
    assert_eq!(status["mountpoint"], mountpoint.to_str().unwrap());
    assert_eq!(status["uploads"], 1);
    assert_eq!(status["store"]["objects"], 1);
    for key in ["version", "gateway", "torrent_port", "peers", "downloads"] {
        assert!(status.get(key).is_some(), "{key}");
    }

    let verified = lab.json(&["store", "verify"]);
    assert_eq!(verified["bad"], serde_json::json!([]));
    assert!(verified["blocks"].as_u64() >= Some(1) && verified["bytes"].as_u64() >= Some(12));

    lab.ok(&["umount", mountpoint.to_str().unwrap()]);
    assert!(!is_mounted(&mountpoint));
    assert_eq!(lab.chiral(&["id"]).status.code(), Some(4));
}

#[test]
fn the_gateway_of_a_daemon_gives_what_was_published_and_ends_with_it() {
    let lab = Lab::new();
    assert!(lab.mount(&[]).status.success());
    let file = lab.dir.path().join("hello.txt");
    fs::write(&file, "hello world\n").unwrap();
    let cid = lab.ok(&["add", "-Q", file.to_str().unwrap()]);
    let status = lab.json(&["status"]);
    let address = status["gateway"].as_str().unwrap().strip_prefix("http://127.0.0.1:").unwrap();
    let address = ("127.0.0.1", address.parse::<u16>().unwrap());
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!(
        "GET /ipfs/{} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
        cid.trim()
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nhello world\n"),
        "{answer}"
    );
    lab.ok(&["umount", lab.mountpoint().to_str().unwrap()]);
    assert!(TcpStream::connect(address).is_err());
    drop(lab);

    let lab = Lab::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = lab.mount(&["--gateway-listen", &taken.local_addr().unwrap().to_string()]);
    assert!(!refused.status.success());
    assert!(lab.mount(&["--no-gateway"]).status.success());
    assert_eq!(lab.json(&["status"])["gateway"], serde_json::Value::Null);
}

#[test]
fn adding_shows_a_bar_on_a_terminal_only_and_tells_what_was_published_before_it_failed() {
    let lab = Lab::new();
    assert!(lab.mount(&[]).status.success());
    let (tree, nowhere) = (lab.dir.path().join("tree"), lab.dir.path().join("nowhere"));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("large"), vec![7; 30 << 20]).unwrap();
    let tree = tree.to_str().unwrap();

    // A link is a link, to whatever it leads, as for `ipfs add`.
    let link = lab.dir.path().join("link");
    std::os::unix::fs::symlink("tree/large", &link).unwrap();
    let link = link.to_str().unwrap();
    assert_eq!(lab.ok(&["add", link]), lab.ok(&["add", "--only-hash", link]));

    let plain = lab.chiral(&["add", tree]);
    assert!(plain.status.success() && plain.stderr.is_empty(), "{plain:?}");
    let said = String::from_utf8(plain.stdout).unwrap();
    // What an argument is shows at once, what is below it only when its turn comes.
    let absent = lab.chiral(&["add", tree, nowhere.to_str().unwrap()]);
    assert_eq!((absent.status.code(), &*absent.stdout), (Some(1), &b""[..]));
    fs::create_dir(&nowhere).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(nowhere.join("socket")).unwrap();
    let both = lab.chiral(&["add", tree, nowhere.to_str().unwrap()]);
    assert_eq!(both.status.code(), Some(1));
    assert_eq!(String::from_utf8(both.stdout).unwrap(), said);
    let error = String::from_utf8(both.stderr).unwrap();
    assert!(error.contains("nowhere/socket: only files"), "{error}");

    // What is there under its name already is not copied again.
    let fresh = lab.dir.path().join("fresh");
    fs::rename(tree, &fresh).unwrap();
    let cid = said.lines().last().unwrap().split(' ').next().unwrap();
    // script(1) gives it a terminal.
    let shown = Command::new("timeout")
        .args(["60", "script", "-qec"])
        .arg(format!("stty cols 120; {} add {}", env!("CARGO_BIN_EXE_chiral"), fresh.display()))
        .arg("/dev/null")
        .env("CHIRAL_DATA_DIR", lab.dir.path().join("data"))
        .env("TERM", "xterm")
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for word in ["/30.00 MiB", "/s", "copying", "hashing", cid] {
        assert!(shown.contains(word), "`{word}` is not in: {shown}");
    }
}

/// A name that recolours a terminal, forges a line, turns text around, and is no text.
const HOSTILE: &[u8] = b"a\x1b[31m\nbafy  forged\xe2\x80\xae\xff%20";

#[test]
fn names_that_are_no_text_are_taken_and_shown_harmless() {
    let lab = Lab::new();
    let tree = lab.dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join(OsStr::from_bytes(HOSTILE)), "hello world\n").unwrap();
    assert!(lab.mount(&[]).status.success());
    let root = lab.ok(&["add", "-Q", tree.to_str().unwrap()]).trim().to_owned();

    let listed = lab.ok(&["ls", &root]);
    assert!(listed.ends_with("  a\\u{1b}[31m\\nbafy  forged\\u{202e}\\xff%20\n"), "{listed}");
    let hello = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4";
    let plain: OsString = OsStr::from_bytes(&[root.as_bytes(), b"/", HOSTILE].concat()).to_owned();
    let escaped = "a%1B%5B31m%0Abafy%20%20forged%E2%80%AE%FF%2520";
    let (copy, archive) = (lab.dir.path().join("copy"), lab.dir.path().join("archive"));
    let ids = [
        plain.clone(),
        format!("ipfs://{root}/{escaped}").into(),
        format!("https://dweb.link/ipfs/{root}/{escaped}?filename=x#y").into(),
        format!("http://{root}.ipfs.localhost:8080/{escaped}").into(),
        format!("dweb:/ipfs/{root}/{escaped}").into(),
    ];
    for id in &ids {
        let run = |before: &[&str], after: &[&OsStr]| {
            let args: Vec<&OsStr> = before.iter().map(OsStr::new).chain([&**id]).collect();
            let output = lab.chiral(&[&args[..], after].concat());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{id:?}: {before:?}: {said}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(run(&["cat"], &[]), "hello world\n");
        assert!(run(&["ls"], &[]).starts_with(hello));
        for name in [&copy, &archive] {
            let _ = fs::remove_file(name);
        }
        run(&["get"], &[OsStr::new("-o"), copy.as_os_str()]);
        assert_eq!(fs::read_to_string(&copy).unwrap(), "hello world\n");
        run(&["store", "export"], &[OsStr::new("-o"), archive.as_os_str()]);
        run(&["provide"], &[]);
        assert!(run(&["pin", "add"], &[]).starts_with("pinned "));
        assert!(run(&["pin", "rm"], &[]).starts_with("unpinned "));
    }

    let absent = OsStr::from_bytes(&[plain.as_bytes(), b"\x1b[0m"].concat()).to_owned();
    let refused = lab.chiral(&[OsStr::new("cat"), &absent]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(said.lines().count() == 1 && !said.contains('\x1b'), "{said:?}");
    let wrong = lab.chiral(&[OsStr::new("frobnicate\x1b[0m")]);
    assert!(wrong.status.code() == Some(2) && !wrong.stderr.contains(&0x1b), "{wrong:?}");
    let json = lab.ok(&["ls", "--json", &format!("ipfs://{root}")]);
    assert!(!json.contains('\x1b') && json.trim_end().lines().count() == 1, "{json:?}");
}

/// Runs a script in a folder beside the data; `$C` is the program.
fn bash(lab: &Lab, script: &str) -> Output {
    Command::new("timeout")
        .args(["60", "bash", "-c", script])
        .env("C", env!("CARGO_BIN_EXE_chiral"))
        .env("HOME", lab.dir.path())
        .env("CHIRAL_DATA_DIR", lab.dir.path().join("data"))
        .current_dir(lab.dir.path())
        .output()
        .unwrap()
}

#[track_caller]
fn said(output: &Output, code: i32, words: &[&str]) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for word in words {
        assert!(error.contains(word), "`{word}` is not in: {error}");
    }
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn names_that_are_taken_are_never_replaced_unasked() {
    let lab = Lab::new();
    assert!(lab.mount(&[]).status.success());
    said(&bash(&lab, "mkdir -p a b; echo a > a/README; echo b > b/README"), 0, &[]);
    // Two arguments with one name: neither is published.
    let words = ["a/README and b/README", "`README`", "--name"];
    assert_eq!(said(&bash(&lab, "$C add a/README b/README"), 2, &words), "");
    assert_eq!(said(&bash(&lab, "ls -A mnt/upload"), 0, &[]), "");
    said(&bash(&lab, "$C add --name x a/README b/README"), 2, &["--name"]);
    let first = said(&bash(&lab, "$C add -Q a/README a/../a/README"), 0, &[]);
    assert_eq!(said(&bash(&lab, "$C add -Q a/README"), 0, &[]), first);
    let words = ["`README` is in upload/ already", "--replace", "--name NAME"];
    for command in ["add", "seed"] {
        assert_eq!(said(&bash(&lab, &format!("$C {command} b/README")), 1, &words), "");
        assert_eq!(said(&bash(&lab, "cat mnt/upload/README"), 0, &[]), "a\n");
    }
    let second = said(&bash(&lab, "$C add -Q --name other b/README"), 0, &[]);
    assert_ne!(second, first);
    said(&bash(&lab, "$C seed --name third b/README"), 0, &[]);
    assert_eq!(said(&bash(&lab, "cat mnt/upload/README mnt/upload/other"), 0, &[]), "a\nb\n");
    assert_eq!(said(&bash(&lab, "$C add -Q --replace b/README"), 0, &[]), second);
    let listed = said(&bash(&lab, "cat mnt/upload/README; ls -A mnt/upload"), 0, &[]);
    assert_eq!(listed, "b\nREADME\nother\nthird\n");
    said(&bash(&lab, "$C add --name x mnt/upload/README"), 1, &["lies in the mount already"]);
    said(&bash(&lab, "$C seed --name x bafkqaaa"), 2, &["--name"]);
}

#[test]
fn what_is_piped_in_is_published() {
    let lab = Lab::new();
    assert!(lab.mount(&[]).status.success());
    let text = "bafkreifz42hbx2r6lmm4u2zptc3tuvfxhwvpvisqjbeqfyezqlqhuexhgm";
    let named = |name: &str| format!("{text}  {name}\n");
    let add = |script: &str| said(&bash(&lab, script), 0, &[]);
    assert_eq!(add("echo text | $C add -"), named(text));
    assert_eq!(add("echo text | $C add /dev/stdin"), named(text));
    assert_eq!(add("$C add <(echo text)"), named(text));
    assert_eq!(add("echo text | $C add --name note.txt -"), named("note.txt"));
    assert_eq!(add("mkfifo pipe; echo text > pipe & $C add pipe"), named("pipe"));
    assert_eq!(
        add("head -c 20M /dev/zero | $C add -Q --name zeros -").trim_end(),
        add("head -c 20M /dev/zero > z; $C add -Q --only-hash z").trim_end()
    );
    assert_eq!(add("ls -A mnt/upload").lines().count(), 4);
    assert_eq!(add("cat mnt/upload/note.txt"), "text\n");
    let refused = bash(&lab, "echo other | $C add --name note.txt -");
    assert_eq!(said(&refused, 1, &["`note.txt` is in upload/ already"]), "");
    add("echo other | $C add --replace --name note.txt -");
    assert_eq!(add("cat mnt/upload/note.txt"), "other\n");
}

#[test]
fn hidden_files_are_published_when_they_are_asked_for() {
    let lab = Lab::new();
    assert!(lab.mount(&[]).status.success());
    let add = |script: &str| said(&bash(&lab, script), 0, &[]).trim_end().to_owned();
    add(
        "mkdir -p t/.hid t/sub; cd t; echo a > a; echo h > .env; echo g > .hid/x; echo s > sub/.s; echo s2 > sub/n; ln -s a l",
    );
    let without = "bafybeifvuak4jl7glkaoymhjcpda5pnw3axoeuajkw7wkfzht3dstyv53a";
    let with = "bafybeie3eolivhvd45idzdcym5yqrwsohqqesdhppbjn34xxh25me3o4ou";
    let words = ["skipped 3 hidden files (-H publishes them): t/.env, t/.hid, t/sub/.s"];
    assert_eq!(said(&bash(&lab, "$C add -rQ t"), 0, &words).trim_end(), without);
    assert_eq!(add("$C add -rQH --name all t"), with);
    assert_eq!(add("cp -r t mnt/upload/copied; $C add -Q mnt/upload/copied 2>/dev/null"), without);
    // What is named is published, in upload/ and from elsewhere.
    let env = "bafkreier5zpj6qv2hu2oifcehm3ke63zpjlki6vnnoy6jqlwtzu4o7hazi";
    assert_eq!(add("$C add -Q mnt/upload/copied/sub/../.env"), env);
    assert_eq!(add("$C add -Q t/.env; ls -A mnt/upload"), format!("{env}\n.env\nall\ncopied\nt"));
    assert_eq!(add("$C add -QH mnt/upload/copied"), with);
    assert_eq!(add("$C seed -H --name torrent t | wc -l"), "2");
}

#[test]
fn files_that_the_mount_hides_are_told_of_and_are_there_again_after_it() {
    let lab = Lab::new();
    let hidden = lab.mountpoint().join("hidden");
    fs::write(&hidden, "mine").unwrap();
    let mounted = lab.mount(&[]);
    assert!(mounted.status.success());
    let warned = String::from_utf8(mounted.stderr).unwrap();
    assert!(warned.contains("is not empty") && warned.contains("hidden"), "{warned}");
    assert!(!hidden.exists());
    lab.ok(&["umount", lab.mountpoint().to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&hidden).unwrap(), "mine");
    // The log is kept, and told of from where this start began.
    fs::remove_file(&hidden).unwrap();
    let again = lab.mount(&[]);
    assert!(again.status.success() && again.stderr.is_empty(), "{again:?}");
}

#[test]
fn a_daemon_that_cannot_start_in_the_background_says_why() {
    let lab = Lab::new();
    assert!(lab.mount(&[]).status.success());
    let second = lab.dir.path().join("second");
    fs::create_dir(&second).unwrap();
    let refused = lab.chiral(&["mount", "--background", "--private", second.to_str().unwrap()]);
    assert_eq!(refused.status.code(), Some(1));
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("in use by another chiral daemon"), "{error}");
    assert!(!is_mounted(&second));
}

#[test]
fn a_mountpoint_and_a_data_folder_are_free_as_soon_as_umount_returns() {
    let lab = Lab::new();
    // By a name that is not the mount's own.
    let link = lab.dir.path().join("link");
    std::os::unix::fs::symlink(lab.mountpoint(), &link).unwrap();
    for round in 0..5 {
        let mounted = lab.mount(&[]);
        let error = String::from_utf8_lossy(&mounted.stderr);
        assert!(mounted.status.success(), "round {round}: {error}");
        lab.ok(&["umount", link.to_str().unwrap()]);
        assert!(!is_mounted(&lab.mountpoint()));
    }
}
