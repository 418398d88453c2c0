//! AMD Quark: MXFP4, both of MXFP6, MXFP8.

use microscale_formats::{BLOCK, E2M1, E2M3, E3M2, E4M3, E5M2, ElementFormat};
use microscale_model::{Dtype, Error, Folder, Role};
use serde_json::{Map, Value, json};

use crate::Kind;
use crate::dialect::{Dialect, Target, check_blocks, elements, plain_linears, target, weights_with_scales};
use crate::repack::Packing;
use crate::source::{Source, Tensor};

pub(crate) struct Quark;

/// Quark's names of element formats.
const NAMES: [(&str, ElementFormat); 5] =
    [("fp4", E2M1), ("fp6_e3m2", E3M2), ("fp6_e2m3", E2M3), ("fp8_e4m3", E4M3), ("fp8_e5m2", E5M2)];

impl Dialect for Quark {
    fn read(&self, folder: &Folder, config: &Map<String, Value>) -> Result<(Vec<Tensor>, Vec<String>), Error> {
        let settings = config.get("quantization_config");
        weights_with_scales(folder, |module, bits, dtype| {
            let element = match (bits, dtype) {
                (4, Dtype::U8) => E2M1,
                (8, Dtype::F8_E4M3) => E4M3,
                (8, Dtype::F8_E5M2) => E5M2,
                (6 | 8, Dtype::U8) => element(settings, module)?,
                _ => return None,
            };
            (element.bits() as usize == bits).then_some(element)
        })
    }

    fn store(&self, tensor: &Tensor, _element: ElementFormat) -> Result<Target, String> {
        let element = check_blocks(tensor, Kind::Quark, &NAMES.map(|(_, element)| element))?;
        let dtype = match element {
            E4M3 => Dtype::F8_E4M3,
            E5M2 => Dtype::F8_E5M2,
            _ => Dtype::U8,
        };
        let scales = format!("{}.weight_scale", tensor.module());
        target(tensor, [tensor.name.clone(), scales], dtype, Packing::Stream)
    }

    fn configure(&self, source: &Source, config: &mut Map<String, Value>) {
        let input = |role| source.about.recipe.as_ref().and_then(|recipe| recipe.format(role)).and_then(name);
        let input = input(Role::ProjectionActivation).filter(|_| {
            let recipe = source.about.recipe.as_ref();
            recipe.is_some_and(|recipe| recipe.block_size == BLOCK)
        });
        let layer = |element: ElementFormat| {
            json!({
                "weight": name(element).map(|name| tensor_settings(name, false)),
                "input_tensors": input.map(|name| tensor_settings(name, true)),
                "output_tensors": null,
                "bias": null,
                "target_device": null,
            })
        };
        let elements = elements(source);
        let Some(&first) = elements.first() else { return };
        let others = source.packed().filter(|(_, format)| format.element != first);
        let others: Map<String, Value> =
            others.map(|(tensor, format)| (tensor.module().to_owned(), layer(format.element))).collect();
        let settings = json!({
            "quant_method": "quark",
            "quant_mode": "eager_mode",
            "version": "0.11",
            "global_quant_config": layer(first),
            "layer_quant_config": others,
            "layer_type_quant_config": {},
            "kv_cache_quant_config": {},
            "kv_cache_post_rope": false,
            "softmax_quant_spec": null,
            "exclude": plain_linears(source),
            "algo_config": null,
            "export": {
                "kv_cache_group": [],
                "min_kv_scale": 0.0,
                "pack_method": "reorder",
                "weight_format": "real_quantized",
                "weight_merge_groups": null,
            },
        });
        config.insert("quantization_config".to_owned(), settings);
    }

    fn inputs(&self, config: &Map<String, Value>) -> Option<ElementFormat> {
        let input = config.get("quantization_config")?.get("global_quant_config")?.get("input_tensors")?;
        let input = input.get(0).unwrap_or(input);
        let blocks = input.get("group_size").and_then(Value::as_u64) == Some(BLOCK as u64);
        let dtype = input.get("dtype")?.as_str().filter(|_| blocks)?;
        NAMES.iter().find(|(name, _)| *name == dtype).map(|(_, element)| *element)
    }
}

fn name(element: ElementFormat) -> Option<&'static str> {
    NAMES.iter().find(|(_, known)| *known == element).map(|(name, _)| *name)
}

fn tensor_settings(dtype: &str, dynamic: bool) -> Value {
    json!({
        "dtype": dtype,
        "qscheme": "per_group",
        "group_size": BLOCK,
        "ch_axis": -1,
        "is_dynamic": dynamic,
        "is_scale_quant": false,
        "mx_element_dtype": null,
        "observer_cls": "PerBlockMXObserver",
        "round_method": "half_even",
        "scale_calculation_mode": "even",
        "scale_format": "e8m0",
        "scale_type": "float",
        "symmetric": null,
    })
}

/// The element format that the settings name for a module: its own, that of a pattern with `*`, or everyone's.
fn element(settings: Option<&Value>, module: &str) -> Option<ElementFormat> {
    let settings = settings?;
    let layers = settings.get("layer_quant_config").and_then(Value::as_object);
    let own = layers.and_then(|layers| layers.iter().find(|(pattern, _)| matches(pattern, module)).map(|(_, own)| own));
    let dtype = own.or_else(|| settings.get("global_quant_config"))?.get("weight")?;
    let dtype = dtype.get(0).unwrap_or(dtype).get("dtype")?.as_str()?; // one or a list of one
    NAMES.iter().find(|(name, _)| *name == dtype).map(|(_, element)| *element)
}

/// Whether a name fits a pattern in which `*` stands for anything.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns() {
        assert!(matches("lm_head", "lm_head") && !matches("lm_head", "lm_head2"));
        assert!(matches("*down_proj", "model.layers.0.mlp.down_proj") && matches("*.mlp.*", "a.mlp.b"));
        assert!(!matches("*down_proj", "a.down_proj.b") && !matches("a*a", "a") && matches("*", ""));
    }
}
