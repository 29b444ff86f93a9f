//! A chunk as what changed since the same chunk of another version: equal bits, fewer bytes.
//!
//! After an optimizer step a weight is a few hundred of its last places away from what it was: of the difference of the two as
//! integers the high bytes are zero and the middle ones few. So differences are taken (a carry costs them nothing, as it
//! would an exclusive or), their bytes laid together by their rank, and those packed by zstd at its quickest level, which
//! gives such bytes about as many bits as they carry. Bytes: `docs/wire.md`, "A chunk as what changed".
//!
//! Invariants
//! - **D1** [`apply`] of what [`between`] gives leads to the very chunk, and it is shorter than that.
//! - **D2** whatever bytes come, [`apply`] takes no memory but the chunk's length, and ends; what it led to is the caller's to
//!   check (W1).
use std::io;

/// zstd's quickest level with entropy coding. Level 3 was no smaller on optimizer steps and half as fast.
const LEVEL: i32 = 1;
/// Bits of a word; a greater shift than all but one of them says nothing.
const WORD: u32 = u32::BITS;

/// What leads from `base` to `chunk`, of the same version's place, where the first word lies at `phase` (below 4); none where
/// that would be no shorter than the chunk.
pub fn between(base: &[u8], chunk: &[u8], phase: usize) -> Option<Vec<u8>> {
    if base.len() != chunk.len() {
        return None;
    }
    let ((base_head, base_words, base_tail), (head, words, tail)) = (split(base, phase), split(chunk, phase));
    let shift = shared_zeros(base_words, words);
    let mut planes = vec![0; chunk.len()];
    let ([first, second, third, fourth], rest) = by_rank(&mut planes, words.len());
    let ranks = first.iter_mut().zip(second).zip(third.iter_mut().zip(fourth));
    for ((old, new), ((a, b), (c, d))) in base_words.iter().zip(words).zip(ranks) {
        let difference = word(new).wrapping_sub(word(old)).cast_signed() >> shift;
        [*a, *b, *c, *d] = ((difference << 1) ^ (difference >> (WORD - 1))).to_le_bytes();
    }
    let ends = base_head.iter().chain(base_tail).zip(head.iter().chain(tail));
    for (byte, (old, new)) in rest.iter_mut().zip(ends) {
        *byte = old ^ new;
    }
    // Room for one byte less than the chunk: what does not fit does not pay.
    let mut delta = vec![0; chunk.len().checked_sub(1)?];
    let (shift_at, frame) = delta.split_first_mut()?;
    *shift_at = shift as u8;
    let written = zstd::bulk::compress_to_buffer(&planes, frame, LEVEL).ok()?;
    delta.truncate(1 + written);
    Some(delta)
}

/// Turns the base, in place, into the chunk that a delta leads to.
///
/// # Errors
/// A sentence: the delta is damaged. The base is as it was then.
pub fn apply(base: &mut [u8], phase: usize, delta: &[u8]) -> Result<(), String> {
    let (&shift, frame) = delta.split_first().ok_or("a delta of no bytes")?;
    if u32::from(shift) >= WORD {
        return Err(format!("a delta shifted by {shift} bits of {WORD}"));
    }
    let mut planes = vec![0; base.len()];
    let wrong = |error: io::Error| format!("a delta that cannot be unpacked: {error}");
    let unpacked = zstd::bulk::decompress_to_buffer(frame, &mut planes[..]).map_err(wrong)?;
    if unpacked != base.len() {
        return Err(format!("a delta of {unpacked} bytes for a chunk of {}", base.len()));
    }
    let (head, words, tail) = split_mut(base, phase);
    let ([first, second, third, fourth], rest) = by_rank(&mut planes, words.len());
    let ranks = first.iter().zip(second.iter()).zip(third.iter().zip(fourth.iter()));
    for (old, ((a, b), (c, d))) in words.iter_mut().zip(ranks) {
        let folded = u32::from_le_bytes([*a, *b, *c, *d]);
        let difference = (folded >> 1) ^ (folded & 1).wrapping_neg();
        *old = word(old).wrapping_add(difference << shift).to_le_bytes();
    }
    for (old, change) in head.iter_mut().chain(tail).zip(rest) {
        *old ^= *change;
    }
    Ok(())
}

/// Zero bits at the low end that all differences share; none where nothing differs.
fn shared_zeros(base: &[[u8; 4]], words: &[[u8; 4]]) -> u32 {
    let differing = base.iter().zip(words).fold(0, |bits, (old, new)| bits | word(new).wrapping_sub(word(old)));
    differing.trailing_zeros() % WORD
}

fn word(bytes: &[u8; 4]) -> u32 {
    u32::from_le_bytes(*bytes)
}

/// Bytes before the first word, words, bytes behind the last one.
fn split(bytes: &[u8], phase: usize) -> (&[u8], &[[u8; 4]], &[u8]) {
    let (head, rest) = bytes.split_at(phase.min(bytes.len()));
    let (words, tail) = rest.as_chunks();
    (head, words, tail)
}

fn split_mut(bytes: &mut [u8], phase: usize) -> (&mut [u8], &mut [[u8; 4]], &mut [u8]) {
    let (head, rest) = bytes.split_at_mut(phase.min(bytes.len()));
    let (words, tail) = rest.as_chunks_mut();
    (head, words, tail)
}

/// The bytes of `words` words by their rank, and those without a word.
fn by_rank(planes: &mut [u8], words: usize) -> ([&mut [u8]; 4], &mut [u8]) {
    let (first, rest) = planes.split_at_mut(words);
    let (second, rest) = rest.split_at_mut(words);
    let (third, rest) = rest.split_at_mut(words);
    let (fourth, rest) = rest.split_at_mut(words);
    ([first, second, third, fourth], rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Weights, and the same after a step: each moved by up to `rate`.
    fn step(seed: u64, values: usize, rate: f32) -> (Vec<u8>, Vec<u8>) {
        let mut draw = fastrand::Rng::with_seed(seed);
        let before: Vec<f32> = (0..values).map(|_| (draw.f32() - 0.5) * 0.2).collect();
        let after: Vec<f32> = before.iter().map(|w| w - rate * (draw.f32() * 2.0 - 1.0)).collect();
        (bytemuck::cast_slice(&before).to_vec(), bytemuck::cast_slice(&after).to_vec())
    }

    fn applied(base: &[u8], phase: usize, delta: &[u8]) -> Result<Vec<u8>, String> {
        let mut bytes = base.to_vec();
        apply(&mut bytes, phase, delta).map(|()| bytes)
    }

    #[test]
    fn a_step_is_a_fraction_of_its_weights_and_a_step_of_bf16_next_to_nothing() {
        for (rate, most) in [(1e-6, 0.36), (1e-5, 0.46)] {
            let (base, chunk) = step(1, 1 << 18, rate);
            let delta = between(&base, &chunk, 0).unwrap();
            assert!((delta.len() as f64) < most * chunk.len() as f64, "{} of {} at {rate}", delta.len(), chunk.len());
            assert_eq!(applied(&base, 0, &delta).unwrap(), chunk);
            // Rounded as bf16, with zeros in the places of what was lost.
            let round = |bytes: &[u8]| -> Vec<u8> {
                let rounded = bytes.as_chunks().0.iter().map(|b| (u32::from_le_bytes(*b) + 0x8000) & 0xffff_0000);
                rounded.flat_map(u32::to_le_bytes).collect()
            };
            let (base, chunk) = (round(&base), round(&chunk));
            let rounded = between(&base, &chunk, 0).unwrap();
            assert!(rounded.len() * 8 < delta.len(), "{} and {}", rounded.len(), delta.len());
            assert_eq!(applied(&base, 0, &rounded).unwrap(), chunk);
        }
    }

    #[test]
    fn words_lie_where_the_values_do() {
        let (base, chunk) = step(2, 4096, 1e-6);
        let shifted = |bytes: &[u8]| [b"abc", bytes, b"de"].concat();
        let (base, chunk) = (shifted(&base), shifted(&chunk));
        let [right, wrong] = [3, 0].map(|phase| between(&base, &chunk, phase).unwrap());
        assert!(right.len() * 5 < wrong.len() * 4, "{} and {}", right.len(), wrong.len());
        assert_eq!((applied(&base, 3, &right).unwrap(), applied(&base, 0, &wrong).unwrap()), (chunk.clone(), chunk));
    }

    #[test]
    fn what_does_not_pay_is_none() {
        let mut draw = fastrand::Rng::with_seed(3);
        let [base, chunk] = [0, 1].map(|_| (0..4096).map(|_| draw.u8(..)).collect::<Vec<u8>>());
        assert_eq!(between(&base, &chunk, 0), None);
        assert_eq!(between(&base[1..], &chunk, 0), None);
        assert_eq!(between(&[], &[], 0), None);
        assert!(between(&base, &base, 0).unwrap().len() < 40, "nothing changed");
    }

    #[test]
    fn damage_is_an_error_or_other_bytes_and_never_longer_than_the_chunk() {
        let (base, chunk) = step(4, 1024, 1e-6);
        let delta = between(&base, &chunk, 0).unwrap();
        for cut in 0..delta.len() {
            assert!(applied(&base, 0, &delta[..cut]).is_err(), "{cut} bytes of {}", delta.len());
        }
        let mut high = delta.clone();
        high[0] = 32;
        assert!(applied(&base, 0, &high).unwrap_err().contains("32"));
        // A frame that leads to more bytes, or fewer, than the chunk has.
        for other in [&base[..base.len() - 4], &[base.as_slice(), &[0; 4]].concat()] {
            assert!(applied(other, 0, &delta).is_err());
        }
        let mut bomb = vec![0];
        bomb.extend(zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap());
        assert!(applied(&base, 0, &bomb).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_bytes_come_back(seed: u64, len in 0usize..300, phase in 0usize..4, equal in 0u32..100, shift in 0u32..32) {
            let mut draw = fastrand::Rng::with_seed(seed);
            let base: Vec<u8> = (0..len).map(|_| draw.u8(..)).collect();
            let mut chunk = base.clone();
            for word in chunk.chunks_mut(4).filter(|word| word.len() == 4) {
                if draw.u32(..100) >= equal {
                    let old = u32::from_le_bytes([word[0], word[1], word[2], word[3]]);
                    word.copy_from_slice(&old.wrapping_add(draw.u32(..) << shift).to_le_bytes());
                }
            }
            if let Some(delta) = between(&base, &chunk, phase) {
                prop_assert!(delta.len() < chunk.len());
                prop_assert_eq!(applied(&base, phase, &delta).unwrap(), chunk);
            }
        }

        #[test]
        fn any_delta_ends(delta in proptest::collection::vec(any::<u8>(), 0..200), seed: u64, phase in 0usize..4) {
            let base = vec![seed as u8; (seed % 600) as usize];
            // With zstd's magic number in front, so that it looks further.
            let framed = [&delta[..delta.len().min(1)], &[0x28, 0xb5, 0x2f, 0xfd], &delta].concat();
            for delta in [delta, framed] {
                if let Ok(bytes) = applied(&base, phase, &delta) {
                    prop_assert_eq!(bytes.len(), base.len());
                }
            }
        }
    }
}
