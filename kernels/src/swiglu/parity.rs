//! Against the f64 definition (tolerance: a few roundings), and bit-equal between machines.
use super::{backward, forward, reference};
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
