//! What this machine can do: the roof under which the other figures stand.
use cohort_kernels::{Cpu, Format, ceiling};
use serde_json::{Value, json};
use std::hint::black_box;
use std::time::Instant;

/// Streaming reads and multiply-adds of all threads.
pub(crate) fn measure(threads: usize) -> Value {
    json!({
        "read_gb_per_s": reads(threads),
        "gflop_per_s": multiply_adds(threads, Format::F32),
        "bf16_gflop_per_s": multiply_adds(threads, Format::Bf16),
        "int8_gop_per_s": multiply_adds(threads, Format::Int8),
    })
}

/// Operands in the first-level cache, GFLOP/s.
fn multiply_adds(threads: usize, format: Format) -> f64 {
    let cpu = Cpu::new(threads, 0);
    let rate = |_| {
        let start = Instant::now();
        ceiling(&cpu, format, 20_000) / start.elapsed().as_secs_f64() / 1e9
    };
    (0..5).map(rate).fold(0.0, f64::max)
}

/// GB/s.
fn reads(threads: usize) -> f64 {
    let words = vec![1u64; 1 << 26];
    let mut best = 0f64;
    for _ in 0..5 {
        let start = Instant::now();
        let total: u64 = std::thread::scope(|scope| {
            let parts: Vec<_> = words
                .chunks(words.len().div_ceil(threads))
                .map(|part| scope.spawn(move || part.iter().fold(0u64, |a, b| a.wrapping_add(*b))))
                .collect();
            parts.into_iter().filter_map(|p| p.join().ok()).fold(0, u64::wrapping_add)
        });
        black_box(total);
        best = best.max((words.len() * 8) as f64 / start.elapsed().as_secs_f64() / 1e9);
    }
    best
}
