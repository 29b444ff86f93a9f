//! TLS of the run, the same under QUIC and over TCP: version 1.3, the run's authority and nobody else, no resumption.
use super::EndpointError;
use crate::certs::{Current, Identity, authority_of};
use cohort_protocol::WorkerId;
use rustls::client::{Resumption, WantsClientCert};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, ServerConfig};
use std::sync::Arc;

/// For whoever listens; `strangers`: peers without a certificate come in too.
pub(super) fn server(identity: &Identity, strangers: bool, alpn: &[u8]) -> Result<ServerConfig, EndpointError> {
    let failed = |why: String| EndpointError::Tls { who: identity.who(), why };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(identity)?), provider.clone());
    let verifier = if strangers { verifier.allow_unauthenticated() } else { verifier };
    let verifier = verifier.build().map_err(|error| failed(error.to_string()))?;
    let current = Current::of(identity, provider.clone()).map_err(|error| failed(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| failed(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(current);
    config.alpn_protocols = vec![alpn.to_vec()];
    // No tickets: a resumed session would not check the certificate again.
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// For whoever dials with a certificate.
pub(super) fn client(identity: &Identity, alpn: &[u8]) -> Result<ClientConfig, EndpointError> {
    let current = Current::of(identity, Arc::new(rustls::crypto::ring::default_provider()))
        .map_err(|error| EndpointError::Tls { who: identity.who(), why: error.to_string() })?;
    let config = builder(identity.who(), roots(identity)?)?.with_client_cert_resolver(current);
    Ok(finish(config, alpn))
}

/// For whoever dials `to` without a certificate, trusting the authority (PEM) that a token names.
pub(super) fn stranger(to: WorkerId, authority: &str, alpn: &[u8]) -> Result<ClientConfig, EndpointError> {
    let failed = |why: String| EndpointError::Tls { who: to, why };
    let authority = authority_of(authority).map_err(|error| failed(error.to_string()))?;
    let mut roots = RootCertStore::empty();
    roots.add(authority).map_err(|error| failed(error.to_string()))?;
    Ok(finish(builder(to, roots)?.with_no_client_auth(), alpn))
}

fn builder(who: WorkerId, roots: RootCertStore) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, EndpointError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| EndpointError::Tls { who, why: error.to_string() })?;
    Ok(builder.with_root_certificates(roots))
}

fn finish(mut config: ClientConfig, alpn: &[u8]) -> ClientConfig {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// Only the run's own authority is trusted.
pub(super) fn roots(identity: &Identity) -> Result<RootCertStore, EndpointError> {
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority()).map_err(|error| EndpointError::Tls { who: identity.who(), why: error.to_string() })?;
    Ok(roots)
}
