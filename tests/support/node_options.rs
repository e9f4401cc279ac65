//! What nodes of tests are told. Unit tests and the tests of the mount take this file in by its path, each with the
//! names of its own crate in scope.

use std::{path::Path, time::Duration};

use super::{
    DownloadOptions, ImportParams, Multiaddr, NetOptions, NodeOptions, PublishOptions,
    StoreOptions, TorrentOptions,
};

/// A node of its own network, with everything in `dir`. What nobody has it waits for until the test's patience ends.
pub(crate) fn options(dir: &Path, peers: Vec<Multiaddr>, offline: bool) -> NodeOptions {
    NodeOptions {
        store: StoreOptions { dir: dir.to_owned(), cache_limit: Some(1 << 30), min_free: Some(0) },
        net: NetOptions {
            key_file: dir.join("key"),
            listen: vec!["/ip4/127.0.0.1/tcp/0".parse().unwrap()],
            bootstrap: Vec::new(),
            peers,
            offline,
            serve_cached: true,
            reach: Default::default(),
        },
        download: DownloadOptions {
            lookup_timeout: Duration::from_secs(60),
            ..DownloadOptions::default()
        },
        http: Default::default(),
        torrent: TorrentOptions {
            online: !offline,
            listen: Some(([127, 0, 0, 1], 0).into()),
            dht: false,
            public_trackers: false,
            allow_private_addresses: true,
            ..TorrentOptions::default()
        },
        seed_uploads: false,
        credit: 0,
        publish: PublishOptions {
            import: ImportParams::DEFAULT,
            read_only: false,
            ignore: Default::default(),
        },
    }
}
