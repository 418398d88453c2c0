//! Python's `random.Random`: MT19937 (Matsumoto and Nishimura 1998) and what the harness draws with it.
//!
//! Few-shot examples are drawn with it as lm-eval draws them, and the bootstrap resamples with it, so that Python can
//! repeat both.

use std::collections::HashSet;

const N: usize = 624;

/// A generator seeded as `random.seed(n)` seeds it for a small whole number.
#[derive(Clone, Debug)]
pub struct Random {
    state: [u32; N],
    next: usize,
}

impl Random {
    /// `Random(seed)`.
    pub fn new(seed: u32) -> Self {
        let mut state = [0u32; N];
        state[0] = 19_650_218;
        for i in 1..N {
            state[i] = 1_812_433_253u32.wrapping_mul(state[i - 1] ^ (state[i - 1] >> 30)).wrapping_add(i as u32);
        }
        // Seeding by a key of one word.
        let mix = |state: &[u32; N], i: usize| state[i - 1] ^ (state[i - 1] >> 30);
        let mut i = 1;
        for _ in 0..N {
            state[i] = (state[i] ^ mix(&state, i).wrapping_mul(1_664_525)).wrapping_add(seed);
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        for _ in 1..N {
            state[i] = (state[i] ^ mix(&state, i).wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i == N {
                state[0] = state[N - 1];
                i = 1;
            }
        }
        state[0] = 0x8000_0000;
        Random { state, next: N }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            for k in 0..N {
                let y = (self.state[k] & 0x8000_0000) | (self.state[(k + 1) % N] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[k] = self.state[(k + 397) % N] ^ (y >> 1) ^ odd;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `random()`: 53 bits in [0, 1).
    pub fn random(&mut self) -> f64 {
        let high = f64::from(self.next_u32() >> 5);
        let low = f64::from(self.next_u32() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }

    /// A whole number below `bound`, which is at least 1 and below 2³².
    pub fn below(&mut self, bound: usize) -> usize {
        let bits = usize::BITS - bound.leading_zeros();
        loop {
            let draw = (self.next_u32() >> (32 - bits)) as usize;
            if draw < bound {
                return draw;
            }
        }
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i + 1);
            items.swap(i, j);
        }
    }

    /// `sample(range(population), count)`: different numbers in the order drawn; at most `population` of them.
    pub fn sample(&mut self, population: usize, count: usize) -> Vec<usize> {
        let count = count.min(population);
        // Python compares the sizes of the two data structures it may use, and the draws differ.
        let mut set_size = 21;
        if count > 5 {
            let mut power = 1;
            while power < 3 * count {
                power *= 4;
            }
            set_size += power;
        }
        if population <= set_size {
            let mut pool: Vec<usize> = (0..population).collect();
            return (0..count)
                .map(|i| {
                    let j = self.below(population - i);
                    let last = pool[population - i - 1];
                    std::mem::replace(&mut pool[j], last)
                })
                .collect();
        }
        let mut chosen = Vec::with_capacity(count);
        let mut seen = HashSet::new();
        while chosen.len() < count {
            let j = self.below(population);
            if seen.insert(j) {
                chosen.push(j);
            }
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_outputs_are_pythons() {
        let mut random = Random::new(1234);
        let first: Vec<u32> = (0..5).map(|_| random.next_u32()).collect();
        assert_eq!(first, [4150886329, 3342196574, 1892932127, 501869158, 32175636]);
    }

    #[test]
    fn samples_are_pythons() {
        for (population, first, second) in [
            (16113, [15834, 12749, 7220], [1914, 122, 1485]),
            (2251, [1805, 478, 30], [371, 143, 343]),
            (1119, [902, 239, 15], [185, 71, 171]),
            (39905, [28883, 7657, 490], [5940, 38156, 2288]),
        ] {
            let mut random = Random::new(1234);
            assert_eq!(random.sample(population, 3), first);
            assert_eq!(random.sample(population, 3), second);
        }
        // A pool that shrinks, and the set of more than five: Python 3.12's `Random(7).sample(range(20), 6)` and of 99.
        assert_eq!(Random::new(7).sample(20, 6), SMALL);
        assert_eq!(Random::new(7).sample(99, 6), LARGE);
    }

    const SMALL: [usize; 6] = [10, 4, 12, 1, 2, 13];
    const LARGE: [usize; 6] = [41, 19, 50, 83, 6, 9];
}
