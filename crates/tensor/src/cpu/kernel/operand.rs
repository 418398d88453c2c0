//! Activations quantized once, in tiles of sixteen rows.

use std::sync::OnceLock;

use half::bf16;
use microscale_formats::{E2M1, ElementFormat};
use rayon::prelude::*;

use super::extent::{Extent, Magnitudes, ScaleRange, always_exact, fits_short, ratio};
use super::integers::{Integers, Norms, are_moderate, step_bytes, step_words};
use super::linear::{FEW, TILES_RATIO};
use super::quantize::Quantizer;
use super::sides::{STEP, Scales, StepBytes, StepIntegers, TILE, XTile};
use crate::cpu::simd::codes::is_small_integer;
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{Isa, LANES, Simd, dispatch};
use crate::spare::{Reusable, Spare, capacity};
use crate::tensor::block_pairs;
use crate::{BlockFormat, Matrix};

/// Activations ready to be multiplied.
#[derive(Clone, Debug)]
pub struct Operand {
    pub(in crate::cpu) rows: usize,
    pub(in crate::cpu) k: usize,
    format: Option<BlockFormat>,
    tiles: Vec<Tile>,
    /// Pairs of the tiles that are bytes alone, by tile, once a product wants them.
    late: OnceLock<Vec<Vec<Lanes>>>,
}

/// What products there will be, and so what they need.
#[derive(Clone, Copy, Default)]
pub(in crate::cpu) struct Uses {
    /// Norms, if sums with others of this ratio may round.
    pub(in crate::cpu) norms_beside: f32,
    /// The elements as bytes, ...
    pub(in crate::cpu) bytes: bool,
    /// ... and as integers of 16 bits, where they can be taken for such.
    pub(in crate::cpu) words: bool,
}

/// Rows that a tile is filled with.
pub(in crate::cpu) trait Rows<S: Simd> {
    /// Writes the pairs of a step of row `r`, zero beyond the last element.
    fn pairs(&self, simd: S, r: usize, step: usize, to: &mut [u32; LANES]);

    /// [`Quantizer::step`], `scaled`, of a step of all rows, from something better than pairs; none where there is nothing
    /// better, or where a block needs care.
    #[inline(always)]
    fn quantized(&self, _: S, _: &Quantizer, _step: usize, _to: &mut [Lanes]) -> Option<S::F32> {
        None
    }
}

/// Pairs that a function writes, given the row and the step.
impl<S: Simd, F: Fn(usize, usize, &mut [u32; LANES])> Rows<S> for F {
    #[inline(always)]
    fn pairs(&self, _: S, r: usize, step: usize, to: &mut [u32; LANES]) {
        self(r, step, to);
    }
}

/// Up to sixteen rows of an operand.
#[derive(Clone, Debug, Default)]
pub(in crate::cpu) struct Tile {
    /// `[step][row]`; none where there are bytes and those alone.
    lanes: Vec<Lanes>,
    stride: usize,
    /// `[block]`, those of rows beyond the last 1; none where the elements hold them.
    powers: Vec<[f32; TILE]>,
    norms: Vec<[f32; TILE]>,
    dequantized: bool,
    /// Whether the scales were too far from 1 to be taken in.
    far: bool,
    bytes: Vec<StepBytes>,
    integers: Vec<StepIntegers>,
    words: Vec<Lanes>,
    word_units: Vec<[f32; TILE]>,
    extent: Option<Extent>,
}

impl Uses {
    /// What of it elements of a format can serve.
    fn with(self, element: ElementFormat) -> Uses {
        let bytes = self.bytes && is_small_integer(element);
        Uses { bytes, words: self.words && are_moderate(element), ..self }
    }
}

impl Operand {
    pub(in crate::cpu) fn new(isa: Isa, x: &Matrix, format: Option<BlockFormat>) -> Operand {
        let (rows, k) = (x.rows(), x.columns());
        let few = rows <= FEW;
        let integers = isa.has_integer_products();
        let as_bytes = format.is_some_and(|f| is_small_integer(f.element) && fits_short(isa, f.element));
        let uses = Uses {
            norms_beside: if isa.tiles().is_some() && !few { TILES_RATIO } else { 0.0 },
            bytes: as_bytes && (integers && few || isa.dots_bytes() && isa.tiles().is_none()),
            // Of many rows where they are more than pairs of bf16 and less than bytes, and sums with some formats exact.
            words: integers && few
                || isa.dots_words_only()
                    && format.is_some_and(|f| !as_bytes && always_exact(ratio(f.element), ratio(E2M1))),
        };
        let quantizer = format.map(Quantizer::new);
        let mut tiles = SPARE.take(rows.div_ceil(TILE));
        tiles.par_iter_mut().with_min_len((8192 / (k * TILE)).max(1)).enumerate().for_each(|(tile, to)| {
            let some = TILE.min(rows - tile * TILE);
            let stride = if few { rows } else { TILE };
            dispatch!(isa, simd => {
                to.fill(simd, ([some, stride], k), (quantizer.as_ref(), uses), #[inline(always)] |r, step, to: &mut _| {
                    let values = step_of(x.row(tile * TILE + r), step);
                    simd.prefetch(&values[0]);
                    write_pairs(simd, values, to);
                });
            });
        });
        Operand { rows, k, format, tiles, late: OnceLock::new() }
    }

    pub(in crate::cpu) fn block_size(&self) -> Option<usize> {
        self.format.map(|f| f.block_size)
    }

    /// The largest magnitude of the elements' format over the smallest; infinite without one.
    pub(super) fn ratio(&self) -> f32 {
        self.format.map_or(f32::INFINITY, |f| ratio(f.element))
    }

    /// The tiles, of which some may be bytes alone.
    pub(super) fn tiles(&self) -> impl Iterator<Item = XTile<'_>> {
        self.tiles.iter().map(|tile| tile.view(self.format))
    }

    /// The pairs of every tile.
    pub(super) fn pairs(&self, isa: Isa) -> impl Iterator<Item = &[Lanes]> {
        let wanting = self.tiles.iter().any(Tile::is_bytes_alone);
        // Two threads may both make them: to wait for one that works on something else meanwhile could be to wait for oneself.
        if wanting && self.late.get().is_none() {
            let made = self.tiles.par_iter().map(|tile| tile.pairs_of_bytes(isa)).collect();
            let _ = self.late.set(made);
        }
        let late = self.late.get().map_or(&[][..], Vec::as_slice);
        self.tiles.iter().enumerate().map(|(t, tile)| if tile.is_bytes_alone() { &late[t][..] } else { &tile.lanes })
    }
}

impl Drop for Operand {
    fn drop(&mut self) {
        SPARE.give(std::mem::take(&mut self.tiles));
    }
}

/// At most about the memory of 512 rows of 16,384 features with all that products may need of them.
static SPARE: Spare<Tile> = Spare::new(32 << 20);

impl Reusable for Tile {
    fn capacity(&self) -> usize {
        let Tile { lanes, powers, norms, bytes, integers, words, word_units, .. } = self;
        let vectors = capacity(lanes) + capacity(powers) + capacity(norms) + capacity(bytes);
        vectors + capacity(integers) + capacity(words) + capacity(word_units)
    }
}

impl Tile {
    /// Quantizes rows of `k` elements along k, or takes them as they are, in place of what was there. There is room for `stride`
    /// rows, of which those beyond `rows` become zero.
    #[inline(always)]
    pub(in crate::cpu) fn fill<S: Simd>(
        &mut self,
        simd: S,
        ([rows, stride], k): ([usize; 2], usize),
        (quantizer, uses): (Option<&Quantizer>, Uses),
        source: impl Rows<S>,
    ) {
        let steps = k.div_ceil(STEP);
        self.clear(stride);
        self.powers.reserve(steps);
        match quantizer {
            None => {
                self.make_room(steps, Uses::default());
                let mut values = Magnitudes::none(simd);
                self.lanes.resize(steps * stride, Lanes::ZERO);
                for (step, lanes) in self.lanes.chunks_exact_mut(stride).enumerate() {
                    for (r, lanes) in lanes[..rows].iter_mut().enumerate() {
                        source.pairs(simd, r, step, &mut lanes.0);
                        values.add(simd, simd.load_pairs(&lanes.0));
                    }
                    lanes[rows..].fill(Lanes::ZERO);
                }
                self.extent = Some(values.extent(simd));
            }
            Some(quantizer) if quantizer.format.block_size == STEP => {
                if let Some(extent) = self.fill_bytes(simd, (rows, steps), (quantizer, uses), &source) {
                    (self.dequantized, self.extent) = (true, Some(extent));
                    return;
                }
                // Elements of many rows take their scales in, so that a product need not, unless these turn out to be too
                // far from 1, as those are likely to that follow on such.
                let mut scaled = stride == TILE && !self.far;
                loop {
                    let extent = self.fill_steps(simd, (rows, steps), (quantizer, uses), scaled, &source);
                    self.far = extent.dequantized().is_none();
                    self.dequantized = scaled && !self.far;
                    self.extent = if scaled { extent.dequantized() } else { Some(extent) };
                    if self.extent.is_some() {
                        break;
                    }
                    scaled = false;
                    self.clear(stride);
                }
            }
            Some(quantizer) => {
                self.fill_blocks(simd, (rows, k), (quantizer, uses), &source);
            }
        }
    }

    /// Quantizes many rows in blocks that are steps to bytes alone, where those are of use, all blocks are regular and scales not
    /// too far from 1 to be taken in. What is there without an answer is of no use.
    #[inline(always)]
    fn fill_bytes<S: Simd>(
        &mut self,
        simd: S,
        (rows, steps): (usize, usize),
        (quantizer, uses): (&Quantizer, Uses),
        source: &impl Rows<S>,
    ) -> Option<Extent> {
        let uses = uses.with(quantizer.format.element);
        let words = simd.words().filter(|_| self.stride == TILE && uses.bytes)?;
        let mut range = ScaleRange::none(words);
        let mut lanes = [Lanes::ZERO; TILE];
        self.lanes.clear();
        self.make_room(steps, Uses { bytes: true, ..Uses::default() });
        for (step, to) in self.bytes.as_chunks_mut().0.iter_mut().enumerate() {
            for (r, lanes) in lanes[..rows].iter_mut().enumerate() {
                source.pairs(simd, r, step, &mut lanes.0);
            }
            to[rows..].fill(StepBytes::default());
            range.add(words, quantizer.step_in_bytes(words, &lanes[..rows], to)?);
        }
        range.extent(words, [quantizer.unit, quantizer.max]).dequantized()
    }

    /// Quantizes rows in blocks that are steps, `scaled` or not, and answers with the extent of the elements and their scales.
    #[inline(always)]
    fn fill_steps<S: Simd>(
        &mut self,
        simd: S,
        (rows, steps): (usize, usize),
        (quantizer, uses): (&Quantizer, Uses),
        scaled: bool,
        source: &impl Rows<S>,
    ) -> Extent {
        let (format, unit) = (quantizer.format, quantizer.unit);
        let checked = !always_exact(ratio(format.element), uses.norms_beside);
        let uses = uses.with(format.element);
        let mut range = ScaleRange::none(simd);
        let mut all = std::mem::take(&mut self.lanes);
        all.resize(steps * self.stride, Lanes::ZERO);
        self.make_room(steps, uses);
        // Of few rows several steps are quantized side by side, as the rows of a tile are.
        let together = TILE / self.stride;
        let mut room = Norms::default();
        for (group, lanes) in all.chunks_mut(together * self.stride).enumerate() {
            let at_once = if scaled { source.quantized(simd, quantizer, group, &mut lanes[..rows]) } else { None };
            // No `unwrap_or_else`: what is not inlined is not compiled for the instruction set.
            let powers = if let Some(powers) = at_once {
                powers
            } else {
                for (s, lanes) in lanes.chunks_mut(self.stride).enumerate() {
                    for (r, lanes) in lanes[..rows].iter_mut().enumerate() {
                        source.pairs(simd, r, group * together + s, &mut lanes.0);
                    }
                    lanes[rows..].fill(Lanes::ZERO);
                }
                quantizer.step(simd, lanes, scaled)
            };
            range.add(simd, powers);
            let mut group_powers = [1.0; TILE];
            simd.store(powers, &mut group_powers);
            let mut all_norms = [0.0; TILE];
            if checked {
                let units = group_powers.map(
                    #[inline(always)]
                    |power| if scaled { unit * power } else { unit },
                );
                all_norms = quantizer.norms(simd, lanes, &units, &mut room);
            }
            if together == 1 && rows == TILE && !uses.bytes && !uses.words {
                if checked {
                    self.norms.push(all_norms);
                }
                if !scaled {
                    self.powers.push(group_powers);
                }
                continue;
            }
            for (s, lanes) in lanes.chunks(self.stride).enumerate() {
                // Of few rows one by one, as they are read: what reads a vector right after a part of it was written waits for that.
                let own = &group_powers[s * self.stride..][..rows];
                let mut worth = [unit; TILE];
                if together == 1 {
                    worth = group_powers.map(|power| unit * power);
                } else {
                    own.iter().zip(&mut worth).for_each(|(&power, worth)| *worth = unit * power);
                }
                let units = if scaled { &worth } else { &[unit; TILE] };
                if checked {
                    let mut norms = [0.0; TILE];
                    norms.iter_mut().zip(&all_norms[s * self.stride..][..rows]).for_each(|(to, &norm)| *to = norm);
                    self.norms.push(norms);
                }
                if uses.bytes || uses.words {
                    self.write_integers(simd, (group * together + s, lanes), (units, &worth), uses);
                }
                if !scaled && together == 1 {
                    self.powers.push(group_powers);
                } else if !scaled {
                    self.powers.push([1.0; TILE]);
                    let to = self.powers.last_mut().into_iter().flatten();
                    own.iter().zip(to).for_each(|(&power, to)| *to = power);
                }
            }
        }
        self.lanes = all;
        range.extent(simd, [quantizer.unit, quantizer.max])
    }

    /// Blocks of any size, a row at a time. Tiles do not take them, so there are no norms.
    #[inline(always)]
    fn fill_blocks<S: Simd>(
        &mut self,
        simd: S,
        (rows, k): (usize, usize),
        (quantizer, uses): (&Quantizer, Uses),
        source: &impl Rows<S>,
    ) {
        let format = quantizer.format;
        let blocks = k.div_ceil(format.block_size);
        self.lanes.clear();
        self.lanes.resize(k.div_ceil(STEP) * self.stride, Lanes::ZERO);
        self.powers.resize(blocks, [1.0; TILE]);
        let mut row = vec![0f32; k.next_multiple_of(STEP)];
        for r in 0..rows {
            for (step, to) in row.as_chunks_mut::<STEP>().0.iter_mut().enumerate() {
                let mut own = [0; LANES];
                source.pairs(simd, r, step, &mut own);
                for (to, pair) in to.as_chunks_mut::<2>().0.iter_mut().zip(own) {
                    *to = [f32::from_bits(pair << 16), f32::from_bits(pair & 0xFFFF_0000)];
                }
            }
            for (b, block) in row[..k].chunks_mut(format.block_size).enumerate() {
                self.powers[b][r] = quantizer.block(simd, block);
            }
            for (step, values) in row.as_chunks::<STEP>().0.iter().enumerate() {
                self.lanes[step * self.stride + r].0 = pairs_of_floats(values);
            }
        }
        self.extent = Some(Extent::of_scales(format.element, &self.powers));
        let uses = Uses { words: false, ..uses.with(format.element) };
        self.make_room(k.div_ceil(STEP), uses);
        if uses.bytes {
            let unit = quantizer.unit;
            let lanes = std::mem::take(&mut self.lanes);
            for (step, lanes) in lanes.chunks_exact(self.stride).enumerate() {
                let worth = self.powers[step * STEP / format.block_size].map(|power| unit * power);
                self.write_integers(simd, (step, lanes), (&[unit; TILE], &worth), uses);
            }
            self.lanes = lanes;
        }
    }

    /// Room for the integers that are of use, in place of those that were there.
    fn make_room(&mut self, steps: usize, uses: Uses) {
        let many = self.stride == TILE;
        let count = |wanted: bool| if wanted { steps * self.stride } else { 0 };
        self.bytes.resize(count(uses.bytes), StepBytes::default());
        self.words.resize(count(uses.words && many), Lanes::ZERO);
        self.integers.resize(count(uses.words && !many), StepIntegers::default());
    }

    /// Takes the elements of a step for integers: multiples of `units`, each worth so much after scaling.
    #[inline(always)]
    fn write_integers<S: Simd>(
        &mut self,
        simd: S,
        (step, lanes): (usize, &[Lanes]),
        (units, worth): (&[f32; TILE], &[f32; TILE]),
        uses: Uses,
    ) {
        let at = step * self.stride..(step + 1) * self.stride;
        if uses.bytes {
            let to = &mut self.bytes[at.clone()];
            for r in 0..lanes.len() {
                to[r] = step_bytes(simd, &lanes[r], units[r], worth[r]);
            }
        }
        if !uses.words {
            return;
        }
        // Many rows are multiplied by many panels, for which what belongs to a row is better apart; their integers fit.
        if self.stride == TILE {
            let to = &mut self.words[at];
            for r in 0..lanes.len() {
                to[r] = step_words(simd, &lanes[r], units[r]);
            }
            self.word_units.push(*worth);
        } else {
            let to = &mut self.integers[at];
            for r in 0..lanes.len() {
                let integers = Integers::new(simd, simd.load_pairs(&lanes[r].0), 1.0 / units[r]);
                to[r] = integers.step(simd, worth[r]);
            }
        }
    }

    /// Forgets what was there, but for its memory and for what will be overwritten: to clear that is work for nothing.
    fn clear(&mut self, stride: usize) {
        self.stride = stride;
        self.dequantized = false;
        self.powers.clear();
        self.norms.clear();
        self.word_units.clear();
    }

    fn is_bytes_alone(&self) -> bool {
        self.lanes.is_empty() && !self.bytes.is_empty()
    }

    /// Its elements, scaled, if it is bytes alone; else nothing.
    fn pairs_of_bytes(&self, isa: Isa) -> Vec<Lanes> {
        let bytes = if self.is_bytes_alone() { &self.bytes[..] } else { &[] };
        dispatch!(isa, simd => {
            let _ = simd;
            bytes.iter().map(#[inline(always)] |bytes| Lanes(pairs_of_floats(&bytes.values()))).collect()
        })
    }

    #[inline(always)]
    pub(in crate::cpu) fn view(&self, format: Option<BlockFormat>) -> XTile<'_> {
        XTile {
            lanes: &self.lanes,
            stride: self.stride,
            scales: format
                .filter(|_| !self.dequantized)
                .map(|f| Scales { block_size: f.block_size, powers: &self.powers }),
            dequantized: self.dequantized,
            norms: &self.norms,
            bytes: &self.bytes,
            integers: &self.integers,
            words: &self.words,
            word_units: &self.word_units,
            extent: self.extent.unwrap_or(Extent::of_values([])),
        }
    }
}

/// Elements of a row that belong to a step.
#[inline(always)]
pub(in crate::cpu) fn step_of<T>(row: &[T], step: usize) -> &[T] {
    &row[step * STEP..row.len().min((step + 1) * STEP)]
}

/// Up to 32 values as pairs, zero beyond the last.
#[inline(always)]
pub(in crate::cpu) fn write_pairs<S: Simd>(simd: S, values: &[bf16], to: &mut [u32; LANES]) {
    match values.try_into() {
        Ok(values) => *to = block_pairs(values),
        // Written as one vector, for it is read as one right after.
        Err(_) => simd.store_pairs(simd.load_values(values), to),
    }
}

/// Values that are bf16, as pairs.
#[inline(always)]
pub(crate) fn pairs_of_floats(values: &[f32; STEP]) -> [u32; LANES] {
    let mut pairs = [0; LANES];
    for (pair, [even, odd]) in pairs.iter_mut().zip(values.as_chunks::<2>().0) {
        *pair = even.to_bits() >> 16 | odd.to_bits() & 0xFFFF_0000;
    }
    pairs
}
