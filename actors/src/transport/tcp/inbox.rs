//! What has arrived on a TCP connection and nobody has taken yet. Pure: it knows no socket and no clock.
//!
//! Invariant **I1**: a stream holds no more than its window, a connection no more than its number of streams; a peer that sends
//! more than it was granted has broken the protocol.
use super::outbox::CONTROL;
use bytes::{Bytes, BytesMut};
use cohort_protocol::CodecError;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use tokio::sync::Notify;

/// What of a stream has arrived and was not taken.
pub(super) struct Arrived {
    bytes: BytesMut,
    /// What the peer may still send.
    granted: u32,
    /// Taken since the peer was last granted more.
    taken: u32,
    /// The peer has sent all of it.
    ended: bool,
    /// The peer gave it up, or the connection is gone.
    cut: bool,
    /// Wakes its reader.
    pub(super) news: Arc<Notify>,
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Bytes, and what the peer is to be granted for them.
    Bytes(Bytes, Option<u32>),
    /// Nothing yet.
    Nothing,
    /// All was taken.
    End,
    /// There will be no more.
    Cut,
}

/// One end's way in.
pub(super) struct Inbox {
    control: Arrived,
    bulks: BTreeMap<u32, Arrived>,
    /// Bulk frames that nobody reads yet.
    opened: VecDeque<u32>,
    highest: u32,
    /// Bulk frames whose answer has not gone out.
    unanswered: usize,
    window: u32,
    max_bulks: usize,
}

impl Inbox {
    /// Grants `window` bytes to each stream, and that many bulk frames at once.
    pub(super) fn new(window: u32, max_bulks: u32) -> Self {
        let max_bulks = max_bulks as usize;
        let control = Arrived::new(window);
        let (bulks, opened) = (BTreeMap::new(), VecDeque::new());
        Self { control, bulks, opened, highest: CONTROL, unanswered: 0, window, max_bulks }
    }

    /// Bytes of the peer. `true`: they begin a bulk frame.
    pub(super) fn data(&mut self, stream: u32, last: bool, bytes: &[u8]) -> Result<bool, CodecError> {
        if stream == CONTROL {
            return self.control.push(bytes, last).map(|()| false);
        }
        if let Some(bulk) = self.bulks.get_mut(&stream) {
            return bulk.push(bytes, last).map(|()| false);
        }
        if stream <= self.highest {
            // Answered already: these bytes were on their way.
            return Ok(false);
        }
        if self.unanswered == self.max_bulks {
            return Err(broken(format!("bulk frame {stream} is one more than the {} that may be under way", self.max_bulks)));
        }
        self.highest = stream;
        self.unanswered += 1;
        let mut bulk = Arrived::new(self.window);
        bulk.push(bytes, last)?;
        self.bulks.insert(stream, bulk);
        self.opened.push_back(stream);
        Ok(true)
    }

    /// The peer gave a bulk frame up.
    pub(super) fn abandoned(&mut self, stream: u32) {
        if let Some(bulk) = self.bulks.get_mut(&stream) {
            bulk.cut();
        }
    }

    /// A bulk frame that nobody reads yet.
    pub(super) fn next_opened(&mut self) -> Option<(u32, Arc<Notify>)> {
        let stream = self.opened.pop_front()?;
        self.bulks.get(&stream).map(|bulk| (stream, bulk.news.clone()))
    }

    /// Wakes the reader of the control stream.
    pub(super) fn control_news(&self) -> Arc<Notify> {
        self.control.news.clone()
    }

    /// The next bytes of a stream.
    pub(super) fn take(&mut self, stream: u32, max: usize) -> Taken {
        let window = self.window;
        match self.stream(stream) {
            Some(arrived) => arrived.take(max, window),
            None => Taken::Cut,
        }
    }

    /// A bulk frame is over here; its answer is about to go out.
    pub(super) fn forget(&mut self, stream: u32) {
        self.bulks.remove(&stream);
    }

    /// Answers have gone out.
    pub(super) fn answered(&mut self, answers: usize) {
        self.unanswered = self.unanswered.saturating_sub(answers);
    }

    /// The connection is gone. What has arrived on the control stream can still be taken.
    pub(super) fn cut(&mut self) {
        self.control.cut();
        self.bulks.values_mut().for_each(Arrived::cut);
    }

    fn stream(&mut self, stream: u32) -> Option<&mut Arrived> {
        if stream == CONTROL { Some(&mut self.control) } else { self.bulks.get_mut(&stream) }
    }
}

impl Arrived {
    fn new(window: u32) -> Self {
        Self { bytes: BytesMut::new(), granted: window, taken: 0, ended: false, cut: false, news: Arc::default() }
    }

    fn push(&mut self, bytes: &[u8], last: bool) -> Result<(), CodecError> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        if self.ended {
            return Err(broken("bytes after the end of their stream".into()));
        }
        self.granted = self
            .granted
            .checked_sub(len)
            .ok_or_else(|| broken(format!("{len} bytes on a stream that was granted {} more", self.granted)))?;
        self.ended = last;
        if !self.cut {
            self.bytes.extend_from_slice(bytes);
        }
        self.news.notify_one();
        Ok(())
    }

    fn take(&mut self, max: usize, window: u32) -> Taken {
        if self.bytes.is_empty() {
            return match (self.cut, self.ended) {
                (true, _) => Taken::Cut,
                (false, true) => Taken::End,
                (false, false) => Taken::Nothing,
            };
        }
        let bytes = self.bytes.split_to(max.min(self.bytes.len())).freeze();
        self.taken += u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        // In halves, so that a byte taken does not cost a record.
        let grant = (!self.ended && self.taken >= window / 2).then(|| std::mem::take(&mut self.taken));
        self.granted += grant.unwrap_or(0);
        Taken::Bytes(bytes, grant)
    }

    fn cut(&mut self) {
        self.cut = true;
        self.news.notify_one();
    }
}

fn broken(why: String) -> CodecError {
    CodecError::Malformed { what: "record", why }
}
