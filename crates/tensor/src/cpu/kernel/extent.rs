//! How far the numbers of an operand reach, and what follows for the ways of a product.

use microscale_formats::{ElementFormat, INT8};

use super::sides::STEP;
use crate::BlockFormat;
use crate::cpu::simd::codes::QUADS;
use crate::cpu::simd::{Isa, LANES, Simd, scalar};

/// More than what rounding can take from a norm.
pub(super) const ROUND_UP: f32 = 1.0 + 1e-5;

/// How large and how small the numbers of an operand are, zeros, infinities and NaN left out of the smallest.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct Extent {
    /// All elements, before scaling, are multiples of it.
    unit: f64,
    /// The same after scaling.
    scaled_unit: f64,
    /// Largest magnitude after scaling.
    largest: f64,
    /// Whether the operand is plain bf16.
    pub(super) plain: bool,
}

impl Extent {
    /// Of elements of a format with these scales.
    pub(in crate::cpu) fn of_scales<'a>(
        element: ElementFormat,
        scales: impl IntoIterator<Item = &'a [f32; LANES]>,
    ) -> Extent {
        let mut range = ScaleRange::none(scalar());
        scales.into_iter().for_each(|scales| range.add(scalar(), *scales));
        range.extent(scalar(), [unit(element), element.max()])
    }

    /// Of nothing in this format.
    pub(in crate::cpu) fn none(format: Option<BlockFormat>) -> Extent {
        format.map_or_else(|| Extent::of_values([]), |f| Extent::of_scales(f.element, []))
    }

    /// Of bf16 values.
    #[inline(always)]
    pub(in crate::cpu) fn of_values(values: impl IntoIterator<Item = f32>) -> Extent {
        // As integers, magnitudes are ordered; zero less one is the largest of all.
        let (mut low, mut high) = (u32::MAX, 0);
        for x in values {
            let magnitude = x.to_bits() & 0x7FFF_FFFF;
            low = low.min(magnitude.wrapping_sub(1));
            high = high.max(magnitude);
        }
        // A bf16 has seven bits after its first.
        let smallest = f64::from(f32::from_bits(low.wrapping_add(1)));
        let unit = if low >= f32::INFINITY.to_bits() { f64::INFINITY } else { smallest / 128.0 };
        Extent { unit, scaled_unit: unit, largest: f64::from(f32::from_bits(high)), plain: true }
    }

    /// Whether no number is infinite or NaN.
    pub(super) fn is_finite(self) -> bool {
        self.largest.is_finite()
    }

    /// Whether there are subnormal numbers among plain bf16.
    pub(super) fn has_subnormals(self) -> bool {
        self.plain && self.unit * 128.0 < f64::from(f32::MIN_POSITIVE)
    }

    /// The extent of both.
    pub(in crate::cpu) fn join(self, other: Extent) -> Extent {
        let nan = self.largest.is_nan() || other.largest.is_nan();
        Extent {
            unit: self.unit.min(other.unit),
            scaled_unit: self.scaled_unit.min(other.scaled_unit),
            largest: if nan { f64::NAN } else { self.largest.max(other.largest) },
            plain: self.plain,
        }
    }

    /// That of the elements times their scales, if these are normal numbers by a margin that no product with unscaled
    /// elements of another format can use up.
    pub(super) fn dequantized(self) -> Option<Extent> {
        const FAR: f64 = (1u64 << 60) as f64;
        let moderate = !self.plain && self.scaled_unit >= 1.0 / FAR && self.largest <= FAR;
        moderate.then_some(Extent { unit: self.scaled_unit, ..self })
    }

    /// Whether no sum of products of the two, scaled or not, can be subnormal or overflow on the way.
    ///
    /// Every such sum is a multiple of the product of the units, so it is zero or at least that large. Infinities and
    /// NaN are no hazard to fear, but one nobody needs to be fast for.
    pub(super) fn is_safe_with(self, other: Extent) -> bool {
        const SUMMANDS: f64 = (1u64 << 32) as f64;
        let normal = f64::from(f32::MIN_POSITIVE);
        // A plain operand's smallest magnitude, 128 units, must itself be normal: machines differ in what they take
        // subnormals for.
        self.unit.min(other.unit) * 128.0 >= normal
            && self.unit * other.unit >= normal
            && self.scaled_unit * other.scaled_unit >= normal
            && self.largest * other.largest * SUMMANDS <= f64::from(f32::MAX)
            && self.largest.max(1.0) * other.largest.max(1.0) <= f64::from(f32::MAX)
    }

    /// Whether of two quantized operands that are safe with each other neither scales nor sums come so near to the ends of f32 that a
    /// factor of 2^64 for the one and its reciprocal for the other would matter.
    pub(super) fn has_room_beside(self, other: Extent) -> bool {
        const FACTOR: f64 = (1u128 << 64) as f64;
        // Elements of no format are further apart than 2^16 and 2^-16.
        !self.plain && !other.plain && self.largest.max(1.0) * other.largest.max(1.0) * FACTOR <= f64::from(f32::MAX)
    }
}

/// The smallest and the largest of scales and 1, lane by lane, NaN left out.
pub(in crate::cpu) struct ScaleRange<S: Simd> {
    /// As bits, which are ordered as positive numbers are.
    low: S::Pairs,
    high: S::F32,
}

impl<S: Simd> ScaleRange<S> {
    #[inline(always)]
    pub(in crate::cpu) fn none(simd: S) -> Self {
        ScaleRange { low: simd.splat_pairs(1f32.to_bits()), high: simd.splat(1.0) }
    }

    #[inline(always)]
    pub(in crate::cpu) fn add(&mut self, simd: S, scales: S::F32) {
        self.low = simd.min_bits(self.low, simd.bits(scales));
        self.high = simd.max(scales, self.high);
    }

    /// The extent of elements with these scales, given the smallest and the largest magnitude of their format.
    #[inline(always)]
    pub(in crate::cpu) fn extent(&self, simd: S, [unit, max]: [f32; 2]) -> Extent {
        let (mut low, mut high) = ([0; LANES], [0; LANES]);
        simd.store_pairs(self.low, &mut low);
        simd.store_pairs(simd.bits(self.high), &mut high);
        let low = f32::from_bits(low.into_iter().fold(u32::MAX, u32::min));
        let high = f32::from_bits(high.into_iter().fold(0, u32::max));
        let (unit, largest) = (f64::from(unit), f64::from(max) * f64::from(high));
        Extent { unit, scaled_unit: unit * f64::from(low), largest, plain: false }
    }
}

/// The smallest and the largest magnitude of bf16 values in pairs, lane by lane.
pub(in crate::cpu) struct Magnitudes<S: Simd> {
    /// Less one, so that zero is the largest of all.
    low: S::Pairs,
    high: S::Pairs,
}

impl<S: Simd> Magnitudes<S> {
    #[inline(always)]
    pub(in crate::cpu) fn none(simd: S) -> Self {
        Magnitudes { low: simd.splat_pairs(u32::MAX), high: simd.splat_pairs(0) }
    }

    #[inline(always)]
    pub(in crate::cpu) fn add(&mut self, simd: S, pairs: S::Pairs) {
        let odd = simd.and(pairs, simd.splat_pairs(0x7FFF_0000));
        let even = simd.shift_left(simd.and(pairs, simd.splat_pairs(0x7FFF)), 16);
        for half in [even, odd] {
            self.low = simd.min_bits(self.low, simd.sub_bits(half, simd.splat_pairs(1)));
            self.high = simd.max_bits(self.high, half);
        }
    }

    #[inline(always)]
    pub(in crate::cpu) fn extent(&self, simd: S) -> Extent {
        let (mut low, mut high) = ([0; LANES], [0; LANES]);
        simd.store_pairs(self.low, &mut low);
        simd.store_pairs(self.high, &mut high);
        let smallest = low.into_iter().fold(u32::MAX, u32::min).wrapping_add(1);
        let largest = high.into_iter().fold(0, u32::max);
        Extent::of_values([smallest, largest].map(f32::from_bits))
    }
}

/// The smallest magnitude of a format, of which all others are multiples.
pub(in crate::cpu) fn unit(element: ElementFormat) -> f32 {
    // 2^(1 − bias − mantissa bits)
    f32::from_bits(((128 - element.bias() - element.mantissa_bits() as i32) as u32) << 23)
}

/// The largest magnitude of a format over the smallest, where `f32` counts so far; else infinity.
pub(in crate::cpu) fn ratio(element: ElementFormat) -> f32 {
    // Two's complement has one code more on the negative side.
    let largest = if element == INT8 { 2.0 } else { element.max() };
    largest / unit(element)
}

/// Whether every sum of a step's products of elements with these ratios is exact in whatever order: they are integers times
/// a power of two, and exact in f32 up to 2^24.
pub(in crate::cpu) fn always_exact(ratio: f32, other: f32) -> bool {
    ratio * other <= ((1 << 24) / STEP) as f32
}

/// Of how many quads of a step the sums of products fit [`Short`](crate::cpu::simd::IntegerProducts::Short), where integers
/// up to one ratio are multiplied by bytes of codes of so many bits that stand for integers up to the other.
pub(in crate::cpu) fn quads_in_short(isa: Isa, ratio: f32, (bytes, bits): (f32, u32)) -> usize {
    // Every quad adds two products to each.
    let both = 2.0 * ratio * (isa.byte_bias(bits) as f32 + bytes);
    ((isa.largest_short() as f32 / both) as usize).min(QUADS)
}

/// Whether integers of a format, if small, can be multiplied by any bytes.
pub(in crate::cpu) fn fits_short(isa: Isa, element: ElementFormat) -> bool {
    quads_in_short(isa, ratio(element), (ratio(INT8), INT8.bits())) > 0
}

/// The [`WPanel::limit`](super::sides::WPanel::limit) of elements with this norm, in units of the smallest of their format.
///
/// Sums of products are whole multiples of the two sides' powers of two, and integers are exact in f32 up to 2^24. By the
/// inequality of Cauchy and Schwarz no partial sum of products is larger than the product of the norms.
pub(in crate::cpu) fn limit(norm: f32) -> f32 {
    (1 << 24) as f32 / (norm * ROUND_UP)
}
