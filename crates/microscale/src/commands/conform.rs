//! `microscale conform`: what tools mean by MX.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use microscale_formats::{Convention, E8M0, ElementFormat, dequantize_block, quantize_block_with, round_to_bf16};
use microscale_model::{ConventionDifference, differ};
use serde_json::{Value, json};

use crate::arguments::Conform;
use crate::quality::plain;
use crate::{output, usage};

pub(crate) fn run(arguments: &Conform) -> Result<ExitCode> {
    let element = arguments.format;
    let text = match (arguments.conventions.as_slice(), &arguments.file) {
        ([], None) => list(arguments.json),
        ([], Some(_)) => return Err(usage(anyhow!("give --as once or twice: which conventions to compare"))),
        ([_, _, _, ..], _) => return Err(usage(anyhow!("--as: at most two conventions are compared"))),
        (conventions, None) if arguments.json => {
            let all: Vec<Value> = conventions.iter().map(|c| json_of(c, element)).collect();
            format!("{:#}\n", json!({"format": element.name(), "conventions": all}))
        }
        (conventions, None) => show(conventions, element),
        (conventions, Some(path)) => {
            let ocp = &Convention::ALL[0];
            let both = [conventions[0], conventions.get(1).copied().unwrap_or(ocp)];
            let names = &arguments.tensor;
            let select = |name: &str| names.is_empty() || names.iter().any(|e| e.is_match(name));
            let found = differ(path, (element, arguments.block_size as usize), both, &select)?;
            if arguments.json { json_differences(&found, both, element) } else { differences(&found, both, element) }
        }
    };
    output::emit(&text, None)?;
    Ok(ExitCode::SUCCESS)
}

fn list(as_json: bool) -> String {
    if as_json {
        let all: Vec<Value> = Convention::ALL.iter().map(about).collect();
        return format!("{:#}\n", json!({"conventions": all}));
    }
    let mut table = plain(&["NAME", "SCALE RULE", "TIES", "FORMATS", "TOOL"], 5);
    for c in &Convention::ALL {
        table.add_row([c.name, c.scale_rule.name(), c.ties.name(), &formats(c).join(" "), c.tool]);
    }
    format!("{}\n", table.trim_fmt())
}

fn formats(convention: &Convention) -> Vec<&'static str> {
    convention.elements.iter().map(|element| element.name()).collect()
}

fn about(c: &Convention) -> Value {
    json!({
        "name": c.name,
        "scale_rule": c.scale_rule.name(),
        "ties": c.ties.name(),
        "formats": formats(c),
        "tool": c.tool,
        "deviations": c.deviations,
    })
}

/// Blocks that tell conventions apart, with what each is an example of.
fn examples(element: ElementFormat) -> Vec<(&'static str, Vec<f32>)> {
    let (max, power) = (element.max(), 2f32.powi(element.emax()));
    let [below, above] = [-1, 1].map(|step: i32| {
        move |x: f32| f32::from_bits(x.to_bits().wrapping_add_signed(step << 16)) // the next bf16
    });
    let halfway = |k: u8| round_to_bf16((element.decode(k) + element.decode(k + 1)) / 2.0);
    let ties = (0..6).map(halfway).chain([-halfway(0), -halfway(3)]);
    vec![
        ("zeros", vec![0.0, -0.0]),
        ("a power of two", vec![power, power / 4.0]),
        ("the format's largest value", vec![max, power / 4.0]),
        ("just above it", vec![above(max), power / 4.0]),
        ("just below a power of two", vec![below(2.0 * power), power / 4.0]),
        ("ties", [max].into_iter().chain(ties).collect()),
        ("subnormal numbers", vec![2f32.powi(-130), -2f32.powi(-132)]),
        ("NaN", vec![f32::NAN, 1.0]),
        ("infinity", vec![1.0, f32::INFINITY]),
    ]
}

/// The scale, codes and values of a block.
fn quantized(block: &[f32], element: ElementFormat, c: &Convention) -> (E8M0, Vec<u8>, Vec<f32>) {
    let (mut codes, mut values) = (vec![0; block.len()], vec![0.0; block.len()]);
    let scale = quantize_block_with(block, element, c.scale_rule, c.ties, &mut codes);
    dequantize_block(&codes, scale, element, &mut values);
    let mask = u8::MAX >> (8 - element.bits());
    codes.iter_mut().for_each(|code| *code &= mask);
    (scale, codes, values)
}

fn show(conventions: &[&Convention], element: ElementFormat) -> String {
    let mut text = String::new();
    for c in conventions {
        text += &format!("{}: scale rule {}, ties to {}. {}\n", c.name, c.scale_rule.name(), c.ties.name(), c.tool);
        if !c.deviations.is_empty() {
            text += &format!("not imitated: {}\n", c.deviations);
        }
        if !c.elements.contains(&element) {
            text += &format!("not known for {element}, only for {}\n", formats(c).join(", "));
        }
    }
    for (what, block) in examples(element) {
        let numbers = |values: &[f32]| values.iter().map(|x| format!("{x:?}")).collect::<Vec<_>>().join(" ");
        text += &format!("\n{what}: {}\n", numbers(&block));
        for c in conventions {
            let (scale, codes, values) = quantized(&block, element, c);
            let codes: Vec<String> = codes.iter().map(|code| format!("{code:02x}")).collect();
            text += &format!(
                "  {:<18} scale {:<4} codes {}  values {}\n",
                c.name,
                scale.0,
                codes.join(" "),
                numbers(&values)
            );
        }
    }
    text
}

fn json_of(c: &Convention, element: ElementFormat) -> Value {
    // JSON has neither infinities nor NaN: values that are not finite are null.
    let blocks = examples(element).into_iter().map(|(what, block)| {
        let (scale, codes, values) = quantized(&block, element, c);
        json!({"what": what, "values": block, "scale": scale.0, "codes": codes, "dequantized": values})
    });
    let mut about = about(c);
    about["blocks"] = blocks.collect();
    about
}

fn differences(found: &[ConventionDifference], [a, b]: [&Convention; 2], element: ElementFormat) -> String {
    let mut table = plain(&["TENSOR", "SCALES", "OF", "CODES", "OF"], 1);
    let sum = |count: fn(&ConventionDifference) -> usize| found.iter().map(count).sum();
    let total = ConventionDifference {
        name: "all".to_owned(),
        scales: [sum(|d| d.scales[0]), sum(|d| d.scales[1])],
        codes: [sum(|d| d.codes[0]), sum(|d| d.codes[1])],
    };
    for d in found.iter().chain([&total]) {
        let counts = d.scales.into_iter().chain(d.codes).map(|n| n.to_string());
        table.add_row([d.name.clone()].into_iter().chain(counts));
    }
    format!("{element}: where {} and {} differ\n{}\n", a.name, b.name, table.trim_fmt())
}

fn json_differences(found: &[ConventionDifference], both: [&Convention; 2], element: ElementFormat) -> String {
    let tensor = |d: &ConventionDifference| {
        json!({
            "name": d.name,
            "different_scales": d.scales[0],
            "scales": d.scales[1],
            "different_codes": d.codes[0],
            "codes": d.codes[1],
        })
    };
    let tensors: Vec<Value> = found.iter().map(tensor).collect();
    format!("{:#}\n", json!({"format": element.name(), "conventions": both.map(about), "tensors": tensors}))
}
