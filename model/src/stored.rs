//! How a file keeps canonical tensors: under which name, several of them as one, turned or not.
use crate::spec::TensorSpec;
use crate::weights::ShapeError;
use crate::{Tensor, WeightSet};

/// One tensor of a file and the canonical tensors in it.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Its name in the file.
    pub(crate) name: String,
    /// Its shape in the file.
    pub(crate) shape: Vec<usize>,
    /// What it holds, one under the other along the first dimension.
    parts: Vec<TensorSpec>,
    /// A matrix `[in, out]` rather than `[out, in]`.
    transposed: bool,
}

impl Stored {
    /// Parts of one width under one name.
    pub(crate) fn new(name: String, parts: Vec<TensorSpec>, transposed: bool) -> Self {
        let out = parts.iter().filter_map(|part| part.shape.first()).sum();
        let mut shape = vec![out];
        shape.extend(parts.first().and_then(|part| part.shape.get(1)));
        let transposed = transposed && shape.len() == 2;
        if transposed {
            shape.reverse();
        }
        Self { name, shape, parts, transposed }
    }

    /// The canonical tensors in the file's values.
    pub(crate) fn split(&self, data: Vec<f32>) -> Vec<(String, Tensor)> {
        if let ([part], false) = (&self.parts[..], self.transposed) {
            return vec![(part.name.clone(), Tensor { shape: part.shape.clone(), data })];
        }
        let data = self.turned(&data, &self.shape);
        let mut rest = &data[..];
        let cut = |part: &TensorSpec| {
            let (own, others) = rest.split_at(part.shape.iter().product());
            rest = others;
            (part.name.clone(), Tensor { shape: part.shape.clone(), data: own.to_vec() })
        };
        self.parts.iter().map(cut).collect()
    }

    /// The file's tensor from the canonical ones.
    pub(crate) fn join(&self, weights: &WeightSet) -> Result<Tensor, ShapeError> {
        let mut data = Vec::with_capacity(self.shape.iter().product());
        for part in &self.parts {
            let tensor = weights.0.get(&part.name).ok_or_else(|| ShapeError::Missing { name: part.name.clone() })?;
            data.extend_from_slice(&tensor.data);
        }
        let canonical: Vec<usize> = if self.transposed { self.shape.iter().rev().copied().collect() } else { self.shape.clone() };
        Ok(Tensor { shape: self.shape.clone(), data: self.turned(&data, &canonical) })
    }

    /// The transpose of a matrix of this shape, where the file has it so.
    fn turned(&self, data: &[f32], shape: &[usize]) -> Vec<f32> {
        let (true, [rows, columns]) = (self.transposed, shape) else { return data.to_vec() };
        (0..*columns).flat_map(|column| (0..*rows).map(move |row| data[row * columns + column])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_is_split_again() {
        let part = |name: &str, shape: &[usize]| TensorSpec { name: name.into(), shape: shape.to_vec() };
        let matrix = Stored::new("m".into(), vec![part("a", &[2, 3]), part("b", &[1, 3])], true);
        assert_eq!(matrix.shape, [3, 3]);
        let parts = matrix.split((0..9).map(|i| i as f32).collect());
        assert_eq!((&parts[0].1.data[..], &parts[1].1.data[..]), (&[0.0, 3.0, 6.0, 1.0, 4.0, 7.0][..], &[2.0, 5.0, 8.0][..]));
        let joined = matrix.join(&WeightSet(parts.into_iter().collect())).unwrap();
        assert_eq!((joined.shape, joined.data), (vec![3, 3], (0..9).map(|i| i as f32).collect()));
        let vector = Stored::new("v".into(), vec![part("a", &[2]), part("b", &[1])], true);
        assert_eq!(vector.split(vec![1.0, 2.0, 3.0])[1].1.data, [3.0]);
        assert_eq!(vector.join(&WeightSet::default()), Err(ShapeError::Missing { name: "a".into() }));
    }
}
