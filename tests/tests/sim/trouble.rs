//! Troubles as they come, and their end.
use crate::agenda::Happening;
use crate::net::Way;
use crate::seen::Seen;
use crate::setting::{Blow, Point};
use crate::world::World;
use cohort_protocol::Role;
use std::time::Duration;

impl World {
    pub(crate) fn strike(&mut self, index: usize) {
        let Some((_, blow)) = self.setting.blows.get(index).cloned() else { return };
        self.see(Seen::Blow(format!("{blow:?}")));
        match blow {
            Blow::Kill(who) => self.on_someone(who, |world, pid| world.kill(pid, "killed")),
            Blow::KillLearner => {
                let learner = self.procs.iter().find(|(_, p)| p.worker.role == Role::Learner).map(|(pid, _)| *pid);
                learner.into_iter().for_each(|pid| self.kill(pid, "killed"));
            }
            Blow::Hang(who, wakes) => self.on_someone(who, |world, pid| world.stop(pid, wakes)),
            Blow::Spin(who) => self.on_someone(who, |world, pid| {
                world.count("spins");
                world.procs.entry(pid).and_modify(|p| p.spinning = true);
            }),
            Blow::Slow(who) => self.on_someone(who, |world, pid| {
                world.procs.entry(pid).and_modify(|p| p.slow = 8);
            }),
            Blow::Break(who) => {
                let wires: Vec<u64> = self.net.wires.keys().copied().collect();
                let noticed = self.chance.ms(0, 3000);
                if let Some(wire) = wires.get((who % wires.len().max(1) as u64) as usize) {
                    self.count("broken wires");
                    self.net.tear(*wire, noticed);
                }
            }
            Blow::Partition { host, up, down, lasts } => self.partition(host, up, down, self.now, lasts),
            Blow::Flap { host, times } => {
                for turn in 0..times {
                    let begins = self.now + Duration::from_secs(2 * turn);
                    self.partition(host, true, true, begins, Duration::from_millis(1200));
                }
            }
            Blow::LoseHost(host) => {
                if let Some(host) = self.some_host(host) {
                    let back = self.chance.ms(1000, 15_000);
                    self.count("lost hosts");
                    self.lose_host(host, back);
                }
            }
            Blow::Crash(Point::Anywhere, _) => self.crash(Point::Anywhere),
            Blow::Crash(point, nth) => {
                self.armed = Some((point, nth));
                if point == Point::Recovering {
                    self.crash(Point::Anywhere);
                }
            }
            Blow::Stall(lasts) => {
                if self.desk.core.is_some() {
                    self.desk.stopped = true;
                    self.agenda.put(self.now + lasts, Happening::DeskWakes { start: self.desk.start });
                }
            }
            Blow::Damage => {
                if let Some(saved) = self.checkpoints.values_mut().last() {
                    saved.damaged = true;
                }
            }
        }
    }

    /// Nothing comes in the way any more. What hangs goes on hanging: it must be found.
    pub(crate) fn heal(&mut self) {
        self.see(Seen::Blow("healed".into()));
        self.net.unblock_all();
        self.armed = None;
        self.setting.rates = crate::setting::Rates::default();
        self.procs.values_mut().for_each(|proc| proc.slow = 1);
        self.healed_at = Some(self.now);
    }

    fn stop(&mut self, pid: u32, wakes: Option<Duration>) {
        let now = self.now;
        // One that hangs before it ever reached a coordinator is known to nobody: a limit of the system, see docs/runtime.md.
        let Some(proc) = self.procs.get_mut(&pid).filter(|p| p.has_connected()) else { return };
        proc.stopped = true;
        self.count("stops");
        self.see(Seen::Stopped { pid, on: false });
        if let Some(after) = wakes {
            self.agenda.put(now + after, Happening::Wake { pid });
        }
    }

    pub(crate) fn wake(&mut self, pid: u32) {
        if let Some(proc) = self.procs.get_mut(&pid) {
            proc.stopped = false;
            self.see(Seen::Stopped { pid, on: true });
        }
    }

    fn partition(&mut self, host: u64, up: bool, down: bool, begins: Duration, lasts: Duration) {
        let Some(host) = self.some_host(host) else { return };
        self.count("partitions");
        if begins > self.now {
            return self.agenda.put(begins, Happening::Cut { host, until: begins + lasts });
        }
        for (way, cut) in [(Way::Up, up), (Way::Down, down)] {
            if cut {
                self.net.block(host, way, begins + lasts);
            }
        }
    }

    pub(crate) fn cut(&mut self, host: u16, until: Duration) {
        if self.healed_at.is_none() {
            self.net.block(host, Way::Up, until);
            self.net.block(host, Way::Down, until);
        }
    }

    fn some_host(&self, number: u64) -> Option<u16> {
        let hosts = u64::from(self.setting.hosts);
        (hosts > 0).then(|| 1 + (number % hosts) as u16)
    }

    fn on_someone(&mut self, number: u64, what: impl FnOnce(&mut Self, u32)) {
        let pids: Vec<u32> = self.procs.keys().copied().collect();
        if let Some(pid) = pids.get((number % pids.len().max(1) as u64) as usize) {
            what(self, *pid);
        }
    }
}
