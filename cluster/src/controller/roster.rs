//! Members in the orders in which they are looked for, so that nobody walks over all of them: who takes the next group, who
//! is to be told of weights, who may be reading a slot.
//!
//! Invariant **O1**: an index says of every member what its [`Seat`] says, at every moment: `Membership::change` is the
//! only way to another one. An update costs the logarithm of the number of members, and so does every question.
use super::event::ConnId;
use super::membership::Member;
use cohort_protocol::{PolicyVersion, Role, WorkerId};
use std::collections::{BTreeMap, BTreeSet};

/// What of a member decides where it stands in the indexes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seat {
    worker: WorkerId,
    version: Option<PolicyVersion>,
    slot: Option<u32>,
    capacity: u16,
    load: usize,
    delivered: u64,
}

impl Seat {
    /// Of a member as it is now.
    pub(super) fn of(member: &Member) -> Self {
        Self {
            worker: member.worker,
            version: member.version,
            slot: member.swap.map(|(_, slot)| slot),
            capacity: member.capacity,
            load: member.load.len(),
            delivered: member.delivered,
        }
    }

    fn class(&self) -> Class {
        Class { role: self.worker.role, version: self.version, swapping: self.slot.is_some() }
    }

    fn has_room(&self) -> bool {
        self.load < usize::from(self.capacity)
    }

    /// Whether it may be told of weights.
    fn listens(&self) -> bool {
        self.worker.role == Role::Rollout && self.capacity > 0 && self.slot.is_none()
    }
}

/// Members that are alike to whoever has a group to give. There are as many as versions in use, however many members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    role: Role,
    version: Option<PolicyVersion>,
    swapping: bool,
}

/// The order within a class: the shortest load, the fewest deliveries, the lowest name.
type Rank = (usize, u64, WorkerId, ConnId);

/// The indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Roster {
    /// Those that would take another group.
    rooms: BTreeMap<Class, BTreeSet<Rank>>,
    /// Rollout workers that may be told of weights, by the version they have and whether they have work.
    listeners: BTreeMap<(Option<PolicyVersion>, bool), BTreeSet<ConnId>>,
    /// Swaps under way, by slot.
    readers: BTreeMap<u32, usize>,
    /// Rollout workers that have work.
    working: usize,
}

impl Roster {
    /// A member has taken another seat; `None`: it was not there, or has gone.
    pub(super) fn update(&mut self, conn: ConnId, before: Option<Seat>, after: Option<Seat>) {
        if before == after {
            return;
        }
        before.into_iter().for_each(|seat| self.leave(conn, &seat));
        after.into_iter().for_each(|seat| self.take(conn, &seat));
    }

    /// The first of `role` with room and a load below `share` among those whose version, and whether they are taking
    /// another, is `fit`.
    pub(super) fn choose(&self, role: Role, share: usize, fit: impl Fn(Option<PolicyVersion>, bool) -> bool) -> Option<ConnId> {
        let from = Class { role, version: None, swapping: false };
        let alike = self.rooms.range(from..).take_while(|(class, _)| class.role == role);
        let fitting = alike.filter(|(class, _)| fit(class.version, class.swapping));
        let first = fitting.filter_map(|(_, ranks)| ranks.first()).min()?;
        (first.0 < share).then_some(first.3)
    }

    /// Rollout workers that may be told of `version` because they have another, in the order they connected; those that
    /// have work only if `busy`.
    pub(super) fn without(&self, version: PolicyVersion, busy: bool) -> Vec<ConnId> {
        let others = self.listeners.iter().filter(|((has, works), _)| *has != Some(version) && (busy || !works));
        let mut found: Vec<ConnId> = others.flat_map(|(_, conns)| conns).copied().collect();
        found.sort_unstable();
        found
    }

    /// Whether a rollout worker may be reading a slot.
    pub(super) fn reads(&self, slot: u32) -> bool {
        self.readers.contains_key(&slot)
    }

    /// Rollout workers that have work.
    pub(super) fn working(&self) -> usize {
        self.working
    }

    fn take(&mut self, conn: ConnId, seat: &Seat) {
        if seat.has_room() {
            self.rooms.entry(seat.class()).or_default().insert((seat.load, seat.delivered, seat.worker, conn));
        }
        if seat.listens() {
            self.listeners.entry((seat.version, seat.load > 0)).or_default().insert(conn);
        }
        if seat.worker.role == Role::Rollout {
            seat.slot.into_iter().for_each(|slot| *self.readers.entry(slot).or_default() += 1);
            self.working += usize::from(seat.load > 0);
        }
    }

    fn leave(&mut self, conn: ConnId, seat: &Seat) {
        if seat.has_room() {
            shrink(&mut self.rooms, &seat.class(), |ranks| {
                ranks.remove(&(seat.load, seat.delivered, seat.worker, conn));
                ranks.is_empty()
            });
        }
        if seat.listens() {
            shrink(&mut self.listeners, &(seat.version, seat.load > 0), |conns| {
                conns.remove(&conn);
                conns.is_empty()
            });
        }
        if seat.worker.role == Role::Rollout {
            seat.slot.into_iter().for_each(|slot| {
                shrink(&mut self.readers, &slot, |count| {
                    *count -= 1;
                    *count == 0
                });
            });
            self.working -= usize::from(seat.load > 0);
        }
    }
}

/// Changes an entry and removes it if nothing is left of it.
fn shrink<K: Ord, V>(map: &mut BTreeMap<K, V>, key: &K, change: impl FnOnce(&mut V) -> bool) {
    if map.get_mut(key).is_some_and(change) {
        map.remove(key);
    }
}
