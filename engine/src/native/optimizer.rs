//! What training adds to the parameters: gradients, moments, and the update.
use super::layout::Layout;
use crate::{AdamW, EngineError, Partition};
use cohort_kernels::adamw::{self, Step};
use cohort_kernels::{Buffer, Cpu};
use cohort_model::WeightSet;
use std::ops::{ControlFlow, Range};

/// Values of a task that clears gradients.
const PART: usize = 1 << 18;

/// Arenas in the layout of the parameters, the moments' the part of it that this engine keeps; each exists from its first use on, so that a sampler pays for none.
#[derive(Debug)]
pub(super) struct Training {
    gradients: Buffer,
    partition: Partition,
    first: Buffer,
    second: Buffer,
    pub(super) updates: u64,
    /// Norm of the gradients as they are now, if known.
    norm: Option<f64>,
}

impl Default for Training {
    fn default() -> Self {
        let (gradients, first, second) = Default::default();
        Self { gradients, partition: Partition::WHOLE, first, second, updates: 0, norm: None }
    }
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

    /// Which part of the moments is kept.
    pub(super) fn partition(&self) -> Partition {
        self.partition
    }

    /// Both moments, unless there never was an update.
    pub(super) fn moments(&self) -> Option<(&[f32], &[f32])> {
        (!self.first.is_empty()).then_some((&self.first[..], &self.second[..]))
    }

    /// Both moments, about to be replaced.
    pub(super) fn moments_mut(&mut self, layout: &Layout) -> (&mut [f32], &mut [f32]) {
        let len = self.partition.range(layout.len()).len();
        self.first.reserve(len);
        self.second.reserve(len);
        (&mut self.first, &mut self.second)
    }

    /// No moments, no updates; from now on of this part.
    pub(super) fn reset(&mut self, partition: Partition) {
        (self.first, self.second, self.updates, self.partition) = (Buffer::default(), Buffer::default(), 0, partition);
    }

    /// Frees all moments but those of a part. One after the other: both are never there twice.
    pub(super) fn cut(&mut self, layout: &Layout, partition: Partition) {
        let range = partition.range(layout.len());
        for moment in [&mut self.first, &mut self.second].into_iter().filter(|moment| !moment.is_empty()) {
            let mut kept = Buffer::zeroed(range.len());
            kept.copy_from_slice(&moment[range.clone()]);
            *moment = kept;
        }
        self.partition = partition;
    }

    /// A part of the moments that are kept, first and second; `None` where it is not kept, or there never was an update.
    pub(super) fn moments_of(&mut self, layout: &Layout, part: Partition) -> Option<[&mut [f32]; 2]> {
        let (range, kept) = (part.range(layout.len()), self.partition.range(layout.len()));
        let known = self.partition == part || self.partition == Partition::WHOLE;
        if self.updates == 0 || self.first.is_empty() || !known {
            return None;
        }
        let range = range.start - kept.start..range.end - kept.start;
        Some([&mut self.first[range.clone()], &mut self.second[range]])
    }

    /// The canonical form of all moments; `fill` completes each of them in the memory of the gradients, which are zero before and after.
    pub(super) fn gather(
        &mut self,
        cpu: &Cpu,
        layout: &Layout,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> (WeightSet, WeightSet) {
        if self.updates == 0 || self.first.is_empty() {
            return (layout.zeros(), layout.zeros());
        }
        self.gradients.reserve(layout.len());
        let kept = self.partition.range(layout.len());
        let whole = &mut self.gradients[..layout.len()];
        let mut sets = [WeightSet::default(), WeightSet::default()];
        for (set, moment) in sets.iter_mut().zip([&self.first, &self.second]) {
            whole.fill(0.0);
            whole[kept.clone()].copy_from_slice(moment);
            if fill(whole).is_break() {
                break;
            }
            *set = layout.unpack(cpu, whole);
        }
        whole.fill(0.0);
        self.norm = None;
        let [first, second] = sets;
        (first, second)
    }

    pub(super) fn zero(&mut self, cpu: &Cpu) {
        cpu.pool().parts(&mut self.gradients, PART, |_, part| part.fill(0.0));
        self.norm = None;
    }

    /// Global norm of the gradients; 0 before the first backward pass.
    pub(super) fn norm(&mut self, cpu: &Cpu) -> f64 {
        *self.norm.get_or_insert_with(|| adamw::sum_squares(cpu, &self.gradients).sqrt())
    }

    /// One update of the parameters whose moments are kept; refuses before it changes anything.
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
        let kept = self.partition.range(layout.len());
        for slot in layout.slots() {
            let at = slot.range.start.max(kept.start)..slot.range.end.min(kept.end);
            if at.is_empty() {
                continue;
            }
            let decay = if slot.matrix().is_some() { optimizer.weight_decay } else { 0.0 };
            let step = Step::new(betas, optimizer.eps, decay, lr, scale, self.updates);
            let own = at.start - kept.start..at.end - kept.start;
            let moments = (&mut self.first[own.clone()], &mut self.second[own]);
            adamw::step(cpu, &step, &mut weights[at.clone()], &mut self.gradients[at], moments.0, moments.1);
        }
        for others in [0..kept.start, kept.end..layout.len()] {
            cpu.pool().parts(&mut self.gradients[others], PART, |_, part| part.fill(0.0));
        }
        self.norm = None;
        Ok(())
    }

    /// The first tensor whose gradient is not finite.
    fn first_broken<'a>(&self, layout: &'a Layout) -> Option<&'a str> {
        let broken = |range: Range<usize>| !super::forward::finite(&self.gradients[range]);
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
