//! A Brownian path that can be asked anywhere, as `torchsde.BrownianInterval` builds it.
//!
//! The increment over an interval is fixed by its two halves, theirs by their halves, and so on
//! down to a resolution of 1e-6 (a Brownian bridge at every midpoint). Each node has a random seed
//! of its own that depends only on the entropy and on its place in the tree, so answers do not
//! depend on the order of the questions.
//!
//! Source: Kidger, Foster, Li & Lyons, "Efficient and Accurate Gradients for Neural SDEs", 2021,
//! and torchsde 0.2.6 with `halfway_tree=True, tol=1e-6, pool_size=24`, which is how k-diffusion
//! and diffusers use it. Seeds are split by the `SeedSequence` of NumPy (M. E. O'Neill, "Developing
//! a seed_seq alternative", 2015).

use super::generator::{Generator, Rng};
use crate::latents::Latents;

/// Digits behind the point to which times are rounded.
const DIGITS: usize = 6;
/// Words of NumPy's entropy pool.
const POOL: usize = 24;
/// Deepest node that can be asked for. Times in a range of 2^20 with six digits need 40.
const MAX_DEPTH: u32 = 64;

/// A Brownian path on an interval of times, with one standard Brownian motion per latent value.
///
/// It stores only the increment over the whole interval and computes the rest when asked.
#[derive(Clone, Debug)]
pub struct BrownianTree {
    rng: Rng,
    entropy: u64,
    low: f64,
    high: f64,
    total: Latents,
}

/// An interval of the tree, its place, and the increment over it.
struct Node {
    low: f64,
    high: f64,
    key: u128,
    depth: u32,
    increment: Latents,
}

impl BrownianTree {
    /// The path on `[low, high]` that `entropy` stands for. `rng` says on which device the
    /// reference would draw it, `shape` is `[batch, height, width, channels]`.
    ///
    /// # Panics
    /// If `low` is above `high`.
    pub fn new(rng: Rng, entropy: u64, low: f64, high: f64, shape: [usize; 4]) -> Self {
        assert!(low <= high, "a Brownian interval from {low} to {high}");
        let seed = SeedSequence::new(entropy, &[]).generate::<1>()[0];
        let scale = (high - low).sqrt() as f32;
        let total = Generator::new(rng, seed.into())
            .randn_latents(shape)
            .map(|x| x * scale);
        Self {
            rng,
            entropy,
            low: round(low),
            high: round(high),
            total,
        }
    }

    /// The increment `W(to) - W(from)`. Outside of its interval the path stands still, as that of the
    /// reference does.
    pub fn increment(&self, from: f64, to: f64) -> Latents {
        let inside = |time: f64| round(time.clamp(self.low, self.high));
        let (low, high) = (inside(from.min(to)), inside(from.max(to)));
        let mut sum = None;
        if low < high {
            let increment = self.total.clone();
            let root = Node {
                low: self.low,
                high: self.high,
                key: 0,
                depth: 0,
                increment,
            };
            self.collect(root, low, high, &mut sum);
        }
        let sum = sum.unwrap_or_else(|| Latents::zeros(self.total.shape()));
        if from <= to { sum } else { sum.map(|x| -x) }
    }

    /// Adds what the parts of `node` inside `[low, high]` contribute, from left to right.
    fn collect(&self, node: Node, low: f64, high: f64, sum: &mut Option<Latents>) {
        if (low <= node.low && node.high <= high) || node.depth == MAX_DEPTH {
            *sum = Some(match sum.take() {
                Some(sum) => Latents::zip_with([&sum, &node.increment], |[a, b]| a + b),
                None => node.increment,
            });
            return;
        }
        let middle = round(0.5 * (node.high + node.low));
        let (left, right) = self.halves(node, middle);
        if low < middle {
            self.collect(left, low, high, sum);
        }
        if high > middle {
            self.collect(right, low, high, sum);
        }
    }

    /// The Brownian bridge at the middle of a node.
    fn halves(&self, node: Node, middle: f64) -> (Node, Node) {
        let Node {
            low,
            high,
            key,
            depth,
            increment,
        } = node;
        let seed = SeedSequence::new(self.entropy, &[key, depth.into()]).generate::<1>()[0];
        let noise = Generator::new(self.rng, seed.into()).randn_latents(increment.shape());
        let reciprocal = 1.0 / (high - low);
        let (before, after) = (middle - low, high - middle);
        let scale = (before * after * reciprocal).sqrt() as f32;
        let (before, reciprocal) = (before as f32, reciprocal as f32);
        let left = Latents::zip_with([&increment, &noise], |[w, n]| {
            before * w * reciprocal + scale * n
        });
        let right = Latents::zip_with([&increment, &left], |[w, l]| w - l);
        (
            Node {
                low,
                high: middle,
                key: 2 * key,
                depth: depth + 1,
                increment: left,
            },
            Node {
                low: middle,
                high,
                key: 2 * key + 1,
                depth: depth + 1,
                increment: right,
            },
        )
    }
}

/// Rounds to six decimals as Python does: from the exact decimal expansion, halves to even.
fn round(x: f64) -> f64 {
    format!("{x:.DIGITS$}").parse().unwrap_or(x)
}

/// NumPy's `SeedSequence` with a pool of 24 words.
struct SeedSequence {
    pool: [u32; POOL],
}

impl SeedSequence {
    fn new(entropy: u64, spawn_key: &[u128]) -> Self {
        let mut words = low_words(entropy.into());
        if !spawn_key.is_empty() {
            // Short entropy is padded, so that it cannot run into the key.
            words.resize(words.len().max(POOL), 0);
            words.extend(spawn_key.iter().flat_map(|&key| low_words(key)));
        }
        let mut hash = Hash {
            constant: 0x43b0_d7e5,
            factor: 0x931e_8875,
        };
        let mut pool = [0; POOL];
        for (i, slot) in pool.iter_mut().enumerate() {
            *slot = hash.next(words.get(i).copied().unwrap_or(0));
        }
        for from in 0..POOL {
            for to in 0..POOL {
                if from != to {
                    pool[to] = mix(pool[to], hash.next(pool[from]));
                }
            }
        }
        for &word in words.iter().skip(POOL) {
            for slot in &mut pool {
                *slot = mix(*slot, hash.next(word));
            }
        }
        Self { pool }
    }

    /// The first words of the stream.
    fn generate<const WORDS: usize>(&self) -> [u32; WORDS] {
        let mut hash = Hash {
            constant: 0x8b51_f9dd,
            factor: 0x58f3_8ded,
        };
        std::array::from_fn(|i| hash.next(self.pool[i % POOL]))
    }
}

/// The hash of `SeedSequence`, whose constant changes with each use.
struct Hash {
    constant: u32,
    factor: u32,
}

impl Hash {
    fn next(&mut self, word: u32) -> u32 {
        let word = word ^ self.constant;
        self.constant = self.constant.wrapping_mul(self.factor);
        let word = word.wrapping_mul(self.constant);
        word ^ (word >> 16)
    }
}

fn mix(x: u32, y: u32) -> u32 {
    let mixed = x
        .wrapping_mul(0xca01_f9dd)
        .wrapping_sub(y.wrapping_mul(0x4973_f715));
    mixed ^ (mixed >> 16)
}

/// A number as 32-bit words, lowest first, without leading zeros; zero is one word.
fn low_words(mut number: u128) -> Vec<u32> {
    let mut words = vec![number as u32];
    number >>= 32;
    while number > 0 {
        words.push(number as u32);
        number >>= 32;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_pythons() {
        for (x, rounded) in [
            (14.614_641_5, 14.614_641),
            (0.007_812_5, 0.007_812),
            (2.675_000_5, 2.675),
        ] {
            assert_eq!(round(x), rounded, "{x}");
        }
    }

    #[test]
    fn seeds_are_numpys() {
        let child = SeedSequence::new(5, &[3, 2]);
        assert_eq!(
            child.generate::<4>(),
            [0x19c1_a930, 0x331b_ab0f, 0x325e_bf10, 0xee36_a249]
        );
        assert_eq!(
            SeedSequence::new((1 << 40) + 7, &[]).generate::<3>(),
            [3531690330, 3002667236, 1514406079]
        );
    }

    #[test]
    fn parts_add_up() {
        let tree = BrownianTree::new(Rng::TorchCpu, 3, 0.03, 14.6, [1, 2, 2, 4]);
        let whole = tree.increment(0.5, 9.0);
        let parts = [tree.increment(0.5, 1.25), tree.increment(1.25, 9.0)];
        let sum = Latents::zip_with([&parts[0], &parts[1]], |[a, b]| a + b);
        for (a, b) in whole.data().iter().zip(sum.data()) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
        assert_eq!(tree.increment(9.0, 0.5), whole.map(|x| -x));
    }

    #[test]
    fn outside_the_path_stands_still() {
        let tree = BrownianTree::new(Rng::TorchCpu, 3, 1.0, 2.0, [1, 2, 2, 4]);
        assert_eq!(tree.increment(3.0, 4.0), Latents::zeros([1, 2, 2, 4]));
        assert_eq!(tree.increment(1.5, 4.0), tree.increment(1.5, 2.0));
    }
}
