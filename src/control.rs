//! The control interface: HTTP with JSON over a unix socket in the data folder, the daemon's side and the client's.
//!
//! | route | does |
//! |---|---|
//! | `GET /v1/status`, `/v1/id`, `/v1/peers`, `/v1/transfers` | tell |
//! | `GET /v1/events` | events as they happen, one JSON object per line |
//! | `POST /v1/connect` | dial a peer |
//! | `POST /v1/add` | publish a path of this machine; with `"progress": true` it gives its progress and then what was published, one JSON object per line |
//! | `POST /v1/add/stream?options={…}` | the same of the body |
//! | `GET /v1/stat`, `/v1/ls`, `/v1/cat` with `?id=ID[/path]` | read; `cat` knows `Range` |
//! | `GET`, `POST`, `DELETE /v1/pins` | keep |
//! | `POST /v1/provide` | announce now |
//! | `POST /v1/store/verify`, `/v1/store/gc` | maintain; `verify` gives its progress, one JSON object per line |
//! | `POST /v1/store/import` | take in a CAR by its path; gives its progress, one JSON object per line |
//! | `POST /v1/store/import/stream?pin=true` | the same with the CAR as the body |
//! | `GET /v1/store/export?id=ID[/path]&offline=false` | a CAR of all below an id |
//! | `POST /v1/seed` | give something to others as a torrent: a path of this machine or an id; gives its progress where that is asked for |
//! | `GET /v1/torrents` | how all torrents stand |
//! | `POST /v1/torrents` | list one by its `.torrent` file or its link |
//! | `POST /v1/torrents/pause`, `/resume`, `/remove` | stop one, let it go on, forget it |
//! | `POST /v1/torrents/limits` | most bytes per second, from now on |
//! | `POST /v1/stop` | unmount and end |

mod add;
mod archive;
mod client;
mod content;
mod error;
mod reference;
mod server;
mod socket;
#[cfg(test)]
mod tests;
mod told;
mod torrents;
mod upkeep;
mod uri;
mod wire;

pub use self::{
    client::{Bytes, Client, ClientError, DaemonProcess, Method},
    reference::{Reference, ReferenceError},
    server::{ServeError, Server},
    torrents::TorrentAdded,
    wire::{
        AddLine, AddOptions, AddRequest, Added, AddedEntry, ConnectRequest, Connected, ErrorCode,
        Failure, GcDone, Identity, ImportLine, ImportReport, ImportRequest, ImportedRow, Kind,
        LinkTarget, Listed, PinRequest, PinRow, ProvideRequest, SeedLine, SeedRequest, Seeded,
        SkippedNames, Stage, Stat, TorrentAddRequest, TorrentLimits, TorrentRequest, Unpinned,
        VerifyLine,
    },
};
pub use crate::node::{Peer, Status, StoreStatus, TorrentState, TorrentStatus};
