//! The row of an inode in the store's tree table: versioned, and decoded with every length checked.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::ffi::{OsStrExt, OsStringExt},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    UploadIno,
    tree::{Attributes, Body, Directory, Inode, Place, Request},
};
use crate::{
    content::{ByteRange, ContentId, RangeSet},
    store::ObjectId,
};

/// First byte of each row; a row of a version that is not known is refused, not guessed at.
const VERSION: u8 = 5;
/// The same of an inode with several names.
const LINKED: u8 = 6;
/// The version without requests, of one name and of several.
const UNREQUESTED: u8 = 3;
const UNREQUESTED_LINKED: u8 = 4;
/// The version that tells nothing of how a working file looked.
const UNSEEN: u8 = 2;
/// The version without layers.
const WHOLE_ONLY: u8 = 1;
/// Parent of the root and of orphans in a row; no inode has this number.
const NO_PARENT: u64 = 0;

const DIRECTORY: u8 = 0;
const FILE: u8 = 1;
const SYMLINK: u8 = 2;

const NONE: u8 = 0;
const HIDDEN: u8 = 1;
const NAMED: u8 = 2;

/// A published version of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sealed {
    /// The object that holds it; the inode is one of its owners.
    pub(super) object: ObjectId,
    pub(super) root: ContentId,
    /// Bytes of content.
    pub(super) size: u64,
    /// Bytes of all blocks.
    pub(super) tsize: u64,
    /// The object holds only the leaves that differ from an older one, which the inode owns, too.
    pub(super) below: Option<OverlayRow>,
}

impl Sealed {
    /// The objects that the inode owns for it.
    pub(super) fn objects(&self) -> impl Iterator<Item = ObjectId> {
        std::iter::once(self.object).chain(self.below.as_ref().map(|below| below.base))
    }
}

/// A version of a file that is not published yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct WorkRow {
    pub(super) object: ObjectId,
    /// Somebody could write when the row was made.
    pub(super) open: bool,
    /// None: a version that did not write it down made the row.
    pub(super) seen: Option<Seen>,
    pub(super) overlay: Option<OverlayRow>,
}

/// A working file as it was when its row was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) size: u64,
    /// Nanoseconds since the epoch.
    pub(super) mtime: i128,
}

/// Which bytes of a working file lie in the published version below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OverlayRow {
    /// The object below.
    pub(super) base: ObjectId,
    /// Bytes of it that still show through.
    pub(super) base_len: u64,
    /// Numbers of the leaves that lie in the working file.
    pub(super) filled: RangeSet,
}

impl OverlayRow {
    /// The bytes of a whole of `size` bytes that lie in the working file; a leaf has `leaf` bytes.
    pub(super) fn own(&self, leaf: u64, size: u64) -> RangeSet {
        let whole = ByteRange::new(0, size);
        let bytes = |leaves: ByteRange| {
            ByteRange::new(leaves.start.saturating_mul(leaf), leaves.end.saturating_mul(leaf))
        };
        let ranges = self.filled.iter().map(|leaves| bytes(leaves).intersect(whole));
        ranges.filter(|range| !range.is_empty()).collect()
    }
}

/// Everything that is kept of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) inode: Inode,
    pub(super) work: Option<WorkRow>,
}

/// Why a row cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum RowError {
    #[error("version {0} is not known; a newer chiral wrote it")]
    Version(u8),
    #[error("it ends early, or {0} is out of bounds")]
    Malformed(&'static str),
}

impl Row {
    pub(super) fn encode(inode: &Inode, work: Option<&WorkRow>) -> Vec<u8> {
        let mut out = vec![if inode.also.is_empty() { VERSION } else { LINKED }];
        match &inode.place {
            Some(place) => {
                out.extend(place.parent.0.to_le_bytes());
                put_bytes(&mut out, place.name.as_bytes());
            }
            None => {
                out.extend(NO_PARENT.to_le_bytes());
                put_bytes(&mut out, &[]);
            }
        }
        if !inode.also.is_empty() {
            put_len(&mut out, inode.also.len());
            for place in &inode.also {
                out.extend(place.parent.0.to_le_bytes());
                put_bytes(&mut out, place.name.as_bytes());
            }
        }
        let attr = &inode.attr;
        [attr.mode, attr.uid, attr.gid].iter().for_each(|n| out.extend(n.to_le_bytes()));
        [attr.atime, attr.mtime, attr.ctime].iter().for_each(|time| put_time(&mut out, *time));
        put_len(&mut out, inode.xattrs.len());
        for (name, value) in &inode.xattrs {
            put_bytes(&mut out, name.as_bytes());
            put_bytes(&mut out, value);
        }
        match &inode.body {
            Body::Directory(_) => out.push(DIRECTORY),
            Body::Symlink(target) => {
                out.push(SYMLINK);
                put_bytes(&mut out, target.as_bytes());
            }
            Body::File(sealed) => {
                out.push(FILE);
                put_sealed(&mut out, sealed.as_ref());
                put_work(&mut out, work);
            }
        }
        out.push(match inode.request {
            Request::None => NONE,
            Request::Hidden => HIDDEN,
            Request::Named => NAMED,
        });
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, RowError> {
        let mut reader = Reader(bytes);
        let version = match reader.u8()? {
            version @ (WHOLE_ONLY | UNSEEN | UNREQUESTED | UNREQUESTED_LINKED | VERSION
            | LINKED) => version,
            other => return Err(RowError::Version(other)),
        };
        let parent = reader.u64()?;
        let name = OsString::from_vec(reader.bytes()?.to_vec());
        let place = (parent != NO_PARENT).then_some(Place { parent: UploadIno(parent), name });
        let mut also = Vec::new();
        let is_linked = matches!(version, LINKED | UNREQUESTED_LINKED);
        let links = if is_linked { reader.u32()? } else { 0 };
        for _ in 0..links {
            let (parent, name) = (UploadIno(reader.u64()?), reader.bytes()?.to_vec());
            also.push(Place { parent, name: OsString::from_vec(name) });
        }
        let attr = Attributes {
            mode: reader.u32()?,
            uid: reader.u32()?,
            gid: reader.u32()?,
            atime: reader.time()?,
            mtime: reader.time()?,
            ctime: reader.time()?,
        };
        let mut xattrs = BTreeMap::new();
        for _ in 0..reader.u32()? {
            let name = std::str::from_utf8(reader.bytes()?)
                .map_err(|_| RowError::Malformed("the name of an attribute"))?;
            xattrs.insert(name.to_owned(), reader.bytes()?.to_vec());
        }
        let mut work = None;
        let body = match reader.u8()? {
            DIRECTORY => Body::Directory(Directory::default()),
            SYMLINK => Body::Symlink(OsString::from_vec(reader.bytes()?.to_vec())),
            FILE => {
                let sealed = reader.sealed(version)?;
                work = reader.work(version)?;
                Body::File(sealed)
            }
            _ => return Err(RowError::Malformed("the kind of inode")),
        };
        let has_request = matches!(version, VERSION | LINKED);
        let request = if has_request { reader.request()? } else { Request::None };
        if !reader.0.is_empty() {
            return Err(RowError::Malformed("its end"));
        }
        if !also.is_empty() && (place.is_none() || matches!(body, Body::Directory(_))) {
            return Err(RowError::Malformed("its further names"));
        }
        let inode = Inode { place, also, attr, xattrs, body, request, ignored: false };
        Ok(Self { inode, work })
    }
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    // Everything in a row is bounded far below 4 GiB where it is set.
    out.extend(u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// Seconds since the epoch, rounded down, and the nanoseconds above them.
fn put_time(out: &mut Vec<u8>, time: SystemTime) {
    let (secs, nanos) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let up = u64::from(before.subsec_nanos() > 0);
            let secs = i64::try_from(before.as_secs() + up).map_or(i64::MIN, |secs| -secs);
            (secs, if up == 1 { 1_000_000_000 - before.subsec_nanos() } else { 0 })
        }
    };
    out.extend(secs.to_le_bytes());
    out.extend(nanos.to_le_bytes());
}

fn put_sealed(out: &mut Vec<u8>, sealed: Option<&Sealed>) {
    out.push(u8::from(sealed.is_some()));
    if let Some(sealed) = sealed {
        out.extend(sealed.object.0.to_le_bytes());
        put_bytes(out, &sealed.root.to_bytes());
        out.extend(sealed.size.to_le_bytes());
        out.extend(sealed.tsize.to_le_bytes());
        put_overlay(out, sealed.below.as_ref());
    }
}

fn put_work(out: &mut Vec<u8>, work: Option<&WorkRow>) {
    out.push(u8::from(work.is_some()));
    let Some(work) = work else { return };
    out.extend(work.object.0.to_le_bytes());
    out.push(u8::from(work.open));
    out.push(u8::from(work.seen.is_some()));
    if let Some(seen) = &work.seen {
        out.extend(seen.size.to_le_bytes());
        out.extend(seen.mtime.to_le_bytes());
    }
    put_overlay(out, work.overlay.as_ref());
}

fn put_overlay(out: &mut Vec<u8>, overlay: Option<&OverlayRow>) {
    out.push(u8::from(overlay.is_some()));
    let Some(overlay) = overlay else { return };
    out.extend(overlay.base.0.to_le_bytes());
    out.extend(overlay.base_len.to_le_bytes());
    put_len(out, overlay.filled.count());
    for range in overlay.filled.iter() {
        out.extend(range.start.to_le_bytes());
        out.extend(range.end.to_le_bytes());
    }
}

/// What is left of a row.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], RowError> {
        let (head, rest) = self.0.split_at_checked(len).ok_or(RowError::Malformed("a length"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RowError> {
        let (head, rest) =
            self.0.split_first_chunk::<N>().ok_or(RowError::Malformed("a number"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, RowError> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Result<bool, RowError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RowError::Malformed("a flag")),
        }
    }

    fn request(&mut self) -> Result<Request, RowError> {
        match self.u8()? {
            NONE => Ok(Request::None),
            HIDDEN => Ok(Request::Hidden),
            NAMED => Ok(Request::Named),
            _ => Err(RowError::Malformed("what was asked for")),
        }
    }

    fn u32(&mut self) -> Result<u32, RowError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, RowError> {
        self.array().map(u64::from_le_bytes)
    }

    fn bytes(&mut self) -> Result<&'a [u8], RowError> {
        let len = self.u32()?;
        self.take(usize::try_from(len).map_err(|_| RowError::Malformed("a length"))?)
    }

    fn time(&mut self) -> Result<SystemTime, RowError> {
        let secs = i64::from_le_bytes(self.array()?);
        let nanos = self.u32()?;
        let whole = Duration::from_secs(secs.unsigned_abs());
        let base =
            if secs < 0 { UNIX_EPOCH.checked_sub(whole) } else { UNIX_EPOCH.checked_add(whole) };
        base.filter(|_| nanos < 1_000_000_000)
            .and_then(|base| base.checked_add(Duration::from_nanos(nanos.into())))
            .ok_or(RowError::Malformed("a time"))
    }

    fn sealed(&mut self, version: u8) -> Result<Option<Sealed>, RowError> {
        if !self.flag()? {
            return Ok(None);
        }
        let object = ObjectId(self.u64()?);
        let root =
            ContentId::from_bytes(self.bytes()?).map_err(|_| RowError::Malformed("the root"))?;
        let (size, tsize) = (self.u64()?, self.u64()?);
        let below = if version == WHOLE_ONLY { None } else { self.overlay()? };
        Ok(Some(Sealed { object, root, size, tsize, below }))
    }

    fn work(&mut self, version: u8) -> Result<Option<WorkRow>, RowError> {
        if !self.flag()? {
            return Ok(None);
        }
        let object = ObjectId(self.u64()?);
        let open = self.flag()?;
        let seen = if version <= UNSEEN { None } else { self.seen()? };
        Ok(Some(WorkRow { object, open, seen, overlay: self.overlay()? }))
    }

    fn seen(&mut self) -> Result<Option<Seen>, RowError> {
        if !self.flag()? {
            return Ok(None);
        }
        let size = self.u64()?;
        Ok(Some(Seen { size, mtime: i128::from_le_bytes(self.array()?) }))
    }

    fn overlay(&mut self) -> Result<Option<OverlayRow>, RowError> {
        if !self.flag()? {
            return Ok(None);
        }
        let (base, base_len) = (ObjectId(self.u64()?), self.u64()?);
        let mut filled = RangeSet::new();
        for _ in 0..self.u32()? {
            filled.insert(ByteRange::new(self.u64()?, self.u64()?));
        }
        Ok(Some(OverlayRow { base, base_len, filled }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use proptest::prelude::*;

    use super::*;
    use crate::content::sha2_256;

    fn time() -> impl Strategy<Value = SystemTime> {
        (-10_000_000_000i64..10_000_000_000, 0u32..1_000_000_000).prop_map(|(secs, nanos)| {
            let whole = Duration::from_secs(secs.unsigned_abs());
            let base = if secs < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
            base + Duration::from_nanos(nanos.into())
        })
    }

    fn overlay() -> impl Strategy<Value = Option<OverlayRow>> {
        let filled = prop::collection::vec((0u64..1000, 1u64..9), 0..9)
            .prop_map(|r| r.into_iter().map(|(at, len)| ByteRange::at(at, len)).collect());
        let overlay = (any::<u64>(), any::<u64>(), filled).prop_map(|(base, base_len, filled)| {
            OverlayRow { base: ObjectId(base), base_len, filled }
        });
        prop::option::of(overlay)
    }

    fn body() -> impl Strategy<Value = (Body, Option<WorkRow>)> {
        let sealed = (any::<u64>(), any::<u64>(), any::<u64>(), overlay()).prop_map(
            |(object, size, tsize, below)| {
                let root = ContentId::raw(sha2_256(&object.to_le_bytes()));
                Sealed { object: ObjectId(object), root, size, tsize, below }
            },
        );
        let seen = (any::<u64>(), any::<i128>()).prop_map(|(size, mtime)| Seen { size, mtime });
        let work = (any::<u64>(), any::<bool>(), prop::option::of(seen), overlay()).prop_map(
            |(object, open, seen, overlay)| WorkRow {
                object: ObjectId(object),
                open,
                seen,
                overlay,
            },
        );
        prop_oneof![
            Just((Body::Directory(Directory::default()), None)),
            "[a-z/]{1,40}".prop_map(|target| (Body::Symlink(target.into()), None)),
            (prop::option::of(sealed), prop::option::of(work))
                .prop_map(|(sealed, work)| (Body::File(sealed), work)),
        ]
    }

    prop_compose! {
        fn row()(
            place in prop::option::of((1u64.., prop::collection::vec(1u8.., 1..20))),
            also in prop::collection::vec((1u64.., prop::collection::vec(1u8.., 1..20)), 0..3),
            numbers in any::<(u32, u32, u32)>(),
            times in (time(), time(), time()),
            xattrs in prop::collection::btree_map("user\\.[a-z]{1,9}", any::<Vec<u8>>(), 0..4),
            (body, work) in body(),
            request in prop_oneof![
                Just(Request::None),
                Just(Request::Hidden),
                Just(Request::Named),
            ],
        ) -> Row {
            let to_place = |(parent, name)| {
                Place { parent: UploadIno(parent), name: OsString::from_vec(name) }
            };
            let place = place.map(to_place);
            let linked = place.is_some() && !matches!(body, Body::Directory(_));
            let also = also.into_iter().filter(|_| linked).map(to_place).collect();
            let (mode, uid, gid) = numbers;
            let (atime, mtime, ctime) = times;
            let attr = Attributes { mode, uid, gid, atime, mtime, ctime };
            Row { inode: Inode { place, also, attr, xattrs, body, request, ignored: false }, work }
        }
    }

    #[test]
    fn a_row_from_before_layers_is_read() {
        let root = ContentId::raw(sha2_256(b"x"));
        let sealed = Sealed { object: ObjectId(7), root, size: 3, tsize: 4, below: None };
        let attr = Attributes {
            mode: 0o644,
            uid: 1,
            gid: 2,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
        };
        let place = Some(Place { parent: UploadIno(1), name: "f".into() });
        let xattrs = BTreeMap::new();
        let (body, request, also) = (Body::File(Some(sealed)), Request::None, Vec::new());
        let inode = Inode { place, also, attr, xattrs, body, request, ignored: false };
        let mut bytes = Row::encode(&inode, None);
        // The last byte says that nothing was asked for.
        bytes.pop();
        let row = Row { inode, work: None };
        for version in [UNREQUESTED, UNSEEN] {
            bytes[0] = version;
            assert_eq!(Row::decode(&bytes).unwrap(), row);
        }
        // The last two bytes say that there is no layer and no working file.
        bytes.remove(bytes.len() - 2);
        bytes[0] = WHOLE_ONLY;
        assert_eq!(Row::decode(&bytes).unwrap(), row);
    }

    #[test]
    fn a_row_without_size_of_its_file_is_read() {
        let attr = Attributes {
            mode: 0o644,
            uid: 1,
            gid: 2,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
        };
        let place = Some(Place { parent: UploadIno(1), name: "f".into() });
        let (xattrs, request, body) = (BTreeMap::new(), Request::None, Body::File(None));
        let inode = Inode { place, also: Vec::new(), attr, xattrs, body, request, ignored: false };
        let work = WorkRow { object: ObjectId(7), open: true, seen: None, overlay: None };
        let mut bytes = Row::encode(&inode, Some(&work));
        bytes.pop();
        // The last two bytes say that the file was not seen and is no overlay.
        bytes.remove(bytes.len() - 2);
        bytes[0] = UNSEEN;
        assert_eq!(Row::decode(&bytes).unwrap(), Row { inode, work: Some(work) });
    }

    proptest! {
        #[test]
        fn a_row_comes_back_as_it_was(row in row()) {
            let bytes = Row::encode(&row.inode, row.work.as_ref());
            prop_assert_eq!(Row::decode(&bytes).unwrap(), row);
        }

        #[test]
        fn a_row_that_was_cut_off_is_refused(row in row(), cut in 1usize..40) {
            let bytes = Row::encode(&row.inode, row.work.as_ref());
            prop_assert!(Row::decode(&bytes[..bytes.len().saturating_sub(cut)]).is_err());
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = Row::decode(&bytes);
            let mut versioned = bytes;
            versioned.insert(0, VERSION);
            let _ = Row::decode(&versioned);
        }
    }
}
