//! x · wᵀ + bias over all tiles and groups.

use half::bf16;
use rayon::prelude::*;

use super::bf16::round;
use super::operand::Operand;
use super::panels::{Panels, Scratch};
use super::product::{GROUP, Order, Side, TILE, Totals, multiply};
use crate::Matrix;
use crate::cpu::simd::{Isa, Simd, dispatch};
use crate::reference::PLAIN_CHUNK;

/// One output column block of the result: `[row][output]`.
type Columns = Vec<[bf16; GROUP]>;

pub(in crate::cpu) fn linear(isa: Isa, x: &Operand, w: &Panels, bias: Option<&[bf16]>) -> Matrix {
    assert_eq!(x.k, w.k, "operand and weight have the same inner length");
    assert!(bias.is_none_or(|b| b.len() == w.outputs), "one bias per output");
    let plain = x.block_size.is_none() && w.block_size().is_none();
    let flushed = (plain && x.subnormals).then(|| x.without_subnormals());
    let x = flushed.as_ref().unwrap_or(x);
    let chunk = [x.block_size, w.block_size()].into_iter().flatten().min().unwrap_or(PLAIN_CHUNK);
    let order = Order { chunk, wide: x.range.leaves_f32(w.range) };
    // Small products are not worth handing to other threads.
    let least = (200_000 / (x.rows * x.k * GROUP).max(1)).max(1);
    let columns: Vec<Columns> = (0..w.groups())
        .into_par_iter()
        .with_min_len(least)
        .map_init(Scratch::default, |scratch, group| {
            let mut columns = vec![[bf16::ZERO; GROUP]; x.rows];
            let bias = bias.map(|b| &b[group * GROUP..]);
            dispatch!(isa, simd => group_columns(simd, x, w.decode(group, plain, scratch), order, bias, &mut columns));
            columns
        })
        .collect();
    join(x.rows, w.outputs, &columns)
}

/// One group of outputs for every row: products, bias, rounding.
#[inline(always)]
fn group_columns<S: Simd>(
    simd: S,
    x: &Operand,
    w: Side<'_, GROUP>,
    order: Order,
    bias: Option<&[bf16]>,
    columns: &mut [[bf16; GROUP]],
) {
    // Adding −0 changes nothing, not even the sign of a zero.
    let mut biases = [-0f32; GROUP];
    if let Some(bias) = bias {
        biases.iter_mut().zip(bias).for_each(|(to, b)| *to = b.to_f32());
    }
    for (tile, rows) in columns.chunks_mut(TILE).enumerate() {
        let mut totals: Totals = [[0.0; GROUP]; TILE];
        multiply(simd, x.tile(tile), w, order, 0..rows.len(), &mut totals);
        for (row, totals) in rows.iter_mut().zip(&totals) {
            for l in 0..GROUP {
                row[l] = round(totals[l] + biases[l]);
            }
        }
    }
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
