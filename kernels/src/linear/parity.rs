//! Shapes 1, odd and large; every path and thread count; bits equal to the reference's.
use super::{Output, PANEL, Projection, RowPacked, backward_input, backward_weight, forward, pack, packed_index, packed_len};
use super::{reference, unpack};
use crate::Cpu;
use crate::testing::{bits, fingerprint, machines, noise};

/// rows, out, in
const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (3, 5, 7), (8, 48, 16), (9, 49, 33), (13, 96, 47), (17, 130, 65), (130, 64, 24), (300, 50, 9)];

fn packed(cpu: &Cpu, w: &[f32], out: usize, inner: usize) -> Vec<f32> {
    let mut packed = vec![f32::NAN; packed_len(out, inner)];
    pack(cpu, w, out, inner, &mut packed);
    packed
}

#[test]
fn packing_is_a_bijection_with_zero_padding() {
    let cpu = Cpu::new(2, 0);
    for (_, out, inner) in SHAPES {
        let w = noise(7, out * inner);
        let panels = packed(&cpu, &w, out, inner);
        for row in 0..out.next_multiple_of(PANEL) {
            for column in 0..inner {
                let want = if row < out { w[row * inner + column] } else { 0.0 };
                assert_eq!(panels[packed_index(row, column, inner)], want);
            }
        }
        let mut back = vec![0.0; out * inner];
        unpack(&cpu, &panels, out, inner, &mut back);
        assert_eq!(back, w);
    }
}

#[test]
fn forward_equals_the_reference_bit_for_bit() {
    for cpu in machines() {
        for (rows, out, inner) in SHAPES {
            let (x, w, old) = (noise(1, rows * inner), noise(2, out * inner), noise(3, rows * out));
            let weight = packed(&cpu, &w, out, inner);
            for output in [Output::Set, Output::Continue, Output::Add] {
                let mut want = if output == Output::Continue { old.clone() } else { vec![0.0; rows * out] };
                reference::forward(&x, &w, out, inner, &mut want);
                if output == Output::Add {
                    want.iter_mut().zip(&old).for_each(|(w, o)| *w += o);
                }
                let mut y = old.clone();
                forward(&cpu, &x, inner, output, &mut [Projection { weight: &weight, out, y: &mut y }]);
                assert_eq!(bits(&y), bits(&want), "{} {rows} x {out} x {inner} {output:?}", cpu.path());
            }
        }
    }
}

#[test]
fn projections_of_one_input_are_independent() {
    let cpu = Cpu::new(2, 0);
    let (rows, inner, outs) = (5, 19, [70, 1, 48]);
    let x = noise(1, rows * inner);
    let weights: Vec<_> = outs.iter().map(|out| packed(&cpu, &noise(*out as u64, out * inner), *out, inner)).collect();
    let mut together: Vec<_> = outs.iter().map(|out| vec![0.0; rows * out]).collect();
    let mut jobs: Vec<_> =
        together.iter_mut().zip(&weights).zip(outs).map(|((y, weight), out)| Projection { weight, out, y }).collect();
    forward(&cpu, &x, inner, Output::Set, &mut jobs);
    for ((out, weight), got) in outs.into_iter().zip(&weights).zip(&together) {
        let mut y = vec![0.0; rows * out];
        forward(&cpu, &x, inner, Output::Set, &mut [Projection { weight, out, y: &mut y }]);
        assert_eq!(&y, got);
    }
}

#[test]
fn gradients_equal_the_reference_bit_for_bit() {
    for cpu in machines() {
        for (rows, out, inner) in SHAPES {
            let (x, w, dy) = (noise(1, rows * inner), noise(2, out * inner), noise(3, rows * out));
            let weight = packed(&cpu, &w, out, inner);
            let mut want = noise(4, rows * inner);
            let mut dx = want.clone();
            reference::backward_input(&dy, &w, out, inner, &mut want);
            backward_input(&cpu, &dy, out, &weight, inner, Output::Continue, &mut dx);
            assert_eq!(bits(&dx), bits(&want), "dx {} {rows} x {out} x {inner}", cpu.path());

            let mut want = noise(5, out * inner);
            let mut gradient = packed(&cpu, &want, out, inner);
            reference::backward_weight(&x, &dy, out, inner, &mut want);
            let mut rows_packed = RowPacked::default();
            rows_packed.pack(&cpu, &x, inner);
            backward_weight(&cpu, &rows_packed, &dy, out, &mut gradient);
            assert_eq!(bits(&gradient), bits(&packed(&cpu, &want, out, inner)), "dW {} {rows} x {out} x {inner}", cpu.path());
        }
    }
}

#[test]
fn bits_are_the_committed_ones() {
    let cpu = Cpu::new(1, 0);
    let (rows, out, inner) = (11, 100, 70);
    let weight = packed(&cpu, &noise(2, out * inner), out, inner);
    let mut y = vec![0.0; rows * out];
    forward(&cpu, &noise(1, rows * inner), inner, Output::Set, &mut [Projection { weight: &weight, out, y: &mut y }]);
    assert_eq!(fingerprint(&y), 0xf592_bb3f_f8e0_d521);
}
