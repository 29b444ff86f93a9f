//! Weights, gradients and moments by name, and AdamW on them.
use super::adamw::{self, Moments};
use super::decoder::{Block, Linear, Network, Norm};
use super::place::Place;
use crate::{AdamW, Partition};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use cohort_kernels::adamw::Step;
use cohort_model::{DecoderSpec, Tensor as Canonical, WeightSet};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Tensors by canonical name.
type Named = BTreeMap<String, Tensor>;

/// Everything that an engine trains. Gradients and moments exist from their first use on.
pub(super) struct Parameters {
    place: Arc<Place>,
    weights: BTreeMap<String, Var>,
    layers: usize,
    gradients: Named,
    /// Of each weight the part that is kept.
    moments: BTreeMap<String, Moments>,
    partition: Partition,
    updates: u64,
}

impl Parameters {
    pub(super) fn zeros(spec: &DecoderSpec, device: &Device, place: &Arc<Place>) -> Result<Self> {
        let zero = |shape: Vec<usize>| Var::zeros(shape, DType::F32, device);
        let weights = spec.tensors().into_iter().map(|t| Ok((t.name, zero(t.shape)?))).collect::<Result<_>>()?;
        let (gradients, moments, partition) = (Named::new(), BTreeMap::new(), Partition::WHOLE);
        Ok(Self { place: place.clone(), weights, layers: spec.layers, gradients, moments, partition, updates: 0 })
    }

    /// The network's tensors; `track` keeps the graph that gradients need.
    pub(super) fn network(&self, track: bool) -> Result<Network> {
        let maybe = |name: &str| {
            let tensor = self.weights.get(name)?.as_tensor();
            Some(if track { tensor.clone() } else { tensor.detach() })
        };
        let get = |name: &str| maybe(name).ok_or_else(|| candle_core::Error::msg(format!("no tensor {name}")));
        let linear = |stem: &str| -> Result<Linear> {
            Ok(Linear { weight: get(&format!("{stem}.weight"))?, bias: maybe(&format!("{stem}.bias")) })
        };
        let norm = |stem: &str| -> Result<Norm> {
            Ok(Norm { weight: get(&format!("{stem}.weight"))?, bias: maybe(&format!("{stem}.bias")) })
        };
        let block = |layer: usize| -> Result<Block> {
            let name = |part: &str| format!("model.layers.{layer}.{part}");
            let gate = self.weights.contains_key(&name("mlp.gate_proj.weight"));
            Ok(Block {
                attention_norm: norm(&name("input_layernorm"))?,
                query: linear(&name("self_attn.q_proj"))?,
                key: linear(&name("self_attn.k_proj"))?,
                value: linear(&name("self_attn.v_proj"))?,
                query_norm: maybe(&name("self_attn.q_norm.weight")),
                key_norm: maybe(&name("self_attn.k_norm.weight")),
                output: linear(&name("self_attn.o_proj"))?,
                mlp_norm: norm(&name("post_attention_layernorm"))?,
                gate: gate.then(|| linear(&name("mlp.gate_proj"))).transpose()?,
                up: linear(&name("mlp.up_proj"))?,
                down: linear(&name("mlp.down_proj"))?,
            })
        };
        let embedding = get("model.embed_tokens.weight")?;
        Ok(Network {
            positions: maybe("model.embed_positions.weight"),
            blocks: (0..self.layers).map(block).collect::<Result<_>>()?,
            norm: norm("model.norm")?,
            head: maybe("lm_head.weight").unwrap_or_else(|| embedding.clone()),
            embedding,
        })
    }

    pub(super) fn import(&mut self, weights: &WeightSet) -> Result<()> {
        // All on the device before the first is replaced: a failure changes nothing.
        let device = self.device();
        let staged = self.weights.keys().map(|name| upload(weights, name, &device)).collect::<Result<Vec<_>>>()?;
        self.weights.values().zip(staged).try_for_each(|(var, tensor)| var.set(&tensor))
    }

    pub(super) fn export(&self) -> Result<WeightSet> {
        download(self.weights.iter().map(|(name, var)| (name, var.as_tensor())))
    }

    /// A sum of gradients that starts from the accumulated ones and becomes them when it is complete.
    pub(super) fn accumulation(&self) -> Accumulation {
        let variables = self.weights.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        Accumulation { variables, sum: self.gradients.clone() }
    }

    pub(super) fn set_gradients(&mut self, gradients: Named) {
        self.gradients = gradients;
    }

    pub(super) fn zero_grad(&mut self) {
        self.gradients.clear();
    }

    pub(super) fn grad_norm(&self) -> Result<f64> {
        let squares = self.gradients.values().map(|g| g.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>());
        Ok(squares.sum::<Result<f64>>()?.sqrt())
    }

    pub(super) fn gradients(&self) -> Result<WeightSet> {
        if self.gradients.is_empty() {
            let zeros = |var: &Var| Canonical { shape: var.dims().to_vec(), data: vec![0.0; var.elem_count()] };
            return Ok(WeightSet(self.weights.iter().map(|(name, var)| (name.clone(), zeros(var))).collect()));
        }
        download(self.gradients.iter())
    }

    /// Through the host's memory, tensor by tensor in the order of their names.
    pub(super) fn each_gradient(&mut self, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<()> {
        for (name, var) in &self.weights {
            let mut values = match self.gradients.get(name) {
                Some(gradient) => gradient.flatten_all()?.to_vec1::<f32>()?,
                None => vec![0.0; var.elem_count()],
            };
            let flow = visit(&mut values);
            self.gradients.insert(name.clone(), Tensor::from_vec(values, var.dims(), var.device())?);
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// In place: a device that fails on the way leaves some weights new and some old. Where a part of the moments is kept, only
    /// its weights change, and `exchange` writes the others, tensor by tensor, through the host's memory.
    pub(super) fn update(
        &mut self,
        optimizer: &AdamW,
        (lr, grad_scale): (f64, f64),
        exchange: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<()> {
        let AdamW { beta1, beta2, eps, weight_decay } = *optimizer;
        self.updates += 1;
        for (name, var) in &self.weights {
            let range = self.partition.range(var.elem_count());
            let decay = if var.rank() > 1 { weight_decay } else { 0.0 };
            let step = Step::new((beta1, beta2), eps, decay, lr, grad_scale, self.updates);
            if !self.moments.contains_key(name) {
                self.moments.insert(name.clone(), Moments::zeros(&self.place, range.len())?);
            }
            let Some(moments) = self.moments.get_mut(name).filter(|_| !range.is_empty()) else { continue };
            // The same memory, as a row.
            let own = |tensor: &Tensor| tensor.detach().flatten_all()?.narrow(0, range.start, range.len());
            let gradient = match self.gradients.get(name) {
                Some(gradient) => own(&gradient.contiguous()?)?,
                None => Tensor::zeros(range.len(), DType::F32, var.device())?,
            };
            adamw::update(&self.place, step, &own(var.as_tensor())?, &gradient, moments)?;
        }
        self.zero_grad();
        if self.partition == Partition::WHOLE {
            return Ok(());
        }
        for var in self.weights.values() {
            let mut values = var.flatten_all()?.to_vec1::<f32>()?;
            let flow = exchange(&mut values);
            var.set(&Tensor::from_vec(values, var.dims(), var.device())?)?;
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    pub(super) fn updates(&self) -> u64 {
        self.updates
    }

    pub(super) fn partition(&self) -> Partition {
        self.partition
    }

    /// Frees all moments but those of a part.
    pub(super) fn cut(&mut self, part: Partition) -> Result<()> {
        for (name, moments) in &mut self.moments {
            let Some(var) = self.weights.get(name) else { continue };
            *moments = moments.cut(&self.place, part.range(var.elem_count()))?;
        }
        self.partition = part;
        Ok(())
    }

    /// Replaces the moments by a part of those after so many updates.
    pub(super) fn take(
        &mut self,
        part: Partition,
        updates: u64,
        fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>,
    ) -> Result<()> {
        self.reset(part, updates);
        if updates == 0 {
            return Ok(());
        }
        let mut both = [Vec::new(), Vec::new()];
        'all: for moment in &mut both {
            for var in self.weights.values() {
                let mut values = vec![0.0; part.range(var.elem_count()).len()];
                if fill(&mut values).is_break() {
                    break 'all;
                }
                moment.push(values);
            }
        }
        let [first, second] = both;
        for (name, (first, second)) in self.weights.keys().zip(first.iter().zip(&second)) {
            self.moments.insert(name.clone(), Moments::upload(&self.place, first, second)?);
        }
        Ok(())
    }

    /// No moments, as of a part.
    pub(super) fn reset(&mut self, part: Partition, updates: u64) {
        self.moments.clear();
        (self.partition, self.updates) = (part, updates);
    }

    /// First moments, then second ones, of a part of those that are kept.
    pub(super) fn each_moment(&self, part: Partition, visit: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<()> {
        for second in [false, true] {
            for (name, moments) in self.moments.iter().filter(|_| self.updates > 0) {
                let Some(var) = self.weights.get(name) else { continue };
                let (range, kept) = (part.range(var.elem_count()), self.partition.range(var.elem_count()));
                let both = moments.download(&self.place)?;
                let mut values = if second { both.1 } else { both.0 };
                if visit(&mut values[range.start - kept.start..range.end - kept.start]).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The canonical form of moments of which this engine keeps a part; `fill` writes the others, tensor by tensor.
    pub(super) fn gather(&self, fill: &mut dyn FnMut(&mut [f32]) -> ControlFlow<()>) -> Result<(WeightSet, WeightSet, u64)> {
        let mut sets = [BTreeMap::new(), BTreeMap::new()];
        'all: for (second, set) in sets.iter_mut().enumerate() {
            for (name, var) in &self.weights {
                let mut data = vec![0.0; var.elem_count()];
                if let Some(moments) = self.moments.get(name).filter(|_| self.updates > 0) {
                    let both = moments.download(&self.place)?;
                    data[self.partition.range(var.elem_count())].copy_from_slice(if second == 1 { &both.1 } else { &both.0 });
                    if fill(&mut data).is_break() {
                        break 'all;
                    }
                }
                set.insert(name.clone(), Canonical { shape: var.dims().to_vec(), data });
            }
        }
        let [first, second] = sets;
        Ok((WeightSet(first), WeightSet(second), self.updates))
    }

    pub(super) fn optimizer_export(&self) -> Result<(WeightSet, WeightSet, u64)> {
        let (mut first, mut second) = (BTreeMap::new(), BTreeMap::new());
        for (name, var) in &self.weights {
            let (m, v) = match self.moments.get(name) {
                Some(moments) => moments.download(&self.place)?,
                None => (vec![0.0; var.elem_count()], vec![0.0; var.elem_count()]),
            };
            for (set, data) in [(&mut first, m), (&mut second, v)] {
                set.insert(name.clone(), Canonical { shape: var.dims().to_vec(), data });
            }
        }
        Ok((WeightSet(first), WeightSet(second), self.updates))
    }

    pub(super) fn optimizer_import(&mut self, first: &WeightSet, second: &WeightSet, updates: u64) -> Result<()> {
        let data = |set: &WeightSet, name: &str| match set.0.get(name) {
            Some(tensor) => Ok(tensor.data.clone()),
            None => candle_core::bail!("tensor {name} is missing"),
        };
        let moments = self.weights.keys().map(|name| {
            let moments = Moments::upload(&self.place, &data(first, name)?, &data(second, name)?)?;
            Ok((name.clone(), moments))
        });
        (self.moments, self.updates, self.partition) = (moments.collect::<Result<_>>()?, updates, Partition::WHOLE);
        Ok(())
    }

    fn device(&self) -> Device {
        self.weights.values().next().map_or(Device::Cpu, |var| var.device().clone())
    }
}

/// Gradients in the making.
pub(super) struct Accumulation {
    variables: Named,
    sum: Named,
}

impl Accumulation {
    /// Adds what a backward pass found.
    pub(super) fn add(&mut self, grads: &GradStore) -> Result<()> {
        for (name, variable) in &self.variables {
            let Some(gradient) = grads.get(variable) else { continue };
            let gradient = gradient.detach();
            let sum = match self.sum.remove(name) {
                Some(sum) => (sum + gradient)?,
                None => gradient,
            };
            self.sum.insert(name.clone(), sum);
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Named {
        self.sum
    }
}

fn upload(weights: &WeightSet, name: &str, device: &Device) -> Result<Tensor> {
    let Some(tensor) = weights.0.get(name) else { candle_core::bail!("tensor {name} is missing") };
    Tensor::from_slice(&tensor.data, tensor.shape.as_slice(), device)
}

fn download<'a>(tensors: impl Iterator<Item = (&'a String, &'a Tensor)>) -> Result<WeightSet> {
    let get = |t: &Tensor| -> Result<Canonical> {
        Ok(Canonical { shape: t.dims().to_vec(), data: t.flatten_all()?.to_vec1::<f32>()? })
    };
    Ok(WeightSet(tensors.map(|(name, tensor)| -> Result<_> { Ok((name.clone(), get(tensor)?)) }).collect::<Result<_>>()?))
}
