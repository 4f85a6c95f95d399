//! Which instruction set the kernels use, decided once per process.

use std::fmt;
use std::sync::OnceLock;

/// An instruction set the kernels are written for, from the least to the most capable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, vectorised by the compiler. Runs everywhere.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, VL and DQ.
    Avx512,
    /// [`Isa::Avx512`] with the bf16 and the int8 dot products (BF16, VNNI).
    Avx512Bf16,
    /// [`Isa::Portable`] with tiles of four rows, which no real one has: so every kernel's test
    /// runs with another height too.
    #[cfg(test)]
    FourRows,
}

impl Isa {
    /// Returns the instruction set in use: the best one the machine has, or the lower one that
    /// the environment variable `SDXL_ISA` names (`portable`, `avx2`, `avx512` or
    /// `avx512bf16`). The variable only ever lowers the choice; a name that is not known
    /// is ignored. Decided at the first call.
    pub fn current() -> Isa {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let best = Isa::detect();
            let wanted = std::env::var("SDXL_ISA").ok();
            let wanted = Isa::ALL
                .into_iter()
                .find(|isa| Some(isa.name()) == wanted.as_deref());
            wanted.map_or(best, |isa| isa.min(best))
        })
    }

    /// Every instruction set, from the least to the most capable.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// Returns every instruction set this machine can run.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Isa> {
        let best = Isa::detect();
        let real = Isa::ALL.into_iter().filter(|isa| *isa <= best);
        real.chain([Isa::FourRows]).collect()
    }

    /// Whether it has an instruction that multiplies pairs of `bf16` and sums in `f32`, so that
    /// networks compute faster in `bf16` than in `f32`. Others widen each value first.
    pub fn multiplies_bf16(self) -> bool {
        match self {
            Isa::Portable | Isa::Avx2 | Isa::Avx512 => false,
            Isa::Avx512Bf16 => true,
            #[cfg(test)]
            Isa::FourRows => false,
        }
    }

    /// Whether it has an instruction that multiplies bytes and sums in 32 bits, so that
    /// [`WeightFormat::Int8`](crate::WeightFormat) saves time as well as memory. Others widen
    /// each byte first.
    pub fn multiplies_int8(self) -> bool {
        match self {
            Isa::Portable | Isa::Avx2 | Isa::Avx512 => false,
            Isa::Avx512Bf16 => true,
            #[cfg(test)]
            Isa::FourRows => false,
        }
    }

    /// Whether its `a * b + c` is rounded once.
    #[cfg(test)]
    pub(crate) fn fuses_multiply_add(self) -> bool {
        match self {
            Isa::Portable | Isa::FourRows => false,
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => true,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            #[cfg(test)]
            Isa::FourRows => "four rows",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn detect() -> Isa {
        use std::arch::is_x86_feature_detected as has;
        if !(has!("avx2") && has!("fma") && has!("f16c")) {
            return Isa::Portable;
        }
        if !(has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq")) {
            return Isa::Avx2;
        }
        if !(has!("avx512bf16") && has!("avx512vnni")) {
            return Isa::Avx512;
        }
        Isa::Avx512Bf16
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn detect() -> Isa {
        Isa::Portable
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_is_one_the_machine_can_run() {
        assert!(Isa::available().contains(&Isa::current()));
    }

    #[test]
    fn names_are_distinct() {
        let names: std::collections::HashSet<String> =
            Isa::ALL.iter().map(|isa| isa.to_string()).collect();
        assert_eq!(names.len(), Isa::ALL.len());
    }

    /// An instruction set is at least as able as those below it, and what the best one here can
    /// do is what the machine says it can.
    #[test]
    fn abilities_grow_from_the_least_to_the_most_capable() {
        let of = |isa: Isa| [isa.multiplies_bf16(), isa.multiplies_int8()];
        for (lower, higher) in Isa::ALL.into_iter().zip(Isa::ALL.into_iter().skip(1)) {
            assert!(lower < higher, "{lower} before {higher}");
            for (lower, higher) in of(lower).into_iter().zip(of(higher)) {
                assert!(lower <= higher, "an ability that a better one lacks");
            }
        }
        assert_eq!(of(Isa::Portable), [false; 2]);
        assert_eq!(of(Isa::Avx2), [false; 2]);
        assert_eq!(of(Isa::Avx512), [false; 2]);
        assert_eq!(of(Isa::Avx512Bf16), [true; 2]);
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let able = [has!("avx512bf16"), has!("avx512vnni")];
            for (claimed, able) in of(Isa::detect()).into_iter().zip(able) {
                assert!(able || !claimed, "an ability the machine lacks");
            }
        }
    }
}
