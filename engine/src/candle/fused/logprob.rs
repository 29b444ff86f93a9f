//! Log-probs and entropies of rows of logits.
use super::indices::Indices;
use super::run::{Compute, Differentiable, run};
use crate::candle::place::Place;
use candle_core::{Result, Shape, Tensor};
use cohort_kernels::Cpu;
use cohort_kernels::head::{self, Target, Upstream};
use cohort_kernels::logprob::cuda::STATS;
use cohort_kernels::logprob::{self, RowStats};
#[cfg(feature = "cuda")]
use {
    candle_core::Error,
    candle_core::cuda_backend::cudarc::driver::{CudaView, CudaViewMut},
    cohort_kernels::cuda::Gpu,
    cohort_kernels::logprob::cuda::{self, Targets},
};

/// `logits, temperatures -> stats [STATS, rows]`, of which log-prob and entropy, the first two kinds, have gradients.
#[derive(Clone)]
pub(super) struct LogProb {
    pub(super) tokens: Indices<1>,
}

impl Compute<2, 1> for LogProb {
    const NAME: &'static str = "logprob";

    fn outputs(&self, [_, temperatures]: [&Shape; 2]) -> [Shape; 1] {
        [(STATS, temperatures.elem_count()).into()]
    }

    fn host(&self, cpu: &Cpu, [logits, temperatures]: [&[f32]; 2], [stats]: [&mut [f32]; 1]) -> Result<()> {
        let rows = temperatures.len();
        self.tokens.on_host(|[tokens]| {
            for (row, line) in logits.chunks_exact(logits.len() / rows.max(1)).enumerate() {
                let found = logprob::row(cpu.path(), line, temperatures[row]);
                let logp = line.get(tokens[row] as usize).map_or(f32::NAN, |logit| found.logp(*logit));
                let values = [logp, found.entropy, found.max, found.log_sum];
                values.into_iter().enumerate().for_each(|(kind, value)| stats[kind * rows + row] = value);
            }
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, inputs: [CudaView<'_, f32>; 2], [mut stats]: [CudaViewMut<'_, f32>; 1]) -> Result<()> {
        let [logits, temperatures] = inputs;
        self.tokens
            .on_gpu(|[tokens]| cuda::forward(gpu, &logits, &Targets { tokens, temperatures }, &mut stats).map_err(Error::wrap))
    }
}

impl Differentiable<2, 1> for LogProb {
    fn backward(
        &self,
        place: &Place,
        [logits, temperatures]: [&Tensor; 2],
        (stats, _): (&Tensor, &[Tensor]),
        up: &Tensor,
    ) -> Result<[Tensor; 2]> {
        let [d_logits] = run(place, &LogProbBackward(self.clone()), [logits, temperatures, stats, up])?;
        // Nobody asks for the temperatures' gradient.
        Ok([d_logits, temperatures.zeros_like()?])
    }
}

/// `logits, temperatures, stats, up -> d_logits`.
struct LogProbBackward(LogProb);

impl Compute<4, 1> for LogProbBackward {
    const NAME: &'static str = "logprob's way back";

    fn outputs(&self, [logits, ..]: [&Shape; 4]) -> [Shape; 1] {
        [logits.clone()]
    }

    fn host(&self, cpu: &Cpu, inputs: [&[f32]; 4], [d_logits]: [&mut [f32]; 1]) -> Result<()> {
        let [logits, temperatures, stats, up] = inputs;
        let rows = temperatures.len();
        d_logits.copy_from_slice(logits);
        self.0.tokens.on_host(|[tokens]| {
            for (row, line) in d_logits.chunks_exact_mut(logits.len() / rows.max(1)).enumerate() {
                let temperature = temperatures[row];
                let of = |kind: usize| stats[kind * rows + row];
                let found = RowStats { temperature, max: of(2), log_sum: of(3), entropy: of(1) };
                let target = Target { token: tokens[row], temperature };
                let up = Upstream { target, stats: found, d_logp: up[row], d_entropy: up[rows + row] };
                head::gradient(cpu.path(), up, 0, line);
            }
            Ok(())
        })
    }

    #[cfg(feature = "cuda")]
    fn gpu(&self, gpu: &Gpu, inputs: [CudaView<'_, f32>; 4], [mut d_logits]: [CudaViewMut<'_, f32>; 1]) -> Result<()> {
        let [logits, temperatures, stats, up] = inputs;
        self.0.tokens.on_gpu(|[tokens]| {
            let targets = Targets { tokens, temperatures };
            cuda::backward(gpu, &logits, &targets, &stats, &up, &mut d_logits).map_err(Error::wrap)
        })
    }
}
