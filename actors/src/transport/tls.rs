//! TLS of the run, the same under QUIC and over TCP: version 1.3, the run's authority and nobody else, no resumption.
use super::EndpointError;
use super::refusal::{Refused, Saying, Shown};
use crate::certs::{Current, Facts, Identity, authority_of};
use crate::wall::TlsClock;
use cohort_protocol::WorkerId;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WantsClientCert, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};
use std::sync::Arc;

/// For whoever listens; `strangers`: peers without a certificate come in too.
pub(super) fn server(identity: &Identity, strangers: bool, alpn: &[u8]) -> Result<(ServerConfig, Arc<Current>), EndpointError> {
    let failed = |why: String| EndpointError::Tls { who: identity.who(), why };
    let provider = provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), provider.clone());
    let verifier = if strangers { verifier.allow_unauthenticated() } else { verifier };
    let inner: Arc<dyn ClientCertVerifier> = verifier.build().map_err(|error| failed(error.to_string()))?;
    let verifier = Saying { refused: None, trusted: Facts::read(&identity.authority()), inner };
    let current = Current::of(identity, provider.clone()).map_err(|error| failed(error.to_string()))?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(TlsClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(error.to_string()))?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(current.clone());
    config.alpn_protocols = vec![alpn.to_vec()];
    // No tickets: a resumed session would not check the certificate again.
    config.send_tls13_tickets = 0;
    Ok((config, current))
}

/// For whoever dials with a certificate.
pub(super) fn client(identity: &Identity, alpn: &[u8]) -> Result<(ClientConfig, Shown), EndpointError> {
    let current =
        Current::of(identity, provider()).map_err(|error| EndpointError::Tls { who: identity.who(), why: error.to_string() })?;
    let (builder, refused) = builder(identity.who(), identity.authority())?;
    let config = finish(builder.with_client_cert_resolver(current.clone()), alpn);
    Ok((config, Shown { own: Some(current), refused }))
}

/// For whoever dials `to` without a certificate, trusting the authority (PEM) that a token names.
pub(super) fn stranger(to: WorkerId, authority: &str, alpn: &[u8]) -> Result<(ClientConfig, Shown), EndpointError> {
    let authority = authority_of(authority).map_err(|error| EndpointError::Tls { who: to, why: error.to_string() })?;
    let (builder, refused) = builder(to, authority)?;
    Ok((finish(builder.with_no_client_auth(), alpn), Shown { own: None, refused }))
}

type Building = (ConfigBuilder<ClientConfig, WantsClientCert>, Arc<Refused>);

fn builder(who: WorkerId, authority: CertificateDer<'static>) -> Result<Building, EndpointError> {
    let failed = |why: String| EndpointError::Tls { who, why };
    let trusted = Facts::read(&authority);
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| failed(error.to_string()))?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
    let inner: Arc<dyn ServerCertVerifier> = verifier.build().map_err(|error| failed(error.to_string()))?;
    let refused = Arc::new(Refused::default());
    let verifier = Saying { refused: Some(refused.clone()), trusted, inner };
    let builder = ClientConfig::builder_with_details(provider(), Arc::new(TlsClock))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(error.to_string()))?;
    // The library's own verifier stands behind it and decides.
    Ok((builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)), refused))
}

fn finish(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Only the run's own authority is trusted.
pub(super) fn roots(identity: &Identity) -> Result<RootCertStore, EndpointError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority()).map_err(|error| EndpointError::Tls { who: identity.who(), why: error.to_string() })?;
    Ok(roots)
}
