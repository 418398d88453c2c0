//! The names of gpt-oss: `X_blocks` `[…, rows, blocks, 16]` and `X_scales` `[…, rows, blocks]`, MXFP4; and those of its
//! first release, `X.blocks` and `X.scales`.

use microscale_formats::{BLOCK, E2M1, ElementFormat};
use microscale_model::{Dtype, Error, Folder};
use serde_json::{Map, Value, json};

use crate::Kind;
use crate::dialect::{Dialect, Target, check_blocks, ending, plain_linears, target};
use crate::repack::Packing;
use crate::source::{Pair, Source, Tensor, pair};

pub(crate) struct GptOss;

/// How the names of codes and scales end.
pub(crate) const SUFFIXES: [[&str; 2]; 2] = [["_blocks", "_scales"], [".blocks", ".scales"]];

impl Dialect for GptOss {
    fn read(&self, folder: &Folder, _config: &Map<String, Value>) -> Result<(Vec<Tensor>, Vec<String>), Error> {
        let (mut tensors, mut parts) = (Vec::new(), Vec::new());
        for [blocks, scales] in SUFFIXES {
            for (name, codes) in ending(folder, blocks) {
                let scales = format!("{name}{scales}");
                let names = Pair { name: name.to_owned(), codes, scales: &scales, row_dims: 2 };
                tensors.push(pair(folder, names, |bits, dtype| {
                    (bits == 4 && dtype == Dtype::U8).then_some((E2M1, Packing::Stream))
                })?);
                parts.extend([codes.to_owned(), scales]);
            }
        }
        Ok((tensors, parts))
    }

    fn store(&self, tensor: &Tensor, _element: ElementFormat) -> Result<Target, String> {
        check_blocks(tensor, Kind::GptOss, &[E2M1])?;
        let [codes, scales] = SUFFIXES[0].map(|suffix| format!("{}{suffix}", tensor.name));
        let mut target = target(tensor, [codes, scales], Dtype::U8, Packing::Stream)?;
        target.codes.shape.pop();
        target.codes.shape.extend([tensor.columns() / BLOCK, BLOCK / 2]);
        Ok(target)
    }

    fn configure(&self, source: &Source, config: &mut Map<String, Value>) {
        let mut modules = plain_linears(source);
        modules.push("model.embed_tokens".to_owned());
        let settings = json!({"quant_method": "mxfp4", "modules_to_not_convert": modules});
        config.insert("quantization_config".to_owned(), settings);
    }
}
