//! A host's first word to the head node, before it has a certificate.
use super::LinkError;
use crate::transport::{Dialer, Inbound, TransportError};
use cohort_protocol::CodecError;
use cohort_protocol::messages::WireMessage;
use cohort_protocol::messages::handshake::{Enrol, Enrolled, Handshake};
use std::time::Duration;
use tokio::time::timeout;

/// Shows a token's secret and gets a place. One try.
///
/// # Errors
/// [`LinkError::Refused`] with the head node's reason; [`LinkError::Lost`] where it cannot be reached or does not answer
/// within `deadline`.
pub async fn enrol(dialer: &dyn Dialer, request: Enrol, deadline: Duration) -> Result<Enrolled, LinkError> {
    let connection = dialer.connect().await?;
    let peer = connection.peer();
    let answer = async {
        connection.send(Handshake::Enrol(request).to_frame().map_err(LinkError::Unsendable)?).await?;
        Ok::<_, LinkError>(connection.recv().await?)
    };
    let answer = timeout(deadline, answer).await.map_err(|_| TransportError::Deadline {
        peer: peer.clone(),
        what: "answer Enrol",
        after: deadline,
    })??;
    let wrong = |why: &str| CodecError::Malformed { what: "answer to Enrol", why: why.to_owned() };
    let outcome = match &answer {
        Inbound::Control(frame) => match Handshake::from_frame(frame) {
            Ok(Handshake::Enrolled(enrolled)) => Ok(enrolled),
            Ok(Handshake::Refused(refused)) => Err(LinkError::Refused { peer: peer.clone(), reason: refused.reason }),
            Ok(_) => Err(TransportError::Codec { peer: peer.clone(), source: wrong("it is of another handshake") }.into()),
            Err(source) => Err(TransportError::Codec { peer: peer.clone(), source }.into()),
        },
        Inbound::Bulk(..) => Err(TransportError::Codec { peer: peer.clone(), source: wrong("it is a bulk frame") }.into()),
    };
    connection.close("answered");
    outcome
}
