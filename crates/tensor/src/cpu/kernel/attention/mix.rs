//! A tile's weights times the values.

use std::ops::Range;

use half::bf16;

use super::super::cache::Values;
use super::super::product::{Order, Totals, multiply};
use super::super::sides::PANEL;
use super::{Product, copy};
use crate::cpu::simd::Simd;

/// The product of a tile's weights with the values.
pub(super) struct Mix<'a> {
    pub(super) product: &'a Product<'a>,
    pub(super) values: &'a Values,
    pub(super) own: &'a [OwnBlock],
    pub(super) together: usize,
    pub(super) rows: usize,
}

impl Mix<'_> {
    /// The features of some panels, rounded to bf16.
    #[inline(always)]
    pub(super) fn panels<S: Simd, const P: usize>(
        &self,
        simd: S,
        which: [usize; P],
        totals: &mut Totals<P>,
        (out, dim): (&mut [bf16], usize),
        features: Range<usize>,
    ) {
        let Mix { product, values, .. } = self;
        // Past the last token weights are zero.
        let whole = |end| if values.finite { product.even(end) } else { end };
        let w = which.map(|p| values.panel(p));
        product.of(simd, &w, (0..whole(self.together), self.rows), totals);
        for OwnBlock { rows, start, end, block } in self.own {
            multiply(simd, product.x, &w, product.order, (self.together..whole(*start), rows.clone()), totals);
            if let Some(block) = block {
                let order = Order::new(product.order.chunk, product.x.extent, block.extent);
                let end = if block.finite { product.even(*end) } else { *end };
                let w = which.map(|p| block.panel(p));
                multiply(simd, product.x, &w, order, (*start..end, rows.clone()), totals);
            }
        }
        for (to, totals) in out.chunks_exact_mut(dim).zip(&totals.0) {
            let (whole, rest) = to[features.clone()].as_chunks_mut();
            for (to, totals) in whole.iter_mut().zip(totals) {
                simd.round(simd.load(totals), to);
            }
            if let Some(totals) = totals.get(whole.len()).filter(|_| !rest.is_empty()) {
                let mut values = [bf16::ZERO; PANEL];
                simd.round(simd.load(totals), &mut values);
                copy(&values[..rest.len()], rest);
            }
        }
    }
}

/// Tokens that some rows of a tile see for themselves: those up to `start` in the cache's blocks, those from there to
/// `end` in a block of their own.
pub(super) struct OwnBlock {
    pub(super) rows: Range<usize>,
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) block: Option<Values>,
}
