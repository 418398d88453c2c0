//! The six element formats: one literal each, everything else derived.

use core::fmt;

/// How codes map to values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Encoding {
    /// Sign, exponent, mantissa; every code is a finite number.
    Finite,
    /// Sign, exponent, mantissa; the code with all bits set is NaN.
    NanOnly,
    /// Sign, exponent, mantissa; the top exponent holds infinity and NaN, as in IEEE 754.
    Ieee,
    /// Two's complement with `mantissa_bits` fraction bits; the most negative code is unused.
    TwosComplement,
}

/// An MX element format. The constants [`E5M2`] … [`INT8`] are all there are.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ElementFormat {
    name: &'static str,
    ocp_name: &'static str,
    aliases: &'static [&'static str],
    exponent_bits: u8,
    mantissa_bits: u8,
    encoding: Encoding,
}

/// MXFP8 E5M2: 8 bits, largest value 57344.
pub const E5M2: ElementFormat = ElementFormat {
    name: "fp8_e5m2",
    ocp_name: "MXFP8 E5M2",
    aliases: &["float8_e5m2", "e5m2", "mxfp8_e5m2"],
    exponent_bits: 5,
    mantissa_bits: 2,
    encoding: Encoding::Ieee,
};
/// MXFP8 E4M3: 8 bits, largest value 448.
pub const E4M3: ElementFormat = ElementFormat {
    name: "fp8_e4m3",
    ocp_name: "MXFP8 E4M3",
    aliases: &["fp8", "float8_e4m3", "e4m3", "mxfp8", "mxfp8_e4m3"],
    exponent_bits: 4,
    mantissa_bits: 3,
    encoding: Encoding::NanOnly,
};
/// MXFP6 E3M2: 6 bits, largest value 28.
pub const E3M2: ElementFormat = ElementFormat {
    name: "fp6_e3m2",
    ocp_name: "MXFP6 E3M2",
    aliases: &["fp6", "float6_e3m2", "e3m2", "mxfp6", "mxfp6_e3m2"],
    exponent_bits: 3,
    mantissa_bits: 2,
    encoding: Encoding::Finite,
};
/// MXFP6 E2M3: 6 bits, largest value 7.5.
pub const E2M3: ElementFormat = ElementFormat {
    name: "fp6_e2m3",
    ocp_name: "MXFP6 E2M3",
    aliases: &["float6_e2m3", "e2m3", "mxfp6_e2m3"],
    exponent_bits: 2,
    mantissa_bits: 3,
    encoding: Encoding::Finite,
};
/// MXFP4 E2M1: 4 bits, largest value 6.
pub const E2M1: ElementFormat = ElementFormat {
    name: "fp4_e2m1",
    ocp_name: "MXFP4 E2M1",
    aliases: &["fp4", "float4_e2m1", "e2m1", "mxfp4", "mxfp4_e2m1"],
    exponent_bits: 2,
    mantissa_bits: 1,
    encoding: Encoding::Finite,
};
/// MXINT8: 8 bits, two's complement with 6 fraction bits, largest value 127/64.
pub const INT8: ElementFormat = ElementFormat {
    name: "int8",
    ocp_name: "MXINT8",
    aliases: &["mxint8"],
    exponent_bits: 0,
    mantissa_bits: 6,
    encoding: Encoding::TwosComplement,
};

impl ElementFormat {
    /// Every format, widest range first.
    pub const ALL: [ElementFormat; 6] = [E5M2, E4M3, E3M2, E2M3, E2M1, INT8];

    /// Which of [`ALL`](Self::ALL) it is. By its bits, which no other has: to compare formats is to compare their names too.
    #[inline]
    pub fn index(self) -> usize {
        let bits = |f: &ElementFormat| (f.exponent_bits, f.mantissa_bits);
        Self::ALL.iter().position(|f| bits(f) == bits(&self)).unwrap_or_default()
    }

    /// The format of this name or alias, in any case.
    pub fn from_name(name: &str) -> Option<ElementFormat> {
        Self::ALL.into_iter().find(|f| f.names().any(|n| n.eq_ignore_ascii_case(name)))
    }

    /// The canonical name, as recipes write it: `fp6_e3m2`.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// The name in the OCP specification: `MXFP6 E3M2`.
    pub fn ocp_name(self) -> &'static str {
        self.ocp_name
    }

    /// The canonical name and every alias.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        core::iter::once(self.name).chain(self.aliases.iter().copied())
    }

    /// Bits of one code: 4, 6 or 8.
    pub const fn bits(self) -> u32 {
        match self.encoding {
            Encoding::TwosComplement => 2 + self.mantissa_bits as u32,
            _ => 1 + self.exponent_bits as u32 + self.mantissa_bits as u32,
        }
    }

    /// Fraction bits of the significand.
    pub const fn mantissa_bits(self) -> u32 {
        self.mantissa_bits as u32
    }

    /// Bias of the exponent field; 0 for integers, whose only exponent is 0.
    pub const fn bias(self) -> i32 {
        match self.encoding {
            Encoding::TwosComplement => 1, // min_exponent = 1 − bias = 0: all values share the exponent 0
            _ => (1 << (self.exponent_bits - 1)) - 1,
        }
    }

    /// Exponent of the smallest normal number, which the subnormals share.
    const fn min_exponent(self) -> i32 {
        1 - self.bias()
    }

    /// Exponent of the largest power of two in the format (OCP's emax).
    pub const fn emax(self) -> i32 {
        self.min_exponent() + (self.max_code() >> self.mantissa_bits) as i32 - 1
    }

    /// Magnitude code of the largest finite value.
    const fn max_code(self) -> u32 {
        let all_ones = (1 << (self.bits() - 1)) - 1;
        match self.encoding {
            Encoding::Finite | Encoding::TwosComplement => all_ones,
            Encoding::NanOnly => all_ones - 1,
            Encoding::Ieee => all_ones - (1 << self.mantissa_bits),
        }
    }

    /// Largest finite value.
    #[inline]
    pub fn max(self) -> f32 {
        self.magnitude(self.max_code())
    }

    /// Smallest positive value.
    pub fn min_positive(self) -> f32 {
        self.magnitude(1)
    }

    /// Smallest positive normal value; for integers the smallest positive value.
    pub fn min_normal(self) -> f32 {
        match self.encoding {
            Encoding::TwosComplement => self.min_positive(),
            _ => self.magnitude(1 << self.mantissa_bits),
        }
    }

    /// Value of one code: its low [`bits`](Self::bits); higher bits are ignored.
    pub fn decode(self, code: u8) -> f32 {
        if self.encoding == Encoding::TwosComplement {
            return f32::from(code as i8) * exp2(-i32::from(self.mantissa_bits)) as f32;
        }
        let sign_bit = 1u32 << (self.bits() - 1);
        let magnitude = self.magnitude(u32::from(code) & (sign_bit - 1));
        if u32::from(code) & sign_bit != 0 { -magnitude } else { magnitude }
    }

    /// Value of a code without its sign.
    #[inline]
    fn magnitude(self, code: u32) -> f32 {
        if code > self.max_code() {
            let infinite = self.encoding == Encoding::Ieee && code == self.max_code() + 1;
            return if infinite { f32::INFINITY } else { f32::NAN };
        }
        let m = u32::from(self.mantissa_bits);
        let (mut exponent, mut significand) = (self.min_exponent(), code);
        if self.encoding != Encoding::TwosComplement && code >> m > 0 {
            exponent += (code >> m) as i32 - 1;
            significand = (1 << m) | (code & ((1 << m) - 1));
        }
        (f64::from(significand) * exp2(exponent - m as i32)) as f32
    }

    /// The code nearest to `x`, ties to even, saturated to ±[`max`](Self::max).
    ///
    /// NaN becomes the format's NaN where it has one, else code 0: blocks carry NaN in their scale.
    pub fn encode(self, x: f64) -> u8 {
        self.encode_with(x, &mut Rounding::Nearest(Ties::Even))
    }

    /// [`encode`](Self::encode) with a rounding of the caller's.
    pub fn encode_with(self, x: f64, rounding: &mut Rounding) -> u8 {
        if x.is_nan() {
            return match self.encoding {
                Encoding::Ieee | Encoding::NanOnly => (1 << (self.bits() - 1)) - 1,
                Encoding::Finite | Encoding::TwosComplement => 0,
            };
        }
        // Anything past twice the maximum saturates just the same, and keeps the quotient below small.
        let a = x.abs().min(2.0 * f64::from(self.max()));
        let m = i32::from(self.mantissa_bits);
        let integer = self.encoding == Encoding::TwosComplement;
        let exponent = if integer { 0 } else { exponent_of(a).max(self.min_exponent()) };
        let quotient = rounding.round(a / exp2(exponent - m));
        // Consecutive magnitudes have consecutive codes, so a carry out of the mantissa lands in the exponent by itself.
        let code = ((((exponent - self.min_exponent()) as u32) << m) + quotient).min(self.max_code()) as u8;
        match (x.is_sign_negative(), integer) {
            (false, _) => code,
            (true, true) => code.wrapping_neg(),
            (true, false) => code | 1 << (self.bits() - 1),
        }
    }
}

impl fmt::Debug for ElementFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Display for ElementFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name)
    }
}

/// Where a value halfway between two codes goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Ties {
    /// To the even code: IEEE 754's own, and what most tools mean.
    #[default]
    Even,
    /// To the larger magnitude: microxcaling's default, mistral.rs.
    Away,
    /// To the smaller magnitude: ModelOpt, ggml.
    Zero,
}

impl Ties {
    /// All of them.
    pub const ALL: [Ties; 3] = [Ties::Even, Ties::Away, Ties::Zero];

    /// The name on the command line and in files.
    pub fn name(self) -> &'static str {
        match self {
            Ties::Even => "even",
            Ties::Away => "away",
            Ties::Zero => "zero",
        }
    }

    /// The ties of this name, in any case.
    pub fn from_name(name: &str) -> Option<Ties> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }
}

/// How a value between two codes is rounded.
#[derive(Clone, Debug)]
pub enum Rounding {
    /// To the nearest.
    Nearest(Ties),
    /// To the smaller magnitude.
    TowardZero,
    /// Up with the probability of the distance from the lower neighbour; the number is the state of the generator
    /// (SplitMix64), so the seed to start with.
    Stochastic(u64),
}

impl Rounding {
    /// Rounds a non-negative quotient (below 2^32) to an integer.
    fn round(&mut self, quotient: f64) -> u32 {
        let below = quotient as u32;
        let rest = quotient - f64::from(below);
        let up = match self {
            Rounding::Nearest(Ties::Even) => rest > 0.5 || (rest == 0.5 && below & 1 == 1),
            Rounding::Nearest(Ties::Away) => rest >= 0.5,
            Rounding::Nearest(Ties::Zero) => rest > 0.5,
            Rounding::TowardZero => false,
            Rounding::Stochastic(state) => {
                *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mut z = *state;
                z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
                let uniform = ((z ^ (z >> 31)) >> 11) as f64 * exp2(-53);
                uniform < rest
            }
        };
        below + u32::from(up)
    }
}

/// 2^e, for −1022 ≤ e ≤ 1023.
#[inline]
pub(crate) fn exp2(e: i32) -> f64 {
    debug_assert!((-1022..=1023).contains(&e));
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// Exponent of the leading bit of a positive normal number; below every format's range for zero and subnormals.
fn exponent_of(a: f64) -> i32 {
    (a.to_bits() >> 52) as i32 - 1023
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_know_their_places() {
        assert_eq!(ElementFormat::ALL.map(ElementFormat::index), [0, 1, 2, 3, 4, 5]);
    }

    /// The table of the OCP specification: bits, bias, emax, max, min normal, min subnormal.
    #[test]
    fn derived_numbers_are_the_specification_s() {
        let table: [(ElementFormat, u32, i32, i32, f32, f32, f32); 5] = [
            (E5M2, 8, 15, 15, 57344.0, 2f32.powi(-14), 2f32.powi(-16)),
            (E4M3, 8, 7, 8, 448.0, 2f32.powi(-6), 2f32.powi(-9)),
            (E3M2, 6, 3, 4, 28.0, 0.25, 0.0625),
            (E2M3, 6, 1, 2, 7.5, 1.0, 0.125),
            (E2M1, 4, 1, 2, 6.0, 1.0, 0.5),
        ];
        for (f, bits, bias, emax, max, min_normal, min_positive) in table {
            assert_eq!((f.bits(), f.bias(), f.emax()), (bits, bias, emax), "{f}");
            assert_eq!((f.max(), f.min_normal(), f.min_positive()), (max, min_normal, min_positive), "{f}");
        }
        assert_eq!((INT8.bits(), INT8.emax(), INT8.max()), (8, 0, 1.984375));
    }

    #[test]
    fn every_code_survives_a_round_trip() {
        for f in ElementFormat::ALL {
            for code in 0..=(((1u32 << f.bits()) - 1) as u8) {
                let x = f.decode(code);
                if x.is_finite() && !(f == INT8 && code == 128) {
                    assert_eq!(f.encode(f64::from(x)), code, "{f} {code:#x}");
                }
            }
        }
    }

    #[test]
    fn nearest_even_against_all_values() {
        for f in ElementFormat::ALL {
            let mut values: alloc::vec::Vec<(f32, u8)> =
                (0..1u32 << (f.bits() - 1)).map(|c| (f.decode(c as u8), c as u8)).collect();
            values.retain(|v| v.0.is_finite());
            for pair in values.windows(2) {
                let ((low, a), (high, b)) = (pair[0], pair[1]);
                let middle = (f64::from(low) + f64::from(high)) / 2.0;
                assert_eq!(f.encode(middle), if a & 1 == 0 { a } else { b }, "{f} tie at {middle}");
                assert_eq!((f.encode(middle * (1.0 - 1e-9)), f.encode(middle * (1.0 + 1e-9))), (a, b), "{f} {middle}");
                let negative = f.decode(f.encode(-middle * (1.0 + 1e-9)));
                assert_eq!(negative, -high, "{f}");
            }
            for huge in [f64::from(f.max()) * 1.5, 1e30, f64::INFINITY] {
                assert_eq!(f.decode(f.encode(huge)), f.max(), "{f}");
                assert_eq!(f.decode(f.encode(-huge)), -f.max(), "{f}");
            }
        }
    }

    #[test]
    fn specials_decode_as_specified() {
        assert!(E4M3.decode(0x7F).is_nan() && E4M3.decode(0xFF).is_nan() && E4M3.decode(0x7E) == 448.0);
        assert!(E5M2.decode(0x7C) == f32::INFINITY && E5M2.decode(0xFC) == f32::NEG_INFINITY);
        assert!((0x7D..=0x7F).all(|c| E5M2.decode(c).is_nan()));
        assert!(E4M3.decode(E4M3.encode(f64::NAN)).is_nan() && E2M1.encode(f64::NAN) == 0);
    }

    #[test]
    fn names_find_their_format() {
        for (name, f) in [("fp6", E3M2), ("FP8", E4M3), ("float8_e5m2", E5M2), ("mxint8", INT8), ("e2m1", E2M1)] {
            assert_eq!(ElementFormat::from_name(name), Some(f));
        }
        assert_eq!(ElementFormat::from_name("fp7"), None);
    }

    #[test]
    fn other_roundings() {
        assert_eq!(E2M1.decode(E2M1.encode_with(-2.9, &mut Rounding::TowardZero)), -2.0);
        for (ties, expected) in
            Ties::ALL.into_iter().zip([[0.0, 1.0, -2.0, 4.0], [0.5, 1.0, -2.0, 6.0], [0.0, 0.5, -1.5, 4.0]])
        {
            let found =
                [0.25, 0.75, -1.75, 5.0].map(|x| E2M1.decode(E2M1.encode_with(x, &mut Rounding::Nearest(ties))));
            assert_eq!(found, expected, "{ties:?}");
        }
        let mut stochastic = Rounding::Stochastic(7);
        let up = (0..4000).filter(|_| E2M1.decode(E2M1.encode_with(2.25, &mut stochastic)) == 3.0).count();
        assert!((900..1100).contains(&up), "a quarter of 4000 expected, {up} found");
    }
}
