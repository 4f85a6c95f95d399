//! Weights: from names in a checkpoint to layers packed for the kernels.

pub mod blocks;
pub mod convert;
pub mod doctor;
pub mod files;
pub mod folder;
pub mod gguf;
mod infer;
pub mod inversion;
mod kept;
pub mod lora;
pub mod lower;
pub mod names;
pub(crate) mod packed;
pub mod random;
pub mod recognise;
pub mod replacement;
pub mod safetensors;
pub mod same;
pub mod single_file;

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use half::{bf16, f16};
use sdxl_kernels::{Counted, Kind, PackedConv, PackedMatrix, WeightFormat, Weights};

use crate::error::{Error, Result};
use crate::ops::{Conv2d, Geglu, Linear, Norm};
use crate::tensor::DType;
use crate::warning::{Warning, WarningKind};
use folder::Part;
use kept::Key;
use packed::Packed;
use safetensors::{StoredTensor, TensorSet};

/// In which precision the networks compute. The scheduler, the noise and (where the
/// checkpoint says `force_upcast`) the VAE always compute in `f32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit weights and activations: the reference's numbers.
    F32,
    /// bfloat16 weights and activations, sums in `f32`.
    Bf16,
    /// 16-bit IEEE weights, as `fp16` checkpoints hold them, and `f32` arithmetic:
    /// half the memory of `f32`.
    F16,
    /// The linear layers of the UNet's transformers multiply bytes (W8A8): weights with a scale an
    /// output channel, activations with a scale a token, found as they come. `bf16` between
    /// layers, in those that bytes would hurt ([`Loader::sensitive`]) and in the text encoders.
    Int8,
}

impl Precision {
    /// How weights are kept in memory.
    pub fn weight_format(self) -> WeightFormat {
        match self {
            Precision::F32 => WeightFormat::F32,
            Precision::Bf16 => WeightFormat::Bf16,
            Precision::F16 => WeightFormat::F16,
            Precision::Int8 => WeightFormat::Int8,
        }
    }

    /// The element type of activations.
    pub fn activations(self) -> DType {
        match self {
            Precision::F32 | Precision::F16 => DType::F32,
            Precision::Bf16 | Precision::Int8 => DType::Bf16,
        }
    }

    /// The precision of `part` in a run of this one. Only the UNet takes bytes. The published VAE
    /// overflows in half precision (black pictures), so where its config says so
    /// (`vae_upcast`) it is `f32`, always.
    pub fn of_part(self, part: Part, vae_upcast: bool) -> Precision {
        match (part, self) {
            (Part::Vae, _) if vae_upcast => Precision::F32,
            (Part::UNet, _) => self,
            (_, Precision::Int8) => Precision::Bf16,
            _ => self,
        }
    }

    /// What to know of this precision on this processor, if anything.
    pub fn warning(self) -> Option<Warning> {
        let native = sdxl_kernels::Isa::current() == sdxl_kernels::Isa::Avx512Bf16;
        (self == Precision::Int8 && !native).then(|| {
            Warning::new(
                WarningKind::Precision,
                "precision",
                "int8: this processor has no instructions for products of bytes, so int8 saves \
                 memory here and no time",
            )
        })
    }

    /// Bytes of memory per weight.
    pub fn bytes(self) -> u64 {
        match self {
            Precision::F32 => 4,
            Precision::Bf16 | Precision::F16 => 2,
            Precision::Int8 => 1,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
            Precision::Int8 => "int8",
        })
    }
}

impl std::str::FromStr for Precision {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "f32" => Ok(Precision::F32),
            "bf16" => Ok(Precision::Bf16),
            "f16" | "fp16" => Ok(Precision::F16),
            "int8" => Ok(Precision::Int8),
            _ => Err(format!(
                "`{s}` is not a precision; use f32, bf16, f16 or int8"
            )),
        }
    }
}

/// A place in a checkpoint's tree of names (`down_blocks.1.attentions.0`), from which
/// layers are read by their own name and checked against the shape they must have.
#[derive(Clone)]
pub struct Loader<'a> {
    tensors: &'a TensorSet,
    prefix: String,
    precision: Precision,
    /// Whether layers stay in the files.
    streamed: bool,
}

impl<'a> Loader<'a> {
    /// The root of the names of `tensors`.
    pub fn new(tensors: &'a TensorSet, precision: Precision) -> Self {
        Loader {
            tensors,
            prefix: String::new(),
            precision,
            streamed: false,
        }
    }

    /// The same place, for layers that are packed anew whenever they work, if `streamed`: the
    /// network takes next to no memory and more time.
    pub fn streamed(self, streamed: bool) -> Loader<'a> {
        Loader { streamed, ..self }
    }

    /// The place called `name` below this one.
    pub fn at(&self, name: impl std::fmt::Display) -> Loader<'a> {
        Loader {
            prefix: format!("{}{name}.", self.prefix),
            ..self.clone()
        }
    }

    /// The precision that layers are packed in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// The same place, for layers that bytes would hurt: `bf16` where others are `int8`.
    pub fn sensitive(&self) -> Loader<'a> {
        let precision = match self.precision {
            Precision::Int8 => Precision::Bf16,
            other => other,
        };
        Loader {
            precision,
            ..self.clone()
        }
    }

    /// Whether a tensor of this name exists here.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.has(&format!("{}{name}", self.prefix))
    }

    fn find(&self, name: &str) -> Result<(String, &'a StoredTensor)> {
        let full = format!("{}{name}", self.prefix);
        match self.tensors.get(&full) {
            Some(tensor) => Ok((full, tensor)),
            None => {
                let path = self.tensors.paths().next().unwrap_or("checkpoint".as_ref());
                Err(Error::file(
                    path,
                    format!(
                        "tensor `{full}` is missing; the weights do not fit the config.json beside \
                         them (another model, or an incomplete file)"
                    ),
                ))
            }
        }
    }

    /// The tensor `name`, whose shape must be one of `shapes`.
    fn checked(&self, name: &str, shapes: &[&[usize]]) -> Result<(String, Cow<'a, StoredTensor>)> {
        if self.tensors.is_random() {
            let full = format!("{}{name}", self.prefix);
            return Ok((full, Cow::Owned(StoredTensor::random(shapes[0]))));
        }
        let (full, tensor) = self.find(name)?;
        if shapes.iter().any(|s| *s == tensor.shape()) {
            return Ok((full, Cow::Borrowed(tensor)));
        }
        Err(Error::file(
            self.tensors.path_of(tensor),
            format!(
                "tensor `{full}` has shape {:?}, but by config.json it must be {:?}; weights and \
                 config belong to different models",
                tensor.shape(),
                shapes[0]
            ),
        ))
    }

    /// The values of a one-dimensional tensor (bias, scale, shift), as `f32`.
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let (full, tensor) = self.checked(name, &[&[len]])?;
        self.tensors.read(&full, &tensor, to_f32)
    }

    /// The layer that `pack` makes of the stacked rows of these tensors: one that is in memory,
    /// or read now, or (streamed) whenever it works.
    fn layer<T: Any + Send + Sync>(
        &self,
        found: Vec<(String, Cow<'_, StoredTensor>)>,
        packed: (&'static str, [usize; 3]),
        format: Option<WeightFormat>,
        pack: impl Fn(Weights<'_>) -> T + Send + Sync + 'static,
    ) -> Result<Packed<T>> {
        let source = Source {
            tensors: self.tensors.clone(),
            found: (found.into_iter())
                .map(|(name, tensor)| (name, tensor.into_owned()))
                .collect(),
        };
        if self.streamed {
            source.check()?;
            return Ok(Packed::in_files(move || source.read(&pack)));
        }
        let Some(kept) = self.tensors.kept() else {
            return Ok(Packed::in_memory(Arc::new(source.read(pack)?)));
        };
        let key = Key {
            names: source.found.iter().map(|(name, _)| name.clone()).collect(),
            origins: (source.found.iter())
                .map(|(name, tensor)| self.tensors.origin_of(name, tensor))
                .collect(),
            packed,
            format,
        };
        let layer = kept.layer(key, || source.read(pack))?;
        Ok(Packed::in_memory(layer))
    }

    fn bias(&self, name: &str, len: usize, present: bool) -> Result<Option<Vec<f32>>> {
        present.then(|| self.vector(name, len)).transpose()
    }

    /// The fully connected layer `name` from `k` to `n` channels; a bias is used where
    /// the file has one. 1x1 convolutions are stored with two more axes and are the
    /// same thing.
    pub fn linear(&self, name: &str, k: usize, n: usize) -> Result<Linear> {
        self.linear_stacked(&[name], k, n)
    }

    /// Several layers of one shape, stacked into one that computes all their outputs
    /// side by side.
    pub fn linear_stacked(&self, names: &[&str], k: usize, n: usize) -> Result<Linear> {
        let total = n * names.len();
        let has_bias = self.has(&format!("{}.bias", names[0]));
        let mut bias = Vec::new();
        for name in names {
            if has_bias {
                bias.extend(self.vector(&format!("{name}.bias"), n)?);
            }
        }
        let mut found = Vec::new();
        for name in names {
            found.push(self.checked(&format!("{name}.weight"), &[&[n, k], &[n, k, 1, 1]])?);
        }
        let format = self.precision.weight_format();
        let weight = self.layer(found, ("matrix", [total, k, 1]), Some(format), move |w| {
            PackedMatrix::pack(w, total, k, format)
        })?;
        Ok(Linear {
            weight,
            n: total,
            k,
            bias: has_bias.then_some(bias),
        })
    }

    /// The GEGLU layer `name` from `k` channels to `inner`, stored as one of `2·inner`.
    pub fn geglu(&self, name: &str, k: usize, inner: usize) -> Result<Geglu> {
        let n = 2 * inner;
        let bias = self.bias(
            &format!("{name}.bias"),
            n,
            self.has(&format!("{name}.bias")),
        )?;
        let found = vec![self.checked(&format!("{name}.weight"), &[&[n, k]])?];
        let format = self.precision.weight_format();
        let weight = self.layer(found, ("geglu", [n, k, 1]), Some(format), move |w| {
            PackedMatrix::pack_geglu(w, inner, k, format)
        })?;
        Ok(Geglu { weight, n, k, bias })
    }

    /// The convolution `name` with a square kernel. `padding`: top, left, bottom, right.
    ///
    /// `int8` keeps it in `bf16`: its taps mix the pixels, so an image would have one scale, and
    /// its largest value would cost all others their digits. On the demo, bytes in nothing but the
    /// residual blocks' first convolutions put one call of the UNet 1.8e-2 from `f32`; bytes in all
    /// transformers, 0.7e-2.
    pub fn conv2d(
        &self,
        name: &str,
        c_in: usize,
        c_out: usize,
        kernel: usize,
        stride: usize,
        padding: [usize; 4],
    ) -> Result<Conv2d> {
        let sizes = [c_out, c_in, kernel];
        let weight = self.convolution(name, "convolution", sizes, move |w, format| {
            PackedConv::pack(w, c_out, c_in, kernel, kernel, format)
        })?;
        let conv = Conv2d {
            stride,
            padding,
            ..weight
        };
        Ok(conv)
    }

    /// A convolution of stride 1 with a pixel of zeros around, its weights packed by `pack`.
    fn convolution(
        &self,
        name: &str,
        packed: &'static str,
        [c_out, c_in, kernel]: [usize; 3],
        pack: impl Fn(Weights<'_>, WeightFormat) -> PackedConv + Send + Sync + 'static,
    ) -> Result<Conv2d> {
        let has_bias = self.has(&format!("{name}.bias"));
        let bias = self.bias(&format!("{name}.bias"), c_out, has_bias)?;
        let shape: &[usize] = &[c_out, c_in, kernel, kernel];
        let found = vec![self.checked(&format!("{name}.weight"), &[shape])?];
        let format = self.sensitive().precision.weight_format();
        let packed = (packed, [c_out, c_in, kernel]);
        let weight = self.layer(found, packed, Some(format), move |w| pack(w, format))?;
        Ok(Conv2d {
            weight,
            c_in,
            c_out,
            bias,
            kernel,
            stride: 1,
            padding: [1; 4],
        })
    }

    /// The 3x3 convolution `name`, of stride 1 and with one pixel of zeros around, that in `bf16` takes
    /// 4/9 of the multiplications and a little of the exactness ([`PackedConv::pack_winograd`]).
    pub fn conv_winograd(&self, name: &str, c_in: usize, c_out: usize) -> Result<Conv2d> {
        let sizes = [c_out, c_in, 3];
        self.convolution(name, "Winograd convolution", sizes, move |w, format| {
            PackedConv::pack_winograd(w, c_out, c_in, format)
        })
    }

    /// The usual 3x3 convolution: stride 1, one pixel of zeros around.
    pub fn conv3x3(&self, name: &str, c_in: usize, c_out: usize) -> Result<Conv2d> {
        self.conv2d(name, c_in, c_out, 3, 1, [1; 4])
    }

    /// The 3x3 convolution `name` packed for inputs whose every pixel is doubled both ways, which
    /// then takes 4/9 of the work. Nothing for formats whose usual packing is as quick.
    pub fn conv_doubled(&self, name: &str, c_in: usize, c_out: usize) -> Result<Option<Conv2d>> {
        let format = self.sensitive().precision.weight_format();
        if matches!(format, WeightFormat::F32 | WeightFormat::F16) {
            return Ok(None);
        }
        let sizes = [c_out, c_in, 3];
        let conv = self.convolution(name, "doubled convolution", sizes, move |w, format| {
            PackedConv::pack_upsampled(w, c_out, c_in, format)
        })?;
        Ok(Some(conv))
    }

    /// The group norm (or, with one group, layer norm) `name`.
    pub fn norm(&self, name: &str, channels: usize, groups: usize, eps: f32) -> Result<Norm> {
        Ok(Norm {
            gamma: self.vector(&format!("{name}.weight"), channels)?,
            beta: self.vector(&format!("{name}.bias"), channels)?,
            eps,
            groups,
        })
    }

    /// The table `name` of `rows` vectors of length `width`.
    pub fn embedding(&self, name: &str, rows: usize, width: usize) -> Result<Embedding> {
        let found = self.checked(&format!("{name}.weight"), &[&[rows, width]])?;
        if self.streamed && !self.tensors.changes(&found.0) && found.1.slice(0, rows).is_some() {
            let source = Source {
                tensors: self.tensors.clone(),
                found: vec![(found.0, found.1.into_owned())],
            };
            source.check()?;
            let table = Table::Files { source, rows };
            return Ok(Embedding { width, table });
        }
        // A table is read whole and read often: it stays in memory where it is not in the files.
        let bytes = match self.tensors.changes(&found.0) {
            true => size_of::<f32>(),
            false => found.1.value_bytes(),
        };
        let resident = self.clone().streamed(false);
        let table = resident.layer(
            vec![found],
            ("table", [rows, width, 1]),
            None,
            move |w| match w {
                Weights::F32(v) => EmbeddingValues::F32(v.to_vec()),
                Weights::F16(v) => EmbeddingValues::F16(v.to_vec()),
                Weights::Bf16(v) => EmbeddingValues::Bf16(v.to_vec()),
                Weights::Int8 { .. } => EmbeddingValues::F32(to_f32(w)),
                Weights::Unread { len, meter } => {
                    let _bytes = meter.count(Kind::Weights, len * bytes);
                    EmbeddingValues::Unread { _bytes }
                }
            },
        )?;
        let table = Table::Memory(table.get());
        Ok(Embedding { width, table })
    }
}

/// Tensors whose rows, stacked, are a layer.
struct Source {
    tensors: TensorSet,
    found: Vec<(String, StoredTensor)>,
}

impl Source {
    /// Runs `pack` on the values.
    fn read<R>(&self, pack: impl FnOnce(Weights<'_>) -> R) -> Result<R> {
        if let [(name, tensor)] = self.found.as_slice() {
            self.tensors.fetch(tensor);
            return self.tensors.read(name, tensor, pack);
        }
        if let Some(meter) = self.tensors.meter() {
            let len = self.found.iter().map(|(_, tensor)| tensor.values()).sum();
            // As `Rows` has them.
            let stored = |(_, tensor): &(_, StoredTensor)| tensor.value_bytes() == 2;
            let changed = |(name, _): &(String, _)| self.tensors.changes(name);
            let narrow = self.found.iter().all(stored) && !self.found.iter().any(changed);
            let bytes = if narrow { 2 } else { size_of::<f32>() };
            let rows = len * bytes;
            if let Some((name, tensor)) = self.found.last() {
                let last = if narrow { 0 } else { tensor.values() * bytes };
                meter.passing(rows + last + self.tensors.reading_bytes(name, tensor));
            }
            let packed = pack(Weights::Unread { len, meter });
            meter.passing(rows);
            return Ok(packed);
        }
        let mut rows = Rows::default();
        for (name, tensor) in &self.found {
            self.tensors.fetch(tensor);
            self.tensors.read(name, tensor, |w| rows.add(w))?;
        }
        Ok(rows.with(pack))
    }

    /// Reads without packing: later, in the middle of a run, nothing may be found to be wrong.
    fn check(&self) -> Result<()> {
        for (name, tensor) in &self.found {
            if !self.tensors.is_random() {
                self.tensors.read(name, tensor, |_| ())?;
            }
        }
        Ok(())
    }
}

fn to_f32(values: Weights<'_>) -> Vec<f32> {
    match values {
        Weights::F32(v) => v.to_vec(),
        Weights::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
        Weights::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
        Weights::Int8 { bytes, scales } => {
            let rows = bytes.chunks_exact(bytes.len() / scales.len()).zip(scales);
            rows.flat_map(|(row, scale)| row.iter().map(move |q| f32::from(*q) * scale))
                .collect()
        }
        Weights::Unread { len, .. } => vec![0.0; len],
    }
}

fn same_type<'a>(a: Weights<'a>, b: Weights<'a>) -> bool {
    std::mem::discriminant(&a) == std::mem::discriminant(&b)
}

/// Rows of several tensors below one another: as bytes while all of them are, so that those are
/// not rounded again, and as stored while all are of 16 bits, which is quicker.
#[derive(Default)]
struct Rows {
    floats: Vec<f32>,
    halves: Vec<f16>,
    brains: Vec<bf16>,
    bytes: Vec<i8>,
    scales: Vec<f32>,
}

impl Rows {
    fn add(&mut self, rows: Weights<'_>) {
        if self.len() == 0 || self.with(|all| same_type(all, rows)) {
            match rows {
                Weights::F32(v) => self.floats.extend_from_slice(v),
                Weights::F16(v) => self.halves.extend_from_slice(v),
                Weights::Bf16(v) => self.brains.extend_from_slice(v),
                Weights::Int8 { bytes, scales } => {
                    self.bytes.extend_from_slice(bytes);
                    self.scales.extend_from_slice(scales);
                }
                Weights::Unread { len, .. } => {
                    self.floats.extend(std::iter::repeat_n(0.0, len));
                }
            }
            return;
        }
        let mut floats = self.with(to_f32);
        floats.extend(to_f32(rows));
        *self = Rows {
            floats,
            ..Rows::default()
        };
    }

    fn len(&self) -> usize {
        self.floats.len() + self.halves.len() + self.brains.len() + self.bytes.len()
    }

    fn with<R>(&self, use_values: impl FnOnce(Weights<'_>) -> R) -> R {
        let (bytes, scales) = (&self.bytes, &self.scales);
        use_values(if !bytes.is_empty() {
            Weights::Int8 { bytes, scales }
        } else if !self.halves.is_empty() {
            Weights::F16(&self.halves)
        } else if !self.brains.is_empty() {
            Weights::Bf16(&self.brains)
        } else {
            Weights::F32(&self.floats)
        })
    }
}

/// A table of vectors looked up by token id or position, kept as stored.
pub struct Embedding {
    width: usize,
    table: Table,
}

enum Table {
    Memory(Arc<EmbeddingValues>),
    /// Rows are read where they lie.
    Files {
        source: Source,
        rows: usize,
    },
}

enum EmbeddingValues {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
    Unread { _bytes: Counted },
}

impl Embedding {
    /// Appends row `index` to `out`, as `f32`. The caller guarantees the range.
    pub fn append_row(&self, index: usize, out: &mut Vec<f32>) {
        let range = index * self.width..(index + 1) * self.width;
        match &self.table {
            Table::Memory(values) => match &**values {
                EmbeddingValues::F32(v) => out.extend_from_slice(&v[range]),
                EmbeddingValues::F16(v) => out.extend(v[range].iter().map(|x| x.to_f32())),
                EmbeddingValues::Bf16(v) => out.extend(v[range].iter().map(|x| x.to_f32())),
                EmbeddingValues::Unread { .. } => out.extend(std::iter::repeat_n(0.0, self.width)),
            },
            Table::Files { source, rows } => {
                let [(name, tensor)] = source.found.as_slice() else {
                    unreachable!("a table is one tensor");
                };
                let row = tensor.slice(index, *rows).map(|row| {
                    let read = source.tensors.read(name, &row, to_f32);
                    read.unwrap_or_else(|e| panic!("{e} (it was readable before the run)"))
                });
                out.extend(row.unwrap_or_else(|| unreachable!("a row was cut before")));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacked_rows_keep_their_values() {
        let floats = [1.0, -0.3333, 3e-6, 7.5];
        let halves = floats.map(f16::from_f32);
        let brains = floats.map(bf16::from_f32);
        let (bytes, scales) = ([3, -7, 127, 0], [0.5, 0.1]);
        let bytes = Weights::Int8 {
            bytes: &bytes,
            scales: &scales,
        };
        let (floats, halves) = (Weights::F32(&floats), Weights::F16(&halves));
        let all = [floats, halves, Weights::Bf16(&brains), bytes];
        for first in all {
            for second in all {
                for third in all {
                    let mut rows = Rows::default();
                    let mut want = Vec::new();
                    for part in [first, second, third] {
                        rows.add(part);
                        want.extend(to_f32(part));
                    }
                    assert_eq!(rows.with(to_f32), want);
                    // Without a detour where they are of one type.
                    let same = same_type(first, second) && same_type(first, third);
                    assert!(!same || rows.with(|w| same_type(w, first)));
                }
            }
        }
    }
}
