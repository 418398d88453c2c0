//! The few text operations of Python whose exact meaning the harness's prompts depend on.

/// Whether Python's `str.strip` removes `c`: Unicode white space and the four information separators, which Unicode
/// does not count as white space.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// Python's `str.strip()`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `str.rstrip()`.
pub(crate) fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// Python's `str.capitalize()`: the first character in title case, every other in lower case.
pub(crate) fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else {
        return String::new();
    };
    // The whole text is lowered at once because a sigma is final or not by what stands on both sides of it.
    let lower = text.to_lowercase();
    let lowered_first: usize = first.to_lowercase().map(char::len_utf8).sum();
    title_case(first) + &lower[lowered_first..]
}

/// The full title-case mapping of one character (Unicode SpecialCasing). It differs from upper case where a character
/// stands for two letters, where Greek writes an iota below, and for Georgian, which has no title case.
fn title_case(c: char) -> String {
    let first_upper_rest_lower = |c: char| {
        let upper: String = c.to_uppercase().collect();
        let split = upper.chars().next().map_or(0, char::len_utf8);
        upper[..split].to_owned() + &upper[split..].to_lowercase()
    };
    match c {
        'Ǆ' | 'ǅ' | 'ǆ' => 'ǅ'.into(),
        'Ǉ' | 'ǈ' | 'ǉ' => 'ǈ'.into(),
        'Ǌ' | 'ǋ' | 'ǌ' => 'ǋ'.into(),
        'Ǳ' | 'ǲ' | 'ǳ' => 'ǲ'.into(),
        'ß' | '\u{587}' | '\u{fb00}'..='\u{fb06}' | '\u{fb13}'..='\u{fb17}' => first_upper_rest_lower(c),
        '\u{10d0}'..='\u{10fa}' | '\u{10fd}'..='\u{10ff}' => c.into(),
        '\u{1f80}'..='\u{1faf}' => char::from_u32(c as u32 | 8).unwrap_or(c).into(),
        '\u{1fb3}' | '\u{1fc3}' | '\u{1ff3}' => char::from_u32(c as u32 + 9).unwrap_or(c).into(),
        '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}' => c.into(),
        '\u{1fb2}' | '\u{1fb4}' | '\u{1fb7}' | '\u{1fc2}' | '\u{1fc4}' | '\u{1fc7}' | '\u{1ff2}' | '\u{1ff4}'
        | '\u{1ff7}' => c.to_uppercase().map(|u| if u == '\u{399}' { '\u{345}' } else { u }).collect(),
        _ => c.to_uppercase().collect(),
    }
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent outside 1e-4 ≤ |x| < 1e16.
pub(crate) fn float(value: f64) -> String {
    if value.is_nan() {
        return "nan".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "inf" } else { "-inf" }.to_owned();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let scientific = format!("{value:e}");
        let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    let plain = value.to_string();
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strip_is_pythons() {
        assert_eq!(strip("\u{1c}\u{1f} \u{a0}\u{3000}\t a b\u{200b} \u{85}\n"), "a b\u{200b}");
        assert_eq!(strip_end(" a \u{1d}"), " a");
        assert!(!is_space('\u{200b}') && !is_space('\u{feff}') && !is_space('\u{180e}'));
    }

    #[test]
    fn capitalize_is_pythons() {
        for (text, expected) in [
            ("", ""),
            ("the US girl WINS iPhone", "The us girl wins iphone"),
            ("ßtraße", "Sstraße"),
            ("ǆUNGLA", "ǅungla"),
            ("ΟΔΟΣ", "Οδος"),
            ("Σ", "Σ"),
            ("ΣΑΣ.Σ Σ", "Σασ.ς σ"),
            ("ﬁNE", "Fine"),
            ("ŉA", "ʼNa"),
            ("İİ", "İi\u{307}"),
            ("აბ", "აბ"),
            ("ᾳΑ", "ᾼα"),
            ("1ST Place", "1st place"),
        ] {
            assert_eq!(capitalize(text), expected, "{text:?}");
        }
    }

    /// Every character of Unicode 14 whose Python 3.11 `capitalize()` is not its `upper()`, but Georgian, ASCII-escaped.
    #[test]
    fn title_case_is_pythons_where_it_is_not_upper_case() {
        for line in TITLE_CASES.split_whitespace() {
            let mut codes =
                line.split(['=', '+']).map(|hex| char::from_u32(u32::from_str_radix(hex, 16).unwrap()).unwrap());
            let c = codes.next().unwrap();
            let expected: String = codes.collect();
            assert_eq!(title_case(c), expected, "{c:?}");
        }
    }

    const TITLE_CASES: &str = "\
        df=53+73 1c4=1c5 1c5=1c5 1c6=1c5 1c7=1c8 1c8=1c8 1c9=1c8 1ca=1cb 1cb=1cb 1cc=1cb 1f1=1f2 1f2=1f2 1f3=1f2 \
        587=535+582 1f80=1f88 1f81=1f89 1f82=1f8a 1f83=1f8b 1f84=1f8c 1f85=1f8d 1f86=1f8e 1f87=1f8f 1f88=1f88 \
        1f89=1f89 1f8a=1f8a 1f8b=1f8b 1f8c=1f8c 1f8d=1f8d 1f8e=1f8e 1f8f=1f8f 1f90=1f98 1f91=1f99 1f92=1f9a \
        1f93=1f9b 1f94=1f9c 1f95=1f9d 1f96=1f9e 1f97=1f9f 1f98=1f98 1f99=1f99 1f9a=1f9a 1f9b=1f9b 1f9c=1f9c \
        1f9d=1f9d 1f9e=1f9e 1f9f=1f9f 1fa0=1fa8 1fa1=1fa9 1fa2=1faa 1fa3=1fab 1fa4=1fac 1fa5=1fad 1fa6=1fae \
        1fa7=1faf 1fa8=1fa8 1fa9=1fa9 1faa=1faa 1fab=1fab 1fac=1fac 1fad=1fad 1fae=1fae 1faf=1faf 1fb2=1fba+345 \
        1fb3=1fbc 1fb4=386+345 1fb7=391+342+345 1fbc=1fbc 1fc2=1fca+345 1fc3=1fcc 1fc4=389+345 1fc7=397+342+345 \
        1fcc=1fcc 1ff2=1ffa+345 1ff3=1ffc 1ff4=38f+345 1ff7=3a9+342+345 1ffc=1ffc fb00=46+66 fb01=46+69 \
        fb02=46+6c fb03=46+66+69 fb04=46+66+6c fb05=53+74 fb06=53+74 fb13=544+576 fb14=544+565 fb15=544+56b \
        fb16=54e+576 fb17=544+56d";

    #[test]
    fn float_is_pythons_repr() {
        for (value, expected) in [
            (-3.02, "-3.02"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1e16, "1e+16"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (-0.00001, "-1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e-300, "1e-300"),
            (-140.66656494140625, "-140.66656494140625"),
            (f64::NEG_INFINITY, "-inf"),
            (f64::NAN, "nan"),
        ] {
            assert_eq!(float(value), expected);
        }
    }
}
