//! New versions of a published file while the old one is read.

use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{FileExt, MetadataExt},
};

use crate::harness::{Daemon, Setup, noise};

const MIB: usize = 1 << 20;

/// Bytes of the published file: `CHIRAL_VERSIONS_MIB` mebibytes, 40 unless it is set.
fn size() -> usize {
    let mib = std::env::var("CHIRAL_VERSIONS_MIB").ok().and_then(|mib| mib.parse().ok());
    mib.unwrap_or(40) * MIB
}

/// Bytes of disk under the data folder's objects.
fn allocated(daemon: &Daemon) -> u64 {
    let dirs = fs::read_dir(daemon.data().join("objects")).unwrap();
    let files = dirs.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().metadata().map_or(0, |meta| meta.blocks() * 512)).sum()
}

/// One change of a file, done by a program and to a model.
type Change = fn(&File, &mut Vec<u8>);

const CHANGES: [(&str, Change); 3] = [
    ("append", |mut file, model| {
        let more = noise(300_000, 7);
        file.write_all(&more).unwrap();
        model.extend(more);
    }),
    ("overwrite", |file, model| {
        let bytes = noise(1_000_000, 8);
        file.write_all_at(&bytes, 17 * MIB as u64 + 5).unwrap();
        model[17 * MIB + 5..][..bytes.len()].copy_from_slice(&bytes);
    }),
    ("truncate", |file, model| {
        let len = model.len() / 4 * 3 + 77;
        file.set_len(len as u64).unwrap();
        model.truncate(len);
    }),
];

fn change(daemon: &Daemon, name: &str, change: Change, model: &mut Vec<u8>) {
    let append = name == "append";
    let path = daemon.path("upload/file");
    let file = OpenOptions::new().write(true).append(append).open(path).unwrap();
    change(&file, model);
}

/// The id that a daemon that has never seen the file gives to the same bytes.
fn expected(fresh: &Daemon, content: &[u8], name: &str) -> String {
    fs::write(fresh.path(&format!("upload/{name}")), content).unwrap();
    fresh.cid(&format!("upload/{name}"))
}

#[test]
fn a_peer_and_a_local_reader_see_the_old_version_to_its_end() {
    let daemon = Daemon::start(&Setup::default());
    let fresh = Daemon::start(&Setup::default());
    let mut content = noise(size(), 1);
    fs::write(daemon.path("upload/file"), &content).unwrap();
    for (name, apply) in CHANGES {
        let old = content.clone();
        let old_cid = daemon.cid("upload/file");
        let peer = Daemon::start_beside(&daemon, &Setup::default());
        let (remote, local) =
            (File::open(peer.path(&old_cid)).unwrap(), File::open(daemon.path(&old_cid)).unwrap());
        let half = old.len() / 2;
        let (mut by_peer, mut by_local) = (vec![0; old.len()], vec![0; old.len()]);
        remote.read_exact_at(&mut by_peer[..half], 0).unwrap();
        local.read_exact_at(&mut by_local[..half], 0).unwrap();

        change(&daemon, name, apply, &mut content);
        let new_cid = daemon.cid("upload/file");
        assert_eq!(new_cid, expected(&fresh, &content, name), "{name}");
        remote.read_exact_at(&mut by_peer[half..], half as u64).unwrap();
        local.read_exact_at(&mut by_local[half..], half as u64).unwrap();
        assert!(by_peer == old, "{name}: the peer saw something else than the old version");
        assert!(by_local == old, "{name}: the local reader saw something else");
        assert!(fs::read(daemon.path(&new_cid)).unwrap() == content, "{name}");
        assert!(fs::read(peer.path(&new_cid)).unwrap() == content, "{name}: at the peer");
    }
    assert!(daemon.chiral(&["store", "verify"]).status.success());
}

#[test]
fn an_append_copies_no_more_than_what_it_touches_and_the_old_version_stays_served() {
    append_costs_little(false);
}

#[test]
fn an_append_costs_no_more_while_a_program_reads_the_old_version() {
    append_costs_little(true);
}

fn append_costs_little(read_meanwhile: bool) {
    let daemon = Daemon::start(&Setup::default());
    let mut content = noise(size(), 2);
    fs::write(daemon.path("upload/file"), &content).unwrap();
    let old_cid = daemon.cid("upload/file");
    let old = content.clone();
    let reader = read_meanwhile.then(|| File::open(daemon.path(&old_cid)).unwrap());
    let before = allocated(&daemon);
    change(&daemon, "append", CHANGES[0].1, &mut content);
    let new_cid = daemon.cid("upload/file");
    // What was appended, one leaf that was filled up, and its old bytes for whoever reads the old version.
    let grown = allocated(&daemon).saturating_sub(before);
    assert!(grown < 4 * MIB as u64, "an append of 300 kB took {grown} bytes");
    assert!(fs::read(daemon.path("upload/file")).unwrap() == content);
    if let Some(reader) = reader {
        let mut read = vec![0; old.len()];
        reader.read_exact_at(&mut read, 0).unwrap();
        assert!(read == old, "the reader saw something else");
    }
    let peer = Daemon::start_beside(&daemon, &Setup::default());
    assert!(fs::read(peer.path(&old_cid)).unwrap() == old);
    assert!(fs::read(peer.path(&new_cid)).unwrap() == content);
    assert!(fs::read(daemon.path(&old_cid)).unwrap() == old);
}
