//! Against the f64 definition (tolerance: roundings of z and of lane sums), and bit-equal between paths.
use super::cuda::{self, Targets};
use super::{CHUNK, reference, row};
use crate::Path;
use crate::cuda::devices::{Memory, on_every_device};
use crate::testing::{fingerprint, noise, relative};

fn logits(seed: u64, n: usize) -> Vec<f32> {
    noise(seed, n).iter().map(|x| 20.0 * x).collect()
}

#[test]
fn rows_agree_with_the_definition_on_every_path() {
    for n in [1, 2, 17, CHUNK, CHUNK + 1, 3 * CHUNK + 700] {
        for temperature in [1.0, 0.7, 3.0] {
            let logits = logits(n as u64, n);
            let (want, entropy) = reference::row(&logits, f64::from(temperature));
            let mut first = None;
            for path in Path::available() {
                let stats = row(path, &logits, temperature);
                assert_eq!(*first.get_or_insert(stats), stats, "{path}");
                assert!((f64::from(stats.entropy) - entropy).abs() < 1e-5 * entropy.max(1.0), "{n}: {stats:?} {entropy}");
                for (logit, want) in logits.iter().zip(&want) {
                    assert!((f64::from(stats.logp(*logit)) - want).abs() < 1e-5, "{n}");
                }
            }
        }
    }
}

#[test]
fn excluded_tokens_have_no_weight_even_by_whole_chunks() {
    let mut logits = vec![f32::NEG_INFINITY; 2 * CHUNK + 5];
    (logits[CHUNK + 3], logits[2 * CHUNK + 4]) = (1.0, 1.0);
    let stats = row(Path::detect(), &logits, 1.0);
    assert_eq!((stats.log_sum, stats.logp(1.0)), (std::f32::consts::LN_2, -std::f32::consts::LN_2));
    assert_eq!(stats.entropy, std::f32::consts::LN_2);
}

#[test]
fn what_is_no_distribution_is_not_finite() {
    for bad in [f32::NAN, f32::INFINITY] {
        let mut values = logits(1, 100);
        values[60] = bad;
        assert!(!row(Path::detect(), &values, 1.0).log_sum.is_finite(), "{bad}");
        assert!(!row(Path::detect(), &[bad], 1.0).log_sum.is_finite(), "{bad}");
    }
    assert!(!row(Path::detect(), &[f32::NEG_INFINITY; 20], 1.0).log_sum.is_finite());
}

#[test]
fn bits_are_the_committed_ones() {
    let stats = row(Path::detect(), &logits(5, 5000), 0.8);
    assert_eq!(fingerprint(&[stats.max, stats.log_sum, stats.entropy]), 0x6c23_0725_eb81_f7e6);
}

/// The CUDA kernels, both ways (tolerance as above: roundings of z and of sums; the gradient's by its largest value).
fn cuda_agrees_with_the_definition<M: Memory>(device: &M) {
    for (rows, vocab) in [(1, 1), (3, 37), (5, 700), (2, 5003)] {
        let all = logits(vocab as u64, rows * vocab);
        let tokens: Vec<u32> = (0..rows).map(|r| (r * 977 % vocab) as u32).collect();
        let temperatures: Vec<f32> = (0..rows).map(|r| [1.0, 0.7, 3.0][r % 3]).collect();
        // Gradients of the two other statistics are none.
        let up = [noise(3, 2 * rows), vec![0.0; 2 * rows]].concat();
        let (uploaded, tokens_, temperatures_, ups) =
            (device.upload(&all), device.upload(&tokens), device.upload(&temperatures), device.upload(&up));
        let targets = Targets { tokens: device.view(&tokens_), temperatures: device.view(&temperatures_) };
        let (stats, d_logits) = (&mut device.blank(4 * rows), &mut device.blank(all.len()));
        let view = device.view(&uploaded);
        cuda::forward(device, &view, &targets, &mut device.view_mut(stats)).unwrap();
        let forward = device.download(stats);
        let (stats, ups) = (device.view(stats), device.view(&ups));
        cuda::backward(device, &view, &targets, &stats, &ups, &mut device.view_mut(d_logits)).unwrap();
        let backward = device.download(d_logits);
        for r in 0..rows {
            let row: Vec<f64> = all[r * vocab..][..vocab].iter().map(|l| f64::from(*l)).collect();
            let (d_logp, d_entropy) = (f64::from(up[r]), f64::from(up[rows + r]));
            let want = crate::head::reference::target(&row, tokens[r] as usize, f64::from(temperatures[r]), d_logp, d_entropy);
            assert!((f64::from(forward[r]) - want.0).abs() < 1e-5, "log-prob {r} of {vocab}: {} {}", forward[r], want.0);
            assert!((f64::from(forward[rows + r]) - want.1).abs() < 1e-5 * want.1.max(1.0), "entropy {r} of {vocab}");
            let off = relative(&backward[r * vocab..][..vocab], &want.2);
            assert!(vocab == 1 || off < 1e-5, "gradient {r} of {vocab}: {off}");
        }
    }
}

/// Excluded tokens weigh nothing, also where a whole thread sees no other; what is no distribution is not finite; a token
/// outside the vocabulary gives NaN.
fn cuda_keeps_the_odd_rows<M: Memory>(device: &M) {
    let vocab = 600;
    let excluded: Vec<f32> = (0..vocab).map(|v| if v == 3 || v == 599 { 1.0 } else { f32::NEG_INFINITY }).collect();
    let mut broken = logits(1, vocab);
    broken[60] = f32::NAN;
    let mut endless = logits(2, vocab);
    endless[400] = f32::INFINITY;
    let rows = [excluded.clone(), excluded, broken, endless, vec![f32::NEG_INFINITY; vocab]].concat();
    let (rows, tokens, temperatures) = (device.upload(&rows), device.upload(&[599, 600, 1, 1, 1]), device.upload(&[1.0; 5]));
    let targets = Targets { tokens: device.view(&tokens), temperatures: device.view(&temperatures) };
    let (stats, d_logits) = (&mut device.blank(20), &mut device.blank(5 * vocab));
    cuda::forward(device, &device.view(&rows), &targets, &mut device.view_mut(stats)).unwrap();
    let values = device.download(stats);
    let ln2 = std::f32::consts::LN_2;
    assert!((values[0] + ln2).abs() < 1e-6 && (values[5] - ln2).abs() < 1e-6, "{values:?}");
    assert!(values[1].is_nan() && values[2..5].iter().all(|logp| !logp.is_finite()), "{values:?}");
    let up = device.upload(&[1.0; 20]);
    let (rows, stats, up) = (device.view(&rows), device.view(stats), device.view(&up));
    cuda::backward(device, &rows, &targets, &stats, &up, &mut device.view_mut(d_logits)).unwrap();
    let first = &device.download(d_logits)[..vocab];
    assert!(first.iter().enumerate().all(|(v, d)| if v == 3 || v == 599 { d.is_finite() } else { *d == 0.0 }));
}

on_every_device!(cuda_agrees_with_the_definition, cuda_keeps_the_odd_rows);
