//! A slot of a [`SharedRing`] as plain bytes, for its copy in another host's ring.
//!
//! The bytes are the directory and the values behind it, as they lie in the slot. Nothing here checks them: whoever copies
//! compares hashes of its chunks, and who reads the copy finds the digest of the whole.
use super::shared::{HEADER_WORDS, PAGE};
use super::{RingError, SharedRing};

/// What a slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotImage {
    /// The weights' digest.
    pub digest: u64,
    /// Bytes of the directory, which comes first.
    pub directory_bytes: u64,
    /// Bytes of the values.
    pub value_bytes: u64,
}

impl SlotImage {
    /// Bytes in all; `None` where the parts are no lengths.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        self.directory_bytes.checked_add(self.value_bytes)
    }
}

impl SharedRing {
    /// What lies in a slot under this version.
    ///
    /// # Errors
    /// [`RingError::Version`] where it holds another one, [`RingError::Torn`] where it is being written.
    pub fn image(&self, slot: u32, version: u64) -> Result<SlotImage, RingError> {
        let slot_bytes = self.slot_bytes()?;
        let at = self.offset(slot, slot_bytes)?;
        if slot_bytes == 0 {
            return Err(RingError::Version { slot, found: "nothing".into(), want: version });
        }
        let [sequence, held, digest, directory_bytes, value_bytes] = self.read_words::<HEADER_WORDS>(at)?;
        if sequence & 1 == 1 {
            return Err(RingError::Torn { slot });
        }
        if sequence == 0 || held != version {
            let found = if sequence == 0 { "nothing".into() } else { format!("version {held}") };
            return Err(RingError::Version { slot, found, want: version });
        }
        let image = SlotImage { digest, directory_bytes, value_bytes };
        if image.bytes().and_then(|n| n.checked_add(PAGE)).is_none_or(|n| n > slot_bytes) {
            return Err(RingError::Corrupt { slot, why: "it claims more bytes than it has".into() });
        }
        Ok(image)
    }

    /// Bytes of a slot's image from `at` on, whatever they are by now.
    ///
    /// # Errors
    /// [`RingError::Io`] past the ring's end.
    pub fn read_image(&self, slot: u32, at: u64, bytes: &mut [u8]) -> Result<(), RingError> {
        let start = self.offset(slot, self.slot_bytes()?)?;
        self.read(start + PAGE + at, bytes)
    }

    /// As [`Self::read_image`], so many bytes in memory of their own.
    ///
    /// # Errors
    /// As there.
    pub fn image_bytes(&self, slot: u32, at: u64, len: usize) -> Result<Vec<u8>, RingError> {
        let start = self.offset(slot, self.slot_bytes()?)? + PAGE + at;
        self.read_bytes(start, len)
    }

    /// Makes a slot ready for a copy: readers find it torn until [`Self::finish_image`].
    ///
    /// # Errors
    /// [`RingError::Corrupt`] where the image is longer than the ring's slots or its parts are no lengths.
    pub fn begin_image(&self, slot: u32, image: &SlotImage) -> Result<(), RingError> {
        let corrupt = |why: &str| RingError::Corrupt { slot, why: why.into() };
        let bytes = image.bytes().and_then(|n| n.checked_add(PAGE)).ok_or_else(|| corrupt("its parts are no lengths"))?;
        let at = self.offset(slot, self.reserve(bytes)?)?;
        let [sequence] = self.read_words::<1>(at)?;
        self.write_words(at, &[super::shared::writing(sequence)])
    }

    /// Puts bytes of the copy in place.
    ///
    /// # Errors
    /// [`RingError::Corrupt`] past the slot's end.
    pub fn write_image(&self, slot: u32, at: u64, bytes: &[u8]) -> Result<(), RingError> {
        let slot_bytes = self.slot_bytes()?;
        let end = at.checked_add(bytes.len() as u64).and_then(|n| n.checked_add(PAGE));
        if end.is_none_or(|end| end > slot_bytes) {
            return Err(RingError::Corrupt { slot, why: "a chunk lies past its end".into() });
        }
        self.write(self.offset(slot, slot_bytes)? + PAGE + at, bytes)
    }

    /// The copy is whole: from now on readers find it under `version`.
    ///
    /// # Errors
    /// Those of the memory file.
    pub fn finish_image(&self, slot: u32, version: u64, image: &SlotImage) -> Result<(), RingError> {
        let at = self.offset(slot, self.slot_bytes()?)?;
        let [sequence] = self.read_words::<1>(at)?;
        self.write_words(at + 8, &[version, image.digest, image.directory_bytes, image.value_bytes])?;
        self.write_words(at, &[sequence + 1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::WeightRing;
    use cohort_model::{Tensor, WeightSet};

    fn weights(salt: f32) -> WeightSet {
        let data = (0..50_000u16).map(|i| salt + f32::from(i)).collect();
        WeightSet([("a".to_owned(), Tensor { shape: vec![50, 1000], data })].into())
    }

    #[test]
    fn a_copy_by_chunks_is_found_under_its_version_once_it_is_whole() {
        let (from, to) = (SharedRing::create(2).unwrap(), SharedRing::create(2).unwrap());
        from.publish(1, 7, &weights(0.5)).unwrap();
        assert!(matches!(from.image(1, 8), Err(RingError::Version { .. })));
        assert!(matches!(to.image(0, 7), Err(RingError::Version { .. })));
        let image = from.image(1, 7).unwrap();
        to.begin_image(0, &image).unwrap();
        assert!(matches!(to.fetch(0, 7), Err(RingError::Torn { slot: 0 })));
        let bytes = image.bytes().unwrap();
        // Out of order, of odd sizes.
        let mut places: Vec<u64> = (0..bytes).step_by(4099).collect();
        places.reverse();
        for at in places {
            let mut chunk = vec![0; usize::try_from(4099.min(bytes - at)).unwrap()];
            from.read_image(1, at, &mut chunk).unwrap();
            assert_eq!(from.image_bytes(1, at, chunk.len()).unwrap(), chunk);
            to.write_image(0, at, &chunk).unwrap();
        }
        assert!(matches!(from.image_bytes(1, 1 << 40, 1), Err(RingError::Io { .. })), "past the ring's end");
        assert!(matches!(to.image(0, 7), Err(RingError::Torn { .. })));
        to.finish_image(0, 7, &image).unwrap();
        assert_eq!(to.fetch(0, 7).unwrap(), weights(0.5));
        assert_eq!(to.image(0, 7).unwrap(), image);
        // A damaged copy has not the digest.
        to.write_image(0, bytes - 9, &[0xff]).unwrap();
        assert!(matches!(to.fetch(0, 7), Err(RingError::Corrupt { .. })));
    }

    #[test]
    fn lengths_that_are_none_are_refused() {
        let ring = SharedRing::create(1).unwrap();
        let endless = SlotImage { digest: 0, directory_bytes: u64::MAX, value_bytes: 8 };
        assert!(matches!(ring.begin_image(0, &endless), Err(RingError::Corrupt { .. })));
        let small = SlotImage { digest: 0, directory_bytes: 8, value_bytes: 8 };
        ring.begin_image(0, &small).unwrap();
        assert!(matches!(ring.write_image(0, 1 << 40, &[1]), Err(RingError::Corrupt { .. })));
        assert!(matches!(ring.begin_image(3, &small), Err(RingError::NoSlot { slot: 3, slots: 1 })));
    }
}
