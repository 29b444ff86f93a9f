//! What goes out next on a TCP connection. Pure: it knows no socket and no clock.
//!
//! Invariants
//! - **O1** answers and credits first, then control, then bulk frames in turn, a record each: whoever waits for room holds up
//!   nobody else.
//! - **O2** of a stream no more bytes go out than the peer has granted.
//! - **O3** memory: one control frame, the peer's number of bulk frames, and as many answers and credits as it has frames here.
use super::record::{MAX_DATA, Record, put_data_header};
use crate::transport::assemble::header;
use crate::transport::framed::BulkOutcome;
use bytes::{Buf, Bytes};
use cohort_protocol::Frame;
use std::collections::{BTreeMap, VecDeque};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// Bytes for one write.
const BATCH: usize = 64 << 10;
/// The control stream.
pub(super) const CONTROL: u32 = 0;

/// A frame on its way out.
struct Leaving {
    header: Bytes,
    body: Bytes,
}

/// A bulk frame on its way out.
struct LeavingBulk {
    frame: Leaving,
    granted: u64,
    begun: bool,
}

/// Who waits for the answer to a bulk frame.
struct Waiting {
    /// The outcome, and whether the whole frame had gone out.
    tell: oneshot::Sender<(BulkOutcome, bool)>,
    /// One of the peer's number of bulk frames.
    _slot: OwnedSemaphorePermit,
}

/// One end's way out.
pub(super) struct Outbox {
    control: Option<Leaving>,
    control_granted: u64,
    bulks: BTreeMap<u32, LeavingBulk>,
    waiting: BTreeMap<u32, Waiting>,
    /// What the peer grants a new stream.
    window: u32,
    last_stream: u32,
    /// Whose turn it was.
    turn: u32,
    answers: VecDeque<(u32, bool)>,
    credits: BTreeMap<u32, u32>,
    abandoned: VecDeque<u32>,
    close: Option<(u32, String)>,
    closed: bool,
}

/// What was written into a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Written {
    /// Answers among it: so many of the peer's bulk frames are over.
    pub(super) answers: usize,
    /// The control frame went out whole.
    pub(super) control: bool,
    /// Nothing comes after it.
    pub(super) last: bool,
}

impl Outbox {
    /// The peer grants `window` bytes to each stream to begin with.
    pub(super) fn new(window: u32) -> Self {
        Self {
            control: None,
            control_granted: window.into(),
            bulks: BTreeMap::new(),
            waiting: BTreeMap::new(),
            window,
            last_stream: CONTROL,
            turn: CONTROL,
            answers: VecDeque::new(),
            credits: BTreeMap::new(),
            abandoned: VecDeque::new(),
            close: None,
            closed: false,
        }
    }

    /// Begins a control frame; the one before must have gone out.
    pub(super) fn control(&mut self, frame: Frame) {
        self.control = Some(Leaving::of(frame));
    }

    /// Whether a control frame is still on its way out.
    pub(super) fn control_pending(&self) -> bool {
        self.control.is_some()
    }

    /// Begins a bulk frame; the number of its stream.
    pub(super) fn bulk(
        &mut self,
        frame: Frame,
        slot: OwnedSemaphorePermit,
        tell: oneshot::Sender<(BulkOutcome, bool)>,
    ) -> Option<u32> {
        let stream = self.last_stream.checked_add(1)?;
        self.last_stream = stream;
        self.bulks.insert(stream, LeavingBulk { frame: Leaving::of(frame), granted: self.window.into(), begun: false });
        self.waiting.insert(stream, Waiting { tell, _slot: slot });
        Some(stream)
    }

    /// Nobody waits for a bulk frame any more. What the peer has seen of it keeps its place until the peer answers.
    pub(super) fn abandon(&mut self, stream: u32) {
        match self.bulks.remove(&stream) {
            Some(bulk) if bulk.begun => self.abandoned.push_back(stream),
            Some(_) => drop(self.waiting.remove(&stream)),
            None => {}
        }
    }

    /// The peer's answer. One to a stream that nobody waits on changes nothing.
    pub(super) fn answered(&mut self, stream: u32, accepted: bool) {
        let written = self.bulks.remove(&stream).is_none();
        if let Some(waiting) = self.waiting.remove(&stream) {
            let outcome = if accepted { BulkOutcome::Accepted } else { BulkOutcome::NotAccepted };
            // Who waited may have given up.
            let _ = waiting.tell.send((outcome, written));
        }
    }

    /// The peer has room for more.
    pub(super) fn granted(&mut self, stream: u32, bytes: u32) {
        let granted = match stream {
            CONTROL => Some(&mut self.control_granted),
            _ => self.bulks.get_mut(&stream).map(|bulk| &mut bulk.granted),
        };
        if let Some(granted) = granted {
            *granted = granted.saturating_add(bytes.into());
        }
    }

    /// Answers a bulk frame of the peer.
    pub(super) fn answer(&mut self, stream: u32, accepted: bool) {
        self.credits.remove(&stream);
        self.answers.push_back((stream, accepted));
    }

    /// Grants the peer more of a stream of its own.
    pub(super) fn grant(&mut self, stream: u32, bytes: u32) {
        let granted = self.credits.entry(stream).or_default();
        *granted = granted.saturating_add(bytes);
    }

    /// Nothing more goes out but this, where the peer does not know it yet; whoever waits learns that the connection is over.
    pub(super) fn close(&mut self, tell: Option<(u32, String)>) {
        let window = self.window;
        *self = Self::new(window);
        self.close = tell;
        self.closed = true;
    }

    /// Appends the next records to an empty batch.
    pub(super) fn fill(&mut self, batch: &mut Vec<u8>) -> Written {
        let mut written = Written::default();
        if self.closed {
            if let Some((code, reason)) = self.close.take() {
                Record::Close { code, reason }.put(batch);
            }
            return Written { last: true, ..written };
        }
        while let Some(stream) = self.abandoned.pop_front() {
            Record::Abandoned { stream }.put(batch);
        }
        while let Some((stream, accepted)) = self.answers.pop_front() {
            Record::Answer { stream, accepted }.put(batch);
            written.answers += 1;
        }
        while let Some((stream, bytes)) = self.credits.pop_first() {
            Record::Credit { stream, bytes }.put(batch);
        }
        while batch.len() < BATCH {
            let Some(control) = &mut self.control else { break };
            if !control.put(CONTROL, &mut self.control_granted, false, batch) {
                break;
            }
            if control.left() == 0 {
                self.control = None;
                written.control = true;
            }
        }
        while batch.len() < BATCH && self.next_bulk(batch) {}
        written
    }

    /// A record of the bulk frame whose turn it is.
    fn next_bulk(&mut self, batch: &mut Vec<u8>) -> bool {
        let after = self.turn.saturating_add(1);
        let turns = self.bulks.range(after..).chain(self.bulks.range(..after));
        let Some(stream) = turns.filter(|(_, bulk)| bulk.granted > 0).map(|(&stream, _)| stream).next() else { return false };
        self.turn = stream;
        let Some(bulk) = self.bulks.get_mut(&stream) else { return false };
        bulk.begun = true;
        bulk.frame.put(stream, &mut bulk.granted, true, batch);
        if bulk.frame.left() == 0 {
            self.bulks.remove(&stream);
        }
        true
    }
}

impl Leaving {
    fn of(frame: Frame) -> Self {
        Self { header: header(&frame), body: frame.body }
    }

    fn left(&self) -> usize {
        self.header.len() + self.body.len()
    }

    /// Appends a record of what may go; `false` where nothing may.
    fn put(&mut self, stream: u32, granted: &mut u64, ends_stream: bool, batch: &mut Vec<u8>) -> bool {
        let len = self.left().min(MAX_DATA).min(usize::try_from(*granted).unwrap_or(usize::MAX));
        if len == 0 {
            return false;
        }
        *granted -= len as u64;
        put_data_header(stream, ends_stream && len == self.left(), len, batch);
        let first = len.min(self.header.len());
        batch.extend_from_slice(&self.header[..first]);
        self.header.advance(first);
        batch.extend_from_slice(&self.body[..len - first]);
        self.body.advance(len - first);
        true
    }
}
