//! The suite every backend must pass: each operation against [`Reference`], bit for bit.

use std::ops::Range;

use half::bf16;
use microscale_formats::{E8M0, ElementFormat, ScaleRule};
use rayon::prelude::*;

use crate::{
    Attention, Backend, BlockFormat, KeyValueLayout, Linear, Matrix, MxTensor, Reference, Rotation, WeightMatrix,
};

/// Checks every operation of `backend` on shapes with all the awkward edges (odd lengths, short blocks, one row, one
/// feature, zero blocks, extreme scales, NaN).
///
/// # Errors
/// The first difference: the operation, the case, the position and both values.
pub fn check<B: Backend>(backend: &B) -> Result<(), String> {
    let suite = Suite { backend, reference: Reference };
    suite.passes()?;
    suite.rows()?;
    suite.linears()?;
    suite.codes()?;
    suite.attentions()
}

struct Suite<'a, B> {
    backend: &'a B,
    reference: Reference,
}

/// Formats that between them take every path: none, each element, other block sizes and rules.
fn formats() -> Vec<Option<BlockFormat>> {
    let mut formats = vec![None];
    formats.extend(ElementFormat::ALL.map(|e| Some(BlockFormat::from(e))));
    formats.push(Some(BlockFormat { block_size: 16, ..ElementFormat::ALL[2].into() }));
    formats.push(Some(BlockFormat { block_size: 64, scale_rule: ScaleRule::Even, ..ElementFormat::ALL[4].into() }));
    formats
}

/// What the test values look like.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Values {
    /// Around one, some zeros.
    Usual,
    /// Exponents all over the range, subnormals among them.
    Wild,
    /// Usual, with one infinity.
    Poisoned,
    /// Subnormal, or nearly: what products of bf16 with bf16 count as zero is then all there is.
    Faint,
    /// Queries so large that with usual keys attention weights go down to subnormal ones, and to zero.
    Steep,
    /// Large enough to bring faint values back.
    Huge,
    /// In every block large ones, then the same with the other sign; tiny ones between them, how tiny differing from block to
    /// block. What is left of a sum of products with `Repeated` ones is what roundings on the way leave.
    Cancelling,
    /// Large ones, then the same again, small ones between them.
    Repeated,
    /// All of one magnitude, nearly the next power of two: as large as elements of any format are.
    Largest,
}

/// A matrix of pseudo-random values.
fn random(rows: usize, columns: usize, seed: u64, values: Values) -> Matrix {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u32
    };
    let mut matrix = Matrix::zeros(rows, columns);
    for x in matrix.values_mut() {
        let bits = next();
        let exponent = match values {
            Values::Wild => bits >> 8 & 0xFF,
            Values::Faint => bits >> 8 & 3,
            Values::Steep => 130 + (bits >> 8 & 7),
            Values::Huge => 230 + (bits >> 8 & 7),
            Values::Usual | Values::Poisoned | Values::Cancelling | Values::Repeated => 120 + (bits >> 8 & 7),
            Values::Largest => 127,
        };
        let fraction = if values == Values::Largest { 0x7E } else { bits as u16 & 0x7F };
        *x = bf16::from_bits(bits as u16 & 0x8000 | fraction | (exponent.min(254) as u16) << 7);
        if bits >> 20 & 15 == 0 {
            *x = bf16::ZERO;
        }
    }
    if matches!(values, Values::Cancelling | Values::Repeated) {
        for block in matrix.values_mut().chunks_mut(32) {
            let tiny = if values == Values::Cancelling { 114 + (next() % 6) as u16 } else { 119 };
            for k in 0..block.len() {
                let mut bits = block[k].to_bits() & 0x807F | tiny << 7;
                if k % 4 < 3 {
                    let large = block[k % 16].to_bits() & 0x7F | 127 << 7;
                    bits = if values == Values::Cancelling && k >= 16 { large | 0x8000 } else { large };
                }
                block[k] = bf16::from_bits(bits);
            }
        }
    } else if columns >= 40 {
        matrix.row_mut(rows / 2)[..40].fill(bf16::ZERO); // a whole block of zeros
    }
    if values == Values::Poisoned {
        matrix.row_mut(rows / 2)[columns / 2] = bf16::INFINITY;
    }
    matrix
}

fn same(what: &str, expected: &Matrix, found: &Matrix) -> Result<(), String> {
    for (i, (e, f)) in expected.values().iter().zip(found.values()).enumerate() {
        if e.to_bits() != f.to_bits() && !(e.is_nan() && f.is_nan()) {
            let (row, column) = (i / expected.columns(), i % expected.columns());
            return Err(format!("{what}: row {row}, column {column}: {e:?} expected, {f:?} found"));
        }
    }
    if (expected.rows(), expected.columns()) != (found.rows(), found.columns()) {
        return Err(format!("{what}: shapes differ"));
    }
    Ok(())
}

/// One product of a linear layer.
#[derive(Debug)]
struct Product {
    /// Rows, outputs, elements of each.
    shape: [usize; 3],
    /// Of the activation and of the weight, as are the values and seeds.
    formats: [Option<BlockFormat>; 2],
    values: [Values; 2],
    seeds: [u64; 2],
    bias: bool,
}

/// Checks all cases, on all threads, as the reference takes nearly all of the time. The error is that of the first that differs.
fn side_by_side<T: Sync>(cases: &[T], check: impl Fn(&T) -> Result<(), String> + Sync + Send) -> Result<(), String> {
    cases.par_iter().map(check).find_first(Result::is_err).unwrap_or(Ok(()))
}

impl<B: Backend> Suite<'_, B> {
    fn passes(&self) -> Result<(), String> {
        let found = self.backend.passes(100, |i| self.backend.passes(i % 3, |j| [i, j]));
        let expected: Vec<Vec<[usize; 2]>> = (0..100).map(|i| (0..i % 3).map(|j| [i, j]).collect()).collect();
        if found == expected { Ok(()) } else { Err(format!("passes: {found:?}")) }
    }

    fn rows(&self) -> Result<(), String> {
        for (rows, columns, values) in [
            (1, 8, Values::Usual),
            (9, 64, Values::Usual),
            (3, 1096, Values::Usual),
            (2, 2061, Values::Usual),
            (5, 70, Values::Wild),
        ] {
            let (x, y) = (random(rows, columns, 1, values), random(rows, columns, 2, values));
            let weight = random(1, columns, 3, Values::Usual).into_values();
            let up = |m: &Matrix| self.backend.upload(m.clone());
            let (bx, by) = (up(&x), up(&y));
            let case = format!("{rows} x {columns}, {values:?}");
            let download = |m| self.backend.download(&m);
            let sum = self.reference.add(x.clone(), &y);
            same(&format!("add, {case}"), &sum, &download(self.backend.add(up(&x), &by)))?;
            let gated = self.reference.gated(x.clone(), &y);
            same(&format!("gated, {case}"), &gated, &download(self.backend.gated(up(&x), &by)))?;
            let norm = self.reference.rms_norm(&x, &weight, 1e-5);
            same(&format!("rms_norm, {case}"), &norm, &download(self.backend.rms_norm(&bx, &weight, 1e-5)))?;
            let which: Vec<u32> = (0..rows as u32).rev().chain([0]).collect();
            same("gather", &self.reference.gather(&x, &which), &download(self.backend.gather(&bx, &which)))?;
            let targets: Vec<u32> = (0..rows).map(|i| ((i * 7) % columns) as u32).collect();
            let (expected, found) = (self.reference.scores(&x, &targets), self.backend.scores(&bx, &targets));
            if expected
                .iter()
                .zip(&found)
                .any(|(e, f)| e.log_probability.to_bits() != f.log_probability.to_bits() || e.greedy != f.greedy)
            {
                return Err(format!("scores, {case}: {expected:?} expected, {found:?} found"));
            }
        }
        // Heads of a few features and of many, of which a vector holds several or a part.
        for (rows, heads, dim) in [
            (1, 1, 8),
            (9, 8, 8),
            (3, 137, 8),
            (5, 3, 4),
            (5, 3, 12),
            (7, 9, 24),
            (2, 5, 64),
            (2, 3, 96),
            (3, 2, 128),
            (2, 2, 256),
        ] {
            for values in [Values::Usual, Values::Wild, Values::Poisoned] {
                let x = random(rows, heads * dim, dim as u64, values);
                let [cos, sin] = [4, 5].map(|seed| random(rows, dim, seed, Values::Usual));
                let rotation = Rotation { cos, sin };
                let expected = self.reference.rope(x.clone(), &rotation);
                let found = self.backend.rope(self.backend.upload(x), &rotation);
                let case = format!("rope, {rows} x {heads} heads of {dim}, {values:?}");
                same(&case, &expected, &self.backend.download(&found))?;
            }
        }
        Ok(())
    }

    fn linears(&self) -> Result<(), String> {
        let shapes = [
            [1, 1, 1],
            [1, 100, 64],
            [2, 20, 100],
            [3, 70, 96],
            [4, 33, 65],
            [9, 40, 172],
            [17, 96, 1400],
            [40, 48, 128],
        ];
        let mut products = Vec::new();
        for x_format in [None, formats()[3]] {
            let (values, formats) = ([Values::Faint, Values::Huge], [x_format, None]);
            products.push(Product { shape: [9, 40, 100], values, formats, seeds: [31, 32], bias: false });
        }
        for x_format in formats() {
            for w_format in formats() {
                let formats = [x_format, w_format];
                for rows in [1, 2, 4, 20] {
                    let values = [Values::Cancelling, Values::Repeated];
                    products.push(Product { shape: [rows, 21, 1024], values, formats, seeds: [41, 42], bias: false });
                }
                for (shape, i) in shapes.into_iter().zip(0..) {
                    let each = [
                        [Values::Usual, Values::Usual],
                        [Values::Wild, Values::Wild],
                        [Values::Poisoned, Values::Usual],
                    ];
                    // The large and the tiny shape once.
                    let times = if [1, 1400].contains(&shape[2]) { 1 } else { each.len() };
                    for (values, j) in each.into_iter().take(times).zip(0..) {
                        products.push(Product { shape, values, formats, seeds: [11 + i, 12 + j], bias: j == 0 });
                    }
                }
            }
        }
        side_by_side(&products, |product| self.linear(product))
    }

    fn linear(&self, case: &Product) -> Result<(), String> {
        let &Product { shape: [rows, outputs, k], values, formats: [x_format, w_format], seeds, bias } = case;
        let (x, w) = (random(rows, k, seeds[0], values[0]), random(outputs, k, seeds[1], values[1]));
        let bias = bias.then(|| random(1, outputs, 13, Values::Usual).into_values());
        let bias = bias.as_deref();
        let weight = WeightMatrix::new(w, w_format);
        let expected = {
            let (x, w) = (self.reference.operand(&x, x_format), self.reference.weight(weight.clone()));
            let [y] = self.reference.linear(&x, [Linear { weight: &w, bias }]);
            y
        };
        let x = self.backend.operand(&self.backend.upload(x), x_format);
        let weight = &self.backend.weight(weight);
        // Twice at once, as the projections of one input are.
        let found = self.backend.linear(&x, [Linear { weight, bias }, Linear { weight, bias }]);
        let case = format!("linear, {case:?}");
        found.iter().try_for_each(|found| same(&case, &expected, &self.backend.download(found)))
    }

    /// Weights of any codes: those that quantizing does not make too, and the largest beside the largest.
    fn codes(&self) -> Result<(), String> {
        let (outputs, k) = (70, 96);
        let mut cases = Vec::new();
        for x_format in ElementFormat::ALL {
            for w_format in ElementFormat::ALL {
                for rows in [1, 2, 4, 20] {
                    for values in [Values::Usual, Values::Largest] {
                        cases.push((x_format, w_format, rows, values));
                    }
                }
            }
        }
        side_by_side(&cases, |case| {
            let &(x_format, w_format, rows, values) = case;
            let bytes = outputs * k * w_format.bits() as usize / 8;
            // Beside the largest elements only the largest codes, of either sign: of two's complement both ends.
            let ends = match w_format.bits() {
                4 => [0x77, 0xF7, 0x7F, 0xFF],
                6 => [0xDF, 0xF7, 0x7D, 0xFF],
                _ if w_format == ElementFormat::ALL[5] => [0x7F, 0x80, 0x80, 0x81],
                _ => [0x7B, 0xFB, 0x7E, 0x7B],
            };
            let codes = (0..bytes as u32).map(|i| {
                let hash = i.wrapping_mul(0x9E37_79B9).rotate_left(15);
                if values == Values::Largest { ends[hash as usize % ends.len()] } else { hash as u8 }
            });
            let scales = (0..outputs * k / 32).map(|i| E8M0(120 + (i * 7 % 15) as u8)).collect();
            let weight = MxTensor::from_parts(w_format.into(), &[outputs, k], 1, codes.collect(), scales)
                .map_err(|error| error.to_string())?;
            let (weight, x) = (WeightMatrix::Mx(weight), random(rows, k, 51, values));
            let expected = {
                let operand = self.reference.operand(&x, Some(x_format.into()));
                let weight = self.reference.weight(weight.clone());
                let [y] = self.reference.linear(&operand, [Linear { weight: &weight, bias: None }]);
                y
            };
            let operand = self.backend.operand(&self.backend.upload(x), Some(x_format.into()));
            let weight = self.backend.weight(weight);
            let [found] = self.backend.linear(&operand, [Linear { weight: &weight, bias: None }]);
            same(&format!("linear with any codes, {case:?}"), &expected, &self.backend.download(&found))
        })
    }

    fn attentions(&self) -> Result<(), String> {
        let element = |i: usize| Some(BlockFormat::from(ElementFormat::ALL[i]));
        let small = |i: usize| Some(BlockFormat { block_size: 16, ..ElementFormat::ALL[i].into() });
        let roles = [
            [None; 4],
            [element(2), element(2), element(2), element(2)],
            [element(5), element(1), None, element(4)],
            [None, element(3), element(4), None],
            [element(0), None, element(5), element(2)],
            [small(2), small(1), small(4), small(3)],
        ];
        let mut cases = Vec::new();
        for shape in [[4, 2, 8], [3, 1, 16], [2, 1, 20], [4, 1, 40], [2, 2, 64]] {
            for formats in roles {
                for causal_value_blocks in [false, true] {
                    let usual = [Values::Usual, Values::Poisoned, Values::Faint].map(|values| (Values::Usual, values));
                    for values in usual.into_iter().chain([(Values::Steep, Values::Usual)]) {
                        cases.push((shape, formats, causal_value_blocks, values));
                    }
                }
            }
        }
        side_by_side(&cases, |&(shape, formats, causal, values)| self.attention(shape, formats, causal, values))
    }

    fn attention(
        &self,
        [heads, kv_heads, head_dim]: [usize; 3],
        [query, key, value, weights]: [Option<BlockFormat>; 4],
        causal_value_blocks: bool,
        (queries, values): (Values, Values),
    ) -> Result<(), String> {
        let a = Attention {
            heads,
            keys_values: KeyValueLayout { heads: kv_heads, head_dim, key, value },
            query,
            weights,
            causal_value_blocks,
        };
        // Whole sequences, then the same rows as sequences that grow in steps, and for one shape also a sequence longer than
        // what plain products sum at a time.
        let mut all =
            vec![vec![vec![0..1, 1..35, 35..80]], vec![vec![0..1, 1..20], vec![20..21, 21..60], vec![60..79, 79..80]]];
        if head_dim == 8
            && (queries, values) == (Values::Usual, Values::Usual)
            && [query, key, value, weights] == [None; 4]
        {
            all.push(vec![vec![0..530], vec![530..555]]);
        }
        let rows = if all.len() > 2 { 555 } else { 80 };
        let q = random(rows, heads * head_dim, 21, queries);
        let k = random(rows, kv_heads * head_dim, 22, Values::Usual);
        let v = random(rows, kv_heads * head_dim, 23, values);
        for calls in all {
            let expected = attend(&self.reference, [&q, &k, &v], &a, &calls);
            let found = attend(self.backend, [&q, &k, &v], &a, &calls);
            for (i, (expected, found)) in expected.iter().zip(&found).enumerate() {
                same(&format!("attention, call {i} of {calls:?}, {queries:?} by {values:?}, {a:?}"), expected, found)?;
            }
        }
        Ok(())
    }
}

/// The results of several calls of attention on growing sequences: `calls[i][j]` are the rows that call `i` adds to
/// sequence `j`. After each all of these are asked for, then their last halves.
fn attend<B: Backend>(backend: &B, matrices: [&Matrix; 3], a: &Attention, calls: &[Vec<Range<usize>>]) -> Vec<Matrix> {
    let mut caches: Vec<B::Cache> = calls[0].iter().map(|_| backend.cache(&a.keys_values)).collect();
    let mut results = Vec::new();
    for rows in calls {
        let [q, k, v] = matrices.map(|m| backend.upload(m.clone()));
        let all: Vec<u32> = rows.iter().cloned().flatten().map(|i| i as u32).collect();
        let [k, v] = [k, v].map(|m| backend.gather(&m, &all));
        backend.append(&mut caches.iter_mut().collect::<Vec<_>>(), &k, &v, &one_after_another(rows));
        let halves: Vec<Range<usize>> = rows.iter().map(|r| r.end - r.len() / 2..r.end).collect();
        for rows in [rows, &halves] {
            let which: Vec<u32> = rows.iter().cloned().flatten().map(|i| i as u32).collect();
            let (q, caches) = (backend.gather(&q, &which), caches.iter().collect::<Vec<_>>());
            results.push(backend.download(&backend.attention(&q, &caches, &one_after_another(rows), a)));
        }
    }
    results
}

/// Ranges as long as these, each beginning where the one before ends.
fn one_after_another(ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut start = 0;
    let each = ranges.iter().map(|r| {
        start += r.len();
        start - r.len()..start
    });
    each.collect()
}
