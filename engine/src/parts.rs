//! Weights on their way out of an engine: part by part, from its threads, without a copy of all of them.
use crate::{Backend, EngineError};
use cohort_model::spec::TensorSpec;
use cohort_model::{TensorDigest, WeightSet, set_digest};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Consecutive values of one tensor in the canonical layout.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Canonical name.
    pub name: &'a str,
    /// The whole tensor's shape.
    pub shape: &'a [usize],
    /// Place of the first value in the tensor.
    pub start: usize,
    /// f32, row-major.
    pub values: &'a [f32],
}

/// What takes parts: of one tensor in order, of different ones from several threads at once.
pub type Visit<'a> = &'a (dyn Fn(Part<'_>) + Sync);

/// Weights that can be put down somewhere.
pub trait WeightSource {
    /// The tensors, in ascending order of their names.
    fn tensors(&self) -> Vec<TensorSpec>;
    /// The digest of all of them, see [`WeightSet::digest`].
    fn digest(&self) -> u64;
    /// Shows every value once.
    ///
    /// # Errors
    /// Those of the engine that holds the weights.
    fn each_part(&self, visit: Visit<'_>) -> Result<(), EngineError>;
}

impl WeightSource for WeightSet {
    fn tensors(&self) -> Vec<TensorSpec> {
        self.0.iter().map(|(name, tensor)| TensorSpec { name: name.clone(), shape: tensor.shape.clone() }).collect()
    }

    fn digest(&self) -> u64 {
        Self::digest(self)
    }

    fn each_part(&self, visit: Visit<'_>) -> Result<(), EngineError> {
        whole(self, visit);
        Ok(())
    }
}

/// Weights in an engine whose digest is known.
pub(crate) struct Named<'a> {
    backend: &'a dyn Backend,
    tensors: Vec<TensorSpec>,
    digest: u64,
}

impl<'a> Named<'a> {
    pub(crate) fn new(backend: &'a dyn Backend, digest: u64) -> Result<Self, EngineError> {
        let mut tensors = backend.tensors()?;
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Self { backend, tensors, digest })
    }
}

impl WeightSource for Named<'_> {
    fn tensors(&self) -> Vec<TensorSpec> {
        self.tensors.clone()
    }

    fn digest(&self) -> u64 {
        self.digest
    }

    fn each_part(&self, visit: Visit<'_>) -> Result<(), EngineError> {
        self.backend.each_part(visit)
    }
}

/// A set's tensors one after the other.
pub(crate) fn whole(set: &WeightSet, visit: Visit<'_>) {
    for (name, tensor) in &set.0 {
        visit(Part { name, shape: &tensor.shape, start: 0, values: &tensor.data });
    }
}

/// The digest of what an engine holds, its tensors digested side by side where the engine shows them so.
pub(crate) fn digest<B: Backend + ?Sized>(backend: &B) -> Result<u64, EngineError> {
    let digests: Mutex<BTreeMap<String, TensorDigest>> = Mutex::default();
    let all = || digests.lock().unwrap_or_else(PoisonError::into_inner);
    backend.each_part(&|part| {
        let known = all().remove(part.name);
        let mut digest = known.unwrap_or_else(|| TensorDigest::new(part.name, part.shape));
        digest.values(part.values);
        all().insert(part.name.to_owned(), digest);
    })?;
    let digest = set_digest(all().values().map(TensorDigest::finish));
    Ok(digest)
}
