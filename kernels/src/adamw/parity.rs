//! Against the f64 definition over several updates, and bit-equal between machines.
use super::reference::{self, Hyper};
use super::{Step, cuda, step, sum_squares};
use crate::cuda::devices::{Memory, on_every_device};
use crate::testing::{bits, machines, noise, relative};

#[test]
fn updates_agree_with_the_definition_on_every_path() {
    let h = Hyper { betas: (0.9, 0.999), eps: 1e-8, decay: 0.1, rate: 1e-2, scale: 0.5 };
    for n in [1, 35, 40_000] {
        let start = noise(1, n);
        let mut want: Vec<_> = start.iter().map(|w| (f64::from(*w), 0.0, 0.0)).collect();
        for count in 1..=5 {
            let g = noise(10 + count as u64, n);
            want.iter_mut().zip(&g).for_each(|(state, g)| *state = reference::step(&h, count, *state, f64::from(*g)));
        }
        let mut first_bits = None;
        for cpu in machines() {
            let (mut w, mut m, mut v) = (start.clone(), vec![0.0; n], vec![0.0; n]);
            for count in 1..=5 {
                let mut g = noise(10 + count, n);
                step(&cpu, &Step::new(h.betas, h.eps, h.decay, h.rate, h.scale, count), &mut w, &mut g, &mut m, &mut v);
                assert!(g.iter().all(|g| *g == 0.0));
            }
            let column = |f: fn(&(f64, f64, f64)) -> f64| want.iter().map(f).collect::<Vec<_>>();
            assert!(relative(&w, &column(|s| s.0)) < 1e-6);
            assert!(relative(&m, &column(|s| s.1)) < 1e-6 && relative(&v, &column(|s| s.2)) < 1e-6);
            let all = (bits(&w), bits(&m), bits(&v));
            assert_eq!(first_bits.get_or_insert_with(|| all.clone()), &all);
        }
    }
}

#[test]
fn nothing_moves_without_gradient_and_decay() {
    let cpu = crate::Cpu::new(1, 0);
    let (mut w, mut g, mut m, mut v) = ([0.5, -0.0], [0.0; 2], [0.0; 2], [0.0; 2]);
    step(&cpu, &Step::new((0.9, 0.99), 1e-8, 0.0, 0.1, 1.0, 1), &mut w, &mut g, &mut m, &mut v);
    assert_eq!(w, [0.5, 0.0]);
}

#[test]
fn squares_are_summed_in_a_fixed_order() {
    for n in [0, 1, 100, 50_000] {
        let x = noise(3, n);
        let want: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
        let sums: Vec<u64> = machines().iter().map(|cpu| sum_squares(cpu, &x).to_bits()).collect();
        assert!(sums.iter().all(|s| *s == sums[0]));
        assert!((f64::from_bits(sums[0]) - want).abs() <= 1e-12 * want);
    }
    assert!(!sum_squares(&crate::Cpu::new(1, 0), &[1.0, f32::NAN]).is_finite());
}

/// The CUDA kernel does the CPU's operations one for one; only how products join sums may differ by a rounding.
fn cuda_agrees_with_the_definition<M: Memory>(device: &M) {
    let h = Hyper { betas: (0.9, 0.999), eps: 1e-8, decay: 0.1, rate: 1e-2, scale: 0.5 };
    for n in [1, 35, 1000] {
        let start = noise(1, n);
        let mut want: Vec<_> = start.iter().map(|w| (f64::from(*w), 0.0, 0.0)).collect();
        let (w, m, v) = (&mut device.upload(&start), &mut device.upload(&vec![0.0; n]), &mut device.upload(&vec![0.0; n]));
        for count in 1..=3 {
            let g = noise(10 + count, n);
            let next = |(state, g): (&mut _, &f32)| *state = reference::step(&h, count as i32, *state, f64::from(*g));
            want.iter_mut().zip(&g).for_each(next);
            let step = Step::new(h.betas, h.eps, h.decay, h.rate, h.scale, count);
            let moments = (&mut device.view_mut(m), &mut device.view_mut(v));
            cuda::step(device, &step, &device.view(&device.upload(&g)), &mut device.view_mut(w), moments).unwrap();
        }
        let column = |f: fn(&(f64, f64, f64)) -> f64| want.iter().map(f).collect::<Vec<_>>();
        assert!(relative(&device.download(w), &column(|s| s.0)) < 1e-6);
        assert!(relative(&device.download(m), &column(|s| s.1)) < 1e-6);
        assert!(relative(&device.download(v), &column(|s| s.2)) < 1e-6);
    }
}

on_every_device!(cuda_agrees_with_the_definition);
