//! Real programs on `upload/` and on content by its id, with kernel passthrough and without.

use std::{fs, path::Path, process::Command};

use crate::harness::{Daemon, Setup, sh, skipped};

/// Runs a script in the scratch folder of a daemon in each mode; the mount is `mnt` there.
fn in_both_modes(script: &str) {
    for passthrough in [true, false] {
        let daemon = started(passthrough);
        sh(script, daemon.scratch());
    }
}

fn started(passthrough: bool) -> Daemon {
    let config = format!("[mount]\npassthrough = {passthrough}\n");
    Daemon::start(&Setup { config, ..Setup::default() })
}

/// Whether a program that a machine need not have is there; says so loudly when not. `scripts/test` installs them all.
fn has(program: &str) -> bool {
    let found = Command::new(program).arg("-version").output().is_ok();
    if !found {
        skipped(&format!("there is no {program} on this machine, it was not tried on the mount"));
    }
    found
}

#[test]
fn rsync_copies_updates_in_place_and_finds_nothing_left_to_do() {
    in_both_modes(
        r#"
        mkdir -p src/a/b; head -c 900000 /dev/urandom > src/a/big; echo text > src/a/b/text; ln -s b/text src/a/link
        rsync -a src/ mnt/upload/tree/; diff -r --no-dereference src mnt/upload/tree
        test -z "$(rsync -a --itemize-changes src/ mnt/upload/tree/)"
        printf changed | dd of=src/a/big bs=1 seek=400000 conv=notrunc status=none
        rsync -a -I --inplace --no-whole-file src/ mnt/upload/tree/; cmp src/a/big mnt/upload/tree/a/big
        # The kernel tells of a close a moment later; the file is waited for.
        getfattr --only-values -n user.chiral.cid mnt/upload/tree/a/big
        cid=$(getfattr --only-values -n user.chiral.cid mnt/upload/tree)
        test -z "$(rsync -rl --checksum --delete --itemize-changes --dry-run "mnt/$cid/" src/ | grep '^[<>*]')"
        "#,
    );
}

#[test]
fn attributes_are_copied_out_of_the_mount_into_it_and_within_it() {
    in_both_modes(
        r#"
        mkdir -p src/sub; echo text > src/sub/file; setfattr -n user.note -v kept src/sub/file; ln -s file src/sub/link
        rsync -aX src/ mnt/upload/tree/; rsync -aX src/ mnt/upload/tree/
        test "$(getfattr --only-values -n user.note mnt/upload/tree/sub/file)" = kept
        # The kernel tells of a close a moment later; files are waited for.
        getfattr -n user.chiral.cid mnt/upload/tree/sub/file
        cid=$(getfattr --only-values -n user.chiral.cid mnt/upload/tree)
        # Who is not root cannot have rsync fill folders that are read-only and have attributes, on any filesystem.
        rsync -rlX --chmod=u+w "mnt/$cid/" out1/; cp -a "mnt/$cid" out2; cp -r --preserve=xattr "mnt/$cid" out3; tar -C mnt --xattrs -cf out.tar "$cid"
        diff -r --no-dereference src out1; diff -r --no-dereference src out2; diff -r --no-dereference src out3
        rsync -rlX --chmod=u+w "mnt/$cid/" mnt/upload/copy1/; cp -a "mnt/$cid" mnt/upload/copy2; rsync -aX mnt/upload/tree/ mnt/upload/copy3/
        cp -r --preserve=xattr mnt/upload/tree mnt/upload/copy4
        for n in 1 2 3 4; do getfattr -n user.chiral.cid mnt/upload/copy$n/sub/file; test "$(getfattr --only-values -n user.chiral.cid mnt/upload/copy$n)" = "$cid"; done
        test "$(getfattr --only-values -n ipfs.cid mnt/upload/copy1)" = "$cid"
        # It is told, not kept: a changed file has another one.
        echo more >> mnt/upload/copy1/sub/file
        getfattr -n user.chiral.cid mnt/upload/copy1/sub/file
        setfattr -n user.chiral.cid -v "$cid" mnt/upload/copy1
        test "$(getfattr --only-values -n user.chiral.cid mnt/upload/copy1)" != "$cid"
        "#,
    );
}

#[test]
fn git_clones_commits_and_collects_garbage() {
    in_both_modes(
        r#"
        export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q src; for i in $(seq 40); do echo "line $i" > src/file$i; done
        git -C src add . && git -C src commit -q -m one
        git clone -q src mnt/upload/clone
        test -z "$(git -C mnt/upload/clone status --porcelain)"
        echo more >> mnt/upload/clone/file1
        test "$(git -C mnt/upload/clone status --porcelain)" = " M file1"
        git -C mnt/upload/clone commit -q -a -m two; git -C mnt/upload/clone gc -q; git -C mnt/upload/clone fsck --full 2>&1
        git clone -q --bare mnt/upload/clone mnt/upload/bare.git
        cid=$(getfattr --only-values -n user.chiral.cid mnt/upload/bare.git)
        git -c safe.directory='*' clone -q "mnt/$cid" again; diff -r -x .git again mnt/upload/clone
        git -c safe.directory='*' --git-dir="mnt/$cid" fsck --full
        "#,
    );
}

#[test]
fn editors_that_save_by_rename_or_in_place_give_new_ids() {
    in_both_modes(
        r#"
        id() { getfattr --only-values -n user.chiral.cid mnt/upload/text; }
        echo one > mnt/upload/text; first=$(id)
        cp -p mnt/upload/text mnt/upload/text~; echo two > mnt/upload/.text.swp; sync mnt/upload/.text.swp
        mv mnt/upload/.text.swp mnt/upload/text; rm mnt/upload/text~; second=$(id)
        test "$first" != "$second"; test "$(cat "mnt/$first" "mnt/$second" mnt/upload/text)" = "$(printf 'one\ntwo\ntwo')"
        sed -i s/two/three/ mnt/upload/text; test "$(cat "mnt/$(id)")" = three
        echo four >> mnt/upload/text; test "$(cat "mnt/$(id)")" = "$(printf 'three\nfour')"
        test "$(ls -A mnt/upload)" = text
        "#,
    );
}

#[test]
fn sizes_and_space_are_told_as_other_filesystems_do() {
    in_both_modes(
        r#"
        head -c 3000000 /dev/urandom > mnt/upload/big; echo small > mnt/upload/small
        cid=$(getfattr --only-values -n user.chiral.cid mnt/upload/big)
        test "$(find mnt/upload -size +1M -printf '%f')" = big
        test "$(find "mnt/$cid" -size +1M -printf '%s')" = 3000000
        # Its blocks count once: in upload, and not under its id.
        for counted in mnt/upload/big mnt/upload mnt; do
          used=$(du -sk "$counted" | cut -f1); test "$used" -ge 2900; test "$used" -le 3200
        done
        test "$(du -k "mnt/$cid" | cut -f1)" -le 4
        for path in mnt/upload/big "mnt/$cid"; do test "$(du -b "$path" | cut -f1)" = 3000000; done
        test "$(df --output=avail mnt | tail -n 1)" -gt 0
        test "$(stat -f -c %T mnt)" = fuseblk -o "$(stat -f -c %T mnt)" = fuse
        dd if="mnt/$cid" of=copy bs=7777 status=none; cmp copy mnt/upload/big
        truncate -s 100 mnt/upload/big; test "$(stat -c %s mnt/upload/big)" = 100; cmp -n 100 copy mnt/upload/big
        test "$(stat -c %s "mnt/$cid")" = 3000000
        "#,
    );
}

#[test]
fn mappings_are_read_and_written() {
    in_both_modes(
        r#"python3 - <<'END'
import mmap, os
with open("mnt/upload/mapped", "w+b") as file:
    file.truncate(1 << 20)
    with mmap.mmap(file.fileno(), 0) as view:
        view[500_000:500_005] = b"hello"
        view.flush()
        assert os.pread(file.fileno(), 5, 500_000) == b"hello"
        os.pwrite(file.fileno(), b"J", 500_000)
        assert view[500_000:500_005] == b"Jello"
cid = os.getxattr("mnt/upload/mapped", "user.chiral.cid").decode()
with open(f"mnt/{cid}", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
    assert view.find(b"Jello") == 500_000 and len(view) == 1 << 20
END"#,
    );
}

#[test]
fn files_are_sent_without_a_copy_through_the_program() {
    in_both_modes(
        r#"python3 - <<'END'
import os, socket, threading
content = os.urandom(3_000_000)
with open("mnt/upload/sent", "wb") as file:
    file.write(content)
cid = os.getxattr("mnt/upload/sent", "user.chiral.cid").decode()
for path in f"mnt/{cid}", "mnt/upload/sent":
    near, far = socket.socketpair()
    got = bytearray()
    def receive():
        while piece := far.recv(1 << 16):
            got.extend(piece)
    thread = threading.Thread(target=receive)
    thread.start()
    with open(path, "rb") as file:
        at = 0
        while count := os.sendfile(near.fileno(), file.fileno(), at, 1 << 20):
            at += count
    near.close()
    thread.join()
    assert got == content, path
    # From file to file, as cp and shutil do it.
    with open(path, "rb") as file, open("copy", "wb") as copy:
        while os.sendfile(copy.fileno(), file.fileno(), None, 1 << 20):
            pass
    assert open("copy", "rb").read() == content, path
END"#,
    );
}

#[test]
fn databases_are_written_in_upload_and_read_by_their_id() {
    in_both_modes(
        r#"python3 - <<'END'
import os, sqlite3
for mode in "delete", "wal", "truncate":
    name = f"mnt/upload/{mode}.db"
    base = sqlite3.connect(name)
    assert base.execute(f"pragma journal_mode={mode}").fetchone() == (mode,)
    base.execute("create table numbers (n integer primary key, text)")
    for n in range(20):
        with base:
            base.executemany("insert into numbers values (?, ?)", [(n * 100 + k, "x" * 300) for k in range(100)])
    with base:
        base.execute("delete from numbers where n % 3 = 0")
    # Readers beside the writer see what is committed.
    beside = sqlite3.connect(name)
    assert beside.execute("select count(*) from numbers").fetchone() == (1333,)
    beside.close()
    base.execute("pragma journal_mode=delete")
    base.execute("vacuum")
    base.close()
    cid = os.getxattr(name, "user.chiral.cid").decode()
    for options in "mode=ro", "immutable=1":
        shown = sqlite3.connect(f"file:mnt/{cid}?{options}", uri=True)
        assert shown.execute("pragma integrity_check").fetchone() == ("ok",)
        assert shown.execute("select count(*), max(n) from numbers").fetchone() == (1333, 1999)
        shown.close()
END"#,
    );
}

#[test]
fn films_are_probed_decoded_and_seeked_in() {
    if !has("ffmpeg") || !has("ffprobe") {
        return;
    }
    for passthrough in [true, false] {
        let daemon = started(passthrough);
        // The index of such a file lies at its end.
        let script = r#"
            ffmpeg -v error -f lavfi -i testsrc=duration=20:size=320x240:rate=15 -f lavfi -i sine=duration=20 -shortest mnt/upload/film.mp4 2>&1
            cid=$(getfattr --only-values -n user.chiral.cid mnt/upload/film.mp4)
            test "$(ffprobe -v error -show_entries format=duration -of csv=p=0 "mnt/$cid" | cut -d. -f1)" = 20
            ffmpeg -v error -xerror -i "mnt/$cid" -f null - 2>&1
            ffmpeg -v error -ss 15 -i "mnt/$cid" -frames:v 1 frame.png 2>&1; test -s frame.png
        "#;
        assert_eq!(sh(script, daemon.scratch()), "");
    }
}

#[test]
fn a_program_runs_from_the_mount() {
    for passthrough in [true, false] {
        let daemon = started(passthrough);
        fs::copy("/bin/true", daemon.path("upload/true")).unwrap();
        assert!(Command::new(daemon.path("upload/true")).status().unwrap().success());
        let cid = daemon.cid("upload/true");
        sh(
            &format!("test \"$(sha256sum < mnt/{cid})\" = \"$(sha256sum < /bin/true)\""),
            daemon.scratch(),
        );
        assert!(Path::new(&daemon.path(&cid)).exists());
    }
}
