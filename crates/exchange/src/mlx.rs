//! MLX: `mxfp4` and `mxfp8`, codes in words of 32 bits.

use microscale_formats::{BLOCK, E2M1, E4M3, ElementFormat};
use microscale_model::{Dtype, Error, Folder};
use serde_json::{Map, Value, json};

use crate::Kind;
use crate::dialect::{Dialect, Target, check_blocks, elements, ending, target};
use crate::repack::Packing;
use crate::source::{Pair, Source, Tensor, pair};

pub(crate) struct Mlx;

impl Dialect for Mlx {
    fn read(&self, folder: &Folder, config: &Map<String, Value>) -> Result<(Vec<Tensor>, Vec<String>), Error> {
        let (mut tensors, mut parts) = (Vec::new(), Vec::new());
        for (module, scales) in ending(folder, ".scales") {
            let name = format!("{module}.weight");
            let fail = |reason: &str| {
                Err(Error::Tensor { path: folder.path.clone(), name: name.clone(), reason: reason.into() })
            };
            if folder.tensors.contains_key(&format!("{module}.biases")) {
                return fail(
                    "is quantized with biases (MLX's mode affine), which is none of MX; quantize the original",
                );
            }
            let settings = config.get("quantization").or_else(|| config.get("quantization_config"));
            let own = settings.and_then(|settings| settings.get(module)).filter(|own| own.is_object()).or(settings);
            let mode = own.and_then(|own| own.get("mode")).and_then(Value::as_str);
            let element = match mode {
                Some("mxfp4") => E2M1,
                Some("mxfp8") => E4M3,
                _ => return fail("has a mode of MLX other than mxfp4 and mxfp8; quantize the original"),
            };
            let names = Pair { name: name.clone(), codes: &name, scales, row_dims: 1 };
            tensors.push(pair(folder, names, |bits, dtype| {
                (dtype == Dtype::U32 && bits == element.bits() as usize).then_some((element, Packing::Stream))
            })?);
            parts.extend([name, scales.to_owned()]);
        }
        Ok((tensors, parts))
    }

    fn store(&self, tensor: &Tensor, _element: ElementFormat) -> Result<Target, String> {
        check_blocks(tensor, Kind::Mlx, &[E2M1, E4M3])?;
        let module = tensor.module();
        target(tensor, [tensor.name.clone(), format!("{module}.scales")], Dtype::U32, Packing::Stream)
    }

    fn configure(&self, source: &Source, config: &mut Map<String, Value>) {
        let settings = |element: ElementFormat| json!({"group_size": BLOCK, "bits": element.bits(), "mode": if element == E2M1 { "mxfp4" } else { "mxfp8" }});
        let elements = elements(source);
        let Some(&first) = elements.first() else { return };
        let mut all = settings(first);
        if elements.len() > 1 {
            let others = source.packed().filter(|(_, format)| format.element != first);
            others.for_each(|(tensor, format)| all[tensor.module()] = settings(format.element));
        }
        config.insert("quantization".to_owned(), all.clone());
        config.insert("quantization_config".to_owned(), all);
    }
}
