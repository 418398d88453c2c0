//! Kernels are compiled for an instruction set as a whole, every closure and function of theirs inlined: what is not is
//! compiled without its instructions, each of which becomes a call, and takes twenty to sixty times as long.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use half::bf16;
use microscale_formats::ElementFormat;
use microscale_tensor::{Attention, Backend, BlockFormat, Cpu, Isa, KeyValueLayout, Linear, Matrix, WeightMatrix};

/// Times that a comparison may fail for what else a machine does meanwhile.
const TRIES: usize = 5;

fn format(name: &str) -> Option<BlockFormat> {
    ElementFormat::from_name(name).map(BlockFormat::from)
}

fn matrix(rows: usize, columns: usize) -> Matrix {
    let value = |i: usize| bf16::from_f32((i * 7 % 101) as f32 / 50.0 - 1.0);
    Matrix::new(rows, columns, (0..rows * columns).map(value).collect())
}

/// The shortest of several times, which is the least disturbed.
fn shortest(mut run: impl FnMut()) -> Duration {
    let mut once = || {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..20).map(|_| once()).min().unwrap()
}

/// Some rows by a weight.
fn product(cpu: Cpu, rows: usize, [x, w]: [&str; 2]) -> Duration {
    // Not a multiple of what one row takes at a time.
    let weight = &cpu.weight(WeightMatrix::new(matrix(1000, 1024), format(w)));
    let operand = cpu.operand(&matrix(rows, 1024), format(x));
    shortest(|| {
        cpu.session(|| cpu.linear(&operand, [Linear { weight, bias: None }]));
    })
}

/// Quantizing activations.
fn quantizing(cpu: Cpu, name: &str) -> Duration {
    let x = matrix(64, 1024);
    shortest(|| {
        cpu.operand(&x, format(name));
    })
}

/// The last of 512 tokens, or all of them.
fn attention(cpu: Cpu, rows: usize, name: &str) -> Duration {
    let (heads, head_dim, tokens) = (2, 64, 512);
    let keys_values = KeyValueLayout { heads, head_dim, key: format(name), value: format(name) };
    let options = Attention {
        heads: 2 * heads,
        keys_values,
        query: format(name),
        weights: format(name),
        causal_value_blocks: false,
    };
    let mut cache = cpu.cache(&keys_values);
    let k_v = matrix(tokens, heads * head_dim);
    cpu.append(&mut [&mut cache], &k_v, &k_v, std::slice::from_ref(&(0..tokens)));
    let q = matrix(rows, 2 * heads * head_dim);
    shortest(|| {
        cpu.attention(&q, &[&cache], std::slice::from_ref(&(0..rows)), &options);
    })
}

/// Whether the first time is not longer than the second is times `most`, in one of several tries.
fn no_longer(what: &str, most: u32, mut times: impl FnMut() -> [Duration; 2]) {
    for left in (0..TRIES).rev() {
        let [found, other] = times();
        if found <= other * most {
            return;
        }
        assert!(left > 0, "{what}: {found:?}, more than {most} times {other:?}");
    }
}

/// Held while something is timed: two at once would take turns.
static ALONE: Mutex<()> = Mutex::new(());

#[test]
fn rows_together_take_no_longer_than_one_by_one() {
    let _alone = ALONE.lock();
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa);
        for formats in [["", ""], ["fp8_e4m3", "fp6_e3m2"], ["fp8_e4m3", "fp8_e4m3"], ["fp4_e2m1", "fp4_e2m1"]] {
            for rows in 2..=4 {
                // Twice as long, for what else a machine may do meanwhile.
                no_longer(&format!("{isa}, {formats:?}, {rows} rows beside one"), 2 * rows as u32, || {
                    [product(cpu, rows, formats), product(cpu, 1, formats)]
                });
            }
        }
    }
}

#[test]
fn no_instruction_set_is_many_times_slower_than_the_best() {
    let _alone = ALONE.lock();
    // Without these mistakes the narrowest takes up to six times as long as the widest. Products of many rows are left out:
    // what tiles do with them is another matter.
    const MOST: u32 = 15;
    let best = Cpu::new();
    for isa in Isa::available().into_iter().filter(|isa| isa.name() != "scalar") {
        let cpu = Cpu::with_isa(isa);
        for name in ["", "fp8_e4m3", "fp6_e3m2", "fp4_e2m1", "int8"] {
            no_longer(&format!("{isa}, quantizing to {name:?}"), MOST, || [cpu, best].map(|cpu| quantizing(cpu, name)));
            for rows in [1, 4, 64] {
                no_longer(&format!("{isa}, attention of {rows} rows in {name:?}"), MOST, || {
                    [cpu, best].map(|cpu| attention(cpu, rows, name))
                });
            }
            for x in ["", "fp8_e4m3", "int8"] {
                no_longer(&format!("{isa}, a row in {x:?} by {name:?}"), MOST, || {
                    [cpu, best].map(|cpu| product(cpu, 1, [x, name]))
                });
            }
        }
    }
}
