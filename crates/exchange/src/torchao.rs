//! The parts of a torchao `MXTensor`: `qdata` as its constructor takes it (two FP4 codes per byte, the even one low; a
//! byte per FP6 code; FP8 as the float type), and scales as bytes. torchao itself has no file format that other
//! programs could read; docs/exchange.md has the lines that make tensors of these.

use microscale_formats::{BLOCK, E2M1, E2M3, E3M2, E4M3, E5M2, ElementFormat};
use microscale_model::{Dtype, Error, Folder};
use serde_json::{Map, Value, json};

use crate::Kind;
use crate::dialect::{Dialect, Target, check_blocks, elements, ending, target};
use crate::repack::Packing;
use crate::source::{Pair, Source, Tensor, pair};

pub(crate) struct TorchAo;

/// torchao's names of element formats.
const NAMES: [(&str, ElementFormat); 5] = [
    ("float4_e2m1fn_x2", E2M1),
    ("fp6_e3m2", E3M2),
    ("fp6_e2m3", E2M3),
    ("float8_e4m3fn", E4M3),
    ("float8_e5m2", E5M2),
];
const CODES: &str = "_qdata";
const SCALES: &str = "_scale";

impl Dialect for TorchAo {
    fn read(&self, folder: &Folder, config: &Map<String, Value>) -> Result<(Vec<Tensor>, Vec<String>), Error> {
        let types = config.get("quantization_config").and_then(|settings| settings.get("quant_type"));
        let named = |module: &str| {
            let own = types.and_then(|types| types.get("modules")).and_then(|modules| modules.get(module));
            let dtype = own.or_else(|| types?.get("default"))?.get("elem_dtype")?.as_str()?;
            NAMES.iter().find(|(name, _)| *name == dtype).map(|(_, element)| *element)
        };
        let (mut tensors, mut parts) = (Vec::new(), Vec::new());
        for (name, codes) in ending(folder, CODES) {
            let scales = format!("{name}{SCALES}");
            let element = named(name.strip_suffix(".weight").unwrap_or(name));
            let names = Pair { name: name.to_owned(), codes, scales: &scales, row_dims: 1 };
            tensors.push(pair(folder, names, |bits, dtype| match (bits, dtype) {
                (4, Dtype::U8) => Some((E2M1, Packing::Stream)),
                (8, Dtype::F8_E4M3) => Some((E4M3, Packing::Stream)),
                (8, Dtype::F8_E5M2) => Some((E5M2, Packing::Stream)),
                (8, Dtype::U8) => element.filter(|e| e.bits() == 6).map(|element| (element, Packing::Bytes)),
                _ => None,
            })?);
            parts.extend([codes.to_owned(), scales]);
        }
        Ok((tensors, parts))
    }

    fn store(&self, tensor: &Tensor, _element: ElementFormat) -> Result<Target, String> {
        let (dtype, packing) = match check_blocks(tensor, Kind::TorchAo, &NAMES.map(|(_, element)| element))? {
            E4M3 => (Dtype::F8_E4M3, Packing::Stream),
            E5M2 => (Dtype::F8_E5M2, Packing::Stream),
            E2M1 => (Dtype::U8, Packing::Stream),
            _ => (Dtype::U8, Packing::Bytes),
        };
        target(tensor, [CODES, SCALES].map(|suffix| format!("{}{suffix}", tensor.name)), dtype, packing)
    }

    fn configure(&self, source: &Source, config: &mut Map<String, Value>) {
        let settings = |element: ElementFormat| {
            let name = NAMES.iter().find(|(_, known)| *known == element).map(|(name, _)| *name);
            json!({"_type": "MXTensor", "elem_dtype": name, "block_size": BLOCK})
        };
        let elements = elements(source);
        let Some(&first) = elements.first() else { return };
        let others = source.packed().filter(|(_, format)| format.element != first);
        let others: Map<String, Value> =
            others.map(|(tensor, format)| (tensor.module().to_owned(), settings(format.element))).collect();
        let types = json!({"default": settings(first), "modules": others});
        config.insert("quantization_config".to_owned(), json!({"quant_method": "torchao", "quant_type": types}));
    }

    fn nan_scales(&self) -> bool {
        true
    }
}
