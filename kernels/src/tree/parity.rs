//! To the bit: both against the tree written out.
use super::{cuda, sum};
use crate::cuda::devices::{Memory, on_every_device};
use crate::testing::{bits, noise};

/// Rows whose sum shows in which order it was made.
fn rows(parts: usize, width: usize) -> Vec<Vec<f32>> {
    let scale = |i: usize| if i.is_multiple_of(3) { 1e6 } else { 1.0 };
    (0..parts).map(|part| noise(part as u64, width).iter().enumerate().map(|(i, x)| x * scale(i + part)).collect()).collect()
}

fn definition(mut nodes: Vec<Vec<f32>>) -> Vec<f32> {
    while nodes.len() > 1 {
        let pairs = nodes.chunks(2).map(|pair| match pair {
            [a, b] => a.iter().zip(b).map(|(a, b)| a + b).collect(),
            odd => odd[0].clone(),
        });
        nodes = pairs.collect();
    }
    nodes.swap_remove(0)
}

const SHAPES: [(usize, usize); 8] = [(1, 5), (2, 1), (2, 1000), (3, 33), (4, 257), (5, 64), (7, 300), (8, 31)];

#[test]
fn slices_are_added_in_the_tree() {
    for (parts, width) in SHAPES {
        let mut own = rows(parts, width);
        sum(&mut own.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>());
        assert_eq!(bits(&own[0]), bits(&definition(rows(parts, width))), "{parts} x {width}");
    }
}

fn cuda_adds_in_the_tree<M: Memory>(device: &M) {
    for (parts, width) in SHAPES {
        let mut own = device.upload(&rows(parts, width).concat());
        cuda::sum(device, &mut device.view_mut(&mut own), parts).unwrap();
        let got = device.download(&own);
        assert_eq!(bits(&got[..width]), bits(&definition(rows(parts, width))), "{parts} x {width}");
    }
}

on_every_device!(cuda_adds_in_the_tree);
