//! Against the f64 definition (tolerance: the angle's rounding to f32 grows with the position), and bit-equal.
use super::{Direction, RopeTable, cuda, reference, rotate};
use crate::cuda::devices::{Memory, on_every_device};
use crate::testing::{bits, fingerprint, machines, noise, relative};

#[test]
fn rows_turn_by_their_position_on_every_path() {
    for (heads, dim, theta) in [(1, 2, 10_000.0), (3, 6, 500_000.0), (9, 64, 100_000.0)] {
        let positions = [0, 1, 5, 63, 64, 1000, 8191];
        let x = noise(1, positions.len() * heads * dim);
        let mut table = RopeTable::new(dim, theta);
        table.reserve(100);
        table.reserve(8192);
        let mut first = None;
        for cpu in machines() {
            let mut y = x.clone();
            rotate(&cpu, &table, &positions, Direction::Forward, &mut y);
            for ((got, x), position) in y.chunks(heads * dim).zip(x.chunks(heads * dim)).zip(positions) {
                let want: Vec<f64> = x.chunks(dim).flat_map(|head| reference::rotate(head, position, theta)).collect();
                assert!(relative(got, &want) < 1e-6 + f64::from(position) * 1e-7, "position {position}");
            }
            assert_eq!(first.get_or_insert_with(|| bits(&y)), &bits(&y));
            rotate(&cpu, &table, &positions, Direction::Backward, &mut y);
            let back: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            assert!(relative(&y, &back) < 1e-6, "the transpose of a rotation is its inverse");
        }
    }
}

#[test]
fn bits_are_the_committed_ones() {
    let mut table = RopeTable::new(64, 100_000.0);
    table.reserve(300);
    assert_eq!(fingerprint(table.turns()), 0x0cc8_ca85_5467_1919);
}

/// The CUDA kernels against the CPU's, which read the same table (tolerance: one rounding of a product).
fn cuda_agrees_with_the_cpu<M: Memory>(device: &M) {
    for (heads, dim) in [(1, 2), (3, 6), (9, 64)] {
        let positions = [0, 5, 63, 1000];
        let (x, v) = (noise(1, positions.len() * heads * dim), noise(2, positions.len() * heads * dim));
        let mut table = RopeTable::new(dim, 10_000.0);
        table.reserve(1001);
        let mut want = x.clone();
        rotate(&crate::Cpu::new(1, 0), &table, &positions, Direction::Forward, &mut want);
        let want: Vec<f64> = want.into_iter().map(f64::from).collect();
        let (xs, turns, at) = (device.upload(&x), device.upload(table.turns()), device.upload(&positions));
        let (y, back) = (&mut device.blank(x.len()), &mut device.blank(x.len()));
        let (turns, at) = (device.view(&turns), device.view(&at));
        let (forward, backward) = (Direction::Forward, Direction::Backward);
        cuda::rotate(device, &device.view(&xs), (&turns, dim), &at, forward, &mut device.view_mut(y)).unwrap();
        assert!(relative(&device.download(y), &want) < 2e-7);
        cuda::rotate(device, &device.view(y), (&turns, dim), &at, backward, &mut device.view_mut(back)).unwrap();
        let start: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        assert!(relative(&device.download(back), &start) < 1e-6, "the transpose of a rotation is its inverse");

        // Rows go to their places of a store; one lies outside of it.
        let (width, stored) = (heads * dim, 7);
        let (vs, to) = (device.upload(&v), device.upload(&[2, 6, 7, 0]));
        for turned in [true, false] {
            let store = &mut device.upload(&vec![9.0; 2 * stored * width]);
            let table = turned.then_some((&turns, dim));
            let (k, v_rows, to) = (device.view(&xs), device.view(&vs), device.view(&to));
            cuda::append(device, (&k, &v_rows), table, (&at, &to), &mut device.view_mut(store)).unwrap();
            let store = device.download(store);
            let keys = if turned { device.download(y) } else { x.clone() };
            for (source, store) in [(&keys, &store[..stored * width]), (&v, &store[stored * width..])] {
                let mut places = vec![9.0; stored * width];
                for (row, to) in [(0, 2), (1, 6), (3, 0)] {
                    places[to * width..][..width].copy_from_slice(&source[row * width..][..width]);
                }
                assert_eq!(bits(store), bits(&places));
            }
        }
    }
}

/// A position that the table does not hold is no memory error.
fn cuda_gives_nan_outside_the_table<M: Memory>(device: &M) {
    let mut table = RopeTable::new(4, 10_000.0);
    table.reserve(64);
    let (x, turns, at) = (device.upload(&[1.0; 8]), device.upload(table.turns()), device.upload(&[63, u32::MAX]));
    let y = &mut device.blank(8);
    let (from, table) = (device.view(&x), device.view(&turns));
    cuda::rotate(device, &from, (&table, 4), &device.view(&at), Direction::Forward, &mut device.view_mut(y)).unwrap();
    let y = device.download(y);
    assert!(y[..4].iter().all(|y| y.is_finite()) && y[4..].iter().all(|y| y.is_nan()));
}

on_every_device!(cuda_agrees_with_the_cpu, cuda_gives_nan_outside_the_table);
