//! What the machine can do at most, measured: the rates that those of a model are held against.
//!
//! Both measurements run on all threads of rayon's current pool at once. That of products takes the best of many rounds of a
//! millisecond: whatever disturbs one makes it slower, nothing makes it faster than the machine is. Memory, which others use
//! too, is faster for some milliseconds than it is in the long run, so there the rounds of a pattern count together.

use std::hint::black_box;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use super::simd::{Isa, LANES, Simd, dispatch};

/// Bytes read in one round, over all threads: more than caches hold, as a model is.
const READ: usize = 1 << 30;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Places of its memory that a thread reads from in turn.
const STREAMS: [usize; 3] = [1, 4, 8];
/// Rounds of each pattern.
const ROUNDS: usize = 3;

/// Bytes per second that the threads together read from memory.
///
/// The best of several patterns, each for about a tenth of a second: one, four or eight streams per thread, whose lines are asked
/// for ahead or left to the CPU's own prefetchers, in pages as the system gives them and, on Linux, in huge ones. Takes one GiB of
/// memory and some seconds.
///
/// # Errors
/// No memory to read.
pub fn read_bandwidth(isa: Isa) -> std::io::Result<f64> {
    let mut best = 0f64;
    for pages in [usual_pages, huge_pages] {
        let parts = touched(pages)?;
        for (streams, asks) in STREAMS.into_iter().flat_map(|streams| [(streams, false), (streams, true)]) {
            let start = Instant::now();
            let read = rayon::broadcast(|thread| {
                let lines = parts[thread.index()].as_chunks::<LINE>().0;
                for _ in 0..ROUNDS {
                    dispatch!(isa, simd => black_box(sum(simd, lines, (streams, asks))));
                }
                ROUNDS * (lines.len() / streams * streams * LINE)
            });
            best = best.max(read.iter().sum::<usize>() as f64 / start.elapsed().as_secs_f64());
        }
    }
    Ok(best)
}

/// A part of [`READ`] for every thread, written once by the thread that will read it.
fn touched(pages: fn(&MmapMut)) -> std::io::Result<Vec<MmapMut>> {
    let parts = rayon::broadcast(|thread| {
        let mut part = MmapMut::map_anon(READ / thread.num_threads())?;
        pages(&part);
        part.fill(1);
        Ok(part)
    });
    parts.into_iter().collect()
}

fn usual_pages(_: &MmapMut) {}

#[cfg(target_os = "linux")]
fn huge_pages(part: &MmapMut) {
    // A wish: where it is not granted, this pattern is the other once more.
    let _ = part.advise(memmap2::Advice::HugePage);
}

#[cfg(not(target_os = "linux"))]
fn huge_pages(_: &MmapMut) {}

/// The sum of all words, read from `streams` places of equal distance in turn, asking for lines ahead or not.
#[inline(always)]
fn sum<S: Simd>(simd: S, lines: &[[u8; LINE]], (streams, asks): (usize, bool)) -> u64 {
    let length = lines.len() / streams;
    let mut sums = [0u64; LINE / 8];
    for i in 0..length {
        for stream in 0..streams {
            let line = &lines[stream * length + i];
            if asks {
                simd.prefetch(line);
            }
            let words = line.as_chunks::<8>().0;
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
    }
    sums.iter().fold(0, |a, &b| a.wrapping_add(b))
}

/// Floating-point operations per second (two for a multiplication and an addition) that the threads together do in
/// products of bf16 pairs, operands in registers: by the instruction for these, or where two products in f32 take less by those.
///
/// Of vectors only: tiles, where a machine has them, do more, but not in the canonical order.
pub fn products(isa: Isa) -> f64 {
    let operations = (STEPS * SUMS * LANES * 4) as f64;
    let (mut best, begin) = (0f64, Instant::now());
    while best == 0.0 || begin.elapsed() < TIME {
        let start = Instant::now();
        let pair = black_box(0x3F00_3F00);
        let sums = rayon::broadcast(|_| {
            dispatch!(isa, simd => {
                let x = simd.splat_pairs(pair);
                let [even, odd] = simd.floats(x);
                black_box(if isa.takes_pairs_apart() {
                    total(simd, #[inline(always)] |sum| simd.fma(even, even, simd.fma(odd, odd, sum)))
                } else {
                    total(simd, #[inline(always)] |sum| simd.dot(x, x, sum))
                })
            })
        });
        best = best.max(sums.len() as f64 * operations / start.elapsed().as_secs_f64());
    }
    best
}

/// For how long rounds of products are repeated.
const TIME: Duration = Duration::from_millis(300);
/// Steps of one round.
const STEPS: usize = 1 << 18;
/// Sums that grow side by side, so that no step waits for the one before.
const SUMS: usize = 12;

/// The total of sums to each of which products of pairs are added [`STEPS`] times.
#[inline(always)]
fn total<S: Simd>(simd: S, add: impl Fn(S::F32) -> S::F32) -> f32 {
    let mut sums = [simd.splat(0.0); SUMS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            *sum = add(*sum);
        }
    }
    let mut lanes = [0.0; LANES];
    sums.into_iter().fold(0.0, |total, sum| {
        simd.store(sum, &mut lanes);
        total + lanes.iter().sum::<f32>()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        let bytes: Vec<[u8; LINE]> = (0..24).map(|i| [i; LINE]).collect();
        let expected = (0..24u64).fold(0u64, |sum, i| sum.wrapping_add((8 * i).wrapping_mul(0x0101_0101_0101_0101)));
        for streams in STREAMS {
            assert_eq!(sum(super::super::simd::scalar(), &bytes, (streams, true)), expected, "{streams}");
        }
    }
}
