//! Pairs of bf16 in 512-bit registers: each step multiplies two pairs at once, in the order of C2.
use super::avx512::{heights, wide_tiles};
use super::{Ahead, LINE, MAX_ROWS, Store, Tile, pairs};
use std::arch::x86_64::{__m512, __m512bh, __m512i, _mm512_castps_si512, _mm512_dpbf16_ps};
use std::sync::OnceLock;

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn multiply(a: __m512, b: __m512, acc: __m512) -> __m512 {
    let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
    // SAFETY: 512 bits either way.
    let [a, b] = [a, b].map(|words| unsafe { std::mem::transmute::<__m512i, __m512bh>(words) });
    _mm512_dpbf16_ps(acc, a, b)
}

wide_tiles!("avx512f,avx512bf16", multiply);

/// Rounds of the trial; each is a tile of 8 x 48 with chains of 8 pairs.
const TRIALS: u64 = 24;
const STEPS: usize = 8;

/// Whether this machine's dot products give the bits of C2, tried once on operands of all sizes: common ones, and such
/// that results pass through zero and the smallest numbers, where implementations could differ.
///
/// The caller has found AVX-512 F and BF16.
pub(crate) fn agree() -> bool {
    static AGREE: OnceLock<bool> = OnceLock::new();
    *AGREE.get_or_init(|| (0..TRIALS).all(trial))
}

fn trial(number: u64) -> bool {
    let mut state = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as u32
    };
    // Exponents around 1, around the square root of the smallest normal number, and anywhere between.
    let (lowest, span) = [(118, 18), (58, 10), (1, 140)][(number % 3) as usize];
    let mut word = || [next(), next()].map(|x| (x & 0x8000) | ((lowest + x % span) << 7) | (x >> 16 & 0x7f));
    let mut words = |len: usize| -> Vec<f32> {
        let pair = |[low, high]: [u32; 2]| f32::from_bits(low | high << 16);
        (0..len).map(|_| pair(word())).collect()
    };
    let (a, b) = (words(MAX_ROWS * STEPS), words(STEPS * 48));
    let mut got = [0.0f32; MAX_ROWS * 48];
    let mut want = got;
    let tile = |c: &mut [f32]| Tile {
        k: STEPS,
        a: a.as_ptr(),
        a_row: STEPS,
        a_k: 1,
        b: b.as_ptr(),
        b_k: 48,
        b_vec: 16,
        c: c.as_mut_ptr(),
        c_row: 48,
        c_vec: 16,
    };
    // SAFETY: A is 8 rows of 8 words, B 8 rows of 48, C 8 rows of 48; the caller of `agree` has found the instructions.
    unsafe {
        run(MAX_ROWS, 3, Store::Set, &tile(&mut got));
        pairs::portable::<16>(MAX_ROWS, 3, Store::Set, &tile(&mut want));
    }
    got.iter().zip(&want).all(|(got, want)| got.to_bits() == want.to_bits())
}
