//! Extended attributes: what chiral knows of an inode, and on uploads also what programs set.

use std::{ffi::OsStr, sync::Arc};

use nix::errno::Errno;

use super::{
    answer::{Answer, Outcome},
    errno::{During, of_known, of_node},
    semantics::{Fs, known},
    tree::{Content, Ino, Named, Shape, What},
};
use crate::{
    content::ContentId,
    node::{Here, PublishError, UploadIno, UploadKind, UploadState},
};

/// One of chiral's own attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    Cid,
    InfoHash,
    /// A link to a torrent with all that is known of it.
    Magnet,
    Size,
    /// Bytes that are on disk.
    Cached,
    /// Content: `remote`, `partial`, `complete`. Uploads: as [`UploadState`].
    State,
}

/// Names that are listed. Kubo's `ipfs.cid` is answered too, but programs that copy all that is listed (rsync -X) would
/// fail on it: no other filesystem takes attributes of that namespace.
const NAMES: [&str; 4] =
    ["user.chiral.cid", "user.chiral.size", "user.chiral.cached", "user.chiral.state"];

/// The same of torrents and what is in them; the id of a file joins them once it is known.
const OF_TORRENTS: [&str; 5] = [
    "user.chiral.infohash",
    "user.chiral.magnet",
    "user.chiral.size",
    "user.chiral.cached",
    "user.chiral.state",
];

/// The same of descriptions in `torrents`.
const OF_DESCRIPTIONS: [&str; 2] = ["user.chiral.infohash", "user.chiral.magnet"];

/// Whether an attribute is one of chiral's own that programs find listed. They also set it on copies, or remove it from
/// them; both has no effect and is no failure.
pub(super) fn is_listed(name: &str) -> bool {
    NAMES.contains(&name) || OF_TORRENTS.contains(&name)
}

/// Returns whether an attribute is an access list.
pub(super) fn is_acl(name: &OsStr) -> bool {
    name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

impl Attribute {
    fn named(name: &OsStr) -> Option<Self> {
        Some(match name.to_str()? {
            "user.chiral.cid" | "ipfs.cid" => Self::Cid,
            "user.chiral.infohash" => Self::InfoHash,
            "user.chiral.magnet" => Self::Magnet,
            "user.chiral.size" => Self::Size,
            "user.chiral.cached" => Self::Cached,
            "user.chiral.state" => Self::State,
            _ => return None,
        })
    }
}

impl Fs {
    /// The value of an attribute. Asking for the id of an upload waits until it is known.
    pub(super) fn getxattr(self: &Arc<Self>, ino: Ino, name: &OsStr) -> Answer<Vec<u8>> {
        match (self.what(ino), Attribute::named(name)) {
            (Err(errno), _) => Answer::error(errno),
            (Ok(What::Content(content)), Some(attribute)) => {
                self.content_xattr(&content, attribute)
            }
            (Ok(What::Upload(upload)), Some(attribute)) => self.upload_xattr(upload, attribute),
            (Ok(What::Named(named)), Some(attribute)) => {
                Answer::Now(self.named_xattr(&named, attribute))
            }
            (Ok(What::Upload(upload)), None) if is_acl(name) => {
                let name = name.to_str().unwrap_or_default();
                Answer::Now(match self.node.uploads().getxattr(upload, name) {
                    Err(PublishError::NoAttribute) => Err(Errno::EOPNOTSUPP),
                    list => known(list),
                })
            }
            // Access lists, labels and capabilities. Programs that hear that a filesystem has none of them ask once;
            // with ENODATA `ls -l` asks for each file, and the answers are not kept by the kernel.
            (Ok(_), None) if !is_of_user(name) => Answer::error(Errno::EOPNOTSUPP),
            (Ok(What::Upload(upload)), None) => Answer::Now(match name.to_str() {
                Some(name) => known(self.node.uploads().getxattr(upload, name)),
                None => Err(Errno::ENODATA),
            }),
            (Ok(_), _) => Answer::error(Errno::ENODATA),
        }
    }

    /// All names, each ended by a NUL byte.
    pub(super) fn listxattr(&self, ino: Ino) -> Outcome<Vec<u8>> {
        let own = NAMES.map(str::to_owned);
        let names: Vec<String> = match self.what(ino)? {
            What::Upload(upload) => {
                let uploads = self.node.uploads();
                let set = known(uploads.listxattr(upload))?;
                let ignored = known(uploads.state(upload))? == UploadState::Ignored;
                // A name without a value would be a failure to programs that copy all that is listed.
                let own = own.into_iter().filter(|name| !ignored || *name != NAMES[0]);
                match known(uploads.getattr(upload))?.kind {
                    UploadKind::Symlink => set,
                    UploadKind::File | UploadKind::Directory => own.chain(set).collect(),
                }
            }
            // The kernel gives no attribute of the user's namespace of a symbolic link.
            What::Content(content) if content.shape == Shape::Symlink => Vec::new(),
            What::Content(content) if content.place.torrent().is_some() => {
                // A name without a value would be a failure to programs that copy all that is listed.
                let id = self.node.id_at(&content.place).map(|_| NAMES[0]);
                OF_TORRENTS.into_iter().chain(id).map(str::to_owned).collect()
            }
            What::Content(_) => NAMES.map(str::to_owned).into(),
            What::Named(named) if self.named_torrent(&named).is_some() => {
                OF_DESCRIPTIONS.map(str::to_owned).into()
            }
            What::Root
            | What::Ipfs
            | What::Control
            | What::ControlFile(_)
            | What::Torrents
            | What::Named(_) => Vec::new(),
        };
        Ok(names.into_iter().flat_map(|name| name.into_bytes().into_iter().chain([0])).collect())
    }

    fn content_xattr(
        self: &Arc<Self>,
        content: &Arc<Content>,
        attribute: Attribute,
    ) -> Answer<Vec<u8>> {
        match attribute {
            Attribute::Cid => Answer::Now(
                self.node.id_at(&content.place).as_ref().map(text).ok_or(Errno::ENODATA),
            ),
            Attribute::InfoHash => {
                let hash = content.place.torrent().map(|hash| hash.to_string().into_bytes());
                Answer::Now(hash.ok_or(Errno::ENODATA))
            }
            Attribute::Magnet => Answer::Now(match content.place.torrent() {
                Some(hash) => Ok(self.node.torrents().magnet(hash).to_string().into_bytes()),
                None => Err(Errno::ENODATA),
            }),
            Attribute::Size => {
                self.resolved(content, |_, resolved| Ok(resolved.size.to_string().into()))
            }
            Attribute::Cached => {
                let cached = self.cached(&content.place);
                Answer::Now(cached.map(|cached| cached.bytes.to_string().into()))
            }
            Attribute::State => {
                let (node, place) = (self.node.clone(), content.place);
                // A directory is as complete as all that is below it, which may be much to look at.
                Answer::blocking(move || {
                    let here = node.protocol(&place).here_at(&place);
                    let state = match here.map_err(|e| of_node(&e, During::Lookup))? {
                        Here::Nothing => "remote",
                        Here::Part => "partial",
                        Here::All => "complete",
                    };
                    Ok(state.into())
                })
            }
        }
    }

    fn named_xattr(&self, named: &Named, attribute: Attribute) -> Outcome<Vec<u8>> {
        let hash = self.named_torrent(named).ok_or(Errno::ENODATA)?;
        match attribute {
            Attribute::InfoHash => Ok(hash.to_string().into()),
            Attribute::Magnet => Ok(self.node.torrents().magnet(hash).to_string().into()),
            Attribute::Cid | Attribute::Size | Attribute::Cached | Attribute::State => {
                Err(Errno::ENODATA)
            }
        }
    }

    fn upload_xattr(self: &Arc<Self>, upload: UploadIno, attribute: Attribute) -> Answer<Vec<u8>> {
        let uploads = self.node.uploads();
        match attribute {
            Attribute::Cid => match uploads.cid_now(upload) {
                Some(id) => Answer::ok(text(&id)),
                None => {
                    let uploads = uploads.clone();
                    Answer::later(async move {
                        uploads.cid(upload).await.map(|id| text(&id)).map_err(|e| of_known(&e))
                    })
                }
            },
            Attribute::InfoHash | Attribute::Magnet => Answer::error(Errno::ENODATA),
            Attribute::Size => {
                Answer::Now(known(uploads.getattr(upload)).map(|a| a.size.to_string().into()))
            }
            // What is uploaded is all here; a directory takes no bytes of its own.
            Attribute::Cached => Answer::Now(known(uploads.getattr(upload)).map(|attr| {
                let bytes = if attr.kind == UploadKind::File { attr.size } else { 0 };
                bytes.to_string().into()
            })),
            Attribute::State => Answer::Now(known(uploads.state(upload)).map(|state| {
                let name = match state {
                    UploadState::Writing => "writing",
                    UploadState::Hashing => "hashing",
                    UploadState::Published => "published",
                    UploadState::Interrupted => "interrupted",
                    UploadState::Ignored => "ignored",
                };
                name.into()
            })),
        }
    }
}

fn is_of_user(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"user.")
}

fn text(id: &ContentId) -> Vec<u8> {
    id.to_v1().to_string().into_bytes()
}
