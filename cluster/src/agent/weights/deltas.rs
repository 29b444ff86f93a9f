//! Deltas that this host made or took, to be given on: each is made once.
use bytes::Bytes;
use cohort_protocol::messages::node::ChunkName;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of deltas that are kept; the oldest version's make room. What is gone is made again from the two versions.
const ROOM: usize = 256 << 20;
/// Versions whose deltas are kept: workers take the newest, and may still be taking the one before.
const REMEMBERED: usize = 2;

/// A delta, or that it would be no shorter than the chunk.
pub(super) type Made = Option<Bytes>;

/// Deltas by chunk: one for each, since the version that was asked for last.
#[derive(Debug)]
pub(super) struct Deltas {
    room: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    places: BTreeMap<ChunkName, Place>,
    bytes: usize,
}

#[derive(Debug, Default)]
struct Place {
    bytes: usize,
    kept: Arc<Mutex<Option<Kept>>>,
}

/// The delta of a chunk since the chunk with this hash.
#[derive(Debug)]
struct Kept {
    base_hash: [u8; 32],
    made: Made,
}

impl Default for Deltas {
    fn default() -> Self {
        Self::with_room(ROOM)
    }
}

impl Deltas {
    fn with_room(room: usize) -> Self {
        Self { room, state: Mutex::default() }
    }

    /// The kept delta, or the one that `make` gives, which is kept; who asks for the same meanwhile waits for it.
    ///
    /// # Errors
    /// Those of `make`; nothing is kept then.
    pub(super) fn get<E>(&self, name: ChunkName, base_hash: [u8; 32], make: impl FnOnce() -> Result<Made, E>) -> Result<Made, E> {
        let place = self.place(name);
        let mut kept = lock(&place);
        if let Some(kept) = kept.as_ref().filter(|kept| kept.base_hash == base_hash) {
            return Ok(kept.made.clone());
        }
        let made = make()?;
        *kept = Some(Kept { base_hash, made: made.clone() });
        drop(kept);
        self.count(name, &made);
        Ok(made)
    }

    /// Keeps a delta that came from elsewhere and was found right.
    pub(super) fn put(&self, name: ChunkName, base_hash: [u8; 32], delta: Bytes) {
        let made = Some(delta);
        *lock(&self.place(name)) = Some(Kept { base_hash, made: made.clone() });
        self.count(name, &made);
    }

    fn place(&self, name: ChunkName) -> Arc<Mutex<Option<Kept>>> {
        lock(&self.state).places.entry(name).or_default().kept.clone()
    }

    /// Takes note of how much a place holds, and makes room.
    fn count(&self, name: ChunkName, made: &Made) {
        let bytes = made.as_ref().map_or(0, |delta| delta.len());
        let state = &mut *lock(&self.state);
        // It may have made room for others meanwhile.
        let Some(place) = state.places.get_mut(&name) else { return };
        state.bytes = state.bytes - place.bytes + bytes;
        place.bytes = bytes;
        while state.bytes > self.room || versions(&state.places) > REMEMBERED {
            let Some((_, oldest)) = state.places.pop_first() else { return };
            state.bytes -= oldest.bytes;
        }
    }
}

/// Versions that there are deltas of; more than two count as three.
fn versions(places: &BTreeMap<ChunkName, Place>) -> usize {
    let first = places.first_key_value().map(|(name, _)| name.version);
    let last = places.last_key_value().map(|(name, _)| name.version);
    match (first, last) {
        (Some(first), Some(last)) if first == last => 1,
        (Some(first), Some(last)) => {
            let after = ChunkName { version: first.next(), chunk: 0 };
            2 + usize::from(places.range(after..).next().is_some_and(|(name, _)| name.version != last))
        }
        _ => 0,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cohort_protocol::PolicyVersion;
    use std::cell::Cell;

    fn name(version: u64, chunk: u32) -> ChunkName {
        ChunkName { version: PolicyVersion(version), chunk }
    }

    #[test]
    fn a_delta_is_made_once_and_another_base_needs_another_one() {
        let (deltas, made) = (Deltas::default(), Cell::new(0));
        let ask = |base| {
            deltas.get(name(3, 1), [base; 32], || {
                made.set(made.get() + 1);
                Ok::<Made, String>(Some(vec![base].into()))
            })
        };
        for _ in 0..3 {
            assert_eq!(ask(1).unwrap().as_deref(), Some(&[1][..]));
        }
        assert_eq!(made.get(), 1);
        assert_eq!(ask(2).unwrap().as_deref(), Some(&[2][..]));
        deltas.put(name(3, 1), [1; 32], vec![9].into());
        assert_eq!((ask(1).unwrap().as_deref(), made.get()), (Some(&[9][..]), 2));
        // One that does not pay is known to, one that failed is tried again.
        let failed = deltas.get(name(3, 2), [1; 32], || Err::<Made, _>("overwritten"));
        assert_eq!(failed, Err("overwritten"));
        assert_eq!(deltas.get(name(3, 2), [1; 32], || Ok::<Made, String>(None)), Ok(None));
        assert_eq!(deltas.get(name(3, 2), [1; 32], || Err("asked again")), Ok(None));
    }

    #[test]
    fn the_oldest_make_room_and_two_versions_are_kept() {
        let deltas = Deltas::with_room(100);
        let put = |version, chunk| deltas.put(name(version, chunk), [0; 32], vec![0; 30].into());
        let held = || lock(&deltas.state).places.keys().copied().collect::<Vec<_>>();
        for chunk in 0..4 {
            put(1, chunk);
        }
        assert_eq!(held(), [name(1, 1), name(1, 2), name(1, 3)]);
        put(1, 3);
        assert_eq!(lock(&deltas.state).bytes, 90, "the same one anew");
        put(2, 0);
        put(3, 0);
        assert_eq!(held(), [name(2, 0), name(3, 0)]);
        put(2, 7);
        assert_eq!(lock(&deltas.state).bytes, 90);
        put(5, 0);
        assert_eq!(held(), [name(3, 0), name(5, 0)]);
    }
}
