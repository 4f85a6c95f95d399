//! A way out of long kernels: a flag that another thread can raise.
//!
//! A flag belongs to the thread that runs [`stoppable`]. The kernels that take long (products,
//! convolutions, attention, group norms) look at it once when they are called on this thread, and
//! before each of their tasks, wherever those run. When it is raised, the remaining tasks are
//! skipped and the kernel returns as usual.
//!
//! The contract: after a stop the output is unspecified, though initialised, memory. The caller
//! asks [`is_stopped`] before it uses a result, and throws it away where the answer is yes. A flag
//! is never lowered while it is installed, so an answer of no means that nothing was skipped.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

thread_local! {
    static INSTALLED: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// The flag that was installed before, to be put back, also when what runs meanwhile panics.
struct RestoreFlag(Option<Arc<AtomicBool>>);

impl Drop for RestoreFlag {
    fn drop(&mut self) {
        INSTALLED.set(self.0.take());
    }
}

/// Runs `run`, whose kernels stop when `flag` is raised (true). What they write then is
/// unspecified: ask [`is_stopped`] before using it.
///
/// The flag counts on the calling thread, for the kernels called there. Inside of another
/// `stoppable` this flag alone is looked at, until it returns or panics.
pub fn stoppable<R>(flag: &Arc<AtomicBool>, run: impl FnOnce() -> R) -> R {
    let _before = RestoreFlag(INSTALLED.replace(Some(Arc::clone(flag))));
    run()
}

/// Whether the flag that is installed on this thread is raised, so that results of kernels since
/// may be incomplete.
pub fn is_stopped() -> bool {
    INSTALLED.with_borrow(|flag| flag.as_ref().is_some_and(is_raised))
}

fn is_raised(flag: &Arc<AtomicBool>) -> bool {
    // Nothing is handed over with the flag. A thread that waits for a task which has seen it
    // raised sees it raised too.
    flag.load(Ordering::Relaxed)
}

/// The flag that one call of a kernel hands to its tasks on other threads.
pub(crate) struct StopFlag(Option<Arc<AtomicBool>>);

impl StopFlag {
    /// Returns the flag of the calling thread, if there is one.
    pub(crate) fn current() -> StopFlag {
        StopFlag(INSTALLED.with_borrow(Clone::clone))
    }

    /// Whether the rest of the work is to be skipped.
    pub(crate) fn is_raised(&self) -> bool {
        self.0.as_ref().is_some_and(is_raised)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use half::bf16;

    use super::*;
    use crate::test::{noise, rounded};
    use crate::{
        Activation, AttentionShape, ConvGeometry, Element, GroupNorm, PackedConv, PackedMatrix,
        WeightFormat, Weights, attention, conv2d, linear, linear_geglu,
    };

    /// The value that an output holds before a kernel writes it: no kernel here computes it.
    const UNTOUCHED: f32 = 12345.0;

    fn untouched<E: Element>(len: usize) -> Vec<E> {
        vec![E::from_f32(UNTOUCHED); len]
    }

    fn bits<E: Element>(values: &[E]) -> Vec<u32> {
        values.iter().map(|v| v.to_f32().to_bits()).collect()
    }

    /// A flag that is not raised changes no bit, and a raised one keeps `run` from writing.
    fn check<E: Element>(what: &str, len: usize, run: impl Fn(&mut [E])) {
        let mut plain = untouched(len);
        run(&mut plain);
        let flag = Arc::new(AtomicBool::new(false));
        let mut out = untouched(len);
        stoppable(&flag, || {
            run(&mut out);
            assert!(!is_stopped(), "{what}");
        });
        assert_eq!(bits(&out), bits(&plain), "{what}");
        assert!(bits(&out) != bits(&untouched::<E>(len)), "{what}");

        flag.store(true, Ordering::Relaxed);
        let mut out = untouched(len);
        stoppable(&flag, || {
            run(&mut out);
            assert!(is_stopped(), "{what}");
        });
        assert_eq!(bits(&out), bits(&untouched::<E>(len)), "{what}");
    }

    /// A flag that another thread raises in the middle of `run` leaves a part of the output
    /// unwritten.
    fn check_midway(what: &str, len: usize, run: impl Fn(&mut [f32])) {
        // The other thread may come too late on a busy machine.
        let stopped = (0..20).any(|_| {
            let flag = Arc::new(AtomicBool::new(false));
            let raised = Arc::clone(&flag);
            let mut out = untouched::<f32>(len);
            let other = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(3));
                raised.store(true, Ordering::Relaxed);
            });
            stoppable(&flag, || run(&mut out));
            other.join().unwrap();
            let left = out.iter().filter(|v| **v == UNTOUCHED).count();
            0 < left && left < len
        });
        assert!(stopped, "{what} ran to its end, or did nothing");
    }

    fn heads(queries: usize, keys: usize) -> AttentionShape {
        AttentionShape {
            batch: 1,
            heads: 2,
            head_dim: 64,
            queries,
            keys,
            q_stride: 128,
            kv_stride: 128,
            causal: false,
        }
    }

    fn check_products<E: Element>(formats: &[WeightFormat]) {
        let (rows, k, n) = (200, 40, 144);
        let x: Vec<E> = rounded(&noise(1, rows * k));
        let w = noise(2, n * k);
        for &format in formats {
            let what = format!("{format:?}");
            let packed = PackedMatrix::pack(Weights::F32(&w), n, k, format);
            check::<E>(&what, rows * n, |out| {
                linear(&x, rows, &packed, None, Activation::Silu, None, out);
            });
            let packed = PackedMatrix::pack_geglu(Weights::F32(&w), n / 2, k, format);
            check::<E>(&what, rows * n / 2, |out| {
                linear_geglu(&x, rows, &packed, None, out);
            });
        }
    }

    #[test]
    fn a_flag_stops_products_and_changes_nothing_before_it_is_raised() {
        use WeightFormat::{Bf16, F16, F32, Int8};
        check_products::<f32>(&[F32, F16, Bf16, Int8]);
        check_products::<bf16>(&[Bf16, Int8]);
    }

    #[test]
    fn a_flag_stops_convolutions_and_changes_nothing_before_it_is_raised() {
        let (c_in, c_out) = (40, 72);
        let w = Weights::F32(&noise(2, c_out * c_in * 9)[..]);
        // The smaller ones are products, the larger ones Winograd's in `f32`.
        for side in [7, 32] {
            let g = ConvGeometry::same(2, side, side);
            let len = g.batch * side * side * c_out;
            let x = noise(1, g.batch * side * side * c_in);
            let narrow: Vec<bf16> = rounded(&x);
            for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Int8] {
                let what = format!("{side}, {format:?}");
                let packed = PackedConv::pack(w, c_out, c_in, 3, 3, format);
                check::<f32>(&what, len, |out| {
                    conv2d(&x, &g, &packed, None, None, None, out);
                });
                let g = ConvGeometry {
                    upsample: true,
                    ..g
                };
                let packed = PackedConv::pack_upsampled(w, c_out, c_in, format);
                check::<f32>(&format!("doubled, {what}"), 4 * len, |out| {
                    conv2d(&x, &g, &packed, None, None, None, out);
                });
            }
            let packed = PackedConv::pack_winograd(w, c_out, c_in, WeightFormat::Bf16);
            check::<bf16>("bf16, Winograd", len, |out| {
                conv2d(&narrow, &g, &packed, None, None, None, out);
            });
        }
    }

    #[test]
    fn a_flag_stops_attention_and_norms_and_changes_nothing_before_it_is_raised() {
        let s = heads(300, 700);
        let (q, kv) = (noise(1, 300 * 128), noise(2, 700 * 128));
        check::<f32>("attention", q.len(), |out| {
            attention(&q, &kv, &kv, &s, out);
        });
        let (q16, kv16): (Vec<bf16>, Vec<bf16>) = (rounded(&q), rounded(&kv));
        check::<bf16>("attention", q.len(), |out| {
            attention(&q16, &kv16, &kv16, &s, out);
        });
        let norm = GroupNorm::new(&q, [1, 300, 128, 8], 1e-5, &[1.0; 128], &[0.5; 128], true);
        check::<f32>("group norm", q.len(), |out| norm.apply(&q, out));
    }

    #[test]
    fn a_flag_that_is_raised_midway_ends_the_work() {
        let (rows, k, n) = (2048, 2048, 2048);
        let (x, w) = (noise(1, rows * k), noise(2, n * k));
        let packed = PackedMatrix::pack(Weights::F32(&w), n, k, WeightFormat::F32);
        check_midway("linear", rows * n, |out| {
            linear(&x, rows, &packed, None, Activation::None, None, out);
        });

        let (side, c) = (128, 256);
        let (x, w) = (noise(1, side * side * c), noise(2, c * c * 9));
        let packed = PackedConv::pack(Weights::F32(&w), c, c, 3, 3, WeightFormat::F32);
        check_midway("conv2d", x.len(), |out| {
            conv2d(
                &x,
                &ConvGeometry::same(1, side, side),
                &packed,
                None,
                None,
                None,
                out,
            );
        });

        let tokens = 6000;
        let x = noise(1, tokens * 128);
        check_midway("attention", x.len(), |out| {
            attention(&x, &x, &x, &heads(tokens, tokens), out);
        });
    }

    #[test]
    fn the_flag_before_comes_back_also_after_a_panic() {
        let [outer, inner] = [true, false].map(|raised| Arc::new(AtomicBool::new(raised)));
        assert!(!is_stopped());
        stoppable(&outer, || {
            assert!(is_stopped());
            stoppable(&inner, || assert!(!is_stopped()));
            assert!(is_stopped());
            let inside = || stoppable(&inner, || panic!("on purpose"));
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(inside)).is_err());
            assert!(is_stopped());
            // It is this thread's alone.
            assert!(!std::thread::spawn(is_stopped).join().unwrap());
        });
        assert!(!is_stopped());
    }
}
