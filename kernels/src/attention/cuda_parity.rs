//! The CUDA kernels against the f64 definition, on every device. Tolerances are the CPU's: roundings of scores and of sums
//! over the keys; the online softmax adds a rounding a tile.
use super::cuda::{self, Gradients, MAX_DIM, Plan, Sources, Tables, Upstream};
use super::{Heads, reference};
use crate::cuda::devices::{Memory, on_every_device};
use crate::testing::{bits, noise, relative};

/// Heads and the lengths of the sequences of a batch.
const BATCHES: [(Heads, &[usize]); 7] = [
    (Heads { query: 1, key_value: 1, dim: 2 }, &[1]),
    (Heads { query: 3, key_value: 1, dim: 6 }, &[5, 1, 33]),
    (Heads { query: 4, key_value: 4, dim: 10 }, &[70, 2]),
    (Heads { query: 6, key_value: 2, dim: 64 }, &[35, 9]),
    (Heads { query: 7, key_value: 1, dim: 24 }, &[40]),
    (Heads { query: 4, key_value: 2, dim: 96 }, &[37]),
    (Heads { query: 2, key_value: 1, dim: MAX_DIM }, &[1, 34]),
];

struct Batch {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    d_out: Vec<f32>,
}

fn batch(heads: Heads, rows: usize, seed: u64) -> Batch {
    let make = |salt: u64, of: usize| noise(seed * 10 + salt, rows * of * heads.dim);
    let q = make(1, heads.query).into_iter().map(|x| 3.0 * x).collect();
    Batch { q, k: make(2, heads.key_value), v: make(3, heads.key_value), d_out: make(4, heads.query) }
}

/// What a pass gives: out and lse.
fn forward<M: Memory>(
    device: &M,
    heads: Heads,
    plan: &Plan,
    positions: &[u32],
    (q, k, v): (&[f32], &[f32], &[f32]),
) -> [Vec<f32>; 2] {
    let (spans, tables, positions) = (device.upload(&plan.spans), device.upload(&plan.tables), device.upload(positions));
    let (q, k, v) = (device.upload(q), device.upload(k), device.upload(v));
    let (out, lse) = (&mut device.blank(plan.rows() * heads.query * heads.dim), &mut device.blank(plan.rows() * heads.query));
    let parts = &mut device.blank(plan.parts_len(heads));
    let tables = Tables { spans: device.view(&spans), tables: device.view(&tables), positions: device.view(&positions) };
    let sources = Sources { q: device.view(&q), k: device.view(&k), v: device.view(&v) };
    {
        let (mut out, mut lse, mut parts) = (device.view_mut(out), device.view_mut(lse), device.view_mut(parts));
        cuda::forward(device, heads, (plan, &tables), &sources, (&mut out, &mut lse), &mut parts).unwrap();
    }
    [device.download(out), device.download(lse)]
}

fn packed_positions(lengths: &[usize]) -> Vec<u32> {
    lengths.iter().flat_map(|n| 0..*n as u32).collect()
}

/// The definition, sequence by sequence.
fn definition(heads: Heads, lengths: &[usize], b: &Batch, of: impl Fn(&[f32], &[f32], &[f32], &[f32]) -> Vec<f64>) -> Vec<f64> {
    let (wide, narrow) = (heads.query * heads.dim, heads.key_value * heads.dim);
    let mut start = 0;
    let parts = lengths.iter().map(|n| {
        let (w, k) = (start * wide..(start + n) * wide, start * narrow..(start + n) * narrow);
        start += n;
        of(&b.q[w.clone()], &b.k[k.clone()], &b.v[k], &b.d_out[w])
    });
    parts.flatten().collect()
}

fn cuda_forward_agrees_with_the_definition<M: Memory>(device: &M) {
    for (heads, lengths) in BATCHES {
        let b = batch(heads, lengths.iter().sum(), 1);
        let plan = Plan::packed(lengths.iter().copied());
        let [out, _] = forward(device, heads, &plan, &packed_positions(lengths), (&b.q, &b.k, &b.v));
        let want = definition(heads, lengths, &b, |q, k, v, _| reference::forward(heads, q, k, v));
        assert!(relative(&out, &want) < 2e-6, "{heads:?} {lengths:?}: {}", relative(&out, &want));
    }
}

fn cuda_backward_agrees_with_the_definition<M: Memory>(device: &M) {
    for (heads, lengths) in BATCHES {
        let b = batch(heads, lengths.iter().sum(), 2);
        let plan = Plan::packed(lengths.iter().copied());
        let [out, lse] = forward(device, heads, &plan, &packed_positions(lengths), (&b.q, &b.k, &b.v));
        let (spans, tables) = (device.upload(&plan.spans), device.upload(&plan.tables));
        let positions = device.upload(&packed_positions(lengths));
        let (q, k, v, d_out) = (device.upload(&b.q), device.upload(&b.k), device.upload(&b.v), device.upload(&b.d_out));
        let (out, lse) = (device.upload(&out), device.upload(&lse));
        let (dq, dk, dv) = (&mut device.blank(b.q.len()), &mut device.blank(b.k.len()), &mut device.blank(b.v.len()));
        let delta = &mut device.blank(plan.rows() * heads.query);
        {
            let tables = Tables { spans: device.view(&spans), tables: device.view(&tables), positions: device.view(&positions) };
            let sources = Sources { q: device.view(&q), k: device.view(&k), v: device.view(&v) };
            let mut to = Gradients { dq: device.view_mut(dq), dk: device.view_mut(dk), dv: device.view_mut(dv) };
            let upstream = Upstream { out: device.view(&out), lse: device.view(&lse), d_out: device.view(&d_out) };
            cuda::backward(device, heads, (&plan, &tables), &sources, &upstream, &mut to, &mut device.view_mut(delta)).unwrap();
        }
        for (name, got, which) in [("dq", dq, 0), ("dk", dk, 1), ("dv", dv, 2)] {
            let got = device.download(got);
            let want = definition(heads, lengths, &b, |q, k, v, d| reference::backward(heads, q, k, v, d)[which].clone());
            let magnitude = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            // With a single key the scores have no gradient at all.
            let off = relative(&got, &want);
            assert!(off < 1e-5 || magnitude < 1e-9 && got.iter().all(|x| x.abs() < 1e-5), "{name} {heads:?} {lengths:?}: {off}");
        }
    }
}

/// Keys in pages of a store, in no order and among garbage; decoding joins parts of 256 keys.
fn cuda_reads_pages_of_a_store<M: Memory>(device: &M) {
    const PAGE: usize = 16;
    for (heads, sequences) in [
        (Heads { query: 3, key_value: 1, dim: 6 }, &[(0usize, 1usize), (40, 1), (255, 1), (256, 1), (700, 1)][..]),
        (Heads { query: 4, key_value: 2, dim: 64 }, &[(300, 1), (3, 1)]),
        (Heads { query: 4, key_value: 2, dim: 8 }, &[(20, 5), (0, 40), (33, 1)]),
    ] {
        let (wide, narrow) = (heads.query * heads.dim, heads.key_value * heads.dim);
        let pages = sequences.iter().map(|(past, fresh)| (past + fresh).div_ceil(PAGE)).sum::<usize>() + 3;
        let (mut keys, mut values) = (noise(50, pages * PAGE * narrow), noise(51, pages * PAGE * narrow));
        let (mut tables, mut queries, mut positions, mut want) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut next = 0;
        for (i, (past, fresh)) in sequences.iter().enumerate() {
            let whole = batch(heads, past + fresh, 60 + i as u64);
            let all = reference::forward(heads, &whole.q, &whole.k, &whole.v);
            want.extend_from_slice(&all[past * wide..]);
            queries.extend_from_slice(&whole.q[past * wide..]);
            positions.extend(*past as u32..(past + fresh) as u32);
            let table: Vec<u32> = (0..(past + fresh).div_ceil(PAGE)).map(|p| ((pages - 1 - next - p) * PAGE) as u32).collect();
            for position in 0..past + fresh {
                let row = table[position / PAGE] as usize + position % PAGE;
                keys[row * narrow..][..narrow].copy_from_slice(&whole.k[position * narrow..][..narrow]);
                values[row * narrow..][..narrow].copy_from_slice(&whole.v[position * narrow..][..narrow]);
            }
            next += table.len();
            tables.push((*past, *fresh, table));
        }
        let plan = Plan::cached(tables.iter().map(|(past, fresh, table)| (*past, *fresh, &table[..])), PAGE);
        let [out, _] = forward(device, heads, &plan, &positions, (&queries, &keys, &values));
        assert!(relative(&out, &want) < 2e-6, "{heads:?} {sequences:?}: {}", relative(&out, &want));

        // Alone, each sequence has the same bits as in company: where keys are cut depends on positions alone.
        let (mut row, mut first_query) = (0, 0);
        for (past, fresh, table) in &tables {
            let alone = Plan::cached([(*past, *fresh, &table[..])], PAGE);
            let own = &queries[first_query..][..fresh * wide];
            let [single, _] = forward(device, heads, &alone, &positions[row..][..*fresh], (own, &keys, &values));
            if *fresh > 1 || tables.iter().all(|t| t.1 == 1) {
                assert_eq!(bits(&single), bits(&out[first_query..][..fresh * wide]));
            }
            (row, first_query) = (row + fresh, first_query + fresh * wide);
        }
    }
}

/// Tables that point outside of their source are no memory error.
fn cuda_stays_inside_whatever_the_tables_say<M: Memory>(device: &M) {
    let heads = Heads { query: 2, key_value: 1, dim: 4 };
    let b = batch(heads, 3, 3);
    let mut plan = Plan::packed([3]);
    plan.tables[0] = 1000;
    let [out, _] = forward(device, heads, &plan, &[0, 1, 2], (&b.q, &b.k, &b.v));
    assert!(out.iter().all(|x| *x == 0.0), "keys and values outside count as zero");
    for (field, value) in [(0, 1), (1, u32::MAX), (2, u32::MAX), (3, 7)] {
        let mut plan = Plan::packed([3]);
        plan.spans[field] = value;
        let [out, _] = forward(device, heads, &plan, &[0, 1, 2], (&b.q, &b.k, &b.v));
        assert!(out.iter().all(|x| x.is_nan()), "a span outside is left out");
    }
}

on_every_device!(
    cuda_forward_agrees_with_the_definition,
    cuda_backward_agrees_with_the_definition,
    cuda_reads_pages_of_a_store,
    cuda_stays_inside_whatever_the_tables_say,
);
