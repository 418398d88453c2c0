//! Element codes in the order the product wants them, and their values by look-up.

use microscale_formats::{E2M1, E2M3, ElementFormat, INT8};

use super::LANES;

/// Codes that are decoded together: two pairs along k of sixteen outputs.
pub(crate) const QUAD: usize = 4 * LANES;
/// Quads of a step of 32 elements along k.
pub(crate) const QUADS: usize = 8;

/// Panels that a row streams through at once. Their scales lie together, and their codes either panel by panel, which makes four
/// streams of memory, or line by line, which makes one.
pub(crate) const GROUP: usize = 4;

/// A line of memory.
pub(crate) type Line = [u8; QUAD];

/// The scales of a block of a panel's outputs, which are [`E8M0`](microscale_formats::E8M0) as they lie in memory.
pub(crate) type BlockScales = [u8; LANES];

/// The packed codes of a step of a panel: as many lines as a code has bits.
#[derive(Clone, Copy)]
pub(crate) struct StepCodes<'a> {
    /// From the first one to the last.
    pub(crate) lines: &'a [Line],
    /// From one of them to the next: 1, or [`GROUP`] where those of the other panels lie between.
    pub(crate) stride: usize,
}

impl<'a> StepCodes<'a> {
    /// How many lines the step's codes of so many bits extend over.
    #[inline(always)]
    pub(crate) const fn extent(bits: usize, stride: usize) -> usize {
        (bits - 1) * stride + 1
    }

    #[inline(always)]
    pub(crate) fn line(self, i: usize) -> &'a Line {
        &self.lines[i * self.stride]
    }
}

/// The elements along k whose codes or values are the bytes 0 to 3 of a lane of 32 bits, where these are an output's four:
/// [`position`] says why.
pub(crate) const ORDER: [usize; 4] = [0, 2, 1, 3];

/// Where in 64 codes of so many bits the one of `output` and element `k` (0 to 3) stands.
///
/// - 8 bits: four outputs at a time, pair by pair. In a register of 512 bits each quarter of 128 bits then holds the codes of
///   four outputs, and interleaving bytes within quarters (the only way the machine does it) gives one pair of each.
/// - 4 and 6 bits: an output's four in the [order](ORDER) that puts both elements of a pair in neighbouring words, so that
///   looking up words, by their lowest bits, gives one pair of each output.
pub(crate) const fn position(bits: u32, output: usize, k: usize) -> usize {
    if bits == 8 { output / 4 * 16 + k / 2 * 8 + output % 4 * 2 + k % 2 } else { 4 * output + ORDER[k] }
}

/// Values of two bytes by code, in the forms the machines look them up in.
pub(crate) struct PairTable<const N: usize> {
    pub(crate) low: [u8; N],
    pub(crate) high: [u8; N],
    /// Both bytes.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "looked up by bytes elsewhere"))]
    pub(crate) words: [u16; N],
}

/// The values of every code of a format, as bf16 and as integers.
pub(crate) struct CodeTable {
    /// Bits of the value of each code.
    pub(crate) words: [u16; 256],
    /// The values of codes 0 to 127: all codes of 4 (repeated every 16) and 6 bits, and of 8 bits those without a sign.
    pub(crate) halves: PairTable<128>,
    /// Whether the codes of 8 bits are two's complement rather than sign and magnitude.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "looked up whole elsewhere"))]
    pub(crate) twos_complement: bool,
    /// How most magnitudes of 8 bits become bf16.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "looked up whole elsewhere"))]
    pub(crate) middle: Middle,
    /// Of small integers: the value of each code in units.
    pub(crate) bytes: Option<ByteTable>,
    /// Of formats of 4 and 6 bits and of small integers: the value of each code in units, as a signed integer; shorter codes
    /// repeat.
    pub(crate) integers: Option<IntegerTable>,
}

/// The integers that codes stand for, as bytes.
pub(crate) struct ByteTable {
    /// Plus [`BYTE_BIAS`]; codes of 4 bits repeat every 16.
    pub(crate) biased: [u8; 256],
    /// Those of codes of 4 bits plus [`SMALL_BIAS`].
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "sums have room enough elsewhere"))]
    pub(crate) small: [u8; 16],
}

/// The integers that codes stand for.
pub(crate) struct IntegerTable {
    pub(crate) values: PairTable<256>,
    /// How those of a sign and a magnitude in six bits come about.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "looked up whole elsewhere"))]
    pub(crate) factors: Factors,
}

/// Codes of six bits as products of a significand and a power of two. The significand of a magnitude is the lesser of the
/// magnitude and its fraction with the hidden bit, since the subnormal ones, and they alone, are below that bit. Every number is
/// there as often as it fits 32 bits.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "looked up whole elsewhere"))]
pub(crate) struct Factors {
    pub(crate) hidden: u32,
    /// Fraction and hidden bit.
    pub(crate) significand: u32,
    /// What codes are shifted by to what powers are looked up by, and what of that to keep.
    pub(crate) fraction_bits: u32,
    pub(crate) exponent: u32,
    /// The powers by sign and exponent, signed.
    pub(crate) powers: [u8; 16],
}

impl Factors {
    fn new(element: ElementFormat) -> Factors {
        // Formats of other widths have no use for them.
        let (bits, bytes) = (element.mantissa_bits().min(4), |x: u8| u32::from_ne_bytes([x; 4]));
        Factors {
            hidden: bytes(1 << bits),
            significand: bytes((2 << bits) - 1),
            fraction_bits: bits,
            exponent: bytes(0x3F >> bits),
            powers: std::array::from_fn(|code| {
                // The highest bit is the sign.
                let (sign, exponent) = (code >> (5 - bits), code as u32 & (0x1F >> bits));
                let power = 1i8.checked_shl(exponent.saturating_sub(1)).unwrap_or(0);
                if sign % 2 == 1 { -power } else { power }.cast_unsigned()
            }),
        }
    }
}

/// Magnitudes as bf16: `(magnitude << up) + (base << 8)`, which holds for all codes of a sign and a magnitude in 8 bits but
/// for subnormal and special ones, which are among the 16 smallest and the 16 largest. Every number is there as often as it
/// fits 32 bits: a register full of it is then one load away.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "looked up whole elsewhere"))]
pub(crate) struct Middle {
    /// What magnitudes are shifted by for the low bytes of their values, and what of these to keep.
    pub(crate) up: u32,
    pub(crate) low: u32,
    /// The same for the high bytes, to which the base is added.
    pub(crate) down: u32,
    pub(crate) high: u32,
    pub(crate) base: u32,
}

impl Middle {
    fn new(element: ElementFormat) -> Middle {
        let (words, bytes) = (|x: u32| x << 16 | x, |x: u8| u32::from_ne_bytes([x; 4]));
        // bf16 has seven bits of fraction, and its exponents are larger by the difference of the biases.
        let up = 7 - element.mantissa_bits();
        Middle {
            up: words(up),
            low: bytes(0xFF << up),
            down: words(8 - up),
            high: bytes(0x7F >> (8 - up)),
            base: bytes(((127 - element.bias()) >> 1) as u8),
        }
    }
}

/// What is added to weights to make their bytes unsigned, which is what the machines multiply signed ones by.
pub(crate) const BYTE_BIAS: i32 = 128;
/// What is enough for codes of 4 bits: their products with other bytes are then small.
pub(crate) const SMALL_BIAS: i32 = 16;

/// Whether the values of a format are small integers times its smallest magnitude, and fit a byte.
pub(crate) fn is_small_integer(element: ElementFormat) -> bool {
    [E2M1, E2M3, INT8].contains(&element)
}

/// One over the smallest magnitude of a format, of which all others are multiples.
fn units(element: ElementFormat) -> f32 {
    if element == INT8 { 64.0 } else { 1.0 / element.min_positive() }
}

impl<const N: usize> PairTable<N> {
    fn new(value: impl Fn(usize) -> u16) -> Self {
        let words: [u16; N] = std::array::from_fn(value);
        let bytes = words.map(u16::to_le_bytes);
        PairTable { low: bytes.map(|[low, _]| low), high: bytes.map(|[_, high]| high), words }
    }
}

impl CodeTable {
    pub(crate) fn new(element: ElementFormat) -> CodeTable {
        let mask = ((1u32 << element.bits()) - 1) as u8;
        let words: [u16; 256] = std::array::from_fn(|code| (element.decode(code as u8 & mask).to_bits() >> 16) as u16);
        CodeTable {
            halves: PairTable::new(|code| words[code]),
            words,
            twos_complement: element == INT8,
            middle: Middle::new(element),
            bytes: is_small_integer(element).then(|| {
                let value = |code: usize| (element.decode(code as u8 & mask) * units(element)) as i32;
                ByteTable {
                    biased: std::array::from_fn(|code| (value(code) + BYTE_BIAS) as u8),
                    small: std::array::from_fn(|code| (value(code) + SMALL_BIAS) as u8),
                }
            }),
            integers: (element.bits() < 8 || is_small_integer(element)).then(|| {
                let value = |code| ((element.decode(code as u8 & mask) * units(element)) as i16).cast_unsigned();
                IntegerTable { values: PairTable::new(value), factors: Factors::new(element) }
            }),
        }
    }

    /// What [`Simd::decode`](super::Simd::decode) returns, one value after another.
    #[inline(always)]
    pub(crate) fn decode<const BITS: usize>(&self, step: StepCodes<'_>, quad: usize) -> [[u32; LANES]; 2] {
        let word = |position| u32::from(self.words[usize::from(code::<BITS>(step, quad, position))]);
        std::array::from_fn(|pair| {
            std::array::from_fn(|output| {
                let at = |k| position(BITS as u32, output, k);
                word(at(2 * pair)) | word(at(2 * pair + 1)) << 16
            })
        })
    }
}

/// The code of `BITS` bits, a sign and a magnitude with so many fraction bits, as the `f32` with the same exponent and
/// fraction fields. That is its value over 2^[`exponent_of_codes`], subnormal ones included; special codes count as the numbers that they would be otherwise.
#[inline(always)]
pub(crate) fn float_of_code<const BITS: usize>(fraction_bits: u32, code: u8) -> f32 {
    let (code, sign) = (u32::from(code), 1 << (BITS - 1));
    f32::from_bits((code & sign) << (32 - BITS) | (code & (sign - 1)) << (23 - fraction_bits))
}

/// The exponent of the power of two by which values of a format are larger than [`float_of_code`].
pub(crate) fn exponent_of_codes(element: ElementFormat) -> i32 {
    127 - element.bias()
}

/// Packs the codes of a step, quad after quad, into a panel's [lines](StepCodes), from the first one on and so far from each other.
///
/// A register full of bytes should give a quad with little to shift and nothing to shuffle:
///
/// - 8 bits: a byte a code.
/// - 4 bits: 64 bytes hold two quads, one in the low and one in the high halves.
/// - 6 bits: 192 bytes hold four quads. Three of them lie in the low six bits of 64 bytes each; the fourth is cut in
///   three, two bits to the top of each of those bytes.
pub(crate) fn pack_step(codes: &[[u8; QUAD]; QUADS], bits: u32, (to, stride): (&mut [Line], usize)) {
    let mut lines = to.iter_mut().step_by(stride);
    match bits {
        4 => {
            for (to, [low, high]) in lines.zip(codes.as_chunks::<2>().0) {
                for ((to, low), high) in to.iter_mut().zip(low).zip(high) {
                    *to = low & 15 | high << 4;
                }
            }
        }
        6 => {
            for [codes @ .., cut] in codes.as_chunks::<4>().0 {
                for (third, (codes, to)) in codes.iter().zip(lines.by_ref()).enumerate() {
                    for ((to, code), cut) in to.iter_mut().zip(codes).zip(cut) {
                        *to = code & 63 | cut >> (2 * third) << 6;
                    }
                }
            }
        }
        _ => lines.zip(codes).for_each(|(to, codes)| *to = *codes),
    }
}

/// What [`Simd::pack_pairs`](super::Simd::pack_pairs) writes.
#[inline(always)]
pub(super) fn pack_pairs<const BITS: usize>(lanes: &[u32; LANES], to: &mut [u8]) {
    match BITS {
        4 => to.iter_mut().zip(lanes).for_each(|(to, lane)| *to = *lane as u8),
        6 => {
            for (to, lanes) in to.as_chunks_mut::<6>().0.iter_mut().zip(lanes.as_chunks::<4>().0) {
                let [a, b, c, d] = lanes.map(u64::from);
                to.copy_from_slice(&(a | b << 12 | c << 24 | d << 36).to_le_bytes()[..6]);
            }
        }
        _ => {
            for (to, lane) in to.as_chunks_mut::<2>().0.iter_mut().zip(lanes) {
                *to = (*lane as u16).to_le_bytes();
            }
        }
    }
}

/// The code at `position` of a quad of a packed step.
#[inline(always)]
pub(super) fn code<const BITS: usize>(step: StepCodes<'_>, quad: usize, position: usize) -> u8 {
    match BITS {
        4 => step.line(quad / 2)[position] >> (4 * (quad % 2)) & 15,
        6 if quad % 4 < 3 => step.line(quad / 4 * 3 + quad % 4)[position] & 63,
        6 => {
            let third = |i: usize| step.line(quad / 4 * 3 + i)[position] >> 6;
            third(0) | third(1) << 2 | third(2) << 4
        }
        _ => step.line(quad)[position],
    }
}

/// What [`Simd::powers`](super::Simd::powers) returns.
#[inline(always)]
pub(crate) fn powers(scales: &BlockScales) -> [f32; LANES] {
    scales.map(|scale| match scale {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        byte => f32::from_bits(u32::from(byte) << 23),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_packed<const BITS: usize>(stride: usize) {
        let hash = |i: usize| (i as u32).wrapping_mul(0x9E37_79B9).rotate_left(11) as u8 >> (8 - BITS);
        let codes: [[u8; QUAD]; QUADS] = std::array::from_fn(|q| std::array::from_fn(|i| hash(QUAD * q + i)));
        let mut lines = vec![[0; QUAD]; StepCodes::extent(BITS, stride)];
        pack_step(&codes, BITS as u32, (&mut lines, stride));
        for (quad, codes) in codes.iter().enumerate() {
            let found = std::array::from_fn(|i| code::<BITS>(StepCodes { lines: &lines, stride }, quad, i));
            assert_eq!(*codes, found, "{BITS} bits, quad {quad}, lines {stride} from each other");
        }
    }

    #[test]
    fn codes_of_a_step_are_packed_without_loss() {
        for stride in [1, GROUP] {
            is_packed::<4>(stride);
            is_packed::<6>(stride);
            is_packed::<8>(stride);
        }
    }
}
