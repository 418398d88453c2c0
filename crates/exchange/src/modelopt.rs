//! NVIDIA ModelOpt: MXFP4 and MXFP8.

use microscale_formats::{BLOCK, E2M1, E4M3, ElementFormat};
use microscale_model::{Dtype, Error, Folder};
use serde_json::{Map, Value, json};

use crate::Kind;
use crate::dialect::{Dialect, Target, check_blocks, elements, plain_linears, target, weights_with_scales};
use crate::repack::Packing;
use crate::source::{Source, Tensor};

pub(crate) struct ModelOpt;

impl Dialect for ModelOpt {
    fn read(&self, folder: &Folder, _config: &Map<String, Value>) -> Result<(Vec<Tensor>, Vec<String>), Error> {
        weights_with_scales(folder, |_, bits, dtype| match (bits, dtype) {
            (4, Dtype::U8) => Some(E2M1),
            (8, Dtype::F8_E4M3) => Some(E4M3),
            _ => None,
        })
    }

    fn store(&self, tensor: &Tensor, _element: ElementFormat) -> Result<Target, String> {
        let element = check_blocks(tensor, Kind::ModelOpt, &[E2M1, E4M3])?;
        let dtype = if element == E4M3 { Dtype::F8_E4M3 } else { Dtype::U8 };
        let scales = format!("{}.weight_scale", tensor.module());
        target(tensor, [tensor.name.clone(), scales], dtype, Packing::Stream)
    }

    fn configure(&self, source: &Source, config: &mut Map<String, Value>) {
        let mut settings = settings(source, "ignore");
        settings.insert("quant_method".to_owned(), json!("modelopt"));
        settings.insert("producer".to_owned(), producer());
        config.insert("quantization_config".to_owned(), Value::Object(settings));
    }

    fn companions(&self, source: &Source) -> Vec<(String, Vec<u8>)> {
        let about = json!({"producer": producer(), "quantization": settings(source, "exclude_modules")});
        vec![("hf_quant_config.json".to_owned(), format!("{about:#}\n").into_bytes())]
    }
}

fn producer() -> Value {
    json!({"name": "microscale", "version": env!("CARGO_PKG_VERSION")})
}

fn algorithm(element: ElementFormat) -> &'static str {
    if element == E4M3 { "MXFP8" } else { "W4A8_MXFP4_FP8" }
}

/// What both files say; `excluded` is the key of the modules that are left out.
fn settings(source: &Source, excluded: &str) -> Map<String, Value> {
    let mut settings = Map::new();
    if let [only] = elements(source)[..] {
        settings.insert("quant_algo".to_owned(), json!(algorithm(only)));
    } else {
        let layers = source.packed().map(|(tensor, format)| {
            let own = json!({"quant_algo": algorithm(format.element), "group_size": BLOCK});
            (tensor.module().to_owned(), own)
        });
        settings.insert("quant_algo".to_owned(), json!("MIXED_PRECISION"));
        settings.insert("quantized_layers".to_owned(), Value::Object(layers.collect()));
    }
    settings.insert("group_size".to_owned(), json!(BLOCK));
    settings.insert("kv_cache_quant_algo".to_owned(), Value::Null);
    settings.insert(excluded.to_owned(), json!(plain_linears(source)));
    settings
}
