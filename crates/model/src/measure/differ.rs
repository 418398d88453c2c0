//! What two tools would make of the same floats.

use std::path::Path;

use microscale_formats::{Convention, ElementFormat};
use microscale_tensor::{BlockFormat, RowQuantizer};

use super::{Contents, slices};
use crate::Error;
use crate::native::PackedTensor;

/// Where two conventions differ on a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConventionDifference {
    /// The tensor's name.
    pub name: String,
    /// Blocks whose scales differ, and of how many.
    pub scales: [usize; 2],
    /// Codes that differ, and of how many.
    pub codes: [usize; 2],
}

/// Quantizes the float matrices of a file that `select` names by two conventions, and counts what differs.
///
/// # Errors
/// A file that cannot be read, or without such a matrix.
pub fn differ(
    path: &Path,
    (element, block_size): (ElementFormat, usize),
    conventions: [&Convention; 2],
    select: &(dyn Fn(&str) -> bool + Sync),
) -> Result<Vec<ConventionDifference>, Error> {
    let contents = Contents::of_file(path)?;
    let mut found = Vec::new();
    for name in contents.names().filter(|name| select(name)) {
        let Some(tensor) = contents.tensor(name).filter(|tensor| tensor.is_float()) else { continue };
        let Ok(shape @ [rows, columns]) = <[usize; 2]>::try_from(tensor.shape()) else { continue };
        if shape.contains(&0) {
            continue;
        }
        let both = conventions.map(|convention| {
            let format = BlockFormat { element, block_size, scale_rule: convention.scale_rule };
            PackedTensor { format, ties: convention.ties, shape, unpacked: false }
        });
        let parts = slices(rows, columns * size_of::<f32>(), |range| {
            let values = tensor.values(&range, columns)?;
            tensor.release_rows(&range, columns);
            let [a, b] = [quantized(&values, &both[0])?, quantized(&values, &both[1])?];
            let unlike = |a: &[u8], b: &[u8]| a.iter().zip(b).filter(|(a, b)| a != b).count();
            Ok::<_, Error>([unlike(&a.0, &b.0), unlike(&a.1, &b.1)])
        })?;
        let [codes, scales] = [0, 1].map(|i| parts.iter().map(|part| part[i]).sum());
        let total = rows * both[0].blocks();
        found.push(ConventionDifference {
            name: name.to_owned(),
            scales: [scales, total],
            codes: [codes, rows * columns],
        });
    }
    if found.is_empty() {
        let reason = "holds no float matrix (F32, F16 or BF16, two dimensions) of those asked for";
        return Err(Error::checkpoint(path, reason));
    }
    Ok(found)
}

/// Codes, a byte each, and scales of whole rows.
fn quantized(values: &[f32], to: &PackedTensor) -> Result<(Vec<u8>, Vec<u8>), Error> {
    let fail = |e: microscale_tensor::Error| Error::Recipe { reason: e.to_string() };
    let (columns, rows) = (to.shape[1], values.len() / to.shape[1]);
    let mut quantizer = RowQuantizer::new(columns, to.format, to.ties).map_err(fail)?;
    let mut packed = vec![0; to.code_bytes()];
    let (mut codes, mut scales) = (vec![0; values.len()], vec![0; rows * to.blocks()]);
    let outputs = codes.chunks_exact_mut(columns).zip(scales.chunks_exact_mut(to.blocks()));
    for (values, (codes, scales)) in values.chunks_exact(columns).zip(outputs) {
        quantizer.values().copy_from_slice(values);
        quantizer.encode(&mut packed, scales);
        microscale_formats::unpack(&packed, to.format.element.bits(), codes);
    }
    Ok((codes, scales))
}
