//! How a TCP connection is secured: TLS with those who speak it, Noise with the others.

use futures::{
    AsyncRead, AsyncWrite, FutureExt, TryFutureExt,
    future::{BoxFuture, Either},
};
use futures_rustls::TlsStream;
use libp2p::{
    PeerId,
    core::{
        UpgradeInfo,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    identity, noise,
};

use super::tls::{Tls, TlsError};

/// A connection could not be secured.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecurityError {
    /// Not with TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Not with Noise.
    #[error("Noise: {0}")]
    Noise(#[from] noise::Error),
}

/// The upgrade that secures a connection. TLS is offered first: it costs a third of the processor time of Noise, whose
/// one cipher is ChaCha20-Poly1305.
#[derive(Clone)]
pub(super) struct Security {
    tls: Tls,
    noise: noise::Config,
}

/// A secured connection.
pub(super) type Secured<C> = Either<TlsStream<C>, noise::Output<C>>;

impl Security {
    /// For a node with this key.
    pub(super) fn new(key: &identity::Keypair) -> Result<Self, SecurityError> {
        Ok(Self { tls: Tls::new(key)?, noise: noise::Config::new(key)? })
    }
}

/// Which one was agreed on.
#[derive(Clone, Copy, Debug)]
pub(super) enum Protocol {
    Tls(&'static str),
    Noise(&'static str),
}

impl AsRef<str> for Protocol {
    fn as_ref(&self) -> &str {
        match self {
            Self::Tls(name) | Self::Noise(name) => name,
        }
    }
}

impl UpgradeInfo for Security {
    type Info = Protocol;
    type InfoIter = std::vec::IntoIter<Protocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        let tls = self.tls.protocol_info().map(Protocol::Tls);
        tls.chain(self.noise.protocol_info().map(Protocol::Noise)).collect::<Vec<_>>().into_iter()
    }
}

type Securing<C> = BoxFuture<'static, Result<(PeerId, Secured<C>), SecurityError>>;

impl<C> InboundConnectionUpgrade<C> for Security
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, Secured<C>);
    type Error = SecurityError;
    type Future = Securing<C>;

    fn upgrade_inbound(self, socket: C, protocol: Protocol) -> Self::Future {
        match protocol {
            Protocol::Tls(name) => secured(self.tls.upgrade_inbound(socket, name), Either::Left),
            Protocol::Noise(name) => {
                secured(self.noise.upgrade_inbound(socket, name), Either::Right)
            }
        }
    }
}

impl<C> OutboundConnectionUpgrade<C> for Security
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, Secured<C>);
    type Error = SecurityError;
    type Future = Securing<C>;

    fn upgrade_outbound(self, socket: C, protocol: Protocol) -> Self::Future {
        match protocol {
            Protocol::Tls(name) => secured(self.tls.upgrade_outbound(socket, name), Either::Left),
            Protocol::Noise(name) => {
                secured(self.noise.upgrade_outbound(socket, name), Either::Right)
            }
        }
    }
}

fn secured<C: 'static, S: 'static, E: Into<SecurityError> + 'static>(
    upgrade: impl Future<Output = Result<(PeerId, S), E>> + Send + 'static,
    wrap: fn(S) -> Secured<C>,
) -> Securing<C> {
    upgrade.map_ok(move |(peer, stream)| (peer, wrap(stream))).err_into().boxed()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures::{AsyncReadExt, AsyncWriteExt, future};
    use libp2p::identity::Keypair;
    use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

    use super::*;

    type Pipe = Compat<tokio::io::DuplexStream>;

    fn pipe() -> (Pipe, Pipe) {
        let (near, far) = tokio::io::duplex(64 << 10);
        (near.compat(), far.compat())
    }

    /// Secures a pipe with the protocol at this place in the offer.
    async fn shake_hands(at: usize) -> [(Keypair, PeerId, Secured<Pipe>); 2] {
        let keys = [Keypair::generate_ed25519(), Keypair::generate_ed25519()];
        let [near, far] = [0, 1].map(|n| Security::new(&keys[n]).unwrap());
        let protocol = near.protocol_info().nth(at).unwrap();
        let (a, b) = pipe();
        let dial = near.upgrade_outbound(a, protocol);
        let (dialler, listener) = future::join(dial, far.upgrade_inbound(b, protocol)).await;
        let [near, far] = keys;
        let ((far_id, dialler), (near_id, listener)) = (dialler.unwrap(), listener.unwrap());
        [(far, far_id, dialler), (near, near_id, listener)]
    }

    #[tokio::test]
    async fn both_ends_learn_who_the_other_is_and_bytes_pass() {
        for at in [0, 1] {
            let [(far, far_id, mut near), (dialler, near_id, mut listener)] = shake_hands(at).await;
            assert_eq!([far_id, near_id], [far, dialler].map(|key| key.public().to_peer_id()));
            near.write_all(b"hello").await.unwrap();
            near.flush().await.unwrap();
            let mut got = [0; 5];
            listener.read_exact(&mut got).await.unwrap();
            assert_eq!(&got, b"hello");
        }
    }

    #[tokio::test]
    async fn tls_comes_first_and_with_aes() {
        let [(_, _, near), _] = shake_hands(0).await;
        let suite = match &near {
            Either::Left(tls) => tls.get_ref().1.negotiated_cipher_suite(),
            Either::Right(_) => None,
        };
        let aes = rustls::CipherSuite::TLS13_AES_128_GCM_SHA256;
        assert_eq!(suite.map(|suite| suite.suite()), Some(aes));
    }
}
