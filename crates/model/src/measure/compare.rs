//! Two models or files: are the values the same?

use std::collections::BTreeSet;

use super::contents::Stored;
use super::{Contents, Sums, slices};
use crate::Error;

/// Two models or files beside each other.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Every tensor of either, by name.
    pub tensors: Vec<TensorComparison>,
}

impl Comparison {
    /// Whether both hold the same tensors with the same values, and where both are quantized the same codes and scales.
    pub fn same(&self) -> bool {
        self.tensors.iter().all(|tensor| tensor.difference.is_none())
    }
}

/// A tensor beside that of the same name.
#[derive(Clone, Debug)]
pub struct TensorComparison {
    /// Its name.
    pub name: String,
    /// What it is stored as in the one and in the other: a type, or the format it is quantized in.
    pub stored: [Option<String>; 2],
    /// Where the two differ, if they do.
    pub difference: Option<Difference>,
}

/// How two tensors of one name differ.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// One has it alone.
    Missing,
    /// Other sizes.
    Shape([Vec<usize>; 2]),
    /// Tensors that are not both of floats, and not of the same bytes.
    Bytes,
    /// Values, or codes or scales though the values are the same.
    Values {
        /// Values that differ (zeros do not differ by sign, nor NaN from NaN), and of how many.
        values: [usize; 2],
        /// Codes and scales that differ, if both are quantized in one format and block size.
        codes_and_scales: Option<[usize; 2]>,
        /// The largest absolute difference between finite values.
        max_abs: f64,
        /// The first's squares over those of the difference, in dB, of finite values; infinite if those are the same.
        sqnr_db: f64,
    },
}

/// Compares `a`, which counts as the reference, with `b`, in bounded memory. Tensors are compared by their values,
/// whatever holds them: bf16 with quantized ones, too. The head of a tied model is its embedding.
///
/// # Errors
/// A tensor that cannot be read.
pub fn compare(a: &Contents<'_>, b: &Contents<'_>) -> Result<Comparison, Error> {
    let names: BTreeSet<&str> = a.names().chain(b.names()).collect();
    let one = |name: &str| {
        let (a, b) = (a.tensor(name), b.tensor(name));
        let difference = match (&a, &b) {
            (Some(a), Some(b)) => difference(a, b)?,
            _ => Some(Difference::Missing),
        };
        let stored = [a, b].map(|tensor| tensor.map(|tensor| tensor.kind()));
        Ok(TensorComparison { name: name.to_owned(), stored, difference })
    };
    Ok(Comparison { tensors: names.into_iter().map(one).collect::<Result<_, Error>>()? })
}

/// What is counted in some rows.
#[derive(Default)]
struct Counts {
    values: usize,
    codes: [usize; 2],
    max_abs: f64,
    sums: Sums,
}

fn difference(a: &Stored<'_>, b: &Stored<'_>) -> Result<Option<Difference>, Error> {
    if a.shape() != b.shape() {
        return Ok(Some(Difference::Shape([a.shape().to_vec(), b.shape().to_vec()])));
    }
    if !(a.is_float() && b.is_float()) {
        let same = a.kind() == b.kind() && a.length() == b.length() && {
            let parts = slices(a.length(), 1, |range| {
                let same = a.bytes(&range) == b.bytes(&range);
                [a, b].into_iter().for_each(|tensor| tensor.release_bytes(&range));
                Ok::<_, Error>(same)
            })?;
            !parts.contains(&false)
        };
        return Ok((!same).then_some(Difference::Bytes));
    }
    let columns = a.packed().or(b.packed()).map_or(1, |packed| packed.shape[1]);
    let rows = a.shape().iter().product::<usize>() / columns;
    let same_codes = a.packed().zip(b.packed()).is_some_and(|(a, b)| {
        let key = |t: &crate::PackedTensor| (t.format.element, t.format.block_size, t.unpacked);
        key(a) == key(b)
    });
    let parts = slices(rows, columns * size_of::<f32>(), |rows| {
        let [x, y] = [a.values(&rows, columns)?, b.values(&rows, columns)?];
        let mut counts = Counts::default();
        for (&x, &y) in x.iter().zip(&y) {
            counts.values += usize::from(x != y && !(x.is_nan() && y.is_nan()));
            if x.is_finite() && y.is_finite() {
                counts.sums.add(x, y);
                counts.max_abs = counts.max_abs.max((f64::from(x) - f64::from(y)).abs());
            }
        }
        if let Some((x, y)) = a.codes(&rows).zip(b.codes(&rows)).filter(|_| same_codes) {
            let unlike = |i: usize| x[i].iter().zip(y[i]).filter(|(x, y)| x != y).count();
            counts.codes = [unlike(0), unlike(1)];
            if counts.codes[0] > 0 {
                counts.codes[0] = unlike_codes(a, x[0], y[0]);
            }
        }
        [a, b].into_iter().for_each(|tensor| tensor.release_rows(&rows, columns));
        Ok::<_, Error>(counts)
    })?;
    let total = parts.iter().fold(Counts::default(), |mut total, part| {
        total.values += part.values;
        total.codes = [total.codes[0] + part.codes[0], total.codes[1] + part.codes[1]];
        total.max_abs = total.max_abs.max(part.max_abs);
        total.sums += part.sums;
        total
    });
    if total.values == 0 && total.codes == [0, 0] {
        return Ok(None);
    }
    Ok(Some(Difference::Values {
        values: [total.values, rows * columns],
        codes_and_scales: same_codes.then_some(total.codes),
        max_abs: total.max_abs,
        sqnr_db: total.sums.sqnr_db(),
    }))
}

/// How many codes differ in rows whose bytes do.
fn unlike_codes(tensor: &Stored<'_>, a: &[u8], b: &[u8]) -> usize {
    let Some(packed) = tensor.packed() else { return 0 };
    let (columns, bits) = (packed.shape[1], if packed.unpacked { 8 } else { packed.format.element.bits() });
    let [mut x, mut y] = [vec![0; columns], vec![0; columns]];
    let rows = a.chunks_exact(packed.code_bytes()).zip(b.chunks_exact(packed.code_bytes()));
    rows.map(|(a, b)| {
        microscale_formats::unpack(a, bits, &mut x);
        microscale_formats::unpack(b, bits, &mut y);
        x.iter().zip(&y).filter(|(x, y)| x != y).count()
    })
    .sum()
}
