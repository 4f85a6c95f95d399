//! Functions in `f32` that give the same bits on every machine: computed in `f64`, then rounded.

pub(super) fn ln(x: f32) -> f32 {
    libm::log(x.into()) as f32
}

pub(super) fn exp(x: f32) -> f32 {
    libm::exp(x.into()) as f32
}

pub(super) fn exp_m1(x: f32) -> f32 {
    libm::expm1(x.into()) as f32
}
