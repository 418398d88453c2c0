//! Keys and values of one sequence, quantized once and laid out for the products of attention.

use std::ops::Range;

use half::bf16;

use super::bf16::floats;
use super::extent::{Extent, Magnitudes, limit, ratio};
use super::operand::{step_of, write_pairs};
use super::panels::ZERO;
use super::quantize::Quantizer;
use super::sides::{PANEL, STEP, Scales, TILE, WPanel};
use crate::cpu::simd::tiles::{Lanes, Step};
use crate::cpu::simd::{LANES, Simd};
use crate::spare::{Reusable, Spare, capacity, make_room};
use crate::{BlockFormat, KeyValueLayout};

/// Keys and values of one sequence in one layer.
#[derive(Debug)]
pub struct Cache {
    pub(in crate::cpu) layout: KeyValueLayout,
    pub(in crate::cpu) tokens: usize,
    pub(in crate::cpu) heads: Vec<Head>,
}

/// Those of one key/value head.
#[derive(Debug)]
pub(in crate::cpu) struct Head {
    pub(in crate::cpu) keys: Keys,
    pub(in crate::cpu) values: Values,
    /// The values, as they came, from the block on that was short before the last tokens were appended: such a block
    /// is quantized again when it grows, and in causal mode once for every token in it.
    recent: Vec<bf16>,
    recent_start: usize,
}

/// What panels are laid out in: their elements, in pairs or steps of these, and their scales.
#[derive(Debug)]
struct Laid<T> {
    elements: Vec<T>,
    powers: Vec<[f32; PANEL]>,
}

/// The memory of a head.
#[derive(Default)]
struct Memory {
    keys: Laid<Lanes>,
    values: Laid<Step>,
    recent: Vec<bf16>,
}

/// Of a small model there are many short caches, one after another.
static SPARE: Spare<Memory> = Spare::new(32 << 20);

impl Reusable for Memory {
    fn capacity(&self) -> usize {
        self.keys.capacity() + self.values.capacity() + capacity(&self.recent)
    }
}

impl Cache {
    pub(in crate::cpu) fn new(layout: &KeyValueLayout) -> Cache {
        let heads = SPARE.take(layout.heads).into_iter().map(|memory| Head::new(layout, memory));
        Cache { layout: *layout, tokens: 0, heads: heads.collect() }
    }
}

impl Clone for Cache {
    fn clone(&self) -> Cache {
        let heads = SPARE.take(self.heads.len()).into_iter().zip(&self.heads);
        Cache {
            layout: self.layout,
            tokens: self.tokens,
            heads: heads.map(|(memory, head)| head.copy(memory)).collect(),
        }
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        let memory = |Head { keys, values, recent, .. }| Memory { keys: keys.laid, values: values.laid, recent };
        SPARE.give(self.heads.drain(..).map(memory));
    }
}

impl<T> Default for Laid<T> {
    fn default() -> Self {
        Laid { elements: Vec::new(), powers: Vec::new() }
    }
}

impl<T: Copy> Laid<T> {
    fn capacity(&self) -> usize {
        capacity(&self.elements) + capacity(&self.powers)
    }

    fn clear(&mut self) {
        self.elements.clear();
        self.powers.clear();
    }

    /// Makes it so long, with `none` where there was nothing and scales of 1.
    fn resize(&mut self, elements: usize, none: T, powers: usize) {
        make_room(&mut self.elements, elements);
        self.elements.resize(elements, none);
        make_room(&mut self.powers, powers);
        self.powers.resize(powers, [1.0; PANEL]);
    }

    /// Becomes another, in the memory that is there.
    fn copy(&mut self, other: &Laid<T>) {
        self.clear();
        // With a little more, since a copy is made to be appended to.
        make_room(&mut self.elements, other.elements.len() + other.elements.len() / 4);
        self.elements.extend_from_slice(&other.elements);
        make_room(&mut self.powers, other.powers.len() + other.powers.len() / 4);
        self.powers.extend_from_slice(&other.powers);
    }
}

impl Head {
    /// Without tokens, in the memory of one that is gone.
    fn new(layout: &KeyValueLayout, mut memory: Memory) -> Head {
        memory.keys.clear();
        memory.values.clear();
        memory.recent.clear();
        Head {
            keys: Keys::new(layout.key, layout.head_dim, memory.keys),
            values: Values::new(layout.value, layout.head_dim, 0, memory.values),
            recent: memory.recent,
            recent_start: 0,
        }
    }

    /// A copy, in the memory of one that is gone.
    fn copy(&self, Memory { mut keys, mut values, mut recent }: Memory) -> Head {
        keys.copy(&self.keys.laid);
        values.copy(&self.values.laid);
        recent.clone_from(&self.recent);
        Head {
            keys: Keys { laid: keys, ..self.keys },
            values: Values { laid: values, ..self.values },
            recent,
            recent_start: self.recent_start,
        }
    }

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
            // Heads of a few features are not worth calling for a copy.
            let (eights, rest) = value(i).as_chunks::<8>();
            eights.iter().for_each(|eight| self.recent.extend_from_slice(eight));
            self.recent.extend_from_slice(rest);
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
#[derive(Debug)]
pub(in crate::cpu) struct Keys {
    pub(in crate::cpu) format: Option<BlockFormat>,
    quantizer: Option<Quantizer>,
    pub(in crate::cpu) dim: usize,
    /// `[panel][pair]`, `[panel][block]`: a panel has its [`stride`](Keys::stride) of pairs, and after the last there are as many
    /// more as a step has.
    laid: Laid<Lanes>,
    /// One for all steps: that of the format.
    limits: [f32; 1],
    pub(in crate::cpu) extent: Extent,
}

impl Keys {
    /// None, to be laid out in this memory.
    fn new(format: Option<BlockFormat>, dim: usize, laid: Laid<Lanes>) -> Keys {
        Keys {
            format,
            quantizer: format.map(Quantizer::new),
            dim,
            laid,
            limits: [limit_of(format)],
            extent: Extent::none(format),
        }
    }

    /// Pairs from one panel to the next: whole steps, but for keys of less than one. Of those a step's view goes on into other
    /// panels, which is not looked at, since no product goes beyond the features but in whole steps.
    fn stride(&self) -> usize {
        if self.dim < STEP { self.dim.div_ceil(2) } else { self.dim.div_ceil(STEP) * LANES }
    }

    /// Appends tokens `first..first + count`; `key(i)` are the features of the i-th of them.
    #[inline(always)]
    fn append<'a, S: Simd>(&mut self, simd: S, first: usize, count: usize, key: impl Fn(usize) -> &'a [bf16]) {
        let blocks = self.format.map_or(0, |f| self.dim.div_ceil(f.block_size));
        let panels = (first + count).div_ceil(PANEL);
        self.laid.resize(panels * self.stride() + LANES, Lanes::ZERO, panels * blocks);
        match self.quantizer {
            Some(quantizer) if quantizer.format.block_size != STEP => {
                self.append_blocks(simd, &quantizer, first, count, key);
            }
            _ => self.append_steps(simd, first, count, key),
        }
        if let Some(format) = self.format {
            let new = &self.laid.powers[first / PANEL * blocks..];
            self.extent = self.extent.join(Extent::of_scales(format.element, new));
        }
    }

    /// Keys as they are, or in blocks that are steps: those of a panel side by side.
    #[inline(always)]
    fn append_steps<'a, S: Simd>(&mut self, simd: S, first: usize, count: usize, key: impl Fn(usize) -> &'a [bf16]) {
        let steps = self.dim.div_ceil(STEP);
        let (stride, quantizer) = (self.stride(), self.quantizer);
        let mut magnitudes = Magnitudes::none(simd);
        for panel in first / PANEL..(first + count).div_ceil(PANEL) {
            let tokens = first.max(panel * PANEL)..(first + count).min((panel + 1) * PANEL);
            let lane = tokens.start % PANEL;
            for step in 0..steps {
                let mut lanes = [Lanes::ZERO; TILE];
                let rows = &mut lanes[..tokens.len()];
                for (row, token) in rows.iter_mut().zip(tokens.clone()) {
                    write_pairs(simd, step_of(key(token - first), step), &mut row.0);
                }
                if let Some(quantizer) = &quantizer {
                    let mut powers = [1.0; TILE];
                    simd.store(quantizer.step(simd, rows, false), &mut powers);
                    self.laid.powers[panel * steps + step][lane..][..rows.len()].copy_from_slice(&powers[..rows.len()]);
                }
                // What is beyond the features is zero from the beginning.
                let pairs = STEP.min(self.dim - step * STEP).div_ceil(2);
                let to = &mut self.laid.elements[panel * stride + step * LANES..][..pairs];
                for (pair, to) in to.iter_mut().enumerate() {
                    for (to, row) in to.0[lane..].iter_mut().zip(&*rows) {
                        *to = row.0[pair];
                    }
                    if quantizer.is_none() {
                        magnitudes.add(simd, simd.load_pairs(&to.0));
                    }
                }
            }
        }
        if self.format.is_none() {
            self.extent = self.extent.join(magnitudes.extent(simd));
        }
    }

    /// Keys in blocks of any size, one after another.
    #[inline(always)]
    fn append_blocks<'a, S: Simd>(
        &mut self,
        simd: S,
        quantizer: &Quantizer,
        first: usize,
        count: usize,
        key: impl Fn(usize) -> &'a [bf16],
    ) {
        let block_size = quantizer.format.block_size;
        let (stride, blocks) = (self.stride(), self.dim.div_ceil(block_size));
        let mut row = vec![0f32; self.dim.next_multiple_of(2)];
        for i in 0..count {
            let (panel, lane) = ((first + i) / PANEL, (first + i) % PANEL);
            floats(key(i), &mut row[..self.dim]);
            let to = &mut self.laid.powers[panel * blocks..];
            for (block, to) in row[..self.dim].chunks_mut(block_size).zip(to) {
                to[lane] = quantizer.block(simd, block);
            }
            let to = &mut self.laid.elements[panel * stride..][..stride];
            for (pairs, [low, high]) in to.iter_mut().zip(row[..self.dim.next_multiple_of(2)].as_chunks::<2>().0) {
                pairs.0[lane] = low.to_bits() >> 16 | high.to_bits() & 0xFFFF_0000;
            }
        }
    }

    /// Tokens `16 · index` to `16 · index + 15`.
    #[inline(always)]
    pub(in crate::cpu) fn panel(&self, index: usize) -> WPanel<'_> {
        let pairs = self.dim.div_ceil(STEP) * LANES;
        let scales = self.format.map(|f| {
            let blocks = self.dim.div_ceil(f.block_size);
            Scales { block_size: f.block_size, powers: &self.laid.powers[index * blocks..][..blocks] }
        });
        WPanel {
            steps: self.laid.elements[index * self.stride()..][..pairs].as_chunks().0,
            scales,
            stride: 1,
            first: [0; 2],
            limits: &self.limits,
        }
    }
}

/// Values: panels of sixteen features, blocks along the tokens.
#[derive(Debug)]
pub(in crate::cpu) struct Values {
    pub(in crate::cpu) format: Option<BlockFormat>,
    quantizer: Option<Quantizer>,
    dim: usize,
    /// The first token's step; where there are several, values begin with token 0.
    first_step: usize,
    first_block: usize,
    /// `[step][panel]`, `[block][panel]`.
    laid: Laid<Step>,
    /// One for all steps: that of the format.
    limits: [f32; 1],
    pub(in crate::cpu) extent: Extent,
    /// Whether no value is infinite or NaN.
    pub(in crate::cpu) finite: bool,
}

impl Values {
    /// Room for the values of a block that begins with `first_token`.
    pub(in crate::cpu) fn of_block(format: BlockFormat, dim: usize, first_token: usize) -> Values {
        Values::new(Some(format), dim, first_token, Laid::default())
    }

    /// None, to be laid out in this memory from `first_token` on, which begins a block.
    fn new(format: Option<BlockFormat>, dim: usize, first_token: usize, laid: Laid<Step>) -> Values {
        Values {
            format,
            quantizer: format.map(Quantizer::new),
            dim,
            first_step: first_token / STEP,
            first_block: format.map_or(0, |f| first_token / f.block_size),
            laid,
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
        let steps = (tokens.end.div_ceil(STEP) - self.first_step) * panels;
        self.laid.resize(steps, ZERO, self.laid.powers.len());
        for panel in 0..panels {
            let features = panel * PANEL..self.dim.min((panel + 1) * PANEL);
            let of = (panel, panels);
            match self.quantizer {
                Some(quantizer) => self.lay_block(
                    simd,
                    &quantizer,
                    of,
                    tokens.clone(),
                    #[inline(always)]
                    |token| &value(token)[features.clone()],
                ),
                None => self.lay_plain(
                    simd,
                    of,
                    tokens.clone(),
                    #[inline(always)]
                    |token| &value(token)[features.clone()],
                ),
            }
        }
    }

    /// The features of a panel, of so many, as they are.
    #[inline(always)]
    fn lay_plain<'a, S: Simd>(
        &mut self,
        simd: S,
        (panel, panels): (usize, usize),
        tokens: Range<usize>,
        value: impl Fn(usize) -> &'a [bf16],
    ) {
        let mut magnitudes = Magnitudes::none(simd);
        for even in (tokens.start / 2 * 2..tokens.end).step_by(2) {
            let to = &mut self.laid.elements[(even / STEP - self.first_step) * panels + panel][even % STEP / 2].0;
            let pairs = if even < tokens.start {
                put(to, even + 1, value(even + 1).iter().map(|x| u32::from(x.to_bits())));
                simd.load_pairs(to)
            } else {
                let pairs = pairs_of_tokens(simd, even..tokens.end, &value);
                simd.store_pairs(pairs, to);
                pairs
            };
            magnitudes.add(simd, pairs);
        }
        let extent = magnitudes.extent(simd);
        self.finite &= extent.is_finite();
        self.extent = self.extent.join(extent);
    }

    /// The same, quantized.
    #[inline(always)]
    fn lay_block<'a, S: Simd>(
        &mut self,
        simd: S,
        quantizer: &Quantizer,
        (panel, panels): (usize, usize),
        tokens: Range<usize>,
        value: impl Fn(usize) -> &'a [bf16],
    ) {
        let size = quantizer.format.block_size;
        let at = (tokens.start / size - self.first_block) * panels + panel;
        self.laid.powers.resize(self.laid.powers.len().max(at + 1), [1.0; PANEL]);
        self.laid.powers[at] = if size == STEP {
            let pairs = &mut self.laid.elements[at][..tokens.len().div_ceil(2)];
            for (i, to) in pairs.iter_mut().enumerate() {
                simd.store_pairs(pairs_of_tokens(simd, tokens.start + 2 * i..tokens.end, &value), &mut to.0);
            }
            quantizer.columns_of_pairs(simd, pairs)
        } else {
            let mut block = vec![[0f32; LANES]; tokens.len()];
            for (to, token) in block.iter_mut().zip(tokens.clone()) {
                floats(value(token), to);
            }
            let powers = quantizer.columns(simd, &mut block);
            for (token, values) in tokens.zip(block) {
                let step = &mut self.laid.elements[(token / STEP - self.first_step) * panels + panel];
                put(&mut step[token % STEP / 2].0, token, values.iter().map(|x| x.to_bits() >> 16));
            }
            powers
        };
        let powers = &self.laid.powers[at..=at];
        self.finite &= powers.as_flattened().iter().all(|p| !p.is_nan());
        self.extent = self.extent.join(Extent::of_scales(quantizer.format.element, powers));
    }

    /// Features `16 · index` to `16 · index + 15`.
    #[inline(always)]
    pub(in crate::cpu) fn panel(&self, index: usize) -> WPanel<'_> {
        WPanel {
            steps: &self.laid.elements[index..],
            scales: self.format.map(|f| Scales { block_size: f.block_size, powers: &self.laid.powers[index..] }),
            stride: self.dim.div_ceil(PANEL),
            first: [self.first_step, self.first_block],
            limits: &self.limits,
        }
    }
}

/// The features of the first two of some tokens, or of one.
#[inline(always)]
fn pairs_of_tokens<'a, S: Simd>(simd: S, tokens: Range<usize>, value: impl Fn(usize) -> &'a [bf16]) -> S::Pairs {
    let even = simd.load_words(value(tokens.start));
    if tokens.len() == 1 {
        return even;
    }
    simd.or(even, simd.shift_left(simd.load_words(value(tokens.start + 1)), 16))
}

/// Puts a token's features where the pair has place for them.
#[inline(always)]
fn put(pair: &mut [u32; LANES], token: usize, features: impl Iterator<Item = u32>) {
    let at = 16 * (token % 2);
    for (pair, feature) in pair.iter_mut().zip(features) {
        *pair = *pair & !(0xFFFF << at) | feature << at;
    }
}

/// The limit of any step of elements of this format.
fn limit_of(format: Option<BlockFormat>) -> f32 {
    format.map_or(0.0, |f| limit(ratio(f.element) * (STEP as f32).sqrt()))
}
