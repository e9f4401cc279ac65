//! Where the data folder lies, and that it does not lie under the mountpoint.

use std::{
    env, io,
    path::{Component, Path, PathBuf},
};

use super::NodeError;

/// `$XDG_DATA_HOME/chiral`, else `~/.local/share/chiral`. None for a user without a home: a folder with a private key in
/// it is not made wherever the program was started.
pub fn default_data_dir() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))?;
    Some(base.join("chiral"))
}

/// Refuses a data folder and a mountpoint that lie in one another: a thread of the daemon that touches its own
/// mount waits for itself, and nothing but a reboot or an abort through /sys ends that.
///
/// # Errors
/// [`NodeError::Nested`].
pub fn refuse_nested(data_dir: &Path, mountpoint: &Path) -> Result<(), NodeError> {
    let (data, mount) = (resolved(data_dir), resolved(mountpoint));
    if data.starts_with(&mount) || mount.starts_with(&data) {
        return Err(NodeError::Nested(mountpoint.to_owned()));
    }
    Ok(())
}

/// The path without symlinks and dots as far as it exists, the rest as it is written.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut rest = Vec::new();
    let mut at = absolute.as_path();
    loop {
        match at.canonicalize() {
            Ok(found) => return rest.iter().rev().fold(found, |base, part| joined(base, *part)),
            // A stale mount cannot be entered, but its own name is as good as resolved.
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error().is_some() => {}
            Err(_) => return absolute,
        }
        let (Some(parent), Some(last)) = (at.parent(), at.components().next_back()) else {
            return absolute;
        };
        rest.push(last);
        at = parent;
    }
}

fn joined(base: PathBuf, part: Component<'_>) -> PathBuf {
    match part {
        Component::ParentDir => base.parent().map(Path::to_owned).unwrap_or(base),
        part => base.join(part),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn nested_folders_are_refused_through_symlinks_and_before_they_exist() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path().join("mount");
        std::fs::create_dir(&mount).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&mount, &link).unwrap();

        assert!(refuse_nested(&dir.path().join("data"), &mount).is_ok());
        assert!(refuse_nested(&dir.path().join("mount-data"), &mount).is_ok());
        for data in [mount.clone(), mount.join("a/b"), link.join("data"), dir.path().to_owned()] {
            let refused = refuse_nested(&data, &mount);
            assert!(matches!(refused, Err(NodeError::Nested(_))), "{}", data.display());
        }
    }
}
