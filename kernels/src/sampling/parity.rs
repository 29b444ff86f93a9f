//! Known answers for the generator, distribution tests, agreement with the definition away from borders.
use super::philox::philox;
use super::{Draw, argmax, categorical, reference, uniform};
use crate::Path;
use crate::logprob::{CHUNK, row};
use crate::testing::noise;

#[test]
fn philox_gives_the_published_answers() {
    assert_eq!(philox([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let (key, counter) = ([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
    assert_eq!(philox(key, counter), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

#[test]
fn every_part_of_the_key_matters() {
    let draw = Draw { group: 1 << 40, sample: 3, position: 9, purpose: 1 };
    let others = [
        uniform(2, draw),
        uniform(1, Draw { group: 2 << 40, ..draw }),
        uniform(1, Draw { sample: 4, ..draw }),
        uniform(1, Draw { position: 10, ..draw }),
        uniform(1, Draw { purpose: 2, ..draw }),
    ];
    let value = uniform(1, draw);
    assert_eq!(value, uniform(1, draw));
    assert!(others.iter().all(|o| *o != value));
}

#[test]
fn uniforms_are_uniform() {
    let n = 20_000;
    let draws = (0..n).map(|position| uniform(7, Draw { group: 0, sample: 0, position, purpose: 0 }));
    let mut bins = [0u32; 20];
    for u in draws {
        assert!(u > 0.0 && u < 1.0);
        bins[(u * 20.0) as usize] += 1;
    }
    let expected = f64::from(n) / 20.0;
    let chi2: f64 = bins.iter().map(|b| (f64::from(*b) - expected).powi(2) / expected).sum();
    assert!(chi2 < 43.8, "chi-squared {chi2} of 19 degrees of freedom (p = 0.001)");
}

#[test]
fn draws_follow_the_definition_on_every_path() {
    for n in [1, 20, CHUNK, 2 * CHUNK + 77] {
        let logits: Vec<f32> = noise(n as u64, n).iter().map(|x| 6.0 * x).collect();
        for i in 0..300 {
            let u = uniform(3, Draw { group: n as u64, sample: 0, position: i, purpose: 0 });
            let (want, distance) = reference::categorical(&logits, 0.9, u);
            for path in Path::available() {
                let got = categorical(path, &logits, &row(path, &logits, 0.9), u);
                assert!(got == want || distance < 1e-6, "{path} {n}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn extreme_draws_stay_among_possible_tokens() {
    let mut logits = vec![f32::NEG_INFINITY; CHUNK + 40];
    (logits[7], logits[CHUNK + 2]) = (0.0, 0.0);
    let stats = row(Path::detect(), &logits, 1.0);
    let at = |u| categorical(Path::detect(), &logits, &stats, u);
    assert_eq!((at(1e-300), at(0.499), at(0.501), at(1.0 - 1e-16)), (7, 7, CHUNK as u32 + 2, CHUNK as u32 + 2));
}

#[test]
fn argmax_takes_the_lowest_of_equals() {
    assert_eq!(argmax(&[1.0, 3.0, 3.0, f32::NAN]), 1);
    assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), 0);
}
