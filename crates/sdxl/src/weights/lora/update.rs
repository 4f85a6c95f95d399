//! The arithmetic of a LoRA: from the tensors of one module to the change of its weight.
//!
//! Weights are matrices `[out, in · kernel]` here, in the order in which they are stored.
//! Sources: Hu et al. 2021 (LoRA), Liu et al. 2024 (DoRA), Hyeon-Woo et al. 2022 (LoHa),
//! Edalati et al. 2022 (LoKr), and for the scales LyCORIS and PEFT.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use sdxl_kernels::{WeightFormat, Weights};

use crate::device::{Layer, cpu, pack_on_cpu};
use crate::error::{Error, Result};
use crate::ops::Packed;
use crate::ops::{self, Activation, Linear};
use crate::tensor::Tensor;
use crate::weights::layer_cache::FileStamp;
use crate::weights::values::to_f32;
use crate::weights::{StoredTensor, TensorSet};

/// The role of a LoRA's tensor in the change of its module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum TensorRole {
    /// `[rank, in, ...]`
    Down,
    /// `[out, rank, ...]`
    Up,
    /// `[rank, rank, h, w]`: the kernel between the two, where it stands apart.
    Mid,
    /// A number; changes are multiplied by it and divided by the rank.
    Alpha,
    /// DoRA's lengths, a row (`[out, 1]`) or a column (`[1, in]`).
    DoraScale,
    /// The same in PEFT, always a row.
    Magnitude,
    Hada1A,
    Hada1B,
    Hada2A,
    Hada2B,
    HadaT1,
    HadaT2,
    Kron1,
    Kron1A,
    Kron1B,
    Kron2,
    Kron2A,
    Kron2B,
    KronT2,
    /// GLoRA's four matrices, and the kernel of a convolution where it stands apart.
    Glora1A,
    Glora2A,
    Glora1B,
    Glora2B,
    GloraMid,
    /// (IA)3's factors, one for each output or input.
    Ia3,
    /// A number: whether (IA)3's factors are for inputs.
    OnInput,
    /// The whole change of a weight.
    Diff,
    /// The whole change of a bias.
    DiffBias,
}

/// The tensors of one module.
pub(super) struct ModuleTensors<'a> {
    pub key: &'a str,
    pub path: &'a Path,
    pub source: &'a Arc<TensorSet>,
    pub pieces: HashMap<TensorRole, StoredTensor>,
}

/// A matrix as the product of two, or, with a kernel that stands apart, of three.
struct Product {
    a: StoredTensor,
    b: StoredTensor,
    /// With it, `a` is `[out, rank]` (`a_turned`: `[rank, out]`) and `b` `[rank, in]`.
    kernel: Option<StoredTensor>,
    a_turned: bool,
}

/// A factor of a Kronecker product.
enum Factor {
    Whole(StoredTensor),
    Product(Product),
}

enum Change {
    Low(Product),
    Hadamard(Product, Product),
    Kronecker(Factor, Factor),
    Whole(StoredTensor),
    /// GLoRA: `weight · inner + outer`.
    General {
        inner: Product,
        outer: Product,
    },
    /// (IA)3: the weight times a factor for each input, or for each output.
    Factors {
        factors: StoredTensor,
        on_input: bool,
    },
}

/// A change that is added to one tensor.
pub(super) struct Update {
    source: Arc<TensorSet>,
    change: Change,
    scale: f32,
    /// DoRA's lengths, and whether they are those of rows.
    magnitude: Option<(StoredTensor, bool)>,
}

impl ModuleTensors<'_> {
    fn incomplete(&self) -> Error {
        Error::file(
            self.path,
            format!(
                "`{}` lacks some of its tensors; the file is incomplete, or of a kind that this \
                 program does not know (it has {} of them)",
                self.key,
                self.pieces.len()
            ),
        )
    }

    fn need(&self, piece: TensorRole) -> Result<StoredTensor> {
        let found = self.pieces.get(&piece).cloned();
        found.ok_or_else(|| self.incomplete())
    }

    fn product(
        &self,
        a: TensorRole,
        b: TensorRole,
        kernel: TensorRole,
        a_turned: bool,
    ) -> Result<Product> {
        Ok(Product {
            a: self.need(a)?,
            b: self.need(b)?,
            kernel: self.pieces.get(&kernel).cloned(),
            a_turned,
        })
    }

    fn factor(
        &self,
        whole: TensorRole,
        a: TensorRole,
        b: TensorRole,
        kernel: TensorRole,
    ) -> Result<Factor> {
        match self.pieces.get(&whole) {
            Some(tensor) => Ok(Factor::Whole(tensor.clone())),
            None => Ok(Factor::Product(self.product(a, b, kernel, true)?)),
        }
    }

    /// GLoRA's change and its rank. LyCORIS exchanged the two matrices of each product in 2024: the
    /// rank, the shorter side of a matrix, tells which file this is.
    fn general(&self) -> Result<(Change, usize)> {
        use TensorRole as P;
        let (one, two) = (self.need(P::Glora1A)?, self.need(P::Glora1B)?);
        let (rows, columns) = matrix(&one);
        let old = rows < columns || rows == columns && matrix(&two).0 < matrix(&two).1;
        let [inner, outer] = match old {
            true => [(P::Glora2A, P::Glora1A), (P::Glora2B, P::Glora1B)],
            false => [(P::Glora1A, P::Glora2A), (P::Glora1B, P::Glora2B)],
        };
        let change = Change::General {
            // The first product has no kernel; `Mid` is never among GLoRA's tensors.
            inner: self.product(inner.0, inner.1, P::Mid, false)?,
            outer: self.product(outer.0, outer.1, P::GloraMid, false)?,
        };
        Ok((change, if old { rows } else { columns }))
    }

    /// The changes of `weight` and of `bias`. `told`: alpha where no tensor says it, and
    /// whether it is divided by the root of the rank.
    pub(super) fn updates(
        &self,
        scale: f32,
        told: Option<(f32, bool)>,
    ) -> Result<Vec<(&'static str, Update)>> {
        use TensorRole as P;
        let has = |piece: TensorRole| self.pieces.contains_key(&piece);
        let rank = |piece: TensorRole| {
            let tensor = self.pieces.get(&piece);
            tensor.and_then(|t| t.shape().first().copied())
        };
        let (change, rank) = if has(P::Up) || has(P::Down) {
            let product = self.product(P::Up, P::Down, P::Mid, false)?;
            (Some(Change::Low(product)), rank(P::Down))
        } else if has(P::Hada1A) {
            let one = self.product(P::Hada1A, P::Hada1B, P::HadaT1, true)?;
            let two = self.product(P::Hada2A, P::Hada2B, P::HadaT2, true)?;
            (Some(Change::Hadamard(one, two)), rank(P::Hada1B))
        } else if has(P::Kron1) || has(P::Kron1A) {
            // The first factor has no kernel; `Mid` is never among LoKr's pieces.
            let one = self.factor(P::Kron1, P::Kron1A, P::Kron1B, P::Mid)?;
            let two = self.factor(P::Kron2, P::Kron2A, P::Kron2B, P::KronT2)?;
            let rank = rank(P::Kron1B).or(rank(P::Kron2B));
            (Some(Change::Kronecker(one, two)), rank)
        } else if has(P::Glora1A) {
            let (change, rank) = self.general()?;
            (Some(change), Some(rank))
        } else if has(P::Ia3) {
            let on_input = self.need(P::OnInput)?;
            let on_input = self.source.read(self.key, &on_input, to_f32)?;
            let change = Change::Factors {
                factors: self.need(P::Ia3)?,
                on_input: on_input.first().is_some_and(|number| *number != 0.0),
            };
            (Some(change), None)
        } else if has(P::Diff) {
            (Some(Change::Whole(self.need(P::Diff)?)), None)
        } else if has(P::DiffBias) {
            (None, None)
        } else {
            return Err(self.incomplete());
        };
        let alpha = match self.pieces.get(&P::Alpha) {
            Some(tensor) => {
                let values = self.source.read(self.key, tensor, to_f32)?;
                let alpha = values.first().map(|alpha| (*alpha, false));
                // LyCORIS takes 0 for GLoRA's alpha as none.
                alpha.filter(|(alpha, _)| *alpha != 0.0 || !has(P::Glora1A))
            }
            None => told,
        };
        let factor = match (alpha, rank) {
            (Some((alpha, true)), Some(rank)) => alpha / (rank as f32).sqrt(),
            (Some((alpha, false)), Some(rank)) => alpha / rank as f32,
            _ => 1.0,
        };
        if !factor.is_finite() {
            let text = format!("`{}.alpha` divided by the rank is {factor}", self.key);
            return Err(Error::file(self.path, text));
        }
        let magnitude = match (
            self.pieces.get(&P::Magnitude),
            self.pieces.get(&P::DoraScale),
        ) {
            (Some(tensor), _) => Some((tensor.clone(), true)),
            (None, Some(tensor)) => {
                let rows = tensor.shape().len() < 2 || tensor.shape()[0] != 1;
                Some((tensor.clone(), rows))
            }
            (None, None) => None,
        };
        let mut updates = Vec::new();
        if let Some(change) = change {
            let update = Update {
                source: Arc::clone(self.source),
                change,
                scale: scale * factor,
                magnitude,
            };
            updates.push(("weight", update));
        }
        if let Some(tensor) = self.pieces.get(&P::DiffBias) {
            let update = Update {
                source: Arc::clone(self.source),
                change: Change::Whole(tensor.clone()),
                // A LoRA's own bias belongs to its second layer and is scaled with it.
                scale: if has(P::Up) { scale * factor } else { scale },
                magnitude: None,
            };
            updates.push(("bias", update));
        }
        Ok(updates)
    }
}

/// Rows and columns of a tensor taken as a matrix.
fn matrix(tensor: &StoredTensor) -> (usize, usize) {
    let rows = tensor.shape().first().copied().unwrap_or(1);
    (rows, tensor.values() / rows.max(1))
}

impl Product {
    /// Rows and columns, where the factors go together.
    fn size(&self) -> Option<(usize, usize)> {
        let ((ar, ac), (br, bc)) = (matrix(&self.a), matrix(&self.b));
        let Some(kernel) = &self.kernel else {
            return (ac == br && ac > 0).then_some((ar, bc));
        };
        let (out, first) = if self.a_turned { (ac, ar) } else { (ar, ac) };
        let [i, j, h, w] = kernel.shape()[..] else {
            return None;
        };
        (i == first && j == br && i > 0 && j > 0).then_some((out, bc * h * w))
    }

    fn value(&self, source: &TensorSet, key: &str) -> Result<Vec<f32>> {
        let a = source.read(key, &self.a, to_f32)?;
        let b = source.read(key, &self.b, to_f32)?;
        let ((ar, ac), (br, bc)) = (matrix(&self.a), matrix(&self.b));
        let Some(kernel) = &self.kernel else {
            return Ok(multiply(&a, ar, ac, &b, bc));
        };
        // out[p, r, hw] = sum over i, j of a[p, i] kernel[i, j, hw] b[j, r]
        let values = source.read(key, kernel, to_f32)?;
        let [i, j, h, w] = kernel.shape()[..] else {
            return Ok(Vec::new());
        };
        let (hw, b_turned) = (h * w, turned(&b, br, bc));
        let mut middle = Vec::with_capacity(i * bc * hw);
        for one in values.chunks_exact(j * hw) {
            middle.extend(multiply(&b_turned, bc, j, one, hw));
        }
        let (a, out) = if self.a_turned {
            (turned(&a, ar, ac), ac)
        } else {
            (a, ar)
        };
        Ok(multiply(&a, out, i, &middle, bc * hw))
    }
}

impl Factor {
    fn size(&self) -> Option<(usize, usize)> {
        match self {
            Factor::Whole(tensor) => Some(matrix(tensor)),
            Factor::Product(product) => product.size(),
        }
    }

    fn value(&self, source: &TensorSet, key: &str) -> Result<Vec<f32>> {
        match self {
            Factor::Whole(tensor) => source.read(key, tensor, to_f32),
            Factor::Product(product) => product.value(source, key),
        }
    }
}

impl Update {
    /// File and first byte, which with the scale are all that it depends on.
    pub(super) fn origin(&self) -> (FileStamp, usize, u32) {
        let first = match &self.change {
            Change::Low(product) | Change::Hadamard(product, _) => &product.a,
            Change::Kronecker(Factor::Product(product), _) => &product.a,
            Change::Kronecker(Factor::Whole(tensor), _)
            | Change::Whole(tensor)
            | Change::Factors {
                factors: tensor, ..
            } => tensor,
            Change::General { inner, .. } => &inner.a,
        };
        let (file, start) = self.source.place_of(first);
        (file, start, self.scale.to_bits())
    }

    /// Whether nothing would be added.
    pub(super) fn is_nothing(&self) -> bool {
        self.scale == 0.0 && self.magnitude.is_none()
    }

    /// Refuses a change that does not have the size of the weight.
    pub(super) fn check(&self, shape: &[usize], key: &str, path: &Path) -> Result<()> {
        let rows = shape.first().copied().unwrap_or(1);
        let columns = shape.iter().product::<usize>() / rows.max(1);
        let found = match &self.change {
            Change::Low(product) => product.size(),
            Change::Hadamard(a, b) => a.size().filter(|size| b.size() == Some(*size)),
            Change::Kronecker(a, b) => match (a.size(), b.size()) {
                (Some((ar, ac)), Some((br, bc))) => Some((ar * br, ac * bc)),
                _ => None,
            },
            Change::Whole(tensor) => Some(matrix(tensor)),
            Change::General { inner, outer } => {
                let inputs = shape.get(1).copied().unwrap_or(1);
                let fits = inner.size() == Some((inputs, inputs));
                outer.size().filter(|_| fits)
            }
            Change::Factors { factors, on_input } => {
                let wanted = match on_input {
                    true => shape.get(1).copied().unwrap_or(1),
                    false => rows,
                };
                (factors.values() == wanted).then_some((rows, columns))
            }
        };
        let lengths = self.magnitude.as_ref().is_none_or(|(tensor, of_rows)| {
            let wanted = if *of_rows {
                rows
            } else {
                shape.get(1).copied().unwrap_or(1)
            };
            tensor.values() == wanted
        });
        if found == Some((rows, columns)) && lengths {
            return Ok(());
        }
        let is = match found {
            Some((r, c)) if lengths => format!("is one of {r} x {c} values"),
            _ => "has tensors that do not go together".to_string(),
        };
        Err(Error::file(
            path,
            format!(
                "the change `{key}` {is}, but the weight has {rows} x {columns}; the file was made \
                 for another model"
            ),
        ))
    }

    /// Whether the change depends on the weight that it is made to.
    fn needs_weight(&self) -> bool {
        let change = matches!(self.change, Change::General { .. } | Change::Factors { .. });
        change || self.magnitude.is_some()
    }

    /// The change alone, before scales: as many values as the weight has. `weight` has its values
    /// where the change [needs](Self::needs_weight) them.
    fn change(&self, name: &str, weight: &[f32], shape: &[usize]) -> Result<Vec<f32>> {
        let source = &self.source;
        match &self.change {
            Change::Low(product) => product.value(source, name),
            Change::Whole(tensor) => source.read(name, tensor, to_f32),
            Change::General { inner, outer } => {
                let mut all = outer.value(source, name)?;
                let rows = shape.first().copied().unwrap_or(1);
                let inputs = shape.get(1).copied().unwrap_or(1);
                let kernel = weight.len() / (rows * inputs).max(1);
                let inner = inner.value(source, name)?;
                // A position of the kernel at a time, each a matrix of its own.
                for position in 0..kernel {
                    let at = |index: usize| index * kernel + position;
                    let part: Vec<f32> = (0..rows * inputs).map(|i| weight[at(i)]).collect();
                    let changed = multiply(&part, rows, inputs, &inner, inputs);
                    for (index, value) in changed.into_iter().enumerate() {
                        all[at(index)] += value;
                    }
                }
                Ok(all)
            }
            Change::Factors { factors, on_input } => {
                let factors = source.read(name, factors, to_f32)?;
                let rows = shape.first().copied().unwrap_or(1).max(1);
                let row = weight.len() / rows;
                let kernel: usize = shape.iter().skip(2).product();
                let factor = |index: usize| match on_input {
                    true => factors[index % row / kernel],
                    false => factors[index / row],
                };
                let weight = weight.iter().enumerate();
                Ok(weight.map(|(index, w)| w * factor(index)).collect())
            }
            Change::Hadamard(a, b) => {
                let (a, b) = (a.value(source, name)?, b.value(source, name)?);
                Ok(a.iter().zip(&b).map(|(a, b)| a * b).collect())
            }
            Change::Kronecker(one, two) => {
                let (a, b) = (one.value(source, name)?, two.value(source, name)?);
                let columns = one.size().map_or(1, |size| size.1).max(1);
                let inner = two.size().map_or(1, |size| size.1).max(1);
                let mut all = Vec::with_capacity(a.len() * b.len());
                for a in a.chunks_exact(columns) {
                    for b in b.chunks_exact(inner) {
                        for a in a {
                            all.extend(b.iter().map(|b| a * b));
                        }
                    }
                }
                Ok(all)
            }
        }
    }

    /// Adds to `sum` what this makes of `weight`.
    fn add(&self, name: &str, weight: &[f32], shape: &[usize], sum: &mut [f32]) -> Result<()> {
        let mut changed = self.change(name, weight, shape)?;
        let Some((magnitude, of_rows)) = &self.magnitude else {
            for (sum, change) in sum.iter_mut().zip(&changed) {
                *sum += self.scale * change;
            }
            return Ok(());
        };
        // DoRA: the directions are those of weight and change together, the lengths are given.
        for (changed, weight) in changed.iter_mut().zip(weight) {
            *changed = weight + self.scale * *changed;
        }
        let lengths = self.source.read(name, magnitude, to_f32)?;
        let rows = shape.first().copied().unwrap_or(1).max(1);
        let row = weight.len() / rows;
        let kernel: usize = shape.iter().skip(2).product();
        let group = |index: usize| {
            if *of_rows {
                index / row
            } else {
                index % row / kernel
            }
        };
        let mut squares = vec![0f64; lengths.len()];
        for (index, value) in changed.iter().enumerate() {
            squares[group(index)] += f64::from(*value).powi(2);
        }
        let factors: Vec<f32> = (lengths.iter().zip(&squares))
            .map(|(length, square)| (f64::from(*length) / square.sqrt().max(1e-30)) as f32)
            .collect();
        for (index, sum) in sum.iter_mut().enumerate() {
            *sum += factors[group(index)] * changed[index] - weight[index];
        }
        Ok(())
    }
}

/// Adds all changes to a tensor's values. Each is made to the weight as it is stored, as
/// PEFT does with several adapters.
pub(super) fn apply(
    updates: &[Update],
    name: &str,
    shape: &[usize],
    values: &mut [f32],
) -> Result<()> {
    // Few look at the weight as it was.
    let weight = if updates.iter().any(Update::needs_weight) {
        values.to_vec()
    } else {
        Vec::new()
    };
    for update in updates {
        update.add(name, &weight, shape, values)?;
    }
    Ok(())
}

/// `[rows, columns]` to `[columns, rows]`.
fn turned(values: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for column in 0..columns {
        out.extend((0..rows).map(|row| values[row * columns + column]));
    }
    out
}

/// `a` `[rows, inner]` times `b` `[inner, columns]`.
fn multiply(a: &[f32], rows: usize, inner: usize, b: &[f32], columns: usize) -> Vec<f32> {
    let b = turned(b, inner, columns);
    let matrix = Layer::Matrix {
        n: columns,
        k: inner,
        format: WeightFormat::F32,
    };
    let layer = Linear {
        weight: Packed::in_memory(cpu(), pack_on_cpu(matrix, Weights::F32(&b))),
        n: columns,
        k: inner,
        bias: None,
    };
    let a = Tensor::from_f32(vec![1, rows, inner], a.to_vec());
    ops::linear(&a, &layer, Activation::None, None).to_f32_vec()
}
