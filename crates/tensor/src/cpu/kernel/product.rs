//! The product of a tile of rows and a group of outputs, in the canonical order.
//!
//! One lane is one output, so that every output adds its products one after another along k, whatever the batch:
//!
//! ```text
//! for each block b:  S = 0;  for each pair of the block, the high element first:  S = fma(x, w, S)
//!                    total += S · 2^(ex[b] + ew[b])
//! ```

use std::ops::Range;

use crate::cpu::simd::{LANES, Simd};

/// Rows of a tile.
pub(in crate::cpu) const TILE: usize = 8;
/// Outputs of a group: two vectors.
pub(in crate::cpu) const GROUP: usize = 2 * LANES;

/// The totals of a tile: f32, before bias and rounding.
pub(in crate::cpu) type Totals = [[f32; GROUP]; TILE];

/// One operand: `N` rows side by side, `values[k][row]`, and where it is blocked one scale per block and row.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Side<'a, const N: usize> {
    pub(in crate::cpu) values: &'a [[f32; N]],
    pub(in crate::cpu) scales: Option<Scales<'a, N>>,
}

/// Scales `[blocks][row]` as powers of two (or NaN).
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Scales<'a, const N: usize> {
    pub(in crate::cpu) block_size: usize,
    pub(in crate::cpu) powers: &'a [[f32; N]],
}

impl<const N: usize> Side<'_, N> {
    /// Scales of the block that holds element `k`.
    #[inline(always)]
    fn scale(&self, k: usize) -> Option<&[f32; N]> {
        self.scales.map(|s| &s.powers[k / s.block_size])
    }

    /// The side from element `start` to `end`; `start` begins a block.
    #[inline(always)]
    pub(in crate::cpu) fn range(self, start: usize, end: usize) -> Self {
        let scales = self.scales.map(|s| Scales { powers: &s.powers[start / s.block_size..], ..s });
        Side { values: &self.values[start..end], scales }
    }
}

/// Smallest and largest scale of an operand, NaN left out.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct ScaleRange {
    min: f32,
    max: f32,
}

impl ScaleRange {
    pub(in crate::cpu) const PLAIN: ScaleRange = ScaleRange { min: 1.0, max: 1.0 };

    pub(in crate::cpu) fn of(scales: impl IntoIterator<Item = f32>) -> ScaleRange {
        scales.into_iter().fold(Self::PLAIN, |r, s| ScaleRange { min: r.min.min(s), max: r.max.max(s) })
    }

    /// Whether some product of two scales leaves the normal range of f32.
    pub(in crate::cpu) fn leaves_f32(self, other: ScaleRange) -> bool {
        let (low, high) = (f64::from(self.min) * f64::from(other.min), f64::from(self.max) * f64::from(other.max));
        low < f64::from(f32::MIN_POSITIVE) || high > f64::from(f32::MAX)
    }
}

/// How a product is summed.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Order {
    /// Elements summed before they are scaled and added to the total.
    pub(in crate::cpu) chunk: usize,
    /// Whether scales multiply in f64 since their product may leave f32.
    pub(in crate::cpu) wide: bool,
}

/// Adds the product of these rows of `x` and all outputs of `w` to the totals.
///
/// The rows begin with the tile's first, or are a single one.
#[inline(always)]
pub(in crate::cpu) fn multiply<S: Simd>(
    simd: S,
    x: Side<'_, TILE>,
    w: Side<'_, GROUP>,
    order: Order,
    rows: Range<usize>,
    totals: &mut Totals,
) {
    for start in (0..x.values.len()).step_by(order.chunk) {
        let end = (start + order.chunk).min(x.values.len());
        let (sx, sw) = (x.scale(start), w.scale(start));
        let chunk = Chunk { x: &x.values[start..end], w: &w.values[start..end], sx, sw };
        match S::ROWS.min(rows.len().next_power_of_two()) {
            1 => rows_of::<S, 1>(simd, &chunk, order.wide, rows.clone(), totals),
            2 => rows_of::<S, 2>(simd, &chunk, order.wide, rows.clone(), totals),
            4 => rows_of::<S, 4>(simd, &chunk, order.wide, rows.clone(), totals),
            _ => rows_of::<S, 8>(simd, &chunk, order.wide, rows.clone(), totals),
        }
    }
}

/// One chunk along k of both sides.
struct Chunk<'a> {
    x: &'a [[f32; TILE]],
    w: &'a [[f32; GROUP]],
    sx: Option<&'a [f32; TILE]>,
    sw: Option<&'a [f32; GROUP]>,
}

#[inline(always)]
fn rows_of<S: Simd, const R: usize>(simd: S, chunk: &Chunk<'_>, wide: bool, rows: Range<usize>, totals: &mut Totals) {
    for first in rows.step_by(R) {
        let sums = chain::<S, R>(simd, chunk.x, chunk.w, first);
        for (r, sum) in sums.into_iter().enumerate() {
            let row = first + r;
            let sx = chunk.sx.map_or(1.0, |s| s[row]);
            if wide {
                add_wide(simd, sum, sx, chunk.sw, &mut totals[row])
            } else {
                add(simd, sum, sx, chunk.sw, &mut totals[row])
            }
        }
    }
}

/// The sums of one chunk, unscaled: `R` rows from `first` on, times two vectors of outputs.
#[inline(always)]
fn chain<S: Simd, const R: usize>(simd: S, x: &[[f32; TILE]], w: &[[f32; GROUP]], first: usize) -> [[S::F32; 2]; R] {
    let mut sums = [[simd.splat(0.0); 2]; R];
    let ((x_pairs, x_last), (w_pairs, w_last)) = (x.as_chunks::<2>(), w.as_chunks::<2>());
    for (x, w) in x_pairs.iter().zip(w_pairs) {
        step(simd, &x[1], &w[1], first, &mut sums);
        step(simd, &x[0], &w[0], first, &mut sums);
    }
    if let ([x], [w]) = (x_last, w_last) {
        step(simd, x, w, first, &mut sums);
    }
    sums
}

#[inline(always)]
fn step<S: Simd, const R: usize>(
    simd: S,
    x: &[f32; TILE],
    w: &[f32; GROUP],
    first: usize,
    sums: &mut [[S::F32; 2]; R],
) {
    let w = halves(simd, w);
    for (r, sum) in sums.iter_mut().enumerate() {
        let x = simd.splat(x[first + r]);
        *sum = [simd.fma(x, w[0], sum[0]), simd.fma(x, w[1], sum[1])];
    }
}

#[inline(always)]
fn halves<S: Simd>(simd: S, x: &[f32; GROUP]) -> [S::F32; 2] {
    let (halves, _) = x.as_chunks::<LANES>();
    [simd.load(&halves[0]), simd.load(&halves[1])]
}

/// total += sum · (sx · sw): the product of the scales is a power of two, so only the outer product can round.
#[inline(always)]
fn add<S: Simd>(simd: S, sum: [S::F32; 2], sx: f32, sw: Option<&[f32; GROUP]>, total: &mut [f32; GROUP]) {
    let sx = simd.splat(sx);
    let factors = sw.map_or([sx; 2], |sw| halves(simd, sw).map(|sw| simd.mul(sw, sx)));
    let before = halves(simd, total);
    let (after, _) = total.as_chunks_mut::<LANES>();
    for h in 0..2 {
        simd.store(simd.add(before[h], simd.mul(sum[h], factors[h])), &mut after[h]);
    }
}

/// [`add`] where the product of the scales may leave the range of f32.
#[inline(always)]
fn add_wide<S: Simd>(simd: S, sum: [S::F32; 2], sx: f32, sw: Option<&[f32; GROUP]>, total: &mut [f32; GROUP]) {
    let mut lanes = [0f32; GROUP];
    let (halves, _) = lanes.as_chunks_mut::<LANES>();
    simd.store(sum[0], &mut halves[0]);
    simd.store(sum[1], &mut halves[1]);
    for (l, (total, sum)) in total.iter_mut().zip(lanes).enumerate() {
        let factor = f64::from(sx) * sw.map_or(1.0, |sw| f64::from(sw[l]));
        *total += (f64::from(sum) * factor) as f32;
    }
}
