//! Canonical weights in memory: named f32 tensors.
use crate::DecoderSpec;
use crate::spec::TensorSpec;
use std::collections::{BTreeMap, HashSet};

/// A named tensor's values, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// `[out, in]` or `[n]`.
    pub shape: Vec<usize>,
    /// Values. `len() == shape.product()`.
    pub data: Vec<f32>,
}

/// All tensors of a model (or of its gradients or moments), by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WeightSet(pub BTreeMap<String, Tensor>);

/// A tensor that is missing, unexpected or of another shape.
#[derive(Debug, thiserror::Error, Clone, PartialEq)]
pub enum ShapeError {
    /// Not in the set.
    #[error("tensor {name} is missing")]
    Missing {
        /// Its name.
        name: String,
    },
    /// In the set and not in the model.
    #[error("tensor {name} is not part of this architecture")]
    Unexpected {
        /// Its name.
        name: String,
    },
    /// Another shape.
    #[error("tensor {name} has shape {got:?}, the architecture needs {want:?}")]
    Shape {
        /// Its name.
        name: String,
        /// Shape found.
        got: Vec<usize>,
        /// Shape needed.
        want: Vec<usize>,
    },
}

impl WeightSet {
    /// Checks names and shapes against an architecture.
    pub fn check(&self, spec: &DecoderSpec) -> Result<(), ShapeError> {
        self.fits(&spec.tensors())
    }

    /// Checks that these tensors are there with these shapes, and no others.
    pub fn fits(&self, specs: &[TensorSpec]) -> Result<(), ShapeError> {
        for want in specs {
            let Some(tensor) = self.0.get(&want.name) else { return Err(ShapeError::Missing { name: want.name.clone() }) };
            if tensor.shape != want.shape || tensor.data.len() != want.shape.iter().product::<usize>() {
                return Err(ShapeError::Shape { name: want.name.clone(), got: tensor.shape.clone(), want: want.shape.clone() });
            }
        }
        let names: HashSet<&str> = specs.iter().map(|s| s.name.as_str()).collect();
        match self.0.keys().find(|name| !names.contains(name.as_str())) {
            Some(name) => Err(ShapeError::Unexpected { name: name.clone() }),
            None => Ok(()),
        }
    }
}
