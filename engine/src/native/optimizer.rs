//! What training adds to the parameters: gradients, moments, and the update.
use super::layout::Layout;
use crate::{AdamW, EngineError};
use cohort_kernels::adamw::{self, Step};
use cohort_kernels::{Buffer, Cpu};

/// Arenas in the layout of the parameters; each exists from its first use on, so that a sampler pays for none.
#[derive(Debug, Default)]
pub(super) struct Training {
    gradients: Buffer,
    first: Buffer,
    second: Buffer,
    pub(super) updates: u64,
    /// Norm of the gradients as they are now, if known.
    norm: Option<f64>,
}

impl Training {
    /// Accumulated gradients, about to change.
    pub(super) fn gradients_mut(&mut self, layout: &Layout) -> &mut [f32] {
        self.norm = None;
        self.gradients.reserve(layout.len());
        &mut self.gradients
    }

    /// Accumulated gradients, unless there never were any.
    pub(super) fn gradients(&self) -> Option<&[f32]> {
        (!self.gradients.is_empty()).then_some(&self.gradients[..])
    }

    /// Both moments, unless there never was an update.
    pub(super) fn moments(&self) -> Option<(&[f32], &[f32])> {
        (!self.first.is_empty()).then_some((&self.first[..], &self.second[..]))
    }

    /// Both moments, about to be replaced.
    pub(super) fn moments_mut(&mut self, layout: &Layout) -> (&mut [f32], &mut [f32]) {
        self.first.reserve(layout.len());
        self.second.reserve(layout.len());
        (&mut self.first, &mut self.second)
    }

    /// No moments, no updates.
    pub(super) fn reset(&mut self) {
        (self.first, self.second, self.updates) = (Buffer::default(), Buffer::default(), 0);
    }

    pub(super) fn zero(&mut self, cpu: &Cpu) {
        cpu.pool().parts(&mut self.gradients, 1 << 18, |_, part| part.fill(0.0));
        self.norm = None;
    }

    /// Global norm of the gradients; 0 before the first backward pass.
    pub(super) fn norm(&mut self, cpu: &Cpu) -> f64 {
        *self.norm.get_or_insert_with(|| adamw::sum_squares(cpu, &self.gradients).sqrt())
    }

    /// One update of all parameters; refuses before it changes anything.
    pub(super) fn update(
        &mut self,
        cpu: &Cpu,
        layout: &Layout,
        weights: &mut [f32],
        optimizer: &AdamW,
        lr: f64,
        scale: f64,
    ) -> Result<(), EngineError> {
        check(optimizer, lr, scale)?;
        let norm = self.norm(cpu);
        if !(norm * scale).is_finite() {
            let name = self.first_broken(layout).unwrap_or("all of them together");
            return Err(EngineError::NonFinite(format!(
                "gradient norm is {norm} (scale {scale}), first in {name}; nothing was changed: drop the step, or lower the \
                 learning rate or the gradient clip"
            )));
        }
        self.gradients.reserve(layout.len());
        self.moments_mut(layout);
        self.updates += 1;
        let betas = (optimizer.beta1, optimizer.beta2);
        for slot in layout.slots() {
            let decay = if slot.matrix().is_some() { optimizer.weight_decay } else { 0.0 };
            let step = Step::new(betas, optimizer.eps, decay, lr, scale, self.updates);
            let at = || slot.range.clone();
            let moments = (&mut self.first[at()], &mut self.second[at()]);
            adamw::step(cpu, &step, &mut weights[at()], &mut self.gradients[at()], moments.0, moments.1);
        }
        self.norm = None;
        Ok(())
    }

    /// The first tensor whose gradient is not finite.
    fn first_broken<'a>(&self, layout: &'a Layout) -> Option<&'a str> {
        let broken = |range: std::ops::Range<usize>| !super::forward::finite(&self.gradients[range]);
        layout.slots().iter().find(|slot| broken(slot.range.clone())).map(|slot| slot.name.as_str())
    }
}

fn check(optimizer: &AdamW, lr: f64, scale: f64) -> Result<(), EngineError> {
    let AdamW { beta1, beta2, eps, weight_decay } = *optimizer;
    let unit = |x: f64| (0.0..1.0).contains(&x);
    let at_least_zero = |x: f64| x.is_finite() && x >= 0.0;
    if unit(beta1) && unit(beta2) && at_least_zero(eps) && at_least_zero(weight_decay) && at_least_zero(lr) && scale.is_finite() {
        return Ok(());
    }
    Err(EngineError::Input(format!(
        "AdamW with betas {beta1}, {beta2}, eps {eps}, weight decay {weight_decay}, learning rate {lr}, gradient scale {scale}: \
         betas must lie in [0, 1), the rest must be finite and not negative"
    )))
}
