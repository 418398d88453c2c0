//! What quantization cost each tensor.

use microscale_formats::E8M0;

use super::contents::Stored;
use super::{Contents, Sums, slices};
use crate::Error;
use crate::native::PackedTensor;

/// Blocks named per tensor.
const WORST: usize = 3;

/// A quantized tensor beside what it was made of.
#[derive(Clone, Debug)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// How it is quantized.
    pub packed: PackedTensor,
    /// The original's squares over those of the error, in dB; infinite without error. Blocks that are not finite do not
    /// count.
    pub sqnr_db: f64,
    /// Share of values that are larger than the largest of their block's scale.
    pub clipped: f64,
    /// Blocks with infinities or NaN.
    pub not_finite: usize,
    /// The blocks with the smallest ratio, the worst first.
    pub worst: Vec<WorstBlock>,
}

/// A block with a large error for its size.
#[derive(Clone, Debug, PartialEq)]
pub struct WorstBlock {
    /// Its row in the tensor.
    pub row: usize,
    /// Its number in the row, from 0.
    pub block: usize,
    /// Squares over those of the error, in dB.
    pub sqnr_db: f64,
    /// The largest magnitude of the original.
    pub max: f32,
}

/// Compares every quantized tensor with the tensor of the same name that it was made of, in bounded memory.
///
/// # Errors
/// A tensor that the original lacks or has in another shape; one that cannot be read.
pub fn report(original: &Contents<'_>, quantized: &Contents<'_>) -> Result<Vec<TensorReport>, Error> {
    let all = quantized.names().filter_map(|name| {
        let tensor = quantized.tensor(name)?;
        let packed = tensor.packed()?;
        Some((name, tensor, packed))
    });
    all.map(|(name, tensor, packed)| {
        let source = original.tensor(name).filter(|source| source.is_float() && source.shape() == tensor.shape());
        let source = source.ok_or_else(|| tensor.error(name, "the original has no floats of this name and shape"))?;
        one(name, &source, &tensor, packed)
    })
    .collect()
}

/// What is counted in some rows.
#[derive(Default)]
struct Counts {
    sums: Sums,
    clipped: usize,
    not_finite: usize,
    worst: Vec<WorstBlock>,
}

impl Counts {
    fn add(&mut self, block: WorstBlock) {
        let at = self.worst.partition_point(|other| other.sqnr_db <= block.sqnr_db);
        if at < WORST {
            self.worst.insert(at, block);
            self.worst.truncate(WORST);
        }
    }
}

fn one(name: &str, source: &Stored<'_>, tensor: &Stored<'_>, packed: &PackedTensor) -> Result<TensorReport, Error> {
    let [rows, columns] = packed.shape;
    let parts = slices(rows, columns * size_of::<f32>(), |rows| {
        let [x, y] = [source.values(&rows, columns)?, tensor.values(&rows, columns)?];
        let scales = tensor.codes(&rows).map_or(&[][..], |[_, scales]| scales);
        let mut counts = Counts::default();
        for (i, row) in rows.clone().enumerate() {
            let [x, y] = [&x, &y].map(|values| &values[i * columns..][..columns]);
            count(&mut counts, row, packed, [x, y], &scales[i * packed.blocks()..]);
        }
        source.release_rows(&rows, columns);
        tensor.release_rows(&rows, columns);
        Ok::<_, Error>(counts)
    })?;
    let total = parts.into_iter().fold(Counts::default(), |mut total, part| {
        total.sums += part.sums;
        total.clipped += part.clipped;
        total.not_finite += part.not_finite;
        part.worst.into_iter().for_each(|block| total.add(block));
        total
    });
    Ok(TensorReport {
        name: name.to_owned(),
        packed: packed.clone(),
        sqnr_db: total.sums.sqnr_db(),
        clipped: total.clipped as f64 / (rows * columns) as f64,
        not_finite: total.not_finite,
        worst: total.worst,
    })
}

/// Counts a row of the original and what became of it.
fn count(counts: &mut Counts, row: usize, packed: &PackedTensor, [x, y]: [&[f32]; 2], scales: &[u8]) {
    let size = packed.format.block_size;
    for (block, ((x, y), &scale)) in x.chunks(size).zip(y.chunks(size)).zip(scales).enumerate() {
        if E8M0(scale) == E8M0::NAN {
            counts.not_finite += 1;
            continue;
        }
        let limit = f64::from(packed.format.element.max()) * f64::from(E8M0(scale).value());
        let (mut sums, mut max) = (Sums::default(), 0f32);
        for (&x, &y) in x.iter().zip(y) {
            sums.add(x, y);
            max = max.max(x.abs());
            counts.clipped += usize::from(f64::from(x.abs()) > limit);
        }
        counts.sums += sums;
        if sums.noise > 0.0 {
            counts.add(WorstBlock { row, block, sqnr_db: sums.sqnr_db(), max });
        }
    }
}
