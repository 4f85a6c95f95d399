//! About how long work takes on this machine.

use sdxl_kernels::{Arithmetic, WeightFormat, peak_flops};

use crate::precision::Precision;
use crate::weights::Part;

/// WorkCost of one network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Effort {
    /// Which.
    pub part: Part,
    /// The precision of the network itself.
    pub precision: Precision,
    /// Operations.
    pub flop: f64,
    /// Bytes of weights that are packed for it.
    pub packed: f64,
}

/// Bytes of weights that are read from the page cache and packed in a second, a thread.
const PACKED: f64 = 0.5e9;

/// The peak speed of this machine: operations per second with all operands in registers. It is
/// measured once for each kind of arithmetic that is asked for, which takes some hundredths of a
/// second.
#[derive(Debug, Default)]
pub struct Speed {
    known: Vec<(Arithmetic, f64)>,
}

impl Speed {
    fn peak(&mut self, arithmetic: Arithmetic) -> f64 {
        if let Some((_, peak)) = self.known.iter().find(|(a, _)| *a == arithmetic) {
            return *peak;
        }
        let peak = peak_flops(arithmetic);
        self.known.push((arithmetic, peak));
        peak
    }

    /// About how many seconds it takes.
    pub fn seconds(&mut self, effort: &Effort) -> f64 {
        let arithmetic = match effort.precision.weight_format() {
            WeightFormat::F32 | WeightFormat::F16 => Arithmetic::F32,
            WeightFormat::Bf16 => Arithmetic::Bf16,
            WeightFormat::Int8 => Arithmetic::Int8,
        };
        let rate = self.peak(arithmetic) * share_of_peak(effort.part, arithmetic);
        let threads = rayon::current_num_threads() as f64;
        effort.flop / rate + effort.packed / (threads * PACKED)
    }
}

/// Gives the share of the peak of its arithmetic that a network reaches, by docs/performance.md.
/// Above 1 it takes fewer operations than are counted (Winograd); `int8` computes a part of them in
/// `bf16`.
fn share_of_peak(part: Part, arithmetic: Arithmetic) -> f64 {
    match (part, arithmetic) {
        (Part::UNet, Arithmetic::F32) => 0.82,
        (Part::UNet, Arithmetic::Bf16) => 0.85,
        (Part::UNet, Arithmetic::Int8) => 0.6,
        (Part::Vae, Arithmetic::F32) => 1.4,
        (Part::Vae, _) => 0.8,
        (Part::TextEncoder | Part::TextEncoder2, _) => 0.65,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twice_the_work_takes_twice_the_time() {
        let mut speed = Speed::default();
        let effort = |flop, packed| Effort {
            part: Part::UNet,
            precision: Precision::F32,
            flop,
            packed,
        };
        let one = speed.seconds(&effort(1e12, 0.0));
        let [reading, two] = [(0.0, 1e9), (2e12, 1e9)].map(|(f, p)| speed.seconds(&effort(f, p)));
        assert!(one > 0.0 && reading > 0.0);
        assert!(
            (two - 2.0 * one - reading).abs() < 1e-9 * two,
            "{one} {reading} {two}"
        );
    }
}
