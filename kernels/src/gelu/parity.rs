//! Against the f64 definition (tolerance: a few roundings), and bit-equal between machines.
use super::{backward, forward, reference};
use crate::testing::{bits, fingerprint, machines, noise, relative};

#[test]
fn both_directions_agree_with_the_definition_on_every_path() {
    for n in [1, 17, 9000] {
        let x: Vec<f32> = noise(1, n).iter().map(|x| 6.0 * x).collect();
        let dh = noise(2, n);
        let mut first = None;
        for cpu in machines() {
            let mut h = vec![0.0; n];
            forward(&cpu, &x, &mut h);
            assert!(relative(&h, &reference::forward(&x)) < 1e-6);
            let mut dx = x.clone();
            backward(&cpu, &dh, &mut dx);
            assert!(relative(&dx, &reference::backward(&dh, &x)) < 2e-6, "{n}");
            let all = (bits(&h), bits(&dx));
            assert_eq!(first.get_or_insert_with(|| all.clone()), &all);
        }
    }
}

/// Every value by itself, not only the largest: small results keep their digits.
#[test]
fn each_value_is_within_a_few_units_in_the_last_place() {
    let cpu = crate::Cpu::new(1, 0);
    let x: Vec<f32> = (-50_000..=60_000).map(|i| i as f32 / 10_000.0).collect();
    let mut h = vec![0.0; x.len()];
    forward(&cpu, &x, &mut h);
    for ((h, want), x) in h.iter().zip(reference::forward(&x)).zip(&x) {
        // The rounding of the exponent shows in the result as many times as the exponent is large.
        let limit = f64::from(f32::EPSILON) * (4.0 + 4.0 * f64::from(x.abs()).powi(3));
        assert!((f64::from(*h) - want).abs() <= limit * want.abs(), "gelu({x}) = {h}, not {want}");
    }
    assert_eq!(fingerprint(&h), 0x658c_7faf_9598_c914);
}

#[test]
fn large_values_saturate_without_nan() {
    let cpu = crate::Cpu::new(1, 0);
    let mut h = [0.0; 3];
    forward(&cpu, &[-1e4, 0.0, 1e4], &mut h);
    assert_eq!(h, [0.0, 0.0, 1e4]);
    let mut x = [-1e15, -1e4, 1e4, 1e15];
    backward(&cpu, &[1.0; 4], &mut x);
    assert_eq!(x, [0.0, 0.0, 1.0, 1.0]);
}
