//! TLS 1.3 as libp2p specifies it (`/tls/1.0.0`), with AES-GCM before ChaCha20-Poly1305.
//!
//! libp2p's own configuration offers ChaCha20 first. Where the processor has instructions for AES, AES-GCM takes a
//! fifth of its time, and encryption is the largest part of what a transferred byte costs. Everything that decides
//! whom we talk to is libp2p's: the certificate, its extension that names the peer, and the check of both.

use std::{net::Ipv4Addr, sync::Arc};

use futures::{AsyncRead, AsyncWrite, FutureExt, future::BoxFuture};
use futures_rustls::{TlsAcceptor, TlsConnector, TlsStream};
use libp2p::{
    PeerId,
    core::{
        UpgradeInfo,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    identity,
    tls::certificate,
};
use rustls::{
    CommonState, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    SupportedCipherSuite,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, IpAddr, PrivateKeyDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
};

/// Processors of these architectures that we meet have AES instructions; on others ChaCha20 is the faster one.
const HAS_AES: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// What is agreed on with everybody.
const ALPN: &[u8] = b"libp2p";

/// Cipher suites, best first.
fn cipher_suites() -> Vec<SupportedCipherSuite> {
    use aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let mut suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    if !HAS_AES {
        suites.reverse();
    }
    suites
}

/// TLS could not be set up, or the peer is none of libp2p.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// No certificate could be made.
    #[error("no certificate: {0}")]
    Certificate(#[from] certificate::GenError),
    /// The configuration is refused.
    #[error("TLS: {0}")]
    Config(#[from] Error),
    /// The handshake failed.
    #[error("TLS handshake: {0}")]
    Handshake(#[from] std::io::Error),
    /// The handshake ended without the one certificate that names the peer.
    #[error("TLS handshake without the peer's certificate")]
    Nameless,
}

impl From<certificate::ParseError> for TlsError {
    fn from(error: certificate::ParseError) -> Self {
        Self::Config(error.into())
    }
}

/// The upgrade that secures a connection.
#[derive(Clone)]
pub(super) struct Tls {
    acceptor: TlsAcceptor,
    connector: TlsConnector,
}

impl Tls {
    /// For a node with this key.
    pub(super) fn new(key: &identity::Keypair) -> Result<Self, TlsError> {
        let (certificate, certificate_key) = certificate::generate(key)?;
        Ok(Self::with(certificate, &certificate_key)?)
    }

    fn with(
        certificate: CertificateDer<'static>,
        certificate_key: &PrivateKeyDer<'_>,
    ) -> Result<Self, Error> {
        // rustls' own way to a certificate parses it, and stops at the extension of libp2p.
        let signing = aws_lc_rs::sign::any_supported_type(certificate_key)?;
        let resolver =
            Arc::new(SingleCertAndKey::from(CertifiedKey::new(vec![certificate], signing)));
        let provider = Arc::new(CryptoProvider {
            cipher_suites: cipher_suites(),
            ..aws_lc_rs::default_provider()
        });
        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(Verifier))
            .with_cert_resolver(resolver.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        // No session is resumed, as with other implementations: peers are many and stay connected.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier))
            .with_client_cert_resolver(resolver);
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        Ok(Self { acceptor: Arc::new(server).into(), connector: Arc::new(client).into() })
    }
}

impl UpgradeInfo for Tls {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/tls/1.0.0")
    }
}

impl<C> InboundConnectionUpgrade<C> for Tls
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, TlsStream<C>);
    type Error = TlsError;
    type Future = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        async move {
            let stream = self.acceptor.accept(socket).await?;
            Ok((peer(stream.get_ref().1)?, stream.into()))
        }
        .boxed()
    }
}

impl<C> OutboundConnectionUpgrade<C> for Tls
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = (PeerId, TlsStream<C>);
    type Error = TlsError;
    type Future = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        async move {
            // The specification wants no server name to be sent, and none is for an address.
            let nobody =
                ServerName::IpAddress(IpAddr::from(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED)));
            let stream = self.connector.connect(nobody, socket).await?;
            Ok((peer(stream.get_ref().1)?, stream.into()))
        }
        .boxed()
    }
}

/// Who is at the other end. Whether that is who was dialled is the swarm's to check.
fn peer(state: &CommonState) -> Result<PeerId, TlsError> {
    let Some([certificate]) = state.peer_certificates() else { return Err(TlsError::Nameless) };
    Ok(certificate::parse(certificate)?.peer_id())
}

/// Takes exactly one self-signed certificate whose extension names the peer and is signed with the peer's key.
#[derive(Debug)]
struct Verifier;

impl Verifier {
    fn check(end_entity: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), Error> {
        if !more.is_empty() {
            return Err(Error::General("more than one certificate".into()));
        }
        certificate::parse(end_entity)?;
        Ok(())
    }

    fn check_signature(
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let certificate = certificate::parse(certificate)?;
        certificate.verify_signature(signed.scheme, message, signed.signature())?;
        Ok(HandshakeSignatureValid::assertion())
    }

    /// As libp2p takes them: elliptic curves before RSA.
    fn schemes() -> Vec<SignatureScheme> {
        vec![
            SignatureScheme::ECDSA_NISTP384_SHA384,
            SignatureScheme::ECDSA_NISTP256_SHA256,
            SignatureScheme::ED25519,
            SignatureScheme::RSA_PSS_SHA512,
            SignatureScheme::RSA_PSS_SHA384,
            SignatureScheme::RSA_PSS_SHA256,
            SignatureScheme::RSA_PKCS1_SHA512,
            SignatureScheme::RSA_PKCS1_SHA384,
            SignatureScheme::RSA_PKCS1_SHA256,
        ]
    }

    /// Never asked for: only TLS 1.3 is spoken.
    fn old() -> Error {
        Error::General("only TLS 1.3 is spoken".into())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::check(end_entity, intermediates).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Self::old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::check(end_entity, intermediates).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Self::old())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Self::check_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use futures::future;
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    async fn shake_hands(dialler: Tls, listener: Tls) -> [Result<PeerId, TlsError>; 2] {
        let (a, b) = tokio::io::duplex(64 << 10);
        let name = "/tls/1.0.0";
        // An end that gives up drops its side of the pipe, and the other one sees that.
        let dial = dialler.upgrade_outbound(a.compat(), name);
        let listen = listener.upgrade_inbound(b.compat(), name);
        let (dialled, listened) = future::join(dial, listen).await;
        [dialled.map(|(peer, _)| peer), listened.map(|(peer, _)| peer)]
    }

    #[tokio::test]
    async fn the_tls_of_libp2p_and_ours_understand_each_other() {
        let [ours, theirs] = [0; 2].map(|_| identity::Keypair::generate_ed25519());
        let name = "/tls/1.0.0";
        for dialling in [true, false] {
            let (a, b) = tokio::io::duplex(64 << 10);
            let (a, b) = (a.compat(), b.compat());
            let tls = Tls::new(&ours).unwrap();
            let reference = libp2p::tls::Config::new(&theirs).unwrap();
            let (seen, seen_by_them) = if dialling {
                let listen = reference.upgrade_inbound(b, name);
                let (near, far) = future::join(tls.upgrade_outbound(a, name), listen).await;
                (near.unwrap().0, far.unwrap().0)
            } else {
                let dial = reference.upgrade_outbound(b, name);
                let (near, far) = future::join(tls.upgrade_inbound(a, name), dial).await;
                (near.unwrap().0, far.unwrap().0)
            };
            assert_eq!(seen, theirs.public().to_peer_id());
            assert_eq!(seen_by_them, ours.public().to_peer_id());
        }
    }

    #[tokio::test]
    async fn who_shows_the_certificate_of_another_is_refused() {
        let [honest, victim, liar] = [0; 3].map(|_| identity::Keypair::generate_ed25519());
        let stolen = certificate::generate(&victim).unwrap().0;
        let own_key = certificate::generate(&liar).unwrap().1;
        let impostor = Tls::with(stolen, &own_key).unwrap();
        let honest = Tls::new(&honest).unwrap();
        let [as_dialler, _] = shake_hands(honest.clone(), impostor.clone()).await;
        assert!(as_dialler.is_err());
        let [_, as_listener] = shake_hands(impostor, honest).await;
        assert!(as_listener.is_err());
    }

    #[tokio::test]
    async fn a_certificate_that_its_peer_did_not_sign_is_refused() {
        let [honest, victim] = [0; 2].map(|_| identity::Keypair::generate_ed25519());
        let (certificate, key) = certificate::generate(&victim).unwrap();
        // Another victim's name in the certificate: its signature over the certificate's key is missing.
        let name = victim.public().encode_protobuf();
        let other = identity::Keypair::generate_ed25519().public().encode_protobuf();
        let mut forged = certificate.to_vec();
        let at = forged.windows(name.len()).position(|w| w == name).unwrap();
        forged[at..at + name.len()].copy_from_slice(&other);
        let impostor = Tls::with(forged.into(), &key).unwrap();
        let honest = Tls::new(&honest).unwrap();
        let [as_dialler, _] = shake_hands(honest.clone(), impostor.clone()).await;
        assert!(as_dialler.is_err());
        let [_, as_listener] = shake_hands(impostor, honest).await;
        assert!(as_listener.is_err());
    }
}
