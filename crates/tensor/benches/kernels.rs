//! The kernels on matrices of LLaMA-3.2-1B's size. Run with `cargo bench -p microscale-tensor`; a name after `--` picks
//! some, MICROSCALE_ISA an instruction set, RAYON_NUM_THREADS the threads.
//!
//! Throughput: of `prefill` and `attention` in operations (a multiplication or an addition) per second, of `decode`,
//! `rope`, `activation` and `weight` in bytes: of packed weights read, and of bf16 taken in.
//!
//! `in-turn ROWS WEIGHT ACTIVATION` instead waits for lines on stdin: benches/in_turn.py runs two builds of this so.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use half::bf16;
use microscale_formats::ElementFormat;
use microscale_tensor::{
    Attention, Backend, BlockFormat, Cpu, Isa, KeyValueLayout, Linear, Matrix, MxTensor, Rotation, WeightMatrix,
};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["in-turn", rows, w, x] => in_turn(rows.parse().expect("a number of rows"), [w, x]),
        _ => divan::main(),
    }
}

/// Weight and activation formats.
const PAIRS: [[&str; 2]; 8] = [
    ["bf16", "bf16"],
    ["fp6_e3m2", "fp8_e4m3"],
    ["fp6_e3m2", "fp6_e3m2"],
    ["fp8_e4m3", "fp8_e4m3"],
    ["fp4_e2m1", "fp8_e4m3"],
    ["fp4_e2m1", "fp4_e2m1"],
    ["fp6_e2m3", "fp6_e2m3"],
    ["int8", "int8"],
];
/// Outputs and inputs of gate_proj.
const SHAPE: [usize; 2] = [8192, 2048];

fn cpu() -> Cpu {
    let isa = std::env::var("MICROSCALE_ISA").ok().map(|name| Isa::from_name(&name).expect("MICROSCALE_ISA"));
    Cpu::with_isa(isa.unwrap_or_else(Isa::best))
}

fn format(name: &str) -> Option<BlockFormat> {
    ElementFormat::from_name(name).map(BlockFormat::from)
}

/// Nearly normal values.
fn random(rows: usize, columns: usize) -> Matrix {
    let mut state = 0x9E37_79B9_7F4A_7C15u64 ^ (rows * columns) as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes().iter().map(|&b| f32::from(b)).sum::<f32>() / 209.0 - 4.88
    };
    Matrix::new(rows, columns, (0..rows * columns).map(|_| bf16::from_f32(next())).collect())
}

#[divan::bench(args = PAIRS, sample_count = 20)]
fn prefill(bencher: Bencher<'_, '_>, [w, x]: [&str; 2]) {
    linear(bencher, [w, x], 512, [1, 1], SHAPE);
}

#[divan::bench(args = PAIRS, sample_count = 50)]
fn decode(bencher: Bencher<'_, '_>, [w, x]: [&str; 2]) {
    // Several weights, so that one token finds none of them in a cache.
    linear(bencher, [w, x], 1, [24, 1], SHAPE);
}

/// The same from a cache: what decoding codes costs by itself.
#[divan::bench(args = PAIRS, sample_count = 200)]
fn decode_cached(bencher: Bencher<'_, '_>, [w, x]: [&str; 2]) {
    linear(bencher, [w, x], 1, [1, 32], [512, SHAPE[1]]);
}

/// So many weights of a format, and the bytes of all.
fn weights(cpu: Cpu, name: &str, count: usize, shape: [usize; 2]) -> (Vec<<Cpu as Backend>::Weight>, u64) {
    let (matrix, format) = (random(shape[0], shape[1]), format(name));
    let bits = format.map_or(16.0, |f| f64::from(f.element.bits()) + 8.0 / f.block_size as f64);
    let weights = (0..count).map(|_| cpu.weight(WeightMatrix::new(matrix.clone(), format))).collect();
    (weights, ((count * shape[0] * shape[1]) as f64 * bits / 8.0) as u64)
}

/// `count` weights, one after another, `rounds` times.
fn linear(bencher: Bencher<'_, '_>, [w, x]: [&str; 2], rows: usize, [count, rounds]: [usize; 2], shape: [usize; 2]) {
    let cpu = cpu();
    let (weights, bytes) = weights(cpu, w, count, shape);
    let operand = cpu.operand(&random(rows, shape[1]), format(x));
    let values = (rounds * count * shape[0] * shape[1]) as f64;
    let bencher = bencher.counter(ItemsCount::new((2.0 * values * rows as f64) as u64));
    let bencher = if rows == 1 { bencher.counter(BytesCount::new(rounds as u64 * bytes)) } else { bencher };
    bencher.bench_local(|| {
        cpu.session(|| {
            for weight in std::iter::repeat_n(&weights, rounds).flatten() {
                black_box(cpu.linear(black_box(&operand), [Linear { weight, bias: None }]));
            }
        });
    });
}

/// Prints, for every line on stdin, the nanoseconds that a pass over some weights takes, one after another, and the bytes of these.
/// With one row they are as many as hardly a cache holds.
fn in_turn(rows: usize, [w, x]: [&str; 2]) {
    let count = if rows == 1 { 48 } else { 1 };
    let cpu = cpu();
    let (weights, bytes) = weights(cpu, w, count, SHAPE);
    let operand = cpu.operand(&random(rows, SHAPE[1]), format(x));
    println!("ready");
    for _ in std::io::stdin().lines() {
        let start = std::time::Instant::now();
        cpu.session(|| {
            for weight in &weights {
                black_box(cpu.linear(black_box(&operand), [Linear { weight, bias: None }]));
            }
        });
        println!("{} {bytes}", start.elapsed().as_nanos());
    }
}

/// Queries of 32 heads, keys and values of 8, 64 features each: all tokens at once, or one after `tokens` others, in eight
/// layers one after another.
#[divan::bench(args = [("bf16", 4096, false), ("fp6_e3m2", 4096, false), ("bf16", 4096, true), ("fp6_e3m2", 4096, true)], sample_count = 5)]
fn attention(bencher: Bencher<'_, '_>, (name, tokens, last): (&str, usize, bool)) {
    let cpu = cpu();
    let (heads, kv_heads, head_dim) = (32, 8, 64);
    let keys_values = KeyValueLayout { heads: kv_heads, head_dim, key: format(name), value: format(name) };
    let options =
        Attention { heads, keys_values, query: format(name), weights: format(name), causal_value_blocks: last };
    let mut cache = cpu.cache(&keys_values);
    let (k, v) = (random(tokens, kv_heads * head_dim), random(tokens + 1, kv_heads * head_dim));
    let v = Matrix::new(tokens, kv_heads * head_dim, v.values()[kv_heads * head_dim..].to_vec());
    cpu.append(&mut [&mut cache], &k, &v, std::slice::from_ref(&(0..tokens)));
    let (rows, layers) = if last { (1, 8) } else { (tokens, 1) };
    // Several, so that one token finds none of them in a cache.
    let caches = vec![cache; layers];
    let q = random(rows, heads * head_dim);
    let seen = if last { tokens } else { tokens * (tokens + 1) / 2 };
    bencher.counter(ItemsCount::new(4 * seen * heads * head_dim * layers)).bench_local(|| {
        cpu.session(|| {
            for cache in &caches {
                black_box(cpu.attention(black_box(&q), &[cache], std::slice::from_ref(&(0..rows)), &options));
            }
        });
    });
}

const FORMATS: [&str; 6] = ["fp8_e5m2", "fp8_e4m3", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "int8"];

/// Rotary embedding of heads of so many features.
#[divan::bench(args = [8, 64, 128], sample_count = 50)]
fn rope(bencher: Bencher<'_, '_>, dim: usize) {
    let (cpu, x) = (cpu(), random(512, 2048));
    let rotation = Rotation { cos: random(512, dim), sin: random(512, dim) };
    bencher
        .counter(BytesCount::new(2 * x.values().len()))
        .with_inputs(|| x.clone())
        .bench_local_values(|x| black_box(cpu.rope(x, &rotation)));
}

/// An activation, to what a product takes.
#[divan::bench(args = FORMATS, sample_count = 20)]
fn activation(bencher: Bencher<'_, '_>, name: &str) {
    let (cpu, x) = (cpu(), random(512, 8192));
    bencher
        .counter(BytesCount::new(2 * x.values().len()))
        .bench_local(|| black_box(cpu.operand(black_box(&x), format(name))));
}

/// The same of one row, 32 times: what lies between the products of a token.
#[divan::bench(args = FORMATS, sample_count = 100)]
fn activation_row(bencher: Bencher<'_, '_>, name: &str) {
    let (cpu, x, count) = (cpu(), random(1, 8192), 32);
    bencher.counter(BytesCount::new(count * 2 * x.values().len())).bench_local(|| {
        cpu.session(|| (0..count).for_each(|_| drop(black_box(cpu.operand(black_box(&x), format(name))))));
    });
}

/// A weight, to packed codes and scales.
#[divan::bench(args = FORMATS, sample_count = 20)]
fn weight(bencher: Bencher<'_, '_>, name: &str) {
    let (x, format) = (random(SHAPE[0], SHAPE[1]), format(name).expect("an element format"));
    bencher
        .counter(BytesCount::new(2 * x.values().len()))
        .bench_local(|| black_box(MxTensor::from_matrix(black_box(&x), format)));
}

/// All weights of LLaMA-3.2-1B's shape, its tied head with them, into new memory.
#[divan::bench(args = FORMATS, sample_count = 5, sample_size = 1)]
fn model_weights(bencher: Bencher<'_, '_>, name: &str) {
    let format = format(name).expect("an element format");
    let layer = [[2048, 2048], [512, 2048], [512, 2048], [2048, 2048], [8192, 2048], [8192, 2048], [2048, 8192]];
    let shapes = std::iter::repeat_n(layer, 16).flatten().chain([[128_256, 2048]]);
    // Random ones over and over: to make as many would take minutes.
    let mut source = random(SHAPE[0], SHAPE[1]).into_values().into_iter().cycle();
    let mut values = |n| source.by_ref().take(n).collect();
    let weights: Vec<Matrix> =
        shapes.map(|[rows, columns]| Matrix::new(rows, columns, values(rows * columns))).collect();
    let bytes: usize = weights.iter().map(|w| 2 * w.values().len()).sum();
    bencher.counter(BytesCount::new(bytes)).bench_local(|| {
        black_box(weights.iter().map(|w| MxTensor::from_matrix(black_box(w), format)).collect::<Vec<_>>())
    });
}

/// The same into memory that is there, as a copy's is.
#[divan::bench(args = FORMATS, sample_count = 20)]
fn weight_refilled(bencher: Bencher<'_, '_>, name: &str) {
    let (x, format) = (random(SHAPE[0], SHAPE[1]), format(name).expect("an element format"));
    let mut tensor = MxTensor::from_matrix(&x, format);
    bencher.counter(BytesCount::new(2 * x.values().len())).bench_local(|| {
        tensor.refill(black_box(x.values())).expect("values of the same shape");
        black_box(&mut tensor);
    });
}

/// The same in a cache: what rounding and packing cost by themselves.
#[divan::bench(args = FORMATS, sample_count = 200)]
fn weight_cached(bencher: Bencher<'_, '_>, name: &str) {
    let (x, format) = (random(64, SHAPE[1]), format(name).expect("an element format"));
    let mut tensor = MxTensor::from_matrix(&x, format);
    let (cpu, count) = (cpu(), 32);
    bencher.counter(BytesCount::new(count * 2 * x.values().len())).bench_local(|| {
        cpu.session(|| {
            for _ in 0..count {
                tensor.refill(black_box(x.values())).expect("values of the same shape");
                black_box(&mut tensor);
            }
        });
    });
}

/// What these are measured against: a copy of bf16 values, the destination's pages there already.
#[divan::bench(sample_count = 50)]
fn copy(bencher: Bencher<'_, '_>) {
    use rayon::prelude::*;
    let x = random(SHAPE[0], SHAPE[1]);
    let mut to = x.clone();
    bencher.counter(BytesCount::new(2 * x.values().len())).bench_local(|| {
        let pairs = to.values_mut().par_chunks_mut(1 << 20).zip(x.values().par_chunks(1 << 20));
        pairs.for_each(|(to, from)| to.copy_from_slice(from));
        black_box(&mut to);
    });
}
