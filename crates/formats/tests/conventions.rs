//! Conventions against what the tools themselves gave: `conventions.txt`, which `conventions.py` wrote.

use std::collections::BTreeMap;

use microscale_formats::{Convention, ElementFormat, quantize_block_with};

#[test]
fn conventions_are_the_tools_own() {
    let hex = |text: &str, digits: usize| -> Vec<u32> {
        (0..text.len() / digits).map(|i| u32::from_str_radix(&text[i * digits..][..digits], 16).unwrap()).collect()
    };
    let mut compared = BTreeMap::<&str, usize>::new();
    for line in include_str!("conventions.txt").lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let [name, element, values, scale, expected] = fields[..] else { panic!("five fields expected: {line}") };
        let (convention, element) = (Convention::from_name(name).unwrap(), ElementFormat::from_name(element).unwrap());
        assert!(convention.elements.contains(&element), "{line}");
        let values: Vec<f32> = hex(values, 4).into_iter().map(|bits| f32::from_bits(bits << 16)).collect();
        let mut codes = [0; 32];
        let found = quantize_block_with(&values, element, convention.scale_rule, convention.ties, &mut codes);
        assert_eq!(u32::from(found.0), hex(scale, 2)[0], "scale of {line}");
        if expected != "-" {
            for (found, expected) in codes.into_iter().zip(hex(expected, 2)) {
                // Zeros may differ in sign: the convention's `deviations` say so.
                assert_eq!(element.decode(found), element.decode(expected as u8), "{line}");
            }
        }
        *compared.entry(name).or_default() += 1;
    }
    assert_eq!(compared.len(), 12, "{compared:?}");
}
