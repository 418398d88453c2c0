//! The native layout, docs/formats.md.

use microscale_formats::{ElementFormat, Ties};
use microscale_model::{Error, Folder, Notes, PackedTensor, scale_name};
use serde_json::{Map, Value};

use crate::dialect::{Dialect, Target, target};
use crate::repack::Packing;
use crate::source::{Place, Stored, Tensor};

pub(crate) struct Native;

impl Dialect for Native {
    fn read(&self, folder: &Folder, _config: &Map<String, Value>) -> Result<(Vec<Tensor>, Vec<String>), Error> {
        let (mut tensors, mut parts) = (Vec::new(), Vec::new());
        for file in &folder.files {
            for (name, packed) in Notes::read(file)?.into_iter().flat_map(|notes| notes.tensors) {
                let scales = scale_name(&name);
                let fail = |reason| Error::Tensor { path: file.path().to_owned(), name: name.clone(), reason };
                let entry = |name: &str| folder.tensors.get(name);
                packed.check(entry(&name).map(|e| &e.info), entry(&scales).map(|e| &e.info)).map_err(fail)?;
                let place = |name: &str| Place::of(&folder.files, &folder.tensors[name]); // checked just above
                tensors.push(Tensor {
                    shape: packed.shape.to_vec(),
                    stored: Stored::Packed {
                        format: packed.format,
                        packing: if packed.unpacked { Packing::Bytes } else { Packing::Stream },
                        codes: place(&name),
                        scales: Some(place(&scales)),
                    },
                    turned: None,
                    name: name.clone(),
                });
                parts.extend([name, scales]);
            }
        }
        Ok((tensors, parts))
    }

    fn store(&self, tensor: &Tensor, _element: ElementFormat) -> Result<Target, String> {
        let packed = packed(tensor, Ties::Even).ok_or("is not quantized")?;
        let mut target =
            target(tensor, [tensor.name.clone(), scale_name(&tensor.name)], packed.code_dtype(), Packing::Stream)?;
        target.codes.shape = vec![packed.shape[0], packed.code_bytes()];
        target.scales.shape = vec![packed.shape[0], packed.blocks()];
        Ok(target)
    }

    fn nan_scales(&self) -> bool {
        true
    }
}

/// A quantized tensor as the native layout has it: a matrix, leading sizes as one.
pub(crate) fn packed(tensor: &Tensor, ties: Ties) -> Option<PackedTensor> {
    let format = tensor.format()?;
    Some(PackedTensor { format, ties, shape: [tensor.rows(), tensor.columns()], unpacked: false })
}
