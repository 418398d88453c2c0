//! Every way of quantizing against the definition in `formats`.

use super::*;
use crate::cpu::kernel::extent::unit;
use crate::cpu::kernel::operand::pairs_of_floats;
use crate::cpu::kernel::sides::{StepBytes, TILE};
use crate::cpu::simd;
use crate::cpu::simd::codes::{BYTE_BIAS, is_small_integer};
use crate::cpu::simd::tiles::Lanes;
use microscale_formats::quantize_block;

/// Any bits, the same every time.
fn random(mut state: u64) -> impl FnMut() -> u32 {
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 32) as u32
    }
}

fn stored<S: Simd>(simd: S, x: S::F32) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    simd.store(x, &mut lanes);
    lanes
}

/// The lowest bit of an integer, as a number.
fn lowest_bit(x: f32) -> f64 {
    let x = x.abs() as u64;
    if x == 0 { f64::INFINITY } else { (x & x.wrapping_neg()) as f64 }
}

/// Every format and rule, on wild bit patterns: equal to the reference in every value and scale.
#[test]
fn equals_the_reference() {
    let mut next = random(9);
    for element in ElementFormat::ALL {
        for scale_rule in ScaleRule::ALL {
            let format = BlockFormat { element, block_size: 32, scale_rule };
            let quantizer = Quantizer::new(format);
            for round in 0..400 {
                let center = next() % 250;
                let mut block: [f32; 32] = std::array::from_fn(|_| {
                    let exponent = if round % 4 == 0 { next() % 255 } else { (center + next() % 12).min(254) };
                    let fraction = if round % 2 == 0 { next() & 0x7F_FFFF } else { next() & 0x78_0000 };
                    f32::from_bits((next() & 0x8000_0000) | exponent << 23 | fraction)
                });
                if round % 50 == 7 {
                    block = [0.0; 32];
                }
                if round % 50 == 8 {
                    block[5] = f32::NAN;
                }
                let mut codes = [0; 32];
                let scale = quantize_block(&block, element, scale_rule, &mut codes);
                let mut packed = vec![0; 32 * element.bits() as usize / 8];
                let mut found = [E8M0(9)];
                for isa in Isa::available() {
                    quantizer.encode_row(isa, &block, &mut packed, &mut found);
                    assert_eq!(found[0], scale, "{format:?} {isa} of {block:?}");
                    assert_eq!(
                        packed,
                        microscale_formats::pack(&codes, element.bits()),
                        "{format:?} {isa} of {block:?}"
                    );
                }
                // The way to values starts from bf16.
                let mut values = block.map(microscale_formats::round_to_bf16);
                let scale = quantize_block(&values, element, scale_rule, &mut codes);
                let halves = values.map(half::bf16::from_f32);
                let expected = microscale_formats::pack(&codes, element.bits());
                for isa in Isa::available() {
                    quantizer.encode_row(isa, &halves, &mut packed, &mut found);
                    assert_eq!((found[0], &packed), (scale, &expected), "{format:?} {isa} of {values:?}");
                }
                let lanes: [u32; LANES] =
                    std::array::from_fn(|i| values[2 * i].to_bits() >> 16 | values[2 * i + 1].to_bits() & HIGH);
                let mut again = values;
                let (power, norm) = dispatch!(Isa::best(), simd => {
                    let (pairs, scale) = quantizer.pairs(simd, simd.load_pairs(&lanes));
                    let mut lanes = [0; LANES];
                    simd.store_pairs(pairs, &mut lanes);
                    for (i, lane) in lanes.into_iter().enumerate() {
                        (values[2 * i], values[2 * i + 1]) =
                            (f32::from_bits(lane << 16), f32::from_bits(lane & HIGH));
                    }
                    let power = quantizer.block(simd, &mut again);
                    assert_eq!(again.map(f32::to_bits), values.map(f32::to_bits));
                    assert!(power == scale || power.is_nan());
                    let mut rows = [Lanes::ZERO; 3];
                    simd.store_pairs(pairs, &mut rows[2].0);
                    let norms = quantizer.norms(simd, &rows, &[unit(element); TILE], &mut Norms::default());
                    assert!(norms[0] == 0.0 || norms[2].is_infinite(), "{norms:?}");
                    (power, norms[2])
                });
                for (i, (&value, &code)) in values.iter().zip(&codes).enumerate() {
                    assert_eq!(value, element.decode(code), "{format:?} {:?} of {block:?}", block[i]);
                }
                let zero = values.iter().all(|&x| x == 0.0);
                assert!(
                    power.to_bits() == scale.value().to_bits() || (scale.value().is_nan() && power.is_nan()) || zero
                );
                let lowest = |x: f32| f64::from(unit(element)) * lowest_bit(x / unit(element));
                let divisor = values.iter().map(|&x| lowest(x)).fold(f64::INFINITY, f64::min);
                let exact = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() / divisor;
                assert!(norm.is_infinite() || zero || (f64::from(norm) / exact - 1.0).abs() < 1e-4, "{norm}, {exact}");
                assert!(zero || f64::from(norm) >= exact, "{norm} of {values:?}");
            }
        }
    }
}

/// Rows of many blocks, which are quantized sixteen at a time: equal to the reference in every code and scale, also where a
/// block among them is not like the others.
#[test]
fn rows_equal_the_reference() {
    let mut next = random(4);
    let (mut side_by_side, mut all) = (0, 0);
    for (element, scale_rule) in
        ElementFormat::ALL.into_iter().flat_map(|e| ScaleRule::ALL.into_iter().map(move |rule| (e, rule)))
    {
        let quantizer = Quantizer::new(BlockFormat { element, block_size: BLOCK, scale_rule });
        for round in 0..60 {
            let mut blocks = vec![[half::bf16::ZERO; BLOCK]; LANES + next() as usize % (2 * LANES)];
            for block in &mut blocks {
                let (center, spread) =
                    (if round % 8 == 0 { 1 + next() % 240 } else { 60 + next() % 120 }, 1 + next() % 20);
                *block = std::array::from_fn(|_| {
                    let exponent = (center + next() % spread).min(254) as u16;
                    half::bf16::from_bits((next() & 0x807F) as u16 | exponent << 7)
                });
            }
            let special = next() as usize % blocks.len();
            match round % 10 {
                1 => blocks[special] = [half::bf16::ZERO; BLOCK],
                2 => blocks[special][next() as usize % BLOCK] = [half::bf16::NAN, half::bf16::INFINITY][round / 10 % 2],
                3 => blocks[special] = blocks[special].map(|x| half::bf16::from_bits(x.to_bits() & 0x807F)),
                4 => blocks[special][7] = half::bf16::MAX,
                5 => blocks[special][..30].fill(half::bf16::NEG_ZERO),
                _ => {}
            }
            let mut expected = (Vec::new(), Vec::new());
            for block in &blocks {
                let mut codes = [0; BLOCK];
                expected.1.push(quantize_block(&block.map(half::bf16::to_f32), element, scale_rule, &mut codes));
                expected.0.extend(microscale_formats::pack(&codes, element.bits()));
            }
            let row = blocks.as_flattened();
            let (mut codes, mut scales) = (vec![0; expected.0.len()], vec![E8M0(9); blocks.len()]);
            for isa in Isa::available() {
                codes.fill(0xA5);
                quantizer.encode_row(isa, row, &mut codes, &mut scales);
                assert_eq!(
                    (&codes, &scales),
                    (&expected.0, &expected.1),
                    "{element} {scale_rule:?} {isa} of {blocks:?}"
                );
            }
            codes.fill(0xA5);
            let to = (&mut codes[..], &mut scales[..]);
            match element.bits() {
                4 => quantizer.encode_words::<_, _, 4>(simd::scalar(), &blocks, to.0, to.1),
                6 => quantizer.encode_words::<_, _, 6>(simd::scalar(), &blocks, to.0, to.1),
                _ => quantizer.encode_words::<_, _, 8>(simd::scalar(), &blocks, to.0, to.1),
            }
            assert_eq!((&codes, &scales), (&expected.0, &expected.1), "{element} {scale_rule:?} of {blocks:?}");
            for group in blocks.chunks_exact(LANES) {
                side_by_side += usize::from(quantizer.scales_side_by_side(simd::scalar(), group).is_some());
                all += 1;
            }
        }
    }
    assert!(2 * side_by_side > all, "{side_by_side} of {all} groups were quantized side by side");
}

/// Steps of some rows: equal to the reference in every format and rule, on every instruction set, and where a block among
/// them is not like the others.
#[test]
fn steps_equal_the_reference() {
    let mut next = random(3);
    let (mut side_by_side, mut in_bytes) = (0, 0);
    for (element, scale_rule) in
        ElementFormat::ALL.into_iter().flat_map(|e| ScaleRule::ALL.into_iter().map(move |rule| (e, rule)))
    {
        let format = BlockFormat { element, block_size: BLOCK, scale_rule };
        let quantizer = Quantizer::new(format);
        for round in 0..150 {
            let rows = 1 + next() as usize % TILE;
            let mut blocks = vec![[0f32; BLOCK]; rows];
            for block in &mut blocks {
                let center = if round % 8 == 0 { 1 + next() % 240 } else { 100 + next() % 40 };
                let spread = 1 + next() % 20;
                *block = std::array::from_fn(|_| {
                    let exponent = (center + next() % spread).min(254);
                    f32::from_bits((next() & 0x8000_0000) | exponent << 23 | (next() & 0x7F_0000))
                });
            }
            let special = next() as usize % rows;
            match round % 10 {
                1 => blocks[special] = [0.0; BLOCK],
                2 => blocks[special][next() as usize % BLOCK] = [f32::NAN, f32::INFINITY][round / 10 % 2],
                3 => blocks[special] = blocks[special].map(|x| f32::from_bits(x.to_bits() & 0x807F_0000)),
                4 => blocks[special][7] = f32::from_bits(254 << 23 | 0x7F_0000),
                5 => blocks[special][..30].fill(-0.0),
                _ => {}
            }
            let expected: Vec<([f32; BLOCK], E8M0)> = blocks
                .iter()
                .map(|block| {
                    let mut codes = [0; BLOCK];
                    let scale = quantize_block(block, element, scale_rule, &mut codes);
                    (codes.map(|code| element.decode(code)), scale)
                })
                .collect();
            let raw: Vec<Lanes> = blocks
                .iter()
                .map(|b| Lanes(std::array::from_fn(|i| b[2 * i].to_bits() >> 16 | b[2 * i + 1].to_bits() & HIGH)))
                .collect();
            let moderate = expected.iter().all(|(_, scale)| (80..=170).contains(&scale.0));
            let check = |lanes: &[Lanes], powers: [f32; TILE], scaled: bool, by: &str| {
                for ((lanes, power), (values, scale)) in lanes.iter().zip(powers).zip(&expected) {
                    let zero = values.iter().all(|&x| x == 0.0);
                    let same = power.to_bits() == scale.value().to_bits();
                    assert!(
                        same || power.is_nan() && *scale == E8M0::NAN || zero,
                        "{format:?} {by}: {power}, {scale:?}"
                    );
                    for (i, value) in values.iter().enumerate() {
                        let found =
                            f32::from_bits(if i % 2 == 0 { lanes.0[i / 2] << 16 } else { lanes.0[i / 2] & HIGH });
                        let value = if *scale == E8M0::NAN { 0.0 } else { *value };
                        let expected = if scaled { value * scale.value() } else { value };
                        assert_eq!(found, expected, "{format:?} {by}, {scaled}, {blocks:?}");
                    }
                }
                assert!(powers[rows..].iter().all(|&power| power == 1.0));
            };
            for scaled in [false, true] {
                if scaled && !moderate {
                    continue;
                }
                for isa in Isa::available() {
                    let mut lanes = raw.clone();
                    let powers = dispatch!(isa, simd => stored(simd, quantizer.step(simd, &mut lanes, scaled)));
                    check(&lanes, powers, scaled, isa.name());
                }
            }
            side_by_side += usize::from(quantizer.step_side_by_side(simd::scalar(), &mut raw.clone(), false).is_some());
            if !moderate || !is_small_integer(element) {
                continue;
            }
            let mut check_bytes = |bytes: [StepBytes; TILE], powers: Option<[f32; TILE]>, by: &str| {
                let Some(powers) = powers else { return };
                let lanes: Vec<Lanes> = bytes.map(|bytes| Lanes(pairs_of_floats(&bytes.values()))).into();
                check(&lanes[..rows], powers, true, by);
                for (r, bytes) in bytes.iter().enumerate() {
                    let sum: i32 = bytes.quads.iter().flat_map(|q| q.to_le_bytes()).map(|b| i32::from(b as i8)).sum();
                    assert_eq!(bytes.start, -BYTE_BIAS * sum, "{format:?} {by}, row {r}");
                }
                in_bytes += 1;
            };
            for isa in Isa::available() {
                let mut bytes = [StepBytes::default(); TILE];
                let powers = dispatch!(isa, simd => {
                    simd.words().and_then(|words| {
                        quantizer.step_in_bytes(words, &raw, &mut bytes).map(|powers| stored(words, powers))
                    })
                });
                check_bytes(bytes, powers, isa.name());
            }
            let mut bytes = [StepBytes::default(); TILE];
            let scalar = simd::scalar();
            let powers = quantizer.step_in_bytes(scalar, &raw, &mut bytes).map(|powers| stored(scalar, powers));
            check_bytes(bytes, powers, "scalar words");
        }
    }
    assert!(side_by_side > 2500, "{side_by_side} of the steps were regular");
    assert!(in_bytes > 1000, "{in_bytes} of them were bytes");
}

/// Products quantized at once: equal to rounding, then quantizing them, wherever no block needs care; and most need none.
#[test]
fn steps_of_products_equal_steps() {
    let mut next = random(5);
    let (mut regular, mut all) = (0, 0);
    for (element, scale_rule) in
        ElementFormat::ALL.into_iter().flat_map(|e| ScaleRule::ALL.into_iter().map(move |rule| (e, rule)))
    {
        let quantizer = Quantizer::new(BlockFormat { element, block_size: BLOCK, scale_rule });
        for round in 0..200 {
            let rows = 1 + next() as usize % TILE;
            // From 1 down to 2^-3, or far beyond what is normal.
            let span = [3, 12, 40, 126][round % 4];
            let mut numbers = vec![[[0f32; LANES]; 2]; rows];
            for x in numbers.as_flattened_mut().as_flattened_mut() {
                *x = f32::from_bits((127 - next() % span) << 23 | next() & 0x7F_FFFF) / 2.0;
                if round % 16 > 10 && next().is_multiple_of(3) {
                    *x = 0.0;
                }
            }
            // Numbers that round to a power of two, and such as nearly do.
            for numbers in numbers.iter_mut().filter(|_| round % 3 == 1) {
                let below = 1 << (next() % 18);
                numbers[1][5] = f32::from_bits((127 - next() % 3) << 23) * (1.0 - below as f32 / (1 << 24) as f32);
            }
            let special = next() as usize % rows;
            match round % 20 {
                7 => numbers[special] = [[0.0; LANES]; 2],
                8 => numbers[special] = [[1e-40; LANES]; 2],
                9 => numbers[special][1][3] = f32::NAN,
                _ => {}
            }
            let mut factors = [0.0; TILE];
            factors[..rows].fill_with(|| 1.0 / (1.0 + (next() % 100_000) as f32 / [10.0, 1e4][round % 2]));
            if round % 3 == 1 {
                factors[..rows].fill_with(|| f32::from_bits((127 - next() % 9) << 23));
            }
            for isa in Isa::available() {
                let (mut found, mut expected) = (vec![Lanes([7; LANES]); rows], vec![Lanes::ZERO; rows]);
                dispatch!(isa, simd => {
                    for (r, to) in expected.iter_mut().enumerate() {
                        let products = numbers[r].map(|half| simd.mul(simd.load(&half), simd.splat(factors[r])));
                        simd.store_pairs(simd.round_pairs::<false>(products[0], products[1]), &mut to.0);
                    }
                    let expected_powers = stored(simd, quantizer.step(simd, &mut expected, true));
                    let halves = |r: usize| [&numbers[r][0], &numbers[r][1]];
                    if let Some(powers) = quantizer.step_of_products(simd, halves, &factors, &mut found) {
                        assert_eq!(stored(simd, powers)[..rows], expected_powers[..rows], "{element:?} {isa}");
                        for (found, expected) in found.iter().zip(&expected) {
                            assert_eq!(found.0, expected.0, "{element:?} {isa} {numbers:?} {factors:?}");
                        }
                        regular += 1;
                    }
                });
                all += 1;
            }
        }
    }
    assert!(2 * regular > all, "{regular} of {all}");
}
