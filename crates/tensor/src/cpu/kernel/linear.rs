//! x · wᵀ + bias over all tiles and groups.

use half::bf16;
use rayon::prelude::*;

use super::operand::Operand;
use super::panels::{Panels, Scratch};
use super::product::{GROUP, Order, TILE, Totals, multiply};
use crate::Matrix;
use crate::cpu::simd::{Isa, Simd, dispatch};
use crate::reference::PLAIN_CHUNK;

/// Elements along k decoded at a time: with 32 outputs in f32, half of a small L2 cache.
const STRETCH: usize = 1024;

/// One output column block of the result: `[row][output]`.
type Columns = Vec<[bf16; GROUP]>;

pub(in crate::cpu) fn linear(isa: Isa, x: &Operand, w: &Panels, bias: Option<&[bf16]>) -> Matrix {
    assert_eq!(x.k, w.k, "operand and weight have the same inner length");
    assert!(bias.is_none_or(|b| b.len() == w.outputs), "one bias per output");
    let plain = x.block_size.is_none() && w.block_size().is_none();
    let flushed = (plain && x.has_subnormals()).then(|| x.without_subnormals());
    let x = flushed.as_ref().unwrap_or(x);
    let chunk = [x.block_size, w.block_size()].into_iter().flatten().min().unwrap_or(PLAIN_CHUNK);
    let order = Order { chunk, wide: x.range.leaves_f32(w.range) };
    // Small products are not worth handing to other threads.
    let least = (200_000 / (x.rows * x.k * GROUP).max(1)).max(1);
    let columns: Vec<Columns> = (0..w.groups())
        .into_par_iter()
        .with_min_len(least)
        .map(|group| {
            dispatch!(isa, simd => {
                let totals = group_totals(simd, x, w, group, order);
                finish(&totals, x.rows, bias.map(|b| &b[group * GROUP..]))
            })
        })
        .collect();
    join(x.rows, w.outputs, &columns)
}

/// The totals of one group of outputs for every tile.
#[inline(always)]
fn group_totals<S: Simd>(simd: S, x: &Operand, w: &Panels, group: usize, order: Order) -> Vec<Totals> {
    let mut totals = vec![[[0f32; GROUP]; TILE]; x.tiles()];
    let mut scratch = Scratch::default();
    // A stretch is a whole number of blocks of both sides.
    let unit = [x.block_size, w.block_size(), Some(order.chunk)].into_iter().flatten().max().unwrap_or(1);
    let stretch = STRETCH.next_multiple_of(unit);
    let plain = x.block_size.is_none() && w.block_size().is_none();
    for start in (0..x.k).step_by(stretch) {
        let end = (start + stretch).min(x.k);
        let side = w.decode(group, (start, end), plain, &mut scratch);
        for (tile, totals) in totals.iter_mut().enumerate() {
            let rows = TILE.min(x.rows - tile * TILE);
            multiply(simd, x.tile(tile).range(start, end), side, order, rows, totals);
        }
    }
    totals
}

/// Adds the bias and rounds to bf16.
#[inline(always)]
fn finish(totals: &[Totals], rows: usize, bias: Option<&[bf16]>) -> Columns {
    let mut biases = [0f32; GROUP];
    if let Some(bias) = bias {
        biases.iter_mut().zip(bias).for_each(|(to, b)| *to = b.to_f32());
    }
    let rows = totals.as_flattened()[..rows].iter();
    match bias {
        None => rows.map(|row| row.map(round)).collect(),
        Some(_) => rows.map(|row| std::array::from_fn(|i| round(row[i] + biases[i]))).collect(),
    }
}

/// Rounds to bf16 without a branch that would keep the loop from being vectorized.
#[inline(always)]
pub(in crate::cpu) fn round(x: f32) -> bf16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16;
    let quiet_nan = (bits >> 16) as u16 | 0x40;
    bf16::from_bits(if bits & 0x7FFF_FFFF > 0x7F80_0000 { quiet_nan } else { rounded })
}

/// Puts column blocks side by side.
fn join(rows: usize, outputs: usize, columns: &[Columns]) -> Matrix {
    let mut out = Matrix::zeros(rows, outputs);
    out.values_mut().par_chunks_mut(outputs).with_min_len((16384 / outputs).max(1)).enumerate().for_each(|(i, row)| {
        for (to, columns) in row.chunks_mut(GROUP).zip(columns) {
            to.copy_from_slice(&columns[i][..to.len()]);
        }
    });
    out
}
