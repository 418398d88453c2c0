//! Every instruction set beside none.

use microscale_formats::{E2M3, E3M2, E4M3, E5M2, ElementFormat};

use super::codes::{GROUP, Line, QUADS, is_small_integer};
use super::*;

/// Lines of a step: all codes in order, and pseudo-random ones. Of each there are enough for either stride.
fn lines(bits: usize) -> Vec<Vec<Line>> {
    let hash = |i: usize| (i as u32).wrapping_mul(0x9E37_79B9).rotate_left(11) as u8;
    let byte = |seed: usize, i: usize| if seed < 2 { i as u8 } else { hash(i + 7919 * seed) };
    let line = |seed: usize, l: usize| std::array::from_fn(|i| byte(seed, 64 * (l / [1, GROUP][seed % 2]) + i));
    (0..32).map(|seed| (0..bits * GROUP).map(|l| line(seed, l)).collect()).collect()
}

/// Steps in these lines, side by side and apart by turns.
fn steps(lines: &[Vec<Line>]) -> impl Iterator<Item = StepCodes<'_>> {
    lines.iter().zip([1, GROUP].into_iter().cycle()).map(|(lines, stride)| StepCodes { lines, stride })
}

fn lanes<S: Simd>(simd: S, pairs: [S::Pairs; 2]) -> [[u32; LANES]; 2] {
    pairs.map(|pairs| {
        let mut lanes = [0; LANES];
        simd.store_pairs(pairs, &mut lanes);
        lanes
    })
}

fn floats_as_scalar<S: Simd, const BITS: usize>(simd: S, element: ElementFormat) {
    let fraction_bits = element.mantissa_bits();
    for step in steps(&lines(BITS)) {
        for quad in 0..QUADS {
            let found = simd.vectorize(|| {
                let floats = simd.floats_of_codes::<BITS>(fraction_bits, step, quad);
                floats.map(|floats| lanes(simd, floats.map(|x| simd.bits(x))))
            });
            let floats = scalar().floats_of_codes::<BITS>(fraction_bits, step, quad);
            assert_eq!(found, floats.map(|floats| floats.map(|x| x.map(f32::to_bits))), "{element:?}, quad {quad}");
        }
    }
}

fn decodes_as_scalar<S: Simd, const BITS: usize>(simd: S, element: ElementFormat) {
    let table = CodeTable::new(element);
    for step in steps(&lines(BITS)) {
        for quad in 0..QUADS {
            let found = simd.vectorize(|| lanes(simd, simd.decode::<BITS>(&table, step, quad)));
            assert_eq!(found, scalar().decode::<BITS>(&table, step, quad), "{element:?}, quad {quad}");
        }
    }
}

fn integers_as_scalar<S: IntegerProducts, const BITS: usize>(simd: S, element: ElementFormat) {
    let table = CodeTable::new(element);
    let sums = |sum: S::I32| {
        let mut lanes = [0.0; LANES];
        simd.store(simd.float(sum), &mut lanes);
        lanes
    };
    for (seed, step) in steps(&lines(BITS)).enumerate() {
        let x = (seed as u32 + 1).wrapping_mul(0x9E37_79B9);
        // Of which products with any byte are small enough for all.
        let bytes_x = u32::from_le_bytes(x.to_le_bytes().map(|x| (x.cast_signed() >> 1).cast_unsigned()));
        // Both in 16 bits and moderate, as norms see to.
        let few = x & 0x01FF_81FF;
        for quad in 0..QUADS {
            if let Some(bytes) = table.bytes.as_ref().filter(|_| is_small_integer(element)) {
                let expected = scalar().bytes::<BITS>(bytes, step, quad);
                let (found, sum) = simd.vectorize(|| {
                    let (found, start) = (simd.bytes::<BITS>(bytes, step, quad), simd.start(-5));
                    let short = simd.dot_bytes_short(bytes_x, found, simd.short(start));
                    (
                        lanes(simd, [found; 2])[0],
                        [simd.dot_bytes(bytes_x, found, start), simd.long(short, start)].map(sums),
                    )
                });
                let less = u32::from_ne_bytes([(BYTE_BIAS - simd.byte_bias(BITS)) as u8; 4]);
                let expected = expected.map(|bytes| bytes - less);
                assert_eq!(found, expected, "{element:?}, quad {quad}");
                let expected = scalar().dot_bytes(bytes_x, expected, [-5; LANES]);
                assert_eq!(sum, [scalar().float(expected); 2], "{element:?}, quad {quad}");
            }
            if let Some(integers) = &table.integers {
                let expected = scalar().integers::<BITS>(integers, step, quad);
                let (found, sum) = simd.vectorize(|| {
                    let found = simd.integers::<BITS>(integers, step, quad);
                    (lanes(simd, found), sums(simd.dot_integers(few, found[0], simd.start(7))))
                });
                assert_eq!(found, expected, "{element:?}, quad {quad}");
                let expected = scalar().dot_integers(few, expected[0], [7; LANES]);
                assert_eq!(sum, scalar().float(expected), "{element:?}, quad {quad}");
            }
        }
    }
}

/// Every scale: the smallest, whose power is subnormal, and the one that is none.
#[test]
fn scales_are_the_same_everywhere() {
    for first in (0..256).step_by(LANES) {
        let scales: BlockScales = std::array::from_fn(|i| (first + i) as u8);
        for isa in Isa::available() {
            let mut powers = [0.0; LANES];
            dispatch!(isa, simd => simd.vectorize(|| simd.store(simd.powers(&scales), &mut powers)));
            let expected = scalar().powers(&scales).map(f32::to_bits);
            assert_eq!(powers.map(f32::to_bits), expected, "{isa} from {first}");
            dispatch!(isa, simd => simd.vectorize(|| simd.store(simd.normal_powers(&scales), &mut powers)));
            let normal = scales.iter().zip(powers.iter().zip(&expected)).filter(|(s, _)| !matches!(s, 0 | 255));
            normal.for_each(|(scale, (power, &bits))| assert_eq!(power.to_bits(), bits, "{isa}, {scale:?}"));
        }
    }
}

#[test]
fn codes_become_the_same_floats_everywhere() {
    for element in [E2M3, E3M2, E4M3, E5M2] {
        // Codes of numbers are their values over a power of two.
        let power = 2f64.powi(codes::exponent_of_codes(element));
        let number = |&code: &u8| u32::from(code) < 1 << element.bits() && element.decode(code).is_finite();
        for code in (0..=u8::MAX).filter(number) {
            let float = match element.bits() {
                6 => codes::float_of_code::<6>(element.mantissa_bits(), code),
                _ => codes::float_of_code::<8>(element.mantissa_bits(), code),
            };
            assert_eq!(f64::from(float) * power, f64::from(element.decode(code)), "{element:?}, {code}");
        }
        for isa in Isa::available() {
            dispatch!(isa, simd => match element.bits() {
                6 => floats_as_scalar::<_, 6>(simd, element),
                _ => floats_as_scalar::<_, 8>(simd, element),
            });
        }
    }
}

/// Every format, all of its codes: subnormal and special ones too.
#[test]
fn codes_become_the_same_everywhere() {
    for element in ElementFormat::ALL {
        for isa in Isa::available() {
            dispatch!(isa, simd => match element.bits() {
                4 => decodes_as_scalar::<_, 4>(simd, element),
                6 => decodes_as_scalar::<_, 6>(simd, element),
                _ => decodes_as_scalar::<_, 8>(simd, element),
            });
            dispatch_integers!(isa, simd => match element.bits() {
                4 => integers_as_scalar::<_, 4>(simd, element),
                6 => integers_as_scalar::<_, 6>(simd, element),
                _ => integers_as_scalar::<_, 8>(simd, element),
            }, {});
        }
    }
}

/// Lanes of bf16 (as f32) and of f32 whose exponents are near these.
fn near(seed: u32, exponent: u32, bits: u32) -> [f32; LANES] {
    std::array::from_fn(|i| {
        let hash = (seed * 977 + i as u32 + 1).wrapping_mul(0x9E37_79B9).rotate_left(13);
        f32::from_bits((hash & 0x8000_0000 | (exponent + hash % 5) << 23 | hash & 0x7F_FFFF) & bits)
    })
}

/// Sums that are subnormal, become so, cancel, or are far from it.
#[test]
fn sums_near_zero_are_the_same_everywhere() {
    const BF16: u32 = 0xFFFF_0000;
    for isa in Isa::available() {
        for seed in 0..4000 {
            let (a, b) = (near(seed, 1 + seed % 30, BF16), near(seed + 1, 90 + seed % 37, BF16));
            let sums = [[0.0; LANES], near(seed, 0, u32::MAX), near(seed, seed % 60, u32::MAX), [f32::NAN; LANES]];
            for c in sums.into_iter().chain([std::array::from_fn(|i| -a[i] * b[i])]) {
                let mut found = [0.0; LANES];
                dispatch!(isa, simd => simd.vectorize(|| {
                    simd.store(simd.fma_near_zero(simd.load(&a), simd.load(&b), simd.load(&c)), &mut found);
                }));
                for i in 0..LANES {
                    let expected = a[i].mul_add(b[i], c[i]);
                    let same = found[i].to_bits() == expected.to_bits() || found[i].is_nan() && expected.is_nan();
                    assert!(same, "{isa}: {:e} · {:e} + {:e} is {:e}", a[i], b[i], c[i], found[i]);
                }
            }
        }
    }
}

/// Subnormal numbers, those next to normal ones, and NaN among them.
#[test]
fn weights_are_rounded_alike_everywhere() {
    let ends =
        [0, 1, 0x007F_7FFF, 0x007F_8000, 0x007F_8001, 0x007F_FFFF, 0x0080_0000, 0x0080_8000, 0x7F80_0000, 0x7FC0_0000];
    for isa in Isa::available() {
        for seed in 0..4000 {
            let mut numbers = [near(seed, seed % 140, 0x7FFF_FFFF), near(seed + 9, 0, 0x7FFF_FFFF)];
            numbers[seed as usize % 2][seed as usize % LANES] = f32::from_bits(ends[seed as usize % ends.len()]);
            let mut found = [[0.0; LANES]; 2];
            dispatch!(isa, simd => simd.vectorize(|| {
                let rounded = simd.nearest_normal([simd.load(&numbers[0]), simd.load(&numbers[1])]);
                simd.store(rounded[0], &mut found[0]);
                simd.store(rounded[1], &mut found[1]);
            }));
            for (&x, found) in numbers.as_flattened().iter().zip(found.as_flattened()) {
                let nearest = f32::from(bf16::from_f32(x));
                let expected = if nearest < f32::MIN_POSITIVE { 0.0 } else { nearest };
                assert!(
                    found.to_bits() == expected.to_bits() || found.is_nan() && x.is_nan(),
                    "{isa}: {x:e}: {found:e}"
                );
            }
        }
    }
}

/// Products of what is not less than the least, and those or zero of what is.
#[test]
fn products_from_the_least_on_are_the_same_everywhere() {
    for isa in Isa::available() {
        for seed in 0..500 {
            let (a, b) = (near(seed, seed % 40, 0x7FFF_FFFF), near(seed, 120, 0x7FFF_FFFF));
            let (least, mut found) = (near(seed, 3, 0x7FFF_FFFF), [0.0; LANES]);
            dispatch!(isa, simd => simd.vectorize(|| {
                simd.store(simd.mul_from(simd.load(&least), simd.load(&a), simd.load(&b)), &mut found);
            }));
            for i in 0..LANES {
                assert!(
                    found[i] == a[i] * b[i] || a[i] < least[i] && found[i] == 0.0,
                    "{isa}: {:e} · {:e}",
                    a[i],
                    b[i]
                );
            }
        }
    }
}

/// Of every bf16, also where nothing asks for it because machines gather slowly.
#[test]
fn look_ups_are_the_same_everywhere() {
    let exponentials = ExponentialTable::get();
    let table: Box<[bf16; (1 << 16) + 1]> =
        Box::new(std::array::from_fn(|i| bf16::from_bits((i as u16).wrapping_mul(40_503))));
    for isa in Isa::available() {
        for first in (0..=u16::MAX).step_by(LANES) {
            let x: [bf16; LANES] = std::array::from_fn(|i| bf16::from_bits(first + i as u16));
            let over = exponentials.over(&x.map(|x| f32::from(bf16::from_f32(-1.5 - f32::from(x) / 3.0))));
            let mut found = [[0.0; LANES]; 2];
            dispatch!(isa, simd => simd.vectorize(|| {
                simd.store(simd.look_up(&table, &x), &mut found[0]);
                simd.store(simd.exponentials_over(&over, &x.map(f32::from)), &mut found[1]);
            }));
            for i in 0..LANES {
                let number = usize::from(x[i].to_bits());
                let expected = [f32::from(table[number]), (exponentials.of(f32::from(x[i])) * over.by[i]) as f32];
                for (found, expected) in [found[0][i], found[1][i]].into_iter().zip(expected) {
                    let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
                    assert!(same, "{isa}: of {:e} {found:e}, not {expected:e}", x[i]);
                }
            }
        }
    }
}
