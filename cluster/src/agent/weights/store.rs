//! A host's ring filling up: which slot takes which version, what is still missing, who waits.
//!
//! Invariants
//! - **S1** a slot that a worker may be reading, or that is filling for somebody who still waits, is not given to another
//!   version.
//! - **S2** everybody who asks is answered: with a slot that is kept until it is released, or with why not.
use super::manifest;
use super::place::{Arrived, Place};
use super::shelf::Shelf;
use super::tally::Tally;
use cohort_engine::SharedRing;
use cohort_protocol::PolicyVersion;
use cohort_protocol::messages::node::{ChunkHashes, ChunkName, Manifest, WantWeights};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::oneshot;

/// The slot, or why there is none.
pub type Reply = oneshot::Sender<Result<u32, String>>;

/// A host's slots, what fills them and who waits.
#[derive(Debug)]
pub struct Store {
    ring: Arc<SharedRing>,
    shelf: Arc<Shelf>,
    slots: Vec<Slot>,
    waiting: BTreeMap<PolicyVersion, Waiting>,
}

#[derive(Debug, Default)]
struct Slot {
    /// What it holds, whole.
    holds: Option<Arc<Manifest>>,
    /// What it is being filled with.
    filling: Option<Filling>,
    readers: u32,
}

#[derive(Debug)]
struct Filling {
    manifest: Arc<Manifest>,
    missing: BTreeSet<u32>,
    came: Tally,
}

impl Slot {
    fn version(&self) -> Option<PolicyVersion> {
        self.holds.as_ref().map(|manifest| manifest.version)
    }
}

/// Who waits for a version, and where the head node has it.
#[derive(Debug, Default)]
struct Waiting {
    at_head: u32,
    replies: Vec<Reply>,
}

impl Store {
    /// Empty slots.
    pub fn new(ring: Arc<SharedRing>, shelf: Arc<Shelf>) -> Self {
        let slots = (0..cohort_engine::WeightRing::slots(ring.as_ref())).map(|_| Slot::default()).collect();
        Self { ring, shelf, slots, waiting: BTreeMap::new() }
    }

    /// The newest version that is whole.
    pub fn newest(&self) -> Option<PolicyVersion> {
        self.slots.iter().filter_map(Slot::version).max()
    }

    /// A worker wants a version, which the head node has in slot `at_head`. Gives what to ask of the head node.
    pub fn ask(&mut self, version: PolicyVersion, at_head: u32, reply: Reply) -> Option<WantWeights> {
        if let Some((index, slot)) = self.slots.iter_mut().enumerate().find(|(_, slot)| slot.version() == Some(version)) {
            slot.readers += 1;
            if reply.send(Ok(index as u32)).is_err() {
                slot.readers -= 1;
            }
            return None;
        }
        let fresh = !self.waiting.contains_key(&version);
        let waiting = self.waiting.entry(version).or_default();
        waiting.at_head = at_head;
        waiting.replies.push(reply);
        fresh.then_some(WantWeights { version, slot: at_head })
    }

    /// What is to be asked of the head node again after its connection was lost.
    pub fn wishes(&self) -> Vec<WantWeights> {
        self.waiting.iter().map(|(&version, waiting)| WantWeights { version, slot: waiting.at_head }).collect()
    }

    /// A worker has read its slot.
    pub fn released(&mut self, slot: u32) {
        if let Some(slot) = self.slots.get_mut(slot as usize) {
            slot.readers = slot.readers.saturating_sub(1);
        }
    }

    /// What a version consists of. A version that is filling already goes on, perhaps with more hashes.
    pub fn begin(&mut self, manifest: Manifest) {
        let version = manifest.version;
        let mut filling = self.slots.iter().filter_map(|slot| slot.filling.as_ref());
        if let Some(same) = filling.find(|filling| manifest::agree(&filling.manifest, &manifest)) {
            let first = manifest::hashed(&same.manifest);
            if let Some(more) = manifest.hashes.get(same.manifest.hashes.len()..).filter(|more| !more.is_empty()) {
                self.learn(&ChunkHashes { version, first, hashes: more.to_vec() });
            }
            return;
        }
        let begun = manifest::check(&manifest).and_then(|chunks| {
            let slot = self.free().ok_or("every slot of this host's weight ring is being read")?;
            self.ring.begin_image(slot, &manifest::image(&manifest)).map_err(|e| e.to_string())?;
            Ok((slot, chunks))
        });
        match begun {
            Ok((slot, chunks)) => {
                let manifest = Arc::new(manifest);
                self.shelf.put(slot, manifest.clone());
                if let Some(place) = self.slots.get_mut(slot as usize) {
                    place.holds = None;
                    let missing = (0..chunks).collect();
                    place.filling = Some(Filling { manifest, missing, came: Tally::default() });
                }
            }
            Err(why) => self.refuse(version, &why),
        }
    }

    /// Further hashes of a version that is filling.
    pub fn learn(&mut self, part: &ChunkHashes) {
        let mut filling = self.slots.iter_mut().filter_map(|slot| slot.filling.as_mut());
        let Some(filling) = filling.find(|filling| filling.manifest.version == part.version) else { return };
        match manifest::learn(Arc::make_mut(&mut filling.manifest), part.first, &part.hashes) {
            Ok(()) => self.shelf.learn(part.version, part.first, &part.hashes),
            Err(why) => self.refuse(part.version, &why),
        }
    }

    /// S1: the slot of the oldest version that nobody reads; one that fills for nobody first.
    fn free(&self) -> Option<u32> {
        let wanted = |slot: &Slot| {
            let waiting = slot.filling.as_ref().and_then(|f| self.waiting.get(&f.manifest.version));
            waiting.is_some_and(|w| w.replies.iter().any(|reply| !reply.is_closed()))
        };
        let free = self.slots.iter().enumerate().filter(|(_, slot)| slot.readers == 0 && !wanted(slot));
        free.min_by_key(|(_, slot)| slot.version()).map(|(index, _)| index as u32)
    }

    /// Where a chunk goes; `None` where its version is not filling, `Some(None)` where the chunk is there already.
    pub fn place(&self, name: ChunkName) -> Option<Option<Place>> {
        if self.slots.iter().any(|slot| slot.version() == Some(name.version)) {
            return Some(None);
        }
        let mut filling = self.slots.iter().enumerate();
        let (slot, filling) =
            filling.find_map(|(i, slot)| Some((i, slot.filling.as_ref().filter(|f| f.manifest.version == name.version)?)))?;
        let missing = filling.missing.contains(&name.chunk);
        Some(missing.then(|| Place {
            slot: slot as u32,
            manifest: filling.manifest.clone(),
            base: self.base_of(&filling.manifest),
            ring: self.ring.clone(),
            shelf: self.shelf.clone(),
        }))
    }

    /// The version that a chunk's changes are asked for since: the newest of the older ones that are whole.
    fn base_of(&self, manifest: &Manifest) -> Option<(u32, Arc<Manifest>)> {
        let whole = self.slots.iter().enumerate().filter_map(|(slot, held)| Some((slot as u32, held.holds.clone()?)));
        let older = whole.filter(|(_, held)| held.version < manifest.version && manifest::alike(held, manifest));
        older.max_by_key(|(_, held)| held.version)
    }

    /// A chunk is in its place. The last one completes the version.
    pub fn landed(&mut self, name: ChunkName, arrived: Arrived) {
        let mut slots = self.slots.iter_mut().enumerate();
        let found = slots.find(|(_, slot)| slot.filling.as_ref().is_some_and(|f| f.manifest.version == name.version));
        let Some((index, slot)) = found else { return };
        let Some(filling) = slot.filling.as_mut() else { return };
        filling.missing.remove(&name.chunk);
        match arrived {
            Arrived::Whole(bytes) => filling.came.whole(bytes),
            Arrived::Delta(bytes) => filling.came.delta(bytes),
        }
        if !filling.missing.is_empty() {
            return;
        }
        let finished = self.ring.finish_image(index as u32, name.version.0, &manifest::image(&filling.manifest));
        let Some(Filling { manifest, came, .. }) = slot.filling.take() else { return };
        if let Err(error) = finished {
            return self.refuse(name.version, &error.to_string());
        }
        came.log(name.version, "weights_arrived");
        slot.holds = Some(manifest);
        for reply in self.waiting.remove(&name.version).map(|w| w.replies).unwrap_or_default() {
            slot.readers += 1;
            if reply.send(Ok(index as u32)).is_err() {
                slot.readers -= 1;
            }
        }
    }

    /// A version cannot be had.
    pub fn refuse(&mut self, version: PolicyVersion, why: &str) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if slot.filling.as_ref().is_some_and(|f| f.manifest.version == version) {
                slot.filling = None;
                self.shelf.clear(index as u32);
            }
        }
        for reply in self.waiting.remove(&version).map(|w| w.replies).unwrap_or_default() {
            // Who has given up needs no answer.
            let _ = reply.send(Err(why.to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_engine::WeightRing;
    use cohort_model::{Tensor, WeightSet};

    const SIZE: u32 = 1024;

    fn weights(salt: f32) -> WeightSet {
        let data = (0..2000u16).map(|i| salt + f32::from(i)).collect();
        WeightSet([("w".to_owned(), Tensor { shape: vec![2, 1000], data })].into())
    }

    struct World {
        head: SharedRing,
        ring: Arc<SharedRing>,
        store: Store,
    }

    impl World {
        fn new(slots: u32) -> Self {
            let ring = Arc::new(SharedRing::create(slots).unwrap());
            let store = Store::new(ring.clone(), Arc::default());
            Self { head: SharedRing::create(1).unwrap(), ring, store }
        }

        fn manifest(&self, version: u64) -> Manifest {
            self.head.publish(0, version, &weights(version as f32)).unwrap();
            manifest::of_slot(&self.head, 0, PolicyVersion(version), SIZE).unwrap()
        }

        fn ask(&mut self, version: u64) -> (Option<WantWeights>, oneshot::Receiver<Result<u32, String>>) {
            let (reply, answer) = oneshot::channel();
            (self.store.ask(PolicyVersion(version), 0, reply), answer)
        }

        fn fill(&mut self, version: u64) {
            let manifest = self.manifest(version);
            self.store.begin(manifest.clone());
            for chunk in 0..manifest::chunks(&manifest).unwrap() {
                let name = ChunkName { version: PolicyVersion(version), chunk };
                let Some(Some(place)) = self.store.place(name) else { continue };
                let (at, len) = manifest::range(&manifest, chunk);
                let mut bytes = vec![0; len];
                self.head.read_image(0, at, &mut bytes).unwrap();
                self.ring.write_image(place.slot, at, &bytes).unwrap();
                self.store.landed(name, Arrived::Whole(len));
            }
        }
    }

    #[test]
    fn one_wish_a_version_and_all_who_wait_are_answered() {
        let mut world = World::new(2);
        let (wish, mut first) = world.ask(1);
        assert_eq!(wish, Some(WantWeights { version: PolicyVersion(1), slot: 0 }));
        let (again, mut second) = world.ask(1);
        assert_eq!(again, None);
        world.fill(1);
        let slot = first.try_recv().unwrap().unwrap();
        assert_eq!(second.try_recv().unwrap(), Ok(slot));
        assert_eq!(world.ring.fetch(slot, 1).unwrap(), weights(1.0));
        let (_, mut third) = world.ask(1);
        assert_eq!(third.try_recv().unwrap(), Ok(slot), "it is there");
        assert_eq!(world.store.newest(), Some(PolicyVersion(1)));
    }

    #[test]
    fn a_slot_that_is_read_is_kept() {
        let mut world = World::new(2);
        let slots: Vec<u32> = [1, 2]
            .map(|version| {
                let (_, mut answer) = world.ask(version);
                world.fill(version);
                answer.try_recv().unwrap().unwrap()
            })
            .to_vec();
        let (_, mut third) = world.ask(3);
        world.fill(3);
        assert!(third.try_recv().unwrap().unwrap_err().contains("being read"));
        world.store.released(slots[1]);
        world.store.released(slots[1]);
        let (wish, mut third) = world.ask(3);
        assert!(wish.is_some());
        world.fill(3);
        assert_eq!(third.try_recv().unwrap(), Ok(slots[1]));
        assert_eq!(world.ring.fetch(slots[0], 1).unwrap(), weights(1.0), "still read by somebody");
    }

    #[test]
    fn a_version_that_nobody_waits_for_any_more_makes_room() {
        let mut world = World::new(1);
        let (_, answer) = world.ask(1);
        let manifest = world.manifest(1);
        world.store.begin(manifest);
        drop(answer);
        let (_, mut second) = world.ask(2);
        world.fill(2);
        assert_eq!(second.try_recv().unwrap(), Ok(0));
        assert_eq!(world.store.place(ChunkName { version: PolicyVersion(1), chunk: 0 }).map(|p| p.is_some()), None);
    }

    #[test]
    fn hashes_come_in_parts_and_those_that_do_not_follow_end_the_wish() {
        let mut world = World::new(2);
        let (_, mut answer) = world.ask(1);
        let whole = world.manifest(1);
        let (version, chunks) = (PolicyVersion(1), manifest::chunks(&whole).unwrap());
        let part = |first: u32, end: u32| {
            let hashes = whole.hashes[first as usize * 32..end as usize * 32].to_vec();
            ChunkHashes { version, first, hashes }
        };
        world.store.begin(Manifest { hashes: Vec::new(), ..whole.clone() });
        world.store.learn(&part(0, 2));
        // After a connection was lost: what is known by then.
        world.store.begin(Manifest { hashes: part(0, 3).hashes, ..whole.clone() });
        world.store.learn(&part(3, chunks));
        let places: Vec<Place> =
            (0..chunks).map(|chunk| world.store.place(ChunkName { version, chunk }).unwrap().unwrap()).collect();
        assert!(places.iter().all(|place| *place.manifest == whole));
        world.fill(1);
        assert!(answer.try_recv().unwrap().is_ok());
        let (_, mut answer) = world.ask(2);
        let bare = Manifest { hashes: Vec::new(), ..world.manifest(2) };
        world.store.begin(bare);
        world.store.learn(&ChunkHashes { version: PolicyVersion(2), first: 1, hashes: vec![0; 32] });
        assert!(answer.try_recv().unwrap().unwrap_err().contains("from chunk 1 on"));
    }

    #[test]
    fn what_cannot_be_had_is_said_and_what_was_lost_is_asked_for_again() {
        let mut world = World::new(2);
        let (_, mut answer) = world.ask(5);
        assert_eq!(world.store.wishes().len(), 1);
        world.store.refuse(PolicyVersion(5), "gone");
        assert_eq!(answer.try_recv().unwrap(), Err("gone".into()));
        assert!(world.store.wishes().is_empty());
        let (_, mut answer) = world.ask(6);
        let bad = Manifest { hashes: vec![1], ..world.manifest(6) };
        world.store.begin(bad);
        assert!(answer.try_recv().unwrap().unwrap_err().contains("hashes"));
    }
}
