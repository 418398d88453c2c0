//! Codes, scales and values against TorchMX, microxcaling and torchao, on bf16 blocks of every kind.

use half::bf16;
use microscale_formats::{E5M2, ElementFormat, INT8, ScaleRule};
use microscale_tensor::{BlockFormat, MxTensor};
use safetensors::SafeTensors;

struct Vectors {
    bytes: Vec<u8>,
}

impl Vectors {
    fn open(test: &str, file: &str) -> Option<Vectors> {
        let path = microscale_testing::shared(test)?.join("reference").join(file);
        Some(Vectors { bytes: std::fs::read(path).unwrap() })
    }

    /// A tensor's bytes, if the file has it.
    fn get(&self, name: &str) -> Option<Vec<u8>> {
        let file = SafeTensors::deserialize(&self.bytes).unwrap();
        file.tensor(name).ok().map(|t| t.data().to_vec())
    }

    fn halves(&self, name: &str) -> Option<Vec<bf16>> {
        self.get(name).map(|b| b.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b)).collect())
    }
}

/// The blocks quantized: per block a scale byte, 32 codes and 32 values.
fn quantize(input: &[bf16], element: ElementFormat, scale_rule: ScaleRule) -> (Vec<u8>, Vec<u8>, Vec<f32>) {
    let format = BlockFormat { element, block_size: 32, scale_rule };
    let tensor = MxTensor::quantize(input, &[input.len() / 32, 32], 1, format).unwrap();
    let mut codes = vec![0; input.len()];
    microscale_formats::unpack(tensor.packed_codes(), element.bits(), &mut codes);
    (tensor.scales().iter().map(|s| s.0).collect(), codes, tensor.dequantize())
}

/// Equal values; zeros of either sign are equal, and so are NaNs.
fn same(a: f32, b: f32) -> bool {
    a == b || (a.is_nan() && b.is_nan())
}

#[test]
fn torchmx_and_microxcaling_floor() {
    let Some(vectors) = Vectors::open("torchmx_and_microxcaling_floor", "format_vectors.safetensors") else { return };
    let input = vectors.halves("input").unwrap();
    assert_eq!(input.len(), 7000 * 32);
    let mut compared = 0;
    for element in ElementFormat::ALL {
        let name = element.name().replace("fp", "float");
        let (scales, codes, values) = quantize(&input, element, ScaleRule::Floor);
        let expected: Vec<f32> = match vectors.halves(&format!("{name}.dequant")) {
            Some(values) => values.into_iter().map(bf16::to_f32).collect(),
            None => {
                assert_eq!(element, E5M2, "only E5M2 is microxcaling's");
                let bytes = vectors.get("float8_e5m2.dequant_f32.microxcaling").unwrap();
                bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
            }
        };
        let stored = vectors.get(&format!("{name}.scale"));
        let stored_codes = vectors.get(&format!("{name}.codes"));
        for block in 0..7000 {
            let range = block * 32..block * 32 + 32;
            let amax = input[range.clone()].iter().map(|x| x.to_bits() & 0x7FFF).max().unwrap();
            if element == INT8 && amax >> 7 < 6 {
                continue; // TorchMX's INT8 scale saturates there; OCP's does not
            }
            if let Some(stored) = &stored {
                let offset = if element == INT8 && stored[block] != 255 { 6 } else { 0 };
                assert_eq!(scales[block], stored[block] + offset, "{element} scale of block {block}");
            }
            for i in range {
                assert!(same(values[i], expected[i]), "{element} block {block}: {} is not {}", values[i], expected[i]);
                if let Some(stored) = &stored_codes {
                    let decoded = (element.decode(codes[i]), element.decode(stored[i]));
                    assert!(
                        same(decoded.0, decoded.1),
                        "{element} block {block}: code {} is not {}",
                        codes[i],
                        stored[i]
                    );
                }
                compared += 1;
            }
        }
    }
    assert!(compared > 6 * 6200 * 32, "{compared} values compared");
}

#[test]
fn torchao_scale_rules() {
    let Some(vectors) = Vectors::open("torchao_scale_rules", "scale_rule_vectors.safetensors") else { return };
    let input = vectors.halves("input").unwrap();
    let mut runs = 0;
    for element in ElementFormat::ALL {
        for rule in [ScaleRule::Ceil, ScaleRule::Rceil, ScaleRule::Even] {
            let name = format!("{}.{}", element.name().replace("fp", "float"), rule.name());
            let Some(expected) = vectors.get(&format!("{name}.scale")) else { continue };
            let expected_codes = vectors.get(&format!("{name}.codes")).unwrap();
            let (scales, codes, _) = quantize(&input, element, rule);
            assert_eq!(scales, expected, "{name}: scales");
            for (i, (&code, &expected)) in codes.iter().zip(&expected_codes).enumerate() {
                assert!(
                    same(element.decode(code), element.decode(expected)),
                    "{name} block {}: {code} {expected}",
                    i / 32
                );
            }
            runs += 1;
        }
    }
    assert_eq!(runs, 15, "five floating-point formats, three rules");
}

/// The same, from a small committed selection: a machine without the reference files tests the numerics too.
#[test]
fn a_committed_selection() {
    for line in include_str!("vectors.txt").lines().filter(|l| !l.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [format, rule, input, scale, codes] = fields[..] else { panic!("five fields expected: {line}") };
        let (element, rule) = (ElementFormat::from_name(format).unwrap(), ScaleRule::from_name(rule).unwrap());
        let hex = |s: &str, n: usize| {
            (0..s.len() / n).map(|i| u16::from_str_radix(&s[i * n..][..n], 16).unwrap()).collect::<Vec<_>>()
        };
        let input: Vec<bf16> = hex(input, 4).into_iter().map(bf16::from_bits).collect();
        let (scales, found, _) = quantize(&input, element, rule);
        assert_eq!(u16::from(scales[0]), hex(scale, 2)[0], "scale of {line}");
        for (found, expected) in found.into_iter().zip(hex(codes, 2)) {
            assert!(same(element.decode(found), element.decode(expected as u8)), "{found} {expected} in {line}");
        }
    }
}
