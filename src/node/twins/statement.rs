//! "These bytes of this torrent are this content", signed.

use crate::{
    content::{ContentId, InfoHash},
    net::{Net, PeerId, signed_statement},
};

/// What a signature is for: it stands for nothing else.
const DOMAIN: &str = "chiral torrent file";
const KIND: &[u8] = b"/chiral/twin/1";

/// What is said of a file of a torrent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::node) struct Statement {
    pub(in crate::node) hash: InfoHash,
    pub(in crate::node) file: u32,
    pub(in crate::node) size: u64,
    pub(in crate::node) id: ContentId,
}

impl Statement {
    pub(in crate::node) fn sign(&self, net: &Net) -> Option<Vec<u8>> {
        net.sign(DOMAIN, KIND, self.encode())
    }

    /// Reads what somebody signed; none where it is something else.
    pub(in crate::node) fn open(signed: &[u8]) -> Option<(PeerId, Self)> {
        let (peer, said) = signed_statement(DOMAIN, KIND, signed)?;
        Some((peer, Self::decode(&said)?))
    }

    /// Info hash, number, size, id.
    fn encode(&self) -> Vec<u8> {
        let mut to = self.hash.0.to_vec();
        to.extend(self.file.to_be_bytes());
        to.extend(self.size.to_be_bytes());
        to.extend(self.id.to_v1().to_bytes());
        to
    }

    fn decode(said: &[u8]) -> Option<Self> {
        let (hash, rest) = said.split_first_chunk::<20>()?;
        let (file, rest) = rest.split_first_chunk::<4>()?;
        let (size, id) = rest.split_first_chunk::<8>()?;
        Some(Self {
            hash: InfoHash(*hash),
            file: u32::from_be_bytes(*file),
            size: u64::from_be_bytes(*size),
            id: ContentId::from_bytes(id).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_statement_is_read_as_it_was_written_and_half_of_one_is_none() {
        let id = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e".parse().unwrap();
        let said = Statement { hash: InfoHash([7; 20]), file: 3, size: 1 << 40, id };
        let written = said.encode();
        assert_eq!(Statement::decode(&written), Some(said));
        for len in 0..written.len() {
            assert_eq!(Statement::decode(&written[..len]), None, "{len}");
        }
    }
}
