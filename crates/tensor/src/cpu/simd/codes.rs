//! Element codes in the order the product wants them, and their values by look-up.

use microscale_formats::{E8M0, ElementFormat};

use super::LANES;

/// Codes that are decoded together: two pairs along k of sixteen outputs.
pub(crate) const QUAD: usize = 4 * LANES;

/// Where in 64 codes the one of `output` and element `k` (0 to 3) stands.
///
/// Four outputs at a time, pair by pair: in a register of 512 bits each quarter of 128 bits then holds the codes of
/// four outputs, and interleaving bytes within quarters (the only way the machine does it) gives one pair of each.
pub(crate) const fn position(output: usize, k: usize) -> usize {
    output / 4 * 16 + k / 2 * 8 + output % 4 * 2 + k % 2
}

/// The values of every code of a format, as bf16, in the forms the machines look them up in.
pub(crate) struct CodeTable {
    /// Bits of the value of each code.
    pub(crate) words: [u16; 256],
    /// Low and high bytes of the values of codes 0 to 127: all codes of 4 (repeated every 16) and 6 bits, and of 8 bits
    /// those without a sign.
    pub(crate) low: [u8; 128],
    pub(crate) high: [u8; 128],
    /// Whether the codes of 8 bits are two's complement rather than sign and magnitude.
    pub(crate) twos_complement: bool,
}

impl CodeTable {
    pub(crate) fn new(element: ElementFormat) -> CodeTable {
        let mask = ((1u32 << element.bits()) - 1) as u8;
        let words: [u16; 256] = std::array::from_fn(|code| (element.decode(code as u8 & mask).to_bits() >> 16) as u16);
        CodeTable {
            low: std::array::from_fn(|code| words[code] as u8),
            high: std::array::from_fn(|code| (words[code] >> 8) as u8),
            words,
            twos_complement: element == microscale_formats::INT8,
        }
    }

    /// The values of pair `index` of the codes of `BITS` bits.
    #[inline(always)]
    fn pair<const BITS: usize>(&self, packed: &[u8; 64], index: usize) -> u32 {
        let [low, high] = match BITS {
            4 => [packed[index] & 15, packed[index] >> 4],
            6 => {
                let at = index / 2 * 3;
                let word = u32::from_le_bytes([packed[at], packed[at + 1], packed[at + 2], 0]) >> (index % 2 * 12);
                [(word & 63) as u8, (word >> 6 & 63) as u8]
            }
            _ => [packed[2 * index], packed[2 * index + 1]],
        };
        u32::from(self.words[usize::from(low)]) | u32::from(self.words[usize::from(high)]) << 16
    }

    /// What [`Simd::decode`](super::Simd::decode) returns, one pair after another.
    #[inline(always)]
    pub(crate) fn decode<const BITS: usize>(&self, packed: &[u8; 64]) -> [[u32; LANES]; 2] {
        std::array::from_fn(|pair| {
            std::array::from_fn(|output| self.pair::<BITS>(packed, position(output, 2 * pair) / 2))
        })
    }
}

/// What [`Simd::powers`](super::Simd::powers) returns.
#[inline(always)]
pub(crate) fn powers(scales: &[E8M0; LANES]) -> [f32; LANES] {
    scales.map(|scale| match scale.0 {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        byte => f32::from_bits(u32::from(byte) << 23),
    })
}
