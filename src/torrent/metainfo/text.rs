//! Descriptions as texts: what is taken out of one, and what is written around an `info` dictionary.

use super::{
    super::{bencode, magnet::Magnet},
    MetainfoError, webseeds,
};

/// The same description with other trackers. Servers are kept, and nothing else of what stands beside `info`.
///
/// # Errors
/// When `text` is no description.
pub(in crate::torrent) fn with_trackers(
    text: &[u8],
    trackers: &[String],
) -> Result<Vec<u8>, MetainfoError> {
    let top = bencode::decode(text)?;
    Ok(around(top.raw("info").ok_or(MetainfoError::Field("info"))?, trackers, &webseeds(&top)))
}

/// The same description with the trackers and servers of a link.
///
/// # Errors
/// When `text` is no description.
pub(in crate::torrent) fn with_link(text: &[u8], link: &Magnet) -> Result<Vec<u8>, MetainfoError> {
    let top = bencode::decode(text)?;
    let info = top.raw("info").ok_or(MetainfoError::Field("info"))?;
    Ok(around(info, &link.trackers, &link.webseeds))
}

/// The `info` dictionary of a description, as it is written.
///
/// # Errors
/// When `text` is no description.
pub(in crate::torrent) fn info_of(text: &[u8]) -> Result<Vec<u8>, MetainfoError> {
    let top = bencode::decode(text)?;
    Ok(top.raw("info").ok_or(MetainfoError::Field("info"))?.to_vec())
}

/// A description around an `info` dictionary.
pub(in crate::torrent) fn around_info(info: &[u8], trackers: &[String]) -> Vec<u8> {
    around(info, trackers, &[])
}

fn around(info: &[u8], trackers: &[String], webseeds: &[String]) -> Vec<u8> {
    let mut to = b"d".to_vec();
    if let Some(first) = trackers.first() {
        bencode::write_bytes(&mut to, b"announce");
        bencode::write_bytes(&mut to, first.as_bytes());
        bencode::write_bytes(&mut to, b"announce-list");
        to.push(b'l');
        for tracker in trackers {
            to.push(b'l');
            bencode::write_bytes(&mut to, tracker.as_bytes());
            to.push(b'e');
        }
        to.push(b'e');
    }
    bencode::write_bytes(&mut to, b"info");
    to.extend_from_slice(info);
    if !webseeds.is_empty() {
        bencode::write_bytes(&mut to, b"url-list");
        to.push(b'l');
        webseeds.iter().for_each(|url| bencode::write_bytes(&mut to, url.as_bytes()));
        to.push(b'e');
    }
    to.push(b'e');
    to
}
