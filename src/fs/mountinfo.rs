//! Reading /proc/self/mountinfo.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::OsStringExt,
    path::{Path, PathBuf},
};

/// Where the kernel lists the mounts of this process; a poll for priority data on it reports each change.
pub(super) const TABLE: &str = "/proc/self/mountinfo";
/// The filesystem type under which the mount is listed.
pub(super) const TYPE: &str = "fuse.chiral";

/// One mounted filesystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountEntry {
    /// Number of the mount, free for another one when it is gone.
    id: u64,
    /// Device number; the minor one names the FUSE connection.
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) mountpoint: PathBuf,
    pub(super) kind: String,
}

/// The filesystem on top at `mountpoint`, which has to be written as the kernel knows it.
pub(super) fn mounted_at(mountpoint: &Path) -> io::Result<Option<MountEntry>> {
    let table = fs::read(TABLE)?;
    Ok(parse(&table).into_iter().rfind(|entry| entry.mountpoint == mountpoint))
}

/// Whether a filesystem that was listed still is, also where something is mounted over it or it was moved.
pub(super) fn is_listed(mounted: &MountEntry) -> io::Result<bool> {
    let same = |entry: &MountEntry| {
        (entry.id, entry.minor) == (mounted.id, mounted.minor) && entry.kind == mounted.kind
    };
    Ok(parse(&fs::read(TABLE)?).iter().any(same))
}

fn parse(table: &[u8]) -> Vec<MountEntry> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mountpoint options optional... - type source super-options`.
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let (major, minor) = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
    let mountpoint = unescape(fields.nth(1)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(MountEntry {
        id,
        major: major.parse().ok()?,
        minor: minor.parse().ok()?,
        mountpoint: OsString::from_vec(mountpoint).into(),
        kind: String::from_utf8_lossy(kind).into_owned(),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits behind a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, behind)) = rest.split_first() {
        let octal = (*first == b'\\')
            .then(|| behind.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                out.push(byte);
                rest = &behind[3..];
            }
            None => {
                out.push(*first);
                rest = behind;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn entries_with_optional_fields_and_escaped_names_are_read() {
        let table = b"22 27 0:21 / /proc rw,relatime - proc proc rw\n\
            91 27 0:52 / /mnt/a\\040b\\134c rw,nosuid shared:1 master:2 - fuse.chiral chiral rw,user_id=0\n\
            bad line\n";
        let entries = parse(table);
        assert_eq!(entries.len(), 2);
        let found = MountEntry {
            id: 91,
            major: 0,
            minor: 52,
            mountpoint: "/mnt/a b\\c".into(),
            kind: TYPE.into(),
        };
        assert_eq!(entries[1], found);
    }

    #[test]
    fn proc_is_mounted_and_an_unused_folder_is_not() {
        let proc = mounted_at(Path::new("/proc")).unwrap().unwrap();
        assert_eq!(proc.kind, "proc");
        assert!(is_listed(&proc).unwrap());
        assert!(!is_listed(&MountEntry { id: u64::MAX, ..proc }).unwrap());
        assert_eq!(mounted_at(tempfile::tempdir().unwrap().path()).unwrap(), None);
    }
}
