//! Statements of this node that others can check without asking it: signed envelopes as libp2p has them (RFC 0002).

use libp2p::{PeerId, core::SignedEnvelope};

use super::Net;

/// Longest statement that is looked at.
const MAX_LEN: usize = 4096;

impl Net {
    /// Signs a statement with this node's key. `domain` and `kind` say what it is about, so that it stands for nothing
    /// else. None where the key cannot sign.
    pub fn sign(&self, domain: &str, kind: &[u8], statement: Vec<u8>) -> Option<Vec<u8>> {
        let key = &self.inner.key;
        let signed = SignedEnvelope::new(key, domain.to_owned(), kind.to_vec(), statement);
        signed.ok().map(SignedEnvelope::into_protobuf_encoding)
    }
}

/// A statement and who has signed it; none where it is not about this, or the signature is wrong.
pub fn signed_statement(domain: &str, kind: &[u8], signed: &[u8]) -> Option<(PeerId, Vec<u8>)> {
    if signed.len() > MAX_LEN {
        return None;
    }
    let envelope = SignedEnvelope::from_protobuf_encoding(signed).ok()?;
    let (statement, key) = envelope.payload_and_signing_key(domain.to_owned(), kind).ok()?;
    Some((PeerId::from(key), statement.to_vec()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use libp2p::identity::Keypair;

    use super::*;

    #[test]
    fn a_statement_is_believed_as_it_was_signed_and_not_otherwise() {
        let key = Keypair::generate_ed25519();
        let envelope =
            SignedEnvelope::new(&key, "d".to_owned(), b"k".to_vec(), b"so it is".to_vec());
        let signed = envelope.unwrap().into_protobuf_encoding();
        let own = PeerId::from(key.public());
        assert_eq!(signed_statement("d", b"k", &signed), Some((own, b"so it is".to_vec())));
        assert_eq!(signed_statement("other", b"k", &signed), None);
        assert_eq!(signed_statement("d", b"other", &signed), None);
        for at in 0..signed.len() {
            let mut changed = signed.clone();
            changed[at] ^= 1;
            let believed = signed_statement("d", b"k", &changed);
            assert!(believed.is_none_or(|(peer, said)| peer == own && said == b"so it is"));
        }
        assert_eq!(signed_statement("d", b"k", &[0; MAX_LEN + 1]), None);
    }
}
