//! The two pure halves against each other, in any order of sending, reading, answering and giving up.
use super::inbox::{Inbox, Taken};
use super::outbox::{CONTROL, Outbox};
use super::record::Record;
use crate::transport::framed::BulkOutcome;
use bytes::BytesMut;
use cohort_protocol::Frame;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Semaphore, oneshot};

const MAX_BULKS: u32 = 3;

#[derive(Debug, Clone)]
enum Op {
    /// A control frame of so many bytes, where the one before has gone out.
    Control(usize),
    /// A bulk frame, where one more is granted.
    Bulk(usize),
    /// The sender of the n-th bulk frame that waits gives it up.
    Abandon(usize),
    /// A batch of the sender arrives.
    Forth,
    /// A batch of the receiver arrives.
    Back,
    /// The receiver takes up to so many bytes of the n-th stream.
    Take(usize, usize),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        1 => (0usize..30_000).prop_map(Op::Control),
        1 => (0usize..90_000).prop_map(Op::Bulk),
        1 => (0usize..4).prop_map(Op::Abandon),
        3 => Just(Op::Forth),
        2 => Just(Op::Back),
        4 => ((0usize..5), (1usize..50_000)).prop_map(|(n, max)| Op::Take(n, max)),
    ];
    proptest::collection::vec(op, 0..120)
}

/// A bulk frame at its sender.
struct Sent {
    bytes: Vec<u8>,
    told: oneshot::Receiver<(BulkOutcome, bool)>,
}

struct World {
    window: u32,
    near: Outbox,
    far_inbox: Inbox,
    far: Outbox,
    slots: Arc<Semaphore>,
    control_sent: Vec<u8>,
    control_got: Vec<u8>,
    sent: BTreeMap<u32, Sent>,
    /// Bulk frames that the receiver reads.
    reading: BTreeMap<u32, Vec<u8>>,
}

impl World {
    fn new(window: u32) -> Self {
        Self {
            window,
            near: Outbox::new(window),
            far_inbox: Inbox::new(window, MAX_BULKS),
            far: Outbox::new(1 << 20),
            slots: Arc::new(Semaphore::new(MAX_BULKS as usize)),
            control_sent: Vec::new(),
            control_got: Vec::new(),
            sent: BTreeMap::new(),
            reading: BTreeMap::new(),
        }
    }

    fn frame(size: usize, salt: usize) -> Frame {
        Frame { direction: 2, tag: 1, body: (0..size).map(|i| (i * 31 + salt).to_le_bytes()[0]).collect() }
    }

    fn step(&mut self, op: &Op) {
        match *op {
            Op::Control(size) => {
                if !self.near.control_pending() {
                    let frame = Self::frame(size, self.control_sent.len());
                    self.control_sent.extend(frame.to_bytes());
                    self.near.control(frame);
                }
            }
            Op::Bulk(size) => {
                let Ok(slot) = self.slots.clone().try_acquire_owned() else { return };
                let (tell, told) = oneshot::channel();
                let frame = Self::frame(size, 7);
                let bytes = frame.to_bytes();
                let stream = self.near.bulk(frame, slot, tell).unwrap();
                self.sent.insert(stream, Sent { bytes, told });
            }
            Op::Abandon(n) => {
                if let Some(&stream) = self.sent.keys().nth(n) {
                    self.sent.remove(&stream);
                    self.near.abandon(stream);
                }
            }
            Op::Forth => self.forth(),
            Op::Back => self.back(),
            Op::Take(n, max) => {
                let streams: Vec<u32> = [CONTROL].into_iter().chain(self.reading.keys().copied()).collect();
                self.take(streams[n % streams.len()], max);
            }
        }
    }

    fn forth(&mut self) {
        let mut batch = Vec::new();
        self.near.fill(&mut batch);
        let mut buffer = BytesMut::from(&batch[..]);
        while let Some(record) = Record::take(&mut buffer).unwrap() {
            match record {
                // The error of a peer that sends what it was not granted: never, between two of us.
                Record::Data { stream, last, bytes } => drop(self.far_inbox.data(stream, last, &bytes).unwrap()),
                Record::Abandoned { stream } => self.far_inbox.abandoned(stream),
                other => panic!("{other:?}"),
            }
        }
        while let Some((stream, _)) = self.far_inbox.next_opened() {
            self.reading.insert(stream, Vec::new());
        }
    }

    fn back(&mut self) {
        let mut batch = Vec::new();
        let written = self.far.fill(&mut batch);
        self.far_inbox.answered(written.answers);
        let mut buffer = BytesMut::from(&batch[..]);
        while let Some(record) = Record::take(&mut buffer).unwrap() {
            match record {
                Record::Credit { stream, bytes } => self.near.granted(stream, bytes),
                Record::Answer { stream, accepted } => self.near.answered(stream, accepted),
                other => panic!("{other:?}"),
            }
        }
    }

    fn take(&mut self, stream: u32, max: usize) -> bool {
        match self.far_inbox.take(stream, max) {
            Taken::Bytes(bytes, grant) => {
                assert!(bytes.len() <= max.min(self.window as usize), "I1");
                if let Some(grant) = grant {
                    self.far.grant(stream, grant);
                }
                let got = if stream == CONTROL { Some(&mut self.control_got) } else { self.reading.get_mut(&stream) };
                got.unwrap().extend_from_slice(&bytes);
                true
            }
            Taken::Nothing => false,
            end => {
                let got = self.reading.remove(&stream).unwrap();
                if let Some(sent) = self.sent.get(&stream) {
                    assert_eq!((&end, got == sent.bytes), (&Taken::End, true), "whole and unchanged");
                }
                self.far_inbox.forget(stream);
                self.far.answer(stream, end == Taken::End);
                true
            }
        }
    }

    /// Everybody does what there is to do, until there is nothing.
    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.forth();
            let streams: Vec<u32> = [CONTROL].into_iter().chain(self.reading.keys().copied()).collect();
            let moved = streams.into_iter().filter(|&stream| self.take(stream, usize::MAX)).count();
            self.back();
            if moved == 0 && !self.near.control_pending() && self.slots.available_permits() == MAX_BULKS as usize {
                return;
            }
        }
        panic!("it stands still");
    }
}

proptest! {
    #[test]
    fn whatever_is_sent_arrives_within_what_was_granted(window in 1_000u32..60_000, ops in ops()) {
        let mut world = World::new(window);
        ops.iter().for_each(|op| world.step(op));
        world.settle();
        prop_assert!(world.control_got == world.control_sent, "control in order, every byte");
        for (stream, mut sent) in world.sent {
            prop_assert_eq!(sent.told.try_recv(), Ok((BulkOutcome::Accepted, true)), "{}", stream);
        }
    }
}
