//! Shapes 1, odd and large; every path and thread count; bits equal to the reference's.
use super::{Matrix, Output, PANEL, Projection, RowPacked, backward_input, backward_weight, forward, halve, pack};
use super::{packed_index, packed_len, quantize, reference, unpack, unpack_rows};
use crate::bf16::{round, widen};
use crate::testing::{bits, fingerprint, machines, noise, relative};
use crate::{Cpu, Format};

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
        for cpu in machines() {
            let mut back = vec![0.0; out * inner];
            unpack(&cpu, &panels, out, inner, &mut back);
            assert_eq!(back, w, "{out} x {inner} on {}", cpu.path());
            let mut rows = vec![0.0; out * inner];
            unpack_rows(cpu.path(), &panels, out, inner, |first, part| rows[first * inner..][..part.len()].copy_from_slice(part));
            assert_eq!(rows, w, "{out} x {inner} on {}", cpu.path());
        }
    }
}

/// The packed weights in every format.
struct Weights {
    panels: Vec<f32>,
    pairs: Vec<u32>,
    groups: Vec<u32>,
}

impl Weights {
    fn new(cpu: &Cpu, w: &[f32], out: usize, inner: usize) -> Self {
        let panels = packed(cpu, w, out, inner);
        let mut pairs = vec![u32::MAX; packed_len(out, inner.div_ceil(2))];
        halve(cpu, &panels, inner, &mut pairs);
        let mut groups = vec![u32::MAX; packed_len(out, Format::Int8.words(inner))];
        quantize(cpu, &panels, inner, &mut groups);
        Self { panels, pairs, groups }
    }

    fn matrix(&self, format: Format) -> Matrix<'_> {
        match format {
            Format::F32 => Matrix::f32(&self.panels),
            Format::Bf16 => Matrix::bf16(&self.pairs),
            Format::Int8 => Matrix::int8(&self.groups),
        }
    }
}

const FORMATS: [Format; 3] = [Format::F32, Format::Bf16, Format::Int8];
/// Those with gradients.
const TRAINED: [Format; 2] = [Format::F32, Format::Bf16];

#[test]
fn elements_are_found_in_every_format() {
    let cpu = Cpu::new(2, 0);
    for (_, out, inner) in SHAPES {
        let w = noise(7, out * inner);
        let weights = Weights::new(&cpu, &w, out, inner);
        let rounded: Vec<f32> = w.chunks(inner).flat_map(reference::dequantized).collect();
        for (i, value) in w.iter().enumerate() {
            let at = |format| weights.matrix(format).at(i / inner, i % inner, inner);
            assert_eq!((at(Format::F32), at(Format::Bf16)), (*value, widen(round(*value))));
            assert_eq!(at(Format::Int8), rounded[i], "element {i} of {out} x {inner}");
        }
    }
}

#[test]
fn forward_equals_the_reference_bit_for_bit() {
    for cpu in machines() {
        for (rows, out, inner) in SHAPES {
            let (x, w, old) = (noise(1, rows * inner), noise(2, out * inner), noise(3, rows * out));
            let weights = Weights::new(&cpu, &w, out, inner);
            for (format, output) in FORMATS.into_iter().flat_map(|f| [(f, Output::Set), (f, Output::Continue), (f, Output::Add)])
            {
                let mut want = if output == Output::Continue { old.clone() } else { vec![0.0; rows * out] };
                reference::forward(format, &x, &w, out, inner, &mut want);
                if output == Output::Add {
                    want.iter_mut().zip(&old).for_each(|(w, o)| *w += o);
                }
                let mut y = old.clone();
                forward(&cpu, &x, inner, output, &mut [Projection { weight: weights.matrix(format), out, y: &mut y }]);
                assert_eq!(bits(&y), bits(&want), "{} {format:?} {rows} x {out} x {inner} {output:?}", cpu.path());
            }
        }
    }
}

#[test]
fn projections_of_one_input_are_independent() {
    let cpu = Cpu::new(2, 0);
    let (rows, inner, outs) = (5, 19, [70, 1, 48]);
    let x = noise(1, rows * inner);
    let weights: Vec<_> = outs.iter().map(|out| Weights::new(&cpu, &noise(*out as u64, out * inner), *out, inner)).collect();
    for format in FORMATS {
        let mut together: Vec<_> = outs.iter().map(|out| vec![0.0; rows * out]).collect();
        let all = together.iter_mut().zip(&weights).zip(outs);
        let mut jobs: Vec<_> = all.map(|((y, w), out)| Projection { weight: w.matrix(format), out, y }).collect();
        forward(&cpu, &x, inner, Output::Set, &mut jobs);
        for ((out, weight), got) in outs.into_iter().zip(&weights).zip(&together) {
            let mut y = vec![0.0; rows * out];
            forward(&cpu, &x, inner, Output::Set, &mut [Projection { weight: weight.matrix(format), out, y: &mut y }]);
            assert_eq!(&y, got);
        }
    }
}

#[test]
fn gradients_equal_the_reference_bit_for_bit() {
    for cpu in machines() {
        for ((rows, out, inner), format) in SHAPES.into_iter().flat_map(|shape| TRAINED.map(|f| (shape, f))) {
            let (x, w, dy) = (noise(1, rows * inner), noise(2, out * inner), noise(3, rows * out));
            let weights = Weights::new(&cpu, &w, out, inner);
            let mut want = noise(4, rows * inner);
            let mut dx = want.clone();
            reference::backward_input(format, &dy, &w, out, inner, &mut want);
            backward_input(&cpu, &dy, out, weights.matrix(format), inner, Output::Continue, &mut dx);
            assert_eq!(bits(&dx), bits(&want), "dx {} {format:?} {rows} x {out} x {inner}", cpu.path());

            let mut want = noise(5, out * inner);
            let mut gradient = packed(&cpu, &want, out, inner);
            reference::backward_weight(format, &x, &dy, out, inner, &mut want);
            let mut rows_packed = RowPacked::default();
            rows_packed.pack(&cpu, format, &x, inner);
            backward_weight(&cpu, &rows_packed, &dy, out, &mut gradient);
            let want = packed(&cpu, &want, out, inner);
            assert_eq!(bits(&gradient), bits(&want), "dW {} {format:?} {rows} x {out} x {inner}", cpu.path());
        }
    }
}

#[test]
fn bits_are_the_committed_ones() {
    let cpu = Cpu::new(1, 0);
    let (rows, out, inner) = (11, 100, 70);
    let weights = Weights::new(&cpu, &noise(2, out * inner), out, inner);
    let committed =
        [(Format::F32, 0xf592_bb3f_f8e0_d521), (Format::Bf16, 0x19b6_7f94_0d2e_e0f5), (Format::Int8, 0xd699_6e7f_dcbf_59ee)];
    for (format, want) in committed {
        let mut y = vec![0.0; rows * out];
        let mut projections = [Projection { weight: weights.matrix(format), out, y: &mut y }];
        forward(&cpu, &noise(1, rows * inner), inner, Output::Set, &mut projections);
        assert_eq!(fingerprint(&y), want, "{format:?}");
    }
}

#[test]
fn a_rows_int8_product_does_not_depend_on_its_company() {
    let (out, inner) = (100, 70);
    let x = noise(1, 33 * inner);
    for cpu in machines() {
        let weights = Weights::new(&cpu, &noise(2, out * inner), out, inner);
        let product = |x: &[f32]| {
            let mut y = vec![0.0; x.len() / inner * out];
            let mut projections = [Projection { weight: weights.matrix(Format::Int8), out, y: &mut y }];
            forward(&cpu, x, inner, Output::Set, &mut projections);
            bits(&y)
        };
        let alone: Vec<u32> = x.chunks(inner).flat_map(product).collect();
        for batch in [3, 8, 33] {
            let together: Vec<u32> = x.chunks(batch * inner).flat_map(product).collect();
            assert_eq!(together, alone, "{} batch {batch}", cpu.path());
        }
    }
}

#[test]
fn int8_products_stay_near_the_exact_ones_and_broken_rows_are_seen() {
    let cpu = Cpu::new(2, 0);
    let (rows, out, inner) = (5, 60, 640);
    let (x, w) = (noise(1, rows * inner), noise(2, out * inner));
    let weights = Weights::new(&cpu, &w, out, inner);
    let mut y = vec![0.0; rows * out];
    forward(&cpu, &x, inner, Output::Set, &mut [Projection { weight: weights.matrix(Format::Int8), out, y: &mut y }]);
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum::<f64>();
    let want: Vec<f64> = x.chunks(inner).flat_map(|x| w.chunks(inner).map(move |w| dot(x, w))).collect();
    // Each factor is off by at most 1 / 254, evenly spread: of 640 products of about 1/3 the standard error is about 0.05.
    assert!(relative(&y, &want) < 0.02, "{}", relative(&y, &want));
    let mut broken = x.clone();
    broken[2 * inner + 600] = f32::NAN;
    forward(&cpu, &broken, inner, Output::Set, &mut [Projection { weight: weights.matrix(Format::Int8), out, y: &mut y }]);
    assert!(y.chunks(out).enumerate().all(|(row, y)| y.iter().all(|y| y.is_nan() == (row == 2))));
}
