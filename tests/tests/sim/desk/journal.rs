//! The journal: what waits is written together, and a crash can come at any moment around it.
use crate::agenda::Happening;
use crate::seen::Seen;
use crate::setting::{Kind, Point};
use crate::world::World;
use cohort_cluster::controller::Event;
use cohort_cluster::ledger::Entry;
use cohort_cluster::ledger::segments::{RecordKind, SegmentLog, segment_path};
use std::io::Write;

/// Records written in one transaction, at most.
const BATCH: usize = 1024;

/// What an entry is about.
pub(crate) fn kind(entry: &Entry) -> Kind {
    match entry {
        Entry::Opened { .. } | Entry::Leased { .. } => Kind::Lease,
        Entry::Trajectories(_) => Kind::Trajectories,
        Entry::Scores(_) => Kind::Scores,
        Entry::Intent(_) => Kind::Intent,
        Entry::Commit(_) => Kind::Commit,
        Entry::Dropped { .. } => Kind::Dropped,
        Entry::Checkpoint { .. } => Kind::Checkpoint,
        Entry::Evaluation(_) => Kind::Evaluation,
    }
}

impl World {
    /// The disk takes its time over whatever waits.
    pub(super) fn begin_writing(&mut self) {
        let took = self.delay(1, 30);
        let start = self.desk.start;
        let Some(core) = &mut self.desk.core else { return };
        if !core.writing && !core.journal.is_empty() {
            core.writing = true;
            self.agenda.put(self.now + took, Happening::Written { start });
        }
    }

    /// A write has come to its end: durable, or not, as the point says at which the coordinator is to die.
    pub(crate) fn written(&mut self, start: u32) {
        let Some(core) = self.desk.core.as_mut().filter(|_| self.desk.start == start) else { return };
        core.writing = false;
        let count = core.journal.len().min(BATCH);
        let (ids, batches): (Vec<_>, Vec<_>) = core.journal.drain(..count).unzip();
        let entries: Vec<Entry> = batches.into_iter().flatten().collect();
        let point = self.armed_for(&entries);
        match point {
            Some(at @ Point::Before(_)) => return self.crash(at),
            Some(at @ (Point::Indexing(_) | Point::Torn(_))) => return self.crash_in_the_segment(&entries, at),
            _ => {}
        }
        let Some(core) = &mut self.desk.core else { return };
        if let Err(error) = core.ledger.apply(&entries) {
            return self.break_rule("ledger", &format!("it refuses {}: {error}", describe(&entries)));
        }
        self.see(Seen::Durable(entries));
        if let Some(at) = point {
            return self.crash(at);
        }
        for id in ids {
            self.tell(Event::Recorded(id));
        }
        self.begin_writing();
    }

    /// Whether the coordinator is to die around this write.
    fn armed_for(&mut self, entries: &[Entry]) -> Option<Point> {
        let (point, left) = self.armed.as_mut()?;
        let of = match point {
            Point::Before(kind) | Point::Indexing(kind) | Point::Torn(kind) | Point::After(kind) => *kind,
            Point::Anywhere | Point::Recovering => return None,
        };
        if !entries.iter().any(|entry| kind(entry) == of) {
            return None;
        }
        *left -= 1;
        if *left > 0 {
            return None;
        }
        self.armed.take().map(|(point, _)| point)
    }

    /// Payloads reach the segment, whole or torn, and the index never hears of them.
    fn crash_in_the_segment(&mut self, entries: &[Entry], at: Point) {
        self.crash(at);
        let dir = self.paths.segments();
        let payloads = entries.iter().filter_map(|entry| match entry {
            Entry::Trajectories(a) => Some((RecordKind::Trajectories, a.payload.clone())),
            Entry::Scores(a) => Some((RecordKind::Scores, a.payload.clone())),
            _ => None,
        });
        let written = SegmentLog::open(&dir, None).and_then(|(mut log, _)| {
            for (kind, payload) in payloads {
                log.append(kind, &payload)?;
            }
            log.sync()?;
            Ok(log.position())
        });
        let torn = match (written, at) {
            (Ok((number, end)), Point::Torn(_)) => std::fs::OpenOptions::new()
                .append(true)
                .open(segment_path(&dir, number))
                .and_then(|mut file| file.write_all(&[64, 0, 0, 0, 1, 9, 9]).map(|()| end))
                .map_err(|e| e.to_string()),
            (written, _) => written.map(|(_, end)| end).map_err(|e| e.to_string()),
        };
        if let Err(error) = torn {
            self.break_rule("world", &format!("the segment of a crash: {error}"));
        }
    }
}

/// In a few words.
pub(crate) fn describe(entries: &[Entry]) -> String {
    let one = |entry: &Entry| match entry {
        Entry::Opened { group, cursor, .. } => format!("open {group} (row {cursor})"),
        Entry::Leased { group, attempt, worker, .. } => format!("lease {group}/{attempt} to {worker}"),
        Entry::Trajectories(a) => format!("trajectories {}/{} of {}", a.group, a.attempt, a.worker),
        Entry::Scores(a) => format!("scores {}/{} of {}", a.group, a.attempt, a.worker),
        Entry::Intent(i) => format!("intent {} {:?}", i.step, i.groups.iter().map(|g| g.0).collect::<Vec<_>>()),
        Entry::Commit(c) => format!("commit {} {:016x}", c.step, c.weights_digest),
        Entry::Dropped { group, reason, .. } => format!("drop {group}: {reason}"),
        Entry::Checkpoint { version, .. } => format!("checkpoint {version}"),
        Entry::Evaluation(r) => format!("evaluation {} {}", r.step, r.greedy),
    };
    entries.iter().map(one).collect::<Vec<_>>().join(", ")
}
