//! Against the f64 definition (tolerance: roundings of scores and of sums over the keys); any cut of a sequence into
//! calls, any company and any machine give the same bits.
use super::{Append, BackwardSpan, Heads, PAGE, Span, append, backward, forward, reference};
use crate::Cpu;
use crate::testing::{bits, machines, noise, relative};

const SHAPES: [(Heads, usize); 6] = [
    (Heads { query: 1, key_value: 1, dim: 2 }, 1),
    (Heads { query: 3, key_value: 1, dim: 6 }, 5),
    (Heads { query: 4, key_value: 4, dim: 10 }, 70),
    (Heads { query: 6, key_value: 2, dim: 64 }, 131),
    (Heads { query: 7, key_value: 1, dim: 24 }, 66),
    (Heads { query: 10, key_value: 1, dim: 16 }, 20),
];

struct Sequence {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

fn sequence(heads: Heads, rows: usize, seed: u64) -> Sequence {
    let make = |salt: u64, heads_of: usize, gain: f32| -> Vec<f32> {
        noise(seed * 10 + salt, rows * heads_of * heads.dim).into_iter().map(|x| gain * x).collect()
    };
    Sequence { q: make(1, heads.query, 3.0), k: make(2, heads.key_value, 1.0), v: make(3, heads.key_value, 1.0) }
}

/// Feeds the sequence in chunks of the given lengths, pages filled with garbage where nothing was written.
fn attend(cpu: &Cpu, heads: Heads, s: &Sequence, cuts: &[usize]) -> Vec<f32> {
    let (wide, narrow) = (heads.query * heads.dim, heads.key_value * heads.dim);
    let rows = s.q.len() / wide;
    let mut pages: Vec<_> = (0..Heads::pages(rows)).map(|i| noise(99 + i as u64, heads.page_len())).collect();
    let mut out = vec![f32::NAN; s.q.len()];
    let mut start = 0;
    for cut in cuts.iter().copied().chain(std::iter::repeat(rows)) {
        let end = (start + cut).min(rows);
        let (k, v) = (&s.k[start * narrow..end * narrow], &s.v[start * narrow..end * narrow]);
        append(
            cpu,
            heads,
            &mut [Append { k, v, start, pages: pages.iter_mut().skip(start / PAGE).map(|p| &mut p[..]).collect() }],
        );
        let q = &s.q[start * wide..end * wide];
        let out = &mut out[start * wide..end * wide];
        forward(cpu, heads, &mut [Span { q, start, pages: pages.iter().map(|p| &p[..]).collect(), out }]);
        start = end;
        if start == rows {
            break;
        }
    }
    out
}

#[test]
fn forward_agrees_with_the_definition_and_with_every_cut() {
    for (heads, rows) in SHAPES {
        let s = sequence(heads, rows, 1);
        let want = reference::forward(heads, &s.q, &s.k, &s.v);
        let mut first = None;
        for cpu in machines() {
            let whole = attend(&cpu, heads, &s, &[]);
            assert!(relative(&whole, &want) < 2e-6, "{heads:?} {rows}: {}", relative(&whole, &want));
            assert_eq!(first.get_or_insert_with(|| bits(&whole)), &bits(&whole), "{}", cpu.path());
            assert_eq!(bits(&attend(&cpu, heads, &s, &vec![1; rows])), bits(&whole), "decoding {heads:?}");
            assert_eq!(bits(&attend(&cpu, heads, &s, &[3, 1, 16, 40, 5])), bits(&whole), "chunks {heads:?}");
        }
    }
}

#[test]
fn sequences_of_one_call_do_not_see_each_other() {
    let heads = Heads { query: 4, key_value: 2, dim: 12 };
    let cpu = Cpu::new(2, 0);
    let sequences: Vec<_> = [5, 90, 1].into_iter().enumerate().map(|(i, rows)| sequence(heads, rows, i as u64)).collect();
    let alone: Vec<_> = sequences.iter().map(|s| attend(&cpu, heads, s, &[])).collect();
    let mut pages: Vec<Vec<Vec<f32>>> = sequences
        .iter()
        .map(|s| vec![vec![0.0; heads.page_len()]; Heads::pages(s.k.len() / (heads.key_value * heads.dim))])
        .collect();
    let mut appends: Vec<_> = sequences
        .iter()
        .zip(&mut pages)
        .map(|(s, pages)| Append { k: &s.k, v: &s.v, start: 0, pages: pages.iter_mut().map(|p| &mut p[..]).collect() })
        .collect();
    append(&cpu, heads, &mut appends);
    let mut outs: Vec<_> = sequences.iter().map(|s| vec![0.0; s.q.len()]).collect();
    let mut spans: Vec<_> = sequences
        .iter()
        .zip(&pages)
        .zip(&mut outs)
        .map(|((s, pages), out)| Span { q: &s.q, start: 0, pages: pages.iter().map(|p| &p[..]).collect(), out })
        .collect();
    forward(&cpu, heads, &mut spans);
    assert_eq!(outs, alone);
}

#[test]
fn gradients_agree_with_the_definition_on_every_path() {
    for (heads, rows) in SHAPES {
        let s = sequence(heads, rows, 2);
        let d_out = noise(7, s.q.len());
        let want = reference::backward(heads, &s.q, &s.k, &s.v, &d_out);
        let mut first = None;
        for cpu in machines() {
            let out = attend(&cpu, heads, &s, &[]);
            let (mut dq, mut dk, mut dv) = (vec![0.0; s.q.len()], vec![0.0; s.k.len()], vec![0.0; s.v.len()]);
            let (q, k, v) = (&s.q, &s.k, &s.v);
            let span = BackwardSpan { prefix: 0, q, k, v, out: &out, d_out: &d_out, dq: &mut dq, dk: &mut dk, dv: &mut dv };
            backward(&cpu, heads, &mut [vec![span]]);
            for (name, got, want) in [("dq", &dq, &want[0]), ("dk", &dk, &want[1]), ("dv", &dv, &want[2])] {
                let magnitude = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                // With a single key the scores have no gradient at all.
                let off = relative(got, want);
                assert!(off < 1e-5 || magnitude < 1e-9 && got.iter().all(|x| x.abs() < 1e-5), "{name} {heads:?} {rows}: {off}");
            }
            let all = (bits(&dq), bits(&dk), bits(&dv));
            assert_eq!(first.get_or_insert_with(|| all.clone()), &all, "{}", cpu.path());
        }
    }
}

/// Sequences that begin alike, computed as one family: the gradients of what they share are the sums of those of the
/// sequences alone, and their own parts are those alone.
#[test]
fn a_shared_beginning_gets_the_gradients_of_all_who_share_it() {
    for (heads, prefix) in [(SHAPES[0].0, 1), (SHAPES[1].0, 3), (SHAPES[2].0, 70), (SHAPES[3].0, 64), (SHAPES[4].0, 17)] {
        let (wide, narrow) = (heads.query * heads.dim, heads.key_value * heads.dim);
        let lengths = [prefix + 5, prefix + 40, prefix + 1];
        let mut sequences: Vec<_> = lengths.iter().zip(0..).map(|(rows, seed)| sequence(heads, *rows, 20 + seed)).collect();
        let (first, others) = sequences.split_first_mut().unwrap();
        for other in others {
            other.q[..prefix * wide].copy_from_slice(&first.q[..prefix * wide]);
            other.k[..prefix * narrow].copy_from_slice(&first.k[..prefix * narrow]);
            other.v[..prefix * narrow].copy_from_slice(&first.v[..prefix * narrow]);
        }
        // Only the first sequence's rows of the beginning have a gradient from above: the others compute none of their own.
        let d_outs: Vec<_> = sequences
            .iter()
            .zip(0..)
            .map(|(s, i)| {
                let mut d_out = noise(40 + i, s.q.len());
                d_out[..if i == 0 { 0 } else { prefix * wide }].fill(0.0);
                d_out
            })
            .collect();
        let alone: Vec<_> = sequences.iter().zip(&d_outs).map(|(s, d)| reference::backward(heads, &s.q, &s.k, &s.v, d)).collect();
        let mut seen = None;
        for cpu in machines() {
            let outs: Vec<_> = sequences.iter().map(|s| attend(&cpu, heads, s, &[])).collect();
            let from = |i: usize| if i == 0 { 0 } else { prefix };
            let mut grads: Vec<[Vec<f32>; 3]> = lengths
                .iter()
                .enumerate()
                .map(|(i, rows)| [wide, narrow, narrow].map(|width| vec![f32::NAN; (rows - from(i)) * width]))
                .collect();
            let family = sequences.iter().zip(&outs).zip(&d_outs).zip(&mut grads).enumerate();
            let family = family.map(|(i, (((s, out), d_out), [dq, dk, dv]))| {
                let (q, kv) = (from(i) * wide, from(i) * narrow);
                let (out, d_out) = (&out[q..], &d_out[q..]);
                BackwardSpan { prefix: from(i), q: &s.q[q..], k: &s.k[kv..], v: &s.v[kv..], out, d_out, dq, dk, dv }
            });
            backward(&cpu, heads, &mut [family.collect()]);
            for (i, grads) in grads.iter().enumerate() {
                for (name, got, which, width) in
                    [("dq", &grads[0], 0, wide), ("dk", &grads[1], 1, narrow), ("dv", &grads[2], 2, narrow)]
                {
                    let mut want = alone[i][which][from(i) * width..].to_vec();
                    if i == 0 {
                        for other in &alone[1..] {
                            let shared = &other[which][..prefix * width];
                            want.iter_mut().zip(shared).for_each(|(sum, term)| *sum += term);
                        }
                    }
                    let magnitude = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                    let off = relative(got, &want);
                    let none = magnitude < 1e-9 && got.iter().all(|x| x.abs() < 1e-5);
                    assert!(off < 1e-5 || none, "{name} of {i}, {heads:?}, prefix {prefix}: {off}");
                }
            }
            let all: Vec<_> = grads.iter().flatten().map(|g| bits(g)).collect();
            assert_eq!(seen.get_or_insert_with(|| all.clone()), &all, "{}", cpu.path());
        }
    }
}
