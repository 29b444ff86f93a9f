//! Against the f64 definition (tolerance: a few roundings of a sum of `n`), and bit-equal between machines.
use super::{Backward, backward, cuda, forward, reference};
use crate::cuda::devices::{Memory, on_every_device};
use crate::testing::{bits, machines, noise, relative};

#[test]
fn both_directions_agree_with_the_definition_on_every_path() {
    for (rows, n) in [(1, 1), (3, 7), (5, 64), (40, 33), (17, 300)] {
        let (x, w, dy) = (noise(1, rows * n), noise(2, n), noise(3, rows * n));
        let mut first = None;
        for cpu in machines() {
            let (mut y, mut rstd) = (vec![0.0; rows * n], vec![0.0; rows]);
            forward(&cpu, &x, &w, 1e-5, &mut y, &mut rstd);
            let want = reference::forward(&x, &w, 1e-5);
            assert!(relative(&y, &want.0) < 1e-6 && relative(&rstd, &want.1) < 1e-6);

            let (mut dx, mut dw) = (vec![0.0; rows * n], vec![0.0; n]);
            let job = Backward { dy: &dy, x: &x, weight: &w, rstd: &rstd, dx: &mut dx, d_weight: &mut dw };
            backward(&cpu, job);
            let want = reference::backward(&dy, &x, &w, 1e-5);
            if n > 1 {
                assert!(relative(&dx, &want.0) < 1e-5, "dx of {rows} x {n}");
            }
            assert!(relative(&dw, &want.1) < 1e-5, "dw of {rows} x {n}");
            let all = (bits(&y), bits(&rstd), bits(&dx), bits(&dw));
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

/// The CUDA kernels: sums of other shapes than the CPU's, so the same tolerances.
fn cuda_agrees_with_the_definition<M: Memory>(device: &M) {
    for (rows, width) in [(1, 1), (3, 7), (2, 64), (131, 33), (260, 3), (2, 1500)] {
        let (x, delta, w, dy) = (noise(1, rows * width), noise(4, rows * width), noise(2, width), noise(3, rows * width));
        let on = |values: &[f32]| device.upload(values);
        let (dx_, dw_, xs, ws, dys) = (&mut device.blank(rows * width), &mut device.blank(width), on(&x), on(&w), on(&dy));
        let y = &mut device.blank(rows * width);
        cuda::forward(device, &device.view(&xs), &device.view(&ws), 1e-5, &mut device.view_mut(y)).unwrap();
        let want = reference::forward(&x, &w, 1e-5).0;
        assert!(relative(&device.download(y), &want) < 1e-6, "{rows} x {width}");

        let (rstd, parts) = cuda::scratch_len(rows, width);
        let (rstd, parts) = (&mut device.blank(rstd), &mut device.blank(parts));
        cuda::backward(
            device,
            (&device.view(&dys), &device.view(&xs)),
            &device.view(&ws),
            1e-5,
            (&mut device.view_mut(dx_), &mut device.view_mut(dw_)),
            (&mut device.view_mut(rstd), &mut device.view_mut(parts)),
        )
        .unwrap();
        let want = reference::backward(&dy, &x, &w, 1e-5);
        // With one value a row x_hat is a sign: the exact gradient is next to nothing.
        assert!(width == 1 || relative(&device.download(dx_), &want.0) < 1e-5, "dx of {rows} x {width}");
        assert!(relative(&device.download(dw_), &want.1) < 1e-5, "dw of {rows} x {width}");

        let sum = &mut device.blank(rows * width);
        let (xs, deltas) = (on(&x), on(&delta));
        let (x_view, delta_view) = (device.view(&xs), device.view(&deltas));
        let w_view = device.view(&ws);
        let (to, norm) = (&mut *sum, &mut *y);
        cuda::forward_add(device, (&x_view, &delta_view), &w_view, 1e-5, &mut device.view_mut(to), &mut device.view_mut(norm))
            .unwrap();
        let added: Vec<f32> = x.iter().zip(&delta).map(|(x, d)| x + d).collect();
        assert_eq!(bits(&device.download(sum)), bits(&added));
        assert!(relative(&device.download(y), &reference::forward(&added, &w, 1e-5).0) < 1e-6, "{rows} x {width}");
    }
}

on_every_device!(cuda_agrees_with_the_definition);
