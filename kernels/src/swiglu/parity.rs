//! Against the f64 definition (tolerance: a few roundings), and bit-equal between machines.
use super::{backward, cuda, forward, reference};
use crate::cuda::devices::{Memory, on_every_device};
use crate::testing::{bits, machines, noise, relative};

#[test]
fn both_directions_agree_with_the_definition_on_every_path() {
    for n in [1, 17, 9000] {
        let gate: Vec<f32> = noise(1, n).iter().map(|x| 12.0 * x).collect();
        let (up, dh) = (noise(2, n), noise(3, n));
        let mut first = None;
        for cpu in machines() {
            let mut h = vec![0.0; n];
            forward(&cpu, &gate, &up, &mut h);
            assert!(relative(&h, &reference::forward(&gate, &up)) < 1e-6);
            let (mut d_gate, mut d_up) = (gate.clone(), up.clone());
            backward(&cpu, &dh, &mut d_gate, &mut d_up);
            let want = reference::backward(&dh, &gate, &up);
            assert!(relative(&d_gate, &want.0) < 2e-6 && relative(&d_up, &want.1) < 1e-6, "{n}");
            let all = (bits(&h), bits(&d_gate), bits(&d_up));
            assert_eq!(first.get_or_insert_with(|| all.clone()), &all);
        }
    }
}

#[test]
fn large_gates_saturate_without_nan() {
    let cpu = crate::Cpu::new(1, 0);
    let mut h = [0.0; 2];
    forward(&cpu, &[-1e4, 1e4], &[1.0, 1.0], &mut h);
    assert_eq!(h, [0.0, 1e4]);
    let (mut gate, mut up) = ([-1e4, 1e4], [1.0, 1.0]);
    backward(&cpu, &[1.0, 1.0], &mut gate, &mut up);
    assert_eq!(gate, [0.0, 1.0]);
}

/// The CUDA kernels (tolerance: a few roundings, and an exponential within 2 units in the last place).
fn cuda_agrees_with_the_definition<M: Memory>(device: &M) {
    for n in [1, 17, 256, 1000] {
        let mut gate: Vec<f32> = noise(1, n).iter().map(|x| 12.0 * x).collect();
        gate[0] = -1e4; // its silu is zero, not NaN
        let (up, dh) = (noise(2, n), noise(3, n));
        let (gates, ups, dhs) = (device.upload(&gate), device.upload(&up), device.upload(&dh));
        let (h, d_gate, d_up) = (&mut device.blank(n), &mut device.blank(n), &mut device.blank(n));
        let (gate_view, up_view) = (device.view(&gates), device.view(&ups));
        let inputs = (&gate_view, &up_view);
        cuda::forward(device, inputs.0, inputs.1, &mut device.view_mut(h)).unwrap();
        assert!(relative(&device.download(h), &reference::forward(&gate, &up)) < 1e-6);
        let dh_view = device.view(&dhs);
        cuda::backward(device, &dh_view, inputs, (&mut device.view_mut(d_gate), &mut device.view_mut(d_up))).unwrap();
        let want = reference::backward(&dh, &gate, &up);
        assert!(relative(&device.download(d_gate), &want.0) < 2e-6 && relative(&device.download(d_up), &want.1) < 1e-6, "{n}");
    }
}

on_every_device!(cuda_agrees_with_the_definition);
