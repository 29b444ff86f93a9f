//! Certificates that are refused, in words that help: whose it is, until when it was valid, what mends it. The TLS library decides;
//! here is said what it saw, at the end that refused and at the one that was refused.
use super::TransportError;
use crate::certs::{Current, Facts, minute};
use crate::wall;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{AlertDescription, CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use std::sync::{Arc, Mutex, PoisonError};
use time::OffsetDateTime;
use tracing::warn;

const ROTATE: &str = "`cluster certs RUN --rotate` on the head node gives every place a new one; a host that was away for longer joins \
                      anew, with a token of `cluster token RUN` and another --dir";
const OTHER_RUN: &str =
    "these are two runs: join with a token of this one (`cluster token RUN` on its head node) and a --dir of its own";

/// The certificate that a peer showed and that was refused, with its remedy.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<Option<String>>);

impl Refused {
    /// What was said last, once.
    fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// A verifier that says what it refuses: into `refused` where there is one, else into the log.
#[derive(Debug)]
pub(super) struct Saying<V: ?Sized> {
    pub(super) refused: Option<Arc<Refused>>,
    /// The authority that is trusted.
    pub(super) trusted: Option<Facts>,
    pub(super) inner: Arc<V>,
}

impl<V: ?Sized> Saying<V> {
    fn say(&self, certificate: &CertificateDer<'_>, error: &Error) {
        let Some(why) = of_peer(certificate, self.trusted.as_ref(), error) else { return };
        match &self.refused {
            Some(refused) => *refused.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(why),
            None => warn!(target: "cohort::transport", why, "certificate_refused"),
        }
    }
}

impl ServerCertVerifier for Saying<dyn ServerCertVerifier> {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.inner.verify_server_cert(certificate, chain, name, ocsp, now);
        verified.inspect_err(|error| self.say(certificate, error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Saying<dyn ClientCertVerifier> {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.inner.verify_client_cert(certificate, chain, now).inspect_err(|error| self.say(certificate, error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// What is known of both ends' certificates when a handshake fails, at whoever dials.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// What this end shows; `None`: it has no certificate.
    pub(super) own: Option<Arc<Current>>,
    /// What it refused.
    pub(super) refused: Arc<Refused>,
}

/// A handshake that failed, at whoever dialled: `alert` is the peer's where it refused us.
pub(super) fn of_dialled(peer: String, why: String, alert: Option<AlertDescription>, shown: &Shown) -> TransportError {
    let refused = shown.refused.take();
    let remedy = match alert {
        Some(alert) => of_own(alert, shown.own.as_ref().and_then(|own| own.facts()).as_ref()),
        None => refused,
    };
    match remedy {
        Some(remedy) => TransportError::Certificate { peer, why: format!("{why}: {remedy}") },
        None => TransportError::Lost { peer, why },
    }
}

/// The same at whoever listens, for its log; what it refused itself it has said by then.
pub(super) fn of_listening(why: String, alert: Option<AlertDescription>, current: &Current) -> String {
    match alert.and_then(|alert| of_own(alert, current.facts().as_ref())) {
        Some(remedy) => format!("{why}: {remedy}"),
        None => why,
    }
}

/// What a peer's refusal of our own certificate means; `None`: it was about something else.
fn of_own(alert: AlertDescription, own: Option<&Facts>) -> Option<String> {
    let now = minute(OffsetDateTime::from(wall::now()));
    let shown = own.map_or_else(|| "that of this place".to_owned(), ToString::to_string);
    match alert {
        AlertDescription::CertificateExpired => {
            Some(format!("it refuses the certificate shown to it, {shown}; here it is {now}: {ROTATE}; or a clock is wrong"))
        }
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            Some(format!("it trusts another authority than that of the certificate shown to it, {shown}: {OTHER_RUN}"))
        }
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown | AlertDescription::CertificateRevoked => {
            Some(format!("it refuses the certificate shown to it, {shown}: {ROTATE}"))
        }
        AlertDescription::CertificateRequired => Some(format!("it asks for a certificate, and none was shown: {OTHER_RUN}")),
        _ => None,
    }
}

/// What is wrong with a peer's certificate; `None`: nothing that a certificate could mend.
fn of_peer(certificate: &CertificateDer<'_>, trusted: Option<&Facts>, error: &Error) -> Option<String> {
    let Error::InvalidCertificate(error) = error else { return None };
    let facts = Facts::read(certificate);
    let shown = facts.as_ref().map_or_else(|| "of nobody that could be read".to_owned(), ToString::to_string);
    let now = minute(OffsetDateTime::from(wall::now()));
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            Some(format!("the certificate of {shown} has expired; here it is {now}: {ROTATE}; or this host's clock is wrong"))
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Some(format!(
            "the certificate of {shown} is not valid yet; here it is {now}: set the clock of the host that is wrong"
        )),
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            let ours = trusted.map_or("another authority", |facts| facts.subject.as_str());
            Some(format!("the certificate of {shown} is not signed by the one that is trusted here, {ours}: {OTHER_RUN}"))
        }
        _ => None,
    }
}
