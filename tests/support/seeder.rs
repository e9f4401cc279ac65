//! A foreign seeder for tests: a session of librqbit with its own storage. Unit tests and the tests of the mount and of
//! the daemon take this file in by its path, each with the names of its own crate in scope.

use std::{
    ffi::OsString,
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Arc,
};

use librqbit::{AddTorrent, AddTorrentOptions, ListenerOptions, Session, SessionOptions};

use super::{InfoBuilder, Magnet, Metainfo};

/// Where the description is, beside the files.
pub(crate) const TORRENT: &str = ".torrent";

/// A torrent that somebody else has.
pub(crate) struct Seeder {
    pub(crate) session: Arc<Session>,
    pub(crate) metainfo: Metainfo,
}

/// The description of files by their paths.
pub(crate) fn torrent_of(name: &str, files: &[(&str, &[u8])], piece_len: u32) -> Vec<u8> {
    let path = |text: &str| text.split('/').map(OsString::from).collect::<Vec<_>>();
    let listed = files.iter().map(|(name, bytes)| (path(name), bytes.len() as u64)).collect();
    let mut builder = InfoBuilder::directory(name.into(), listed, piece_len);
    let order: Vec<_> = builder.files().iter().map(|(path, _)| path.clone()).collect();
    for wanted in order {
        let (_, bytes) = files.iter().find(|(name, _)| path(name) == wanted).unwrap();
        builder.update(bytes);
    }
    builder.finish(&[]).unwrap()
}

impl Seeder {
    /// Seeds files by their paths, from a folder.
    pub(crate) async fn start(dir: &Path, files: &[(&str, &[u8])], piece_len: u32) -> Self {
        for (name, bytes) in files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let torrent = torrent_of("torrent", files, piece_len);
        fs::write(dir.join(TORRENT), &torrent).unwrap();
        let metainfo = Metainfo::parse(&torrent).unwrap();
        let options = SessionOptions {
            dht: None,
            disable_trackers: true,
            disable_local_service_discovery: true,
            ipv4_only: true,
            listen: Some(ListenerOptions {
                listen_addr: (Ipv4Addr::LOCALHOST, 0).into(),
                ipv4_only: true,
                ..ListenerOptions::default()
            }),
            ..SessionOptions::default()
        };
        let session = Session::new_with_opts(dir.to_owned(), options).await.unwrap();
        let options = AddTorrentOptions {
            overwrite: true,
            output_folder: Some(dir.to_str().unwrap().to_owned()),
            ..AddTorrentOptions::default()
        };
        let added = session.add_torrent(AddTorrent::from_bytes(torrent), Some(options)).await;
        added.unwrap().into_handle().unwrap().wait_until_initialized().await.unwrap();
        Self { session, metainfo }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.session.listen_addr().unwrap()
    }

    /// A link that names this seeder.
    pub(crate) fn magnet(&self) -> Magnet {
        Magnet { peers: vec![self.address()], ..Magnet::of(self.metainfo.hash) }
    }
}
