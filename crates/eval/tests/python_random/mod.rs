//! Python's `random.Random`, as far as the harness's golden values need it: MT19937 (Matsumoto and Nishimura 1998).

const N: usize = 624;

/// A generator seeded as `random.seed(n)` seeds it for a small whole number.
pub(crate) struct Random {
    state: [u32; N],
    next: usize,
}

impl Random {
    pub(crate) fn new(seed: u32) -> Self {
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

    pub(crate) fn next_u32(&mut self) -> u32 {
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
    pub(crate) fn random(&mut self) -> f64 {
        let high = f64::from(self.next_u32() >> 5);
        let low = f64::from(self.next_u32() >> 6);
        (high * 67_108_864.0 + low) / 9_007_199_254_740_992.0
    }

    /// `shuffle(items)`.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let bound = i as u32 + 1;
            let bits = 32 - bound.leading_zeros();
            let below = loop {
                let draw = self.next_u32() >> (32 - bits);
                if draw < bound {
                    break draw;
                }
            };
            items.swap(i, below as usize);
        }
    }
}

#[test]
fn the_first_outputs_are_pythons() {
    let mut random = Random::new(1234);
    let first: Vec<u32> = (0..5).map(|_| random.next_u32()).collect();
    assert_eq!(first, [4150886329, 3342196574, 1892932127, 501869158, 32175636]);
}
