//! The definition of C2 in plain Rust: the same bits as every path, at a fraction of the speed.
use super::{Store, Tile};

/// See [`super::run`]; vectors of `L` columns, one row and one vector at a time.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn portable<const L: usize>(rows: usize, vecs: usize, store: Store, t: &Tile) {
    for r in 0..rows {
        for v in 0..vecs {
            // SAFETY: elements of the caller's tile.
            unsafe {
                let c = t.c.add(r * t.c_row + v * t.c_vec).cast::<[f32; L]>();
                let old = c.read_unaligned();
                let mut acc = if store == Store::Chain { old.map(flushed) } else { [0.0; L] };
                for k in 0..t.k {
                    let a = t.a.add(r * t.a_row + k * t.a_k).cast::<u32>().read();
                    let b = t.b.add(v * t.b_vec + k * t.b_k).cast::<[u32; L]>().read_unaligned();
                    acc = multiply(high(a), b.map(high), acc);
                    acc = multiply(low(a), b.map(low), acc);
                }
                if store == Store::Add {
                    for i in 0..L {
                        acc[i] += old[i];
                    }
                }
                c.write_unaligned(acc);
            }
        }
    }
}

#[inline(always)]
fn high(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

#[inline(always)]
fn low(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

/// `fma(a, b, acc)` in every lane with results below the smallest normal number as zeros.
#[inline(always)]
fn multiply<const L: usize>(a: f32, b: [f32; L], acc: [f32; L]) -> [f32; L] {
    let mut out = [0.0; L];
    let mut doubtful = 0;
    for i in 0..L {
        let sum = a.mul_add(b[i], acc[i]);
        doubtful |= u32::from(sum.abs() == f32::MIN_POSITIVE);
        out[i] = flushed(sum);
    }
    if doubtful != 0 {
        for i in 0..L {
            out[i] = at_the_border(a, b[i], acc[i], out[i]);
        }
    }
    out
}

/// Zero of the same sign for a number below the smallest normal one.
#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

/// A result at the smallest normal number may have been rounded up to it from below, where it counts as too small unless
/// 24 bits without a bound on the exponent round it up as well.
#[cold]
fn at_the_border(a: f32, b: f32, acc: f32, result: f32) -> f32 {
    let smallest = f64::from(f32::MIN_POSITIVE);
    let exact = f64::from(a).mul_add(f64::from(b), f64::from(acc)).abs();
    let below = exact < smallest - smallest / f64::from(1u32 << 25);
    if result.abs() == f32::MIN_POSITIVE && below { 0.0f32.copysign(result) } else { result }
}
