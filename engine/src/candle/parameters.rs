//! Weights, gradients and moments by name, and AdamW on them.
use super::decoder::{Block, Linear, Network, Norm};
use crate::AdamW;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use cohort_model::{DecoderSpec, Tensor as Canonical, WeightSet};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Tensors by canonical name.
type Named = BTreeMap<String, Tensor>;

/// Everything that an engine trains. Gradients and moments exist from their first use on.
pub(super) struct Parameters {
    weights: BTreeMap<String, Var>,
    layers: usize,
    gradients: Named,
    first: Named,
    second: Named,
    updates: u64,
}

impl Parameters {
    pub(super) fn zeros(spec: &DecoderSpec, device: &Device) -> Result<Self> {
        let zero = |shape: Vec<usize>| Var::zeros(shape, DType::F32, device);
        let weights = spec.tensors().into_iter().map(|t| Ok((t.name, zero(t.shape)?))).collect::<Result<_>>()?;
        let (gradients, first, second) = (Named::new(), Named::new(), Named::new());
        Ok(Self { weights, layers: spec.layers, gradients, first, second, updates: 0 })
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
        self.download_or_zeros(&self.gradients)
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

    pub(super) fn update(&mut self, optimizer: &AdamW, lr: f64, grad_scale: f64) -> Result<()> {
        let AdamW { beta1, beta2, eps, weight_decay } = *optimizer;
        let step = self.updates + 1;
        let correction = |beta: f64| 1.0 - beta.powf(step as f64);
        let (unbias1, unbias2) = (1.0 / correction(beta1), 1.0 / correction(beta2));
        let (mut first, mut second, mut weights) = (Named::new(), Named::new(), Vec::new());
        for (name, var) in &self.weights {
            let weight = var.as_tensor().detach();
            let gradient = match self.gradients.get(name) {
                Some(gradient) => (gradient * grad_scale)?,
                None => weight.zeros_like()?,
            };
            let decayed = |old: Option<&Tensor>, beta: f64, new: Tensor| match old {
                Some(old) => (old * beta)? + (new * (1.0 - beta))?,
                None => new * (1.0 - beta),
            };
            let m = decayed(self.first.get(name), beta1, gradient.clone())?;
            let v = decayed(self.second.get(name), beta2, gradient.sqr()?)?;
            let step = ((&m * unbias1)? / ((&v * unbias2)?.sqrt()? + eps)?)?;
            let decay = if weight.rank() > 1 { lr * weight_decay } else { 0.0 };
            weights.push((var, ((weight * (1.0 - decay))? - (step * lr)?)?));
            first.insert(name.clone(), m);
            second.insert(name.clone(), v);
        }
        weights.into_iter().try_for_each(|(var, tensor)| var.set(&tensor))?;
        (self.first, self.second, self.updates) = (first, second, step);
        self.zero_grad();
        Ok(())
    }

    pub(super) fn optimizer_export(&self) -> Result<(WeightSet, WeightSet, u64)> {
        Ok((self.download_or_zeros(&self.first)?, self.download_or_zeros(&self.second)?, self.updates))
    }

    pub(super) fn optimizer_import(&mut self, first: &WeightSet, second: &WeightSet, updates: u64) -> Result<()> {
        let device = self.device();
        let all = |set: &WeightSet| -> Result<Named> {
            self.weights.keys().map(|name| Ok((name.clone(), upload(set, name, &device)?))).collect()
        };
        let (first, second) = (all(first)?, all(second)?);
        (self.first, self.second, self.updates) = (first, second, updates);
        Ok(())
    }

    fn device(&self) -> Device {
        self.weights.values().next().map_or(Device::Cpu, |var| var.device().clone())
    }

    fn download_or_zeros(&self, named: &Named) -> Result<WeightSet> {
        if named.is_empty() {
            let zero = |var: &Var| Canonical { shape: var.dims().to_vec(), data: vec![0.0; var.elem_count()] };
            return Ok(WeightSet(self.weights.iter().map(|(name, var)| (name.clone(), zero(var))).collect()));
        }
        download(named.iter())
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
