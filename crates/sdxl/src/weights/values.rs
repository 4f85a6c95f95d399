//! Stored values as `f32`.

use sdxl_kernels::Weights;

/// Widens stored values to `f32`.
pub(crate) fn to_f32(values: Weights<'_>) -> Vec<f32> {
    match values {
        Weights::F32(v) => v.to_vec(),
        Weights::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
        Weights::Bf16(v) => v.iter().map(|x| x.to_f32()).collect(),
        Weights::Int8 { bytes, scales } => {
            let rows = bytes.chunks_exact(bytes.len() / scales.len()).zip(scales);
            rows.flat_map(|(row, scale)| row.iter().map(move |q| f32::from(*q) * scale))
                .collect()
        }
    }
}
