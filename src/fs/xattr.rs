//! Extended attributes: what chiral knows of an inode, and on uploads also what programs set.

use std::{ffi::OsStr, sync::Arc};

use nix::errno::Errno;

use super::{
    answer::{Answer, Outcome},
    errno::{During, of_known, of_node},
    semantics::{Fs, known},
    tree::{Content, Ino, Shape, What},
};
use crate::{
    content::ContentId,
    node::{Here, Node, UploadIno, UploadKind, UploadState},
};

/// One of chiral's own attributes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attribute {
    Cid,
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

/// Whether an attribute is one of chiral's own that programs find listed. They also set it on copies, or remove it from
/// them; both has no effect and is no failure.
pub(super) fn is_listed(name: &str) -> bool {
    NAMES.contains(&name)
}

impl Attribute {
    fn named(name: &OsStr) -> Option<Self> {
        Some(match name.to_str()? {
            "user.chiral.cid" | "ipfs.cid" => Self::Cid,
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
                match known(uploads.getattr(upload))?.kind {
                    UploadKind::Symlink => set,
                    UploadKind::File | UploadKind::Directory => {
                        own.into_iter().chain(set).collect()
                    }
                }
            }
            // The kernel gives no attribute of the user's namespace of a symbolic link.
            What::Content(content) if content.shape == Shape::Symlink => Vec::new(),
            What::Content(_) => own.into(),
            What::Root | What::Ipfs | What::Control | What::ControlFile(_) => Vec::new(),
        };
        Ok(names.into_iter().flat_map(|name| name.into_bytes().into_iter().chain([0])).collect())
    }

    fn content_xattr(
        self: &Arc<Self>,
        content: &Arc<Content>,
        attribute: Attribute,
    ) -> Answer<Vec<u8>> {
        match attribute {
            Attribute::Cid => Answer::ok(text(&content.id)),
            Attribute::Size => {
                self.resolved(content, |_, resolved| Ok(resolved.size.to_string().into()))
            }
            Attribute::Cached => {
                let cached = cached(&self.node, &content.id);
                Answer::Now(cached.map(|cached| cached.to_string().into()))
            }
            Attribute::State => {
                let (node, id) = (self.node.clone(), content.id);
                // A directory is as complete as all that is below it, which may be much to look at.
                Answer::blocking(move || {
                    let state = match node.here(&id).map_err(|e| of_node(&e, During::Lookup))? {
                        Here::Nothing => "remote",
                        Here::Part => "partial",
                        Here::All => "complete",
                    };
                    Ok(state.into())
                })
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

fn cached(node: &Node, id: &ContentId) -> Outcome<u64> {
    if let Some(content) = id.inline_content() {
        return Ok(content.len() as u64);
    }
    let object = node.store().object(id).map_err(|e| super::errno::of_store(&e))?;
    Ok(object.map_or(0, |object| object.present().bytes()))
}
