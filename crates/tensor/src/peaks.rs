//! What the machine can do at most, measured: the rates that those of a model are held against.
//!
//! Both measurements run on all threads of rayon's current pool at once and take the best of several rounds: whatever
//! disturbs a round makes it slower, nothing makes it faster than the machine is.

use std::hint::black_box;
use std::time::{Duration, Instant};

use memmap2::MmapMut;

use crate::Isa;

/// Bytes read in one round, over all threads: more than caches hold, as a model is.
const READ: usize = 1 << 30;
/// Bytes of a cache line.
const LINE: usize = 64;
/// Places of its memory that a thread reads from in turn.
const STREAMS: [usize; 3] = [1, 4, 8];
/// Rounds of each measurement.
const ROUNDS: usize = 3;

/// Bytes per second that the threads together read from memory.
///
/// The best of several patterns: one, four or eight streams per thread, in pages as the system gives them and, on
/// Linux, in huge ones. Takes one GiB of memory and a few seconds.
///
/// # Errors
/// No memory to read.
pub fn read_bandwidth(isa: Isa) -> std::io::Result<f64> {
    let mut best = 0f64;
    for pages in [usual_pages, huge_pages] {
        let parts = touched(pages)?;
        for streams in STREAMS {
            for _ in 0..ROUNDS {
                let start = Instant::now();
                let read = rayon::broadcast(|thread| {
                    let lines = parts[thread.index()].as_chunks::<LINE>().0;
                    black_box(compiled_for(
                        isa,
                        #[inline(always)]
                        || sum(lines, streams),
                    ));
                    lines.len() / streams * streams * LINE
                });
                best = best.max(read.iter().sum::<usize>() as f64 / start.elapsed().as_secs_f64());
            }
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

/// The sum of all words, read from `streams` places of equal distance in turn.
#[inline(always)]
fn sum(lines: &[[u8; LINE]], streams: usize) -> u64 {
    let length = lines.len() / streams;
    let mut sums = [0u64; LINE / 8];
    for i in 0..length {
        for stream in 0..streams {
            let words = lines[stream * length + i].as_chunks::<8>().0;
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
    }
    sums.iter().fold(0, |a, &b| a.wrapping_add(b))
}

/// Floating-point operations per second (two for a multiplication and an addition) that the threads together do in
/// products.
///
/// PROVISIONAL: fused multiply-adds in f32, as the compiler vectorizes them. The instructions that multiply bf16
/// directly, where a CPU has them, do several times as many; this is to become a measurement of those.
pub fn products(isa: Isa) -> f64 {
    let operations = (STEPS * ACCUMULATORS * WIDTH * 2) as f64;
    let (mut best, begin) = (0f64, Instant::now());
    while best == 0.0 || begin.elapsed() < TIME {
        let start = Instant::now();
        let sums = rayon::broadcast(|_| {
            black_box(compiled_for(
                isa,
                #[inline(always)]
                || multiply_add(black_box(0.5)),
            ))
        });
        best = best.max(sums.len() as f64 * operations / start.elapsed().as_secs_f64());
    }
    best
}

/// For how long rounds of products are repeated.
const TIME: Duration = Duration::from_millis(300);
/// Steps of one round.
const STEPS: usize = 1 << 19;
/// Sums that grow side by side, so that no step waits for the one before.
const ACCUMULATORS: usize = 10;
/// Values of a sum: one register on AVX-512.
const WIDTH: usize = 16;

/// Multiplies and adds [`STEPS`] times into every sum.
#[inline(always)]
fn multiply_add(x: f32) -> f32 {
    let mut sums = [[x; WIDTH]; ACCUMULATORS];
    for _ in 0..STEPS {
        for sum in &mut sums {
            for lane in sum {
                *lane = lane.mul_add(x, x);
            }
        }
    }
    sums.as_flattened().iter().sum()
}

/// Runs `f` compiled for an instruction set, if the CPU has it.
///
/// PROVISIONAL: the kernels' own `dispatch!` does this; it is private to them now.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn compiled_for<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    #[target_feature(enable = "avx2,fma")]
    fn avx2<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
    fn avx512<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
    let available = Isa::available().contains(&isa);
    match isa {
        // SAFETY: the CPU has what Isa::available finds.
        #[allow(unsafe_code, reason = "see above")]
        Isa::Avx2 if available => unsafe { avx2(f) },
        // SAFETY: the CPU has what Isa::available finds.
        #[allow(unsafe_code, reason = "see above")]
        Isa::Avx512 if available => unsafe { avx512(f) },
        _ => f(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn compiled_for<R>(_: Isa, f: impl FnOnce() -> R) -> R {
    f()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read() {
        let bytes: Vec<[u8; LINE]> = (0..24).map(|i| [i; LINE]).collect();
        let expected = (0..24u64).map(|i| 8 * i * 0x0101_0101_0101_0101).sum::<u64>();
        for streams in STREAMS {
            assert_eq!(sum(&bytes, streams), expected, "{streams}");
        }
    }
}
