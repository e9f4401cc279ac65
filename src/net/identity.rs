//! The key that is this node's identity.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use libp2p::identity::Keypair;

use super::NetError;

/// Reads the ed25519 key of `path`, or makes one there, mode 0600. The form is libp2p's protobuf, as other
/// implementations keep it.
pub(super) fn load_or_create(path: &Path) -> Result<Keypair, NetError> {
    let fail = |reason: String| NetError::Key { path: path.to_owned(), reason };
    match fs::read(path) {
        Ok(bytes) => {
            let mode = fs::metadata(path).map_err(|e| fail(e.to_string()))?.permissions().mode();
            if mode & 0o077 != 0 {
                return Err(fail(format!(
                    "others can read it (mode {:o}); run chmod 600 on it",
                    mode & 0o777
                )));
            }
            Keypair::from_protobuf_encoding(&bytes).map_err(|e| {
                fail(format!(
                    "not a libp2p private key ({e}); restore it, or move it away for a new identity"
                ))
            })
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let key = Keypair::generate_ed25519();
            let bytes = key.to_protobuf_encoding().map_err(|e| fail(e.to_string()))?;
            write(path, &bytes).map_err(|e| fail(format!("cannot be written: {e}")))?;
            Ok(key)
        }
        Err(e) => Err(fail(e.to_string())),
    }
}

/// Writes the whole file or none of it: a node that lost its key to a crash would be somebody else.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(dir)?;
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    // What a crash left half written would refuse `create_new`, which is what keeps the mode ours.
    match fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_key_is_made_for_the_owner_alone_and_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/key");
        let made = load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            fs::read_dir(path.parent().unwrap()).unwrap().count(),
            1,
            "nothing is left beside it"
        );
        assert_eq!(load_or_create(&path).unwrap().public(), made.public());
    }

    #[test]
    fn a_half_written_key_of_a_crash_does_not_stand_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(dir.path().join("key.new"), b"half").unwrap();
        let made = load_or_create(&path).unwrap();
        assert_eq!(load_or_create(&path).unwrap().public(), made.public());
    }

    #[test]
    fn a_broken_key_and_one_that_others_can_read_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        fs::write(&path, b"not a key").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let text = load_or_create(&path).unwrap_err().to_string();
        assert!(text.contains("chmod 600") && text.contains("key"), "{text}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let text = load_or_create(&path).unwrap_err().to_string();
        assert!(text.contains("not a libp2p private key"), "{text}");
        assert_eq!(fs::read(&path).unwrap(), b"not a key", "it is left as it was");
    }
}
