//! One stream of one QUIC connection on loopback, with nothing of ours around it: what the machine gives.
use anyhow::{Context, Result};
use cohort_actors::transport::quic::PAYLOAD;
use quinn::{ClientConfig, Endpoint, EndpointConfig, MtuDiscoveryConfig, ServerConfig, TokioRuntime, TransportConfig};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Instant;

/// How long its datagrams may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Datagrams {
    /// As quinn has them: 1,452 bytes.
    Default,
    /// As between hosts of a run.
    Long,
}

impl Datagrams {
    fn endpoint(self, server: Option<ServerConfig>) -> Result<Endpoint> {
        let mut config = EndpointConfig::default();
        if self == Self::Long {
            config.max_udp_payload_size(PAYLOAD)?;
        }
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
        Ok(Endpoint::new(config, server, socket, Arc::new(TokioRuntime))?)
    }

    fn transport(self) -> Arc<TransportConfig> {
        let mut config = TransportConfig::default();
        if self == Self::Long {
            let mut discovery = MtuDiscoveryConfig::default();
            discovery.upper_bound(PAYLOAD);
            config.mtu_discovery_config(Some(discovery));
        }
        Arc::new(config)
    }
}

/// Seconds for so many bytes.
pub(super) async fn bare(bytes: usize, datagrams: Datagrams) -> Result<f64> {
    let key = rcgen::generate_simple_self_signed(vec!["bare".to_owned()])?;
    let certificate = key.cert.der().clone();
    let private = quinn::rustls::pki_types::PrivatePkcs8KeyDer::from(key.signing_key.serialize_der());
    let mut serving = ServerConfig::with_single_cert(vec![certificate.clone()], private.into())?;
    serving.transport_config(datagrams.transport());
    let mut roots = quinn::rustls::RootCertStore::empty();
    roots.add(certificate)?;
    let mut dialling = ClientConfig::with_root_certificates(Arc::new(roots))?;
    dialling.transport_config(datagrams.transport());
    let (server, client) = (datagrams.endpoint(Some(serving))?, datagrams.endpoint(None)?);
    let at: SocketAddr = server.local_addr()?;
    let reading = tokio::spawn(async move {
        let connection = server.accept().await.context("no connection")?.await?;
        let mut stream = connection.accept_uni().await?;
        let mut got = 0;
        while let Some(chunk) = stream.read_chunk(usize::MAX, true).await? {
            got += chunk.bytes.len();
        }
        connection.close(0u32.into(), b"");
        server.wait_idle().await;
        Ok::<usize, anyhow::Error>(got)
    });
    let connection = client.connect_with(dialling, at, "bare")?.await?;
    let mut stream = connection.open_uni().await?;
    let data = vec![1u8; 4 << 20];
    let begun = Instant::now();
    for at in (0..bytes).step_by(data.len()) {
        stream.write_all(&data[..data.len().min(bytes - at)]).await?;
    }
    stream.finish()?;
    anyhow::ensure!(reading.await?? == bytes, "bytes were lost");
    Ok(begun.elapsed().as_secs_f64())
}
