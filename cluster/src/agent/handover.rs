//! Descriptors on their way from the node agent to its children, over a Unix socket: the coordinator's bound sockets,
//! the weight ring's memory, the pipes for progress and orders. Each outlives the child that uses it, so that a restarted child
//! finds the port, the weights and the listener where its predecessor left them.
//!
//! Invariants
//! - **V1** the socket has no name in the file system and answers processes of the same user only.
//! - **V2** a request is one byte; anything else is answered by closing.
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::collections::BTreeMap;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::time::Duration;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Item {
    /// The coordinator's UDP socket, bound.
    Udp = b's',
    /// The coordinator's TCP socket, listening.
    Tcp = b't',
    /// The weight ring's memory.
    Ring = b'r',
    /// Where the coordinator writes progress.
    Progress = b'p',
    /// Where the coordinator reads what it is told.
    Orders = b'o',
}

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers children from a thread of its own, as long as the process lives.
pub(super) fn serve(name: &str, items: BTreeMap<u8, OwnedFd>) -> io::Result<()> {
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    let items = Arc::new(items);
    std::thread::Builder::new().name("handover".into()).spawn(move || {
        for stream in listener.incoming().flatten() {
            // A child that does not get its descriptor says so and is started again.
            let _ = answer(&stream, &items);
        }
    })?;
    Ok(())
}

fn answer(mut stream: &UnixStream, items: &BTreeMap<u8, OwnedFd>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    if rustix::net::sockopt::socket_peercred(stream)?.uid != rustix::process::geteuid() {
        return Ok(());
    }
    let mut request = [0u8; 1];
    stream.read_exact(&mut request)?;
    let Some(item) = items.get(&request[0]) else { return Ok(()) };
    let descriptors = [item.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    sendmsg(stream, &[IoSlice::new(&request)], &mut ancillary, SendFlags::empty())?;
    Ok(())
}

/// A child's side: asks for one descriptor.
pub(super) fn take(name: &str, item: Item) -> io::Result<OwnedFd> {
    let mut stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(name)?)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(&[item as u8])?;
    let mut byte = [0u8; 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(descriptor) = descriptors.next()
        {
            return Ok(descriptor);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("the node agent handed over no {item:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_descriptor_arrives_and_an_unknown_one_does_not() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"weights", 0).unwrap();
        let name = format!("cohort-test-{}", std::process::id());
        serve(&name, BTreeMap::from([(Item::Ring as u8, OwnedFd::from(file))])).unwrap();
        let got = File::from(take(&name, Item::Ring).unwrap());
        let mut bytes = [0; 7];
        got.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"weights");
        assert!(take(&name, Item::Udp).is_err());
    }
}
