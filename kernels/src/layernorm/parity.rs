//! Against the f64 definition (tolerance: a few roundings of a sum of `n`), and bit-equal between machines.
use super::{Affine, Backward, backward, forward, reference};
use crate::testing::{bits, machines, noise, relative};

#[test]
fn both_directions_agree_with_the_definition_on_every_path() {
    for (rows, n) in [(1, 2), (3, 7), (5, 64), (40, 33), (17, 300)] {
        // Off centre, so that the mean matters.
        let x: Vec<f32> = noise(1, rows * n).iter().map(|x| x + 0.5).collect();
        let (weight, bias, dy) = (noise(2, n), noise(4, n), noise(3, rows * n));
        let mut first = None;
        for cpu in machines() {
            let (mut y, mut rstd) = (vec![0.0; rows * n], vec![0.0; rows]);
            forward(&cpu, &x, Affine { weight: &weight, bias: &bias, eps: 1e-5 }, &mut y, &mut rstd);
            let want = reference::forward(&x, &weight, &bias, 1e-5);
            assert!(relative(&y, &want.0) < 1e-6 && relative(&rstd, &want.1) < 1e-6, "{rows} x {n}");

            let (mut dx, mut dw) = (vec![0.0; rows * n], vec![0.0; n]);
            backward(&cpu, Backward { dy: &dy, x: &x, weight: &weight, rstd: &rstd, dx: &mut dx, d_weight: &mut dw });
            let want = reference::backward(&dy, &x, &weight, 1e-5);
            if n > 2 {
                assert!(relative(&dx, &want.0) < 1e-5, "dx of {rows} x {n}");
            }
            assert!(relative(&dw, &want.1) < 1e-5, "dw of {rows} x {n}");
            let all = [bits(&y), bits(&rstd), bits(&dx), bits(&dw)];
            assert_eq!(first.get_or_insert_with(|| all.clone()), &all, "{} {rows} x {n}", cpu.path());
        }
    }
}

#[test]
fn gradients_are_added() {
    let cpu = crate::Cpu::new(1, 0);
    let (mut dx, mut dw) = (vec![5.0; 4], vec![7.0; 4]);
    let job = Backward { dy: &[0.0; 4], x: &[1.0; 4], weight: &[1.0; 4], rstd: &[1.0], dx: &mut dx, d_weight: &mut dw };
    backward(&cpu, job);
    assert_eq!((dx, dw), (vec![5.0; 4], vec![7.0; 4]));
}
