//! The share that is dropped, that nothing else decides it, and that the gradient is the change's own.
use super::{Drops, add_gradient, change};
use crate::testing::{bits, fingerprint, machines, noise};

const POSITIONS: [u32; 6] = [0, 1, 2, 0, 7, 8];
const KEYS: [u64; 6] = [5, 5, 5, 1 << 40, 9, 9];

fn drops(probability: f32) -> Drops<'static> {
    Drops { keys: &KEYS, positions: &POSITIONS, layer: 3, module: 2, probability }
}

#[test]
fn rows_are_dropped_alike_in_any_company_and_on_every_machine() {
    for n in [1, 5, 64, 301] {
        let x = noise(1, 6 * n);
        let mut want = None;
        for cpu in machines() {
            let mut out = vec![0.0; 6 * n];
            change(&cpu, drops(0.3), &x, &mut out);
            assert_eq!(want.get_or_insert_with(|| bits(&out)), &bits(&out), "{}", cpu.path());
            // One row by itself.
            let alone = Drops { keys: &KEYS[4..5], positions: &POSITIONS[4..5], ..drops(0.3) };
            let mut row = vec![0.0; n];
            change(&cpu, alone, &x[4 * n..5 * n], &mut row);
            assert_eq!(bits(&row), bits(&out[4 * n..5 * n]));
        }
    }
}

#[test]
fn the_share_is_the_probability_and_the_mean_is_kept() {
    let cpu = crate::Cpu::new(2, 0);
    let n = 40_000;
    for probability in [0.0, 0.05, 0.5] {
        let mut out = vec![0.0; 6 * n];
        change(&cpu, drops(probability), &vec![1.0; 6 * n], &mut out);
        let dropped = out.iter().filter(|x| **x == -1.0).count() as f32 / out.len() as f32;
        assert!((dropped - probability).abs() < 0.005, "{dropped} of {probability}");
        let mean = out.iter().map(|x| f64::from(*x)).sum::<f64>() / out.len() as f64;
        assert!(mean.abs() < 0.01, "{probability}: {mean}");
        let same = out[..n].iter().zip(&out[n..2 * n]).filter(|(a, b)| a == b).count();
        assert!(probability == 0.0 || same < n * 99 / 100, "positions share their draws");
    }
}

#[test]
fn the_gradient_is_that_of_the_change() {
    let cpu = crate::Cpu::new(1, 0);
    let (x, gradient) = (noise(1, 6 * 30), noise(2, 6 * 30));
    let (mut out, mut dx) = (vec![0.0; 180], noise(3, 180));
    let before = dx.clone();
    change(&cpu, drops(0.4), &x, &mut out);
    add_gradient(&cpu, drops(0.4), &gradient, &mut dx);
    for i in 0..180 {
        // The change is linear in x.
        let want = gradient[i].mul_add(out[i] / x[i], before[i]);
        assert!((dx[i] - want).abs() < 1e-5, "{i}: {} {want}", dx[i]);
    }
    assert_eq!(fingerprint(&out), 0x82c8_38c1_2e58_7db7);
}
