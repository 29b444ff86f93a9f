//! The indexes of members against walks over all of them: whatever happens, whoever is chosen, told or replaced is the same.
use super::*;
use crate::controller::membership::{Member, Membership};

/// The plain rule: room, then the shortest load, the fewest deliveries, the lowest name.
fn chosen(members: &Membership, role: Role, share: usize, fit: impl Fn(&Member) -> bool) -> Option<ConnId> {
    let room = |m: &Member| m.load.len() < usize::from(m.capacity).min(share);
    let fitting = members.role(role).filter(|(_, m)| room(m) && fit(m));
    fitting.min_by_key(|(_, m)| (m.load.len(), m.delivered, m.worker)).map(|(conn, _)| conn)
}

fn is_working(member: &Member) -> bool {
    !member.load.is_empty() || member.swap.is_some()
}

struct Crowd {
    members: Membership,
    chance: Chance,
    now: Instant,
    deadlines: Deadlines,
    heard: BTreeMap<ConnId, Instant>,
    next: u64,
}

impl Crowd {
    fn happens(&mut self) {
        let conns: Vec<ConnId> = self.members.iter().map(|(conn, _)| conn).collect();
        let now = self.now;
        if conns.is_empty() || self.chance.one_in(6) {
            return self.join();
        }
        let conn = conns[self.chance.below(conns.len())];
        let (version, work) = (PolicyVersion(self.chance.next() % 3), Work::train(GroupId(self.chance.next() % 8)));
        let before = self.members.get(conn).unwrap().clone();
        match self.chance.below(10) {
            0 => drop(self.members.leave(now, conn)),
            1 => {
                self.members.change(conn, |m| (m.version, m.capacity) = (Some(version), 3));
            }
            2 => {
                self.members.change(conn, |m| m.swap = Some((version, version.0 as u32)));
            }
            3 => {
                self.members.change(conn, |m| m.swap = None);
            }
            4 | 5 => {
                self.members.change(conn, |m| m.load.insert(work));
            }
            6 => {
                self.members.change(conn, |m| m.load.pop_first());
            }
            7 => {
                self.members.change(conn, |m| m.delivered += 1);
            }
            8 => {
                self.members.beat(now, conn, version.0);
                self.heard.insert(conn, now);
            }
            _ => self.members.moved(now, conn),
        }
        // Whoever begins to have something to do has moved then.
        if self.members.get(conn).is_some_and(|after| is_working(after) && !is_working(&before)) {
            self.members.moved(now, conn);
        }
    }

    fn join(&mut self) {
        self.next += 1;
        let (conn, index) = (ConnId(self.next), (self.chance.next() % 12) as u16);
        let worker = id(if index.is_multiple_of(3) { Role::Reward } else { Role::Rollout }, index);
        self.heard.insert(conn, self.now);
        if let Some(older) = self.members.join(self.now, conn, worker, 0, 1) {
            self.members.leave(self.now, older);
        }
    }

    /// M2 by a walk over all.
    fn late(&self) -> Vec<ConnId> {
        let late = |(conn, m): &(ConnId, &Member)| {
            let silent = self.now - self.heard[conn] > self.deadlines.silence;
            silent || is_working(m) && self.now - m.moved() > self.deadlines.stall
        };
        self.members.iter().filter(late).map(|(conn, _)| conn).collect()
    }

    fn compare(&self) {
        self.members.assert_indexed();
        let members = &self.members;
        for (role, share) in [(Role::Rollout, 1), (Role::Rollout, 2), (Role::Rollout, 9), (Role::Reward, usize::MAX)] {
            for current in [PolicyVersion(0), PolicyVersion(2)] {
                let plain = chosen(members, role, share, |m| m.version == Some(current) && m.swap.is_none());
                assert_eq!(members.choose(role, share, |v, swapping| v == Some(current) && !swapping), plain);
                let plain = chosen(members, role, share, |m| m.version.is_some_and(|v| v <= current));
                assert_eq!(members.choose(role, share, |v, _| v.is_some_and(|v| v <= current)), plain);
                assert_eq!(members.choose(role, share, |_, _| true), chosen(members, role, share, |_| true));
                for busy in [false, true] {
                    let tell = |(_, m): &(ConnId, &Member)| {
                        m.capacity > 0 && m.swap.is_none() && m.version != Some(current) && (busy || m.load.is_empty())
                    };
                    let plain: Vec<ConnId> = members.role(Role::Rollout).filter(tell).map(|(conn, _)| conn).collect();
                    assert_eq!(members.without(current, busy), plain);
                }
            }
        }
        let reads = |slot| members.role(Role::Rollout).any(|(_, m)| m.swap.is_some_and(|(_, s)| s == slot));
        assert!((0..3).all(|slot| members.reads(slot) == reads(slot)));
        let working = members.role(Role::Rollout).filter(|(_, m)| !m.load.is_empty()).count();
        assert_eq!(members.working_rollouts(), working);
    }
}

#[test]
fn whoever_is_chosen_told_or_replaced_is_who_a_walk_over_all_finds() {
    let (mut replaced, mut longest) = (0, 0);
    for seed in 0..60 {
        let deadlines =
            Deadlines { silence: Duration::from_secs(5), stall: Duration::from_secs(3 + seed % 5), ..Deadlines::default() };
        let (members, chance, now) = (Membership::default(), Chance(seed), Instant::now());
        let mut crowd = Crowd { members, chance, now, deadlines, heard: BTreeMap::new(), next: 0 };
        for _ in 0..600 {
            crowd.happens();
            crowd.compare();
            longest = longest.max(crowd.members.iter().count());
            if !crowd.chance.one_in(4) {
                continue;
            }
            crowd.now += Duration::from_millis(crowd.chance.next() % 1500);
            let (plain, mut out) = (crowd.late(), Vec::new());
            crowd.members.check(crowd.now, &crowd.deadlines, |_, m| is_working(m), &mut out);
            let ordered: Vec<ConnId> =
                out.iter().map(|c| if let Command::Replace { conn, .. } = c { *conn } else { panic!("{c:?}") }).collect();
            assert_eq!(ordered, plain, "seed {seed}");
            replaced += plain.len();
            plain.into_iter().for_each(|conn| drop(crowd.members.leave(crowd.now, conn)));
        }
    }
    assert!(replaced > 500 && longest > 8, "{replaced} replaced of at most {longest} at once");
}
