//! compressed-tensors: `mxfp4-pack-quantized`, `mxfp6-pack-quantized` (from its version 0.20 on) and
//! `mxfp8-quantized`, or several of them in one model.

use microscale_formats::{BLOCK, E2M1, E2M3, E4M3, ElementFormat};
use microscale_model::{Dtype, Error, Folder, Recipe, Role};
use serde_json::{Map, Value, json};

use crate::Kind;
use crate::dialect::{Dialect, Target, check_blocks, plain_linears, target, weights_with_scales};
use crate::repack::Packing;
use crate::source::{Source, Tensor};

pub(crate) struct CompressedTensors;

/// The formats of a weight and of its inputs.
type Formats = (ElementFormat, Option<ElementFormat>);

impl Dialect for CompressedTensors {
    fn read(&self, folder: &Folder, _config: &Map<String, Value>) -> Result<(Vec<Tensor>, Vec<String>), Error> {
        weights_with_scales(folder, |_, bits, dtype| match (bits, dtype) {
            (4, Dtype::U8) => Some(E2M1),
            (6, Dtype::U8) => Some(E2M3),
            (8, Dtype::F8_E4M3) => Some(E4M3),
            _ => None,
        })
    }

    fn store(&self, tensor: &Tensor, _element: ElementFormat) -> Result<Target, String> {
        let element = check_blocks(tensor, Kind::CompressedTensors, &[E2M1, E2M3, E4M3])?;
        let module = tensor.module();
        let (codes, dtype) = if element == E4M3 { ("weight", Dtype::F8_E4M3) } else { ("weight_packed", Dtype::U8) };
        target(tensor, [format!("{module}.{codes}"), format!("{module}.weight_scale")], dtype, Packing::Stream)
    }

    fn configure(&self, source: &Source, config: &mut Map<String, Value>) {
        let mut groups: Vec<(Formats, Vec<&str>)> = Vec::new();
        for (tensor, format) in source.packed() {
            let key = (format.element, source.about.recipe.as_ref().and_then(|recipe| input_format(recipe, tensor)));
            match groups.iter_mut().find(|group| group.0 == key) {
                Some(group) => group.1.push(tensor.module()),
                None => groups.push((key, vec![tensor.module()])),
            }
        }
        let one = groups.len() == 1;
        let named = groups.iter().enumerate().map(|(i, ((weight, input), modules))| {
            let targets = if one { json!(["Linear"]) } else { json!(modules) };
            let group = json!({
                "targets": targets,
                "weights": arguments(*weight, false),
                "input_activations": input.map(|input| arguments(input, true)),
                "output_activations": null,
                "format": format_name(*weight),
            });
            (format!("group_{i}"), group)
        });
        let named: Map<String, Value> = named.collect();
        let mut formats: Vec<&str> = groups.iter().map(|((weight, _), _)| format_name(*weight)).collect();
        formats.dedup();
        let settings = json!({
            "quant_method": "compressed-tensors",
            "format": if let [only] = formats[..] { only } else { "mixed-precision" },
            "quantization_status": "compressed",
            "version": "0.20.0",
            "config_groups": named,
            "ignore": plain_linears(source),
            "kv_cache_scheme": null,
            "global_compression_ratio": null,
            "sparsity_config": {},
            "transform_config": {},
        });
        config.insert("quantization_config".to_owned(), settings);
    }

    fn inputs(&self, config: &Map<String, Value>) -> Option<ElementFormat> {
        let groups = config.get("quantization_config")?.get("config_groups")?.as_object()?;
        let input = groups.values().next()?.get("input_activations")?;
        let number = |key: &str| input.get(key).and_then(Value::as_u64);
        match (number("num_bits"), number("group_size"), input.get("type")?.as_str()?) {
            (Some(4), Some(32), "float") => Some(E2M1),
            (Some(8), Some(32), "float") => Some(E4M3),
            _ => None,
        }
    }
}

fn format_name(element: ElementFormat) -> &'static str {
    match element.bits() {
        4 => "mxfp4-pack-quantized",
        6 => "mxfp6-pack-quantized",
        _ => "mxfp8-quantized",
    }
}

/// `QuantizationArgs` of blocks of 32.
fn arguments(element: ElementFormat, dynamic: bool) -> Value {
    json!({
        "num_bits": element.bits(),
        "type": "float",
        "strategy": "group",
        "group_size": BLOCK,
        "symmetric": true,
        "dynamic": dynamic,
        "scale_dtype": "torch.uint8",
        "zp_dtype": null,
        "actorder": null,
        "block_structure": null,
        "observer": null,
        "observer_kwargs": {},
    })
}

/// The format of a weight's inputs, if the format is one of this kind's; others travel in our own metadata alone.
fn input_format(recipe: &Recipe, tensor: &Tensor) -> Option<ElementFormat> {
    let role = match tensor.module() {
        "lm_head" => Role::HeadActivation,
        module if module.contains(".mlp.") => Role::MlpActivation,
        _ => Role::ProjectionActivation,
    };
    recipe.format(role).filter(|element| [E2M1, E4M3].contains(element) && recipe.block_size == BLOCK)
}
