//! Keys and values of one sequence, quantized once and laid out for the products of attention.

use std::ops::Range;

use half::bf16;

use super::bf16::floats;
use super::extent::{Extent, limit, ratio};
use super::panels::ZERO;
use super::quantize::Quantizer;
use super::sides::{PANEL, STEP, Scales, WPanel};
use crate::cpu::simd::tiles::Step;
use crate::cpu::simd::{LANES, Simd};
use crate::{BlockFormat, KeyValueLayout};

/// Keys and values of one sequence in one layer.
#[derive(Clone, Debug)]
pub struct Cache {
    pub(in crate::cpu) layout: KeyValueLayout,
    pub(in crate::cpu) tokens: usize,
    pub(in crate::cpu) heads: Vec<Head>,
}

/// Those of one key/value head.
#[derive(Clone, Debug)]
pub(in crate::cpu) struct Head {
    pub(in crate::cpu) keys: Keys,
    pub(in crate::cpu) values: Values,
    /// The values, as they came, from the block on that was short before the last tokens were appended: such a block
    /// is quantized again when it grows, and in causal mode once for every token in it.
    recent: Vec<bf16>,
    recent_start: usize,
}

impl Cache {
    pub(in crate::cpu) fn new(layout: &KeyValueLayout) -> Cache {
        let head = Head {
            keys: Keys::new(layout.key, layout.head_dim),
            values: Values::new(layout.value, layout.head_dim, 0),
            recent: Vec::new(),
            recent_start: 0,
        };
        Cache { layout: *layout, tokens: 0, heads: vec![head; layout.heads] }
    }
}

impl Head {
    /// Appends tokens `first..first + count`; `key(i)` and `value(i)` are those of the i-th of them.
    #[inline(always)]
    pub(in crate::cpu) fn append<'a, S: Simd>(
        &mut self,
        simd: S,
        first: usize,
        count: usize,
        key: impl Fn(usize) -> &'a [bf16],
        value: impl Fn(usize) -> &'a [bf16],
    ) {
        self.keys.append(simd, first, count, key);
        let dim = self.values.dim;
        let Some(format) = self.values.format else {
            return self.values.lay(
                simd,
                first..first + count,
                #[inline(always)]
                |token| value(token - first),
            );
        };
        let start = first / format.block_size * format.block_size;
        self.recent.drain(..(start - self.recent_start) * dim);
        self.recent_start = start;
        for i in 0..count {
            self.recent.extend_from_slice(value(i));
        }
        let end = first + count;
        for block in (start..end).step_by(format.block_size) {
            let recent = &self.recent;
            self.values.lay(simd, block..(block + format.block_size).min(end), |token| {
                &recent[(token - start) * dim..][..dim]
            });
        }
    }

    /// The values of one token, as they came; the token is one of the last block's or of those last appended.
    #[inline(always)]
    pub(in crate::cpu) fn recent(&self, token: usize) -> &[bf16] {
        &self.recent[(token - self.recent_start) * self.values.dim..][..self.values.dim]
    }
}

/// Keys: panels of sixteen tokens, blocks along the features.
#[derive(Clone, Debug)]
pub(in crate::cpu) struct Keys {
    pub(in crate::cpu) format: Option<BlockFormat>,
    pub(in crate::cpu) dim: usize,
    /// `[panel][step]`.
    steps: Vec<Step>,
    /// `[panel][block]`.
    powers: Vec<[f32; PANEL]>,
    /// One for all steps: that of the format.
    limits: [f32; 1],
    pub(in crate::cpu) extent: Extent,
}

impl Keys {
    fn new(format: Option<BlockFormat>, dim: usize) -> Keys {
        Keys {
            format,
            dim,
            steps: Vec::new(),
            powers: Vec::new(),
            limits: [limit_of(format)],
            extent: Extent::none(format),
        }
    }

    #[inline(always)]
    fn append<'a, S: Simd>(&mut self, simd: S, first: usize, count: usize, key: impl Fn(usize) -> &'a [bf16]) {
        let steps = self.dim.div_ceil(STEP);
        let blocks = self.format.map_or(0, |f| self.dim.div_ceil(f.block_size));
        let panels = (first + count).div_ceil(PANEL);
        self.steps.resize(panels * steps, ZERO);
        self.powers.resize(panels * blocks, [1.0; PANEL]);
        let quantizer = self.format.map(|f| (Quantizer::new(f), f.block_size));
        let mut row = vec![0f32; steps * STEP];
        for i in 0..count {
            let (panel, lane) = ((first + i) / PANEL, (first + i) % PANEL);
            floats(key(i), &mut row[..self.dim]);
            if let Some((quantizer, size)) = &quantizer {
                let to = &mut self.powers[panel * blocks..];
                for (block, to) in row[..self.dim].chunks_mut(*size).zip(to) {
                    to[lane] = quantizer.block(simd, block);
                }
            } else {
                self.extent = self.extent.join(Extent::of_values(row[..self.dim].iter().copied()));
            }
            // What is beyond the features is zero from the beginning.
            let to = self.steps[panel * steps..][..steps].as_flattened_mut();
            for (pairs, [low, high]) in to.iter_mut().zip(row[..self.dim.next_multiple_of(2)].as_chunks::<2>().0) {
                pairs.0[lane] = low.to_bits() >> 16 | high.to_bits() & 0xFFFF_0000;
            }
        }
        if let Some(format) = self.format {
            let new = &self.powers[first / PANEL * blocks..];
            self.extent = self.extent.join(Extent::of_scales(format.element, new));
        }
    }

    /// Tokens `16 · index` to `16 · index + 15`.
    #[inline(always)]
    pub(in crate::cpu) fn panel(&self, index: usize) -> WPanel<'_> {
        let steps = self.dim.div_ceil(STEP);
        let scales = self.format.map(|f| {
            let blocks = self.dim.div_ceil(f.block_size);
            Scales { block_size: f.block_size, powers: &self.powers[index * blocks..][..blocks] }
        });
        WPanel { steps: &self.steps[index * steps..][..steps], scales, stride: 1, first: [0; 2], limits: &self.limits }
    }
}

/// Values: panels of sixteen features, blocks along the tokens.
#[derive(Clone, Debug)]
pub(in crate::cpu) struct Values {
    pub(in crate::cpu) format: Option<BlockFormat>,
    dim: usize,
    /// The first token's step; where there are several, values begin with token 0.
    first_step: usize,
    first_block: usize,
    /// `[step][panel]`.
    steps: Vec<Step>,
    /// `[block][panel]`.
    powers: Vec<[f32; PANEL]>,
    /// One for all steps: that of the format.
    limits: [f32; 1],
    pub(in crate::cpu) extent: Extent,
    /// Whether no value is infinite or NaN.
    pub(in crate::cpu) finite: bool,
}

impl Values {
    /// Room for values from `first_token` on, which begins a block.
    pub(in crate::cpu) fn new(format: Option<BlockFormat>, dim: usize, first_token: usize) -> Values {
        Values {
            format,
            dim,
            first_step: first_token / STEP,
            first_block: format.map_or(0, |f| first_token / f.block_size),
            steps: Vec::new(),
            powers: Vec::new(),
            limits: [limit_of(format)],
            extent: Extent::none(format),
            finite: true,
        }
    }

    /// Takes in the values of `tokens`, which are one block, or any tokens where there is no format.
    #[inline(always)]
    pub(in crate::cpu) fn lay<'a, S: Simd>(
        &mut self,
        simd: S,
        tokens: Range<usize>,
        value: impl Fn(usize) -> &'a [bf16],
    ) {
        let panels = self.dim.div_ceil(PANEL);
        let quantizer = self.format.map(Quantizer::new);
        self.steps.resize((tokens.end.div_ceil(STEP) - self.first_step) * panels, ZERO);
        let mut block = vec![[0f32; LANES]; tokens.len()];
        for panel in 0..panels {
            let features = panel * PANEL..self.dim.min((panel + 1) * PANEL);
            for (to, token) in block.iter_mut().zip(tokens.clone()) {
                floats(&value(token)[features.clone()], &mut to[..features.len()]);
                to[features.len()..].fill(0.0);
            }
            if let (Some(quantizer), Some(format)) = (&quantizer, self.format) {
                let at = (tokens.start / format.block_size - self.first_block) * panels + panel;
                self.powers.resize(self.powers.len().max(at + 1), [1.0; PANEL]);
                self.powers[at] = quantizer.columns(simd, &mut block);
                let powers = &self.powers[at..=at];
                self.finite &= powers.as_flattened().iter().all(|p| !p.is_nan());
                self.extent = self.extent.join(Extent::of_scales(format.element, powers));
            } else {
                let values = block.as_flattened().iter().copied();
                self.finite &= values.clone().fold(true, |all, x| all & x.is_finite());
                self.extent = self.extent.join(Extent::of_values(values));
            }
            for (token, values) in tokens.clone().zip(&block) {
                let step = &mut self.steps[(token / STEP - self.first_step) * panels + panel];
                let pairs = &mut step[token % STEP / 2].0;
                for (pair, value) in pairs.iter_mut().zip(values) {
                    *pair = match token % 2 {
                        0 => *pair & 0xFFFF_0000 | value.to_bits() >> 16,
                        _ => *pair & 0xFFFF | value.to_bits() & 0xFFFF_0000,
                    };
                }
            }
        }
    }

    /// Features `16 · index` to `16 · index + 15`.
    #[inline(always)]
    pub(in crate::cpu) fn panel(&self, index: usize) -> WPanel<'_> {
        WPanel {
            steps: &self.steps[index..],
            scales: self.format.map(|f| Scales { block_size: f.block_size, powers: &self.powers[index..] }),
            stride: self.dim.div_ceil(PANEL),
            first: [self.first_step, self.first_block],
            limits: &self.limits,
        }
    }
}

/// The limit of any step of elements of this format.
fn limit_of(format: Option<BlockFormat>) -> f32 {
    format.map_or(0.0, |f| limit(ratio(f.element) * (STEP as f32).sqrt()))
}
