//! Products of a few rows take ways of their own, each compiled for the instruction set as a whole or else many times slower.

use std::time::{Duration, Instant};

use half::bf16;
use microscale_formats::ElementFormat;
use microscale_tensor::{Backend, BlockFormat, Cpu, Isa, Linear, Matrix, WeightMatrix};

fn matrix(rows: usize, columns: usize) -> Matrix {
    let value = |i: usize| bf16::from_f32((i * 7 % 101) as f32 / 50.0 - 1.0);
    Matrix::new(rows, columns, (0..rows * columns).map(value).collect())
}

/// The shortest of several times, which is the least disturbed.
fn time(cpu: Cpu, rows: usize, [x, w]: [Option<BlockFormat>; 2]) -> Duration {
    // Not a multiple of what one row takes at a time.
    let weight = &cpu.weight(WeightMatrix::new(matrix(1000, 1024), w));
    let operand = cpu.operand(&matrix(rows, 1024), x);
    let run = || {
        let start = Instant::now();
        cpu.session(|| cpu.linear(&operand, [Linear { weight, bias: None }]));
        start.elapsed()
    };
    (0..20).map(|_| run()).min().unwrap()
}

#[test]
fn rows_together_take_no_longer_than_one_by_one() {
    let format = |name: &str| ElementFormat::from_name(name).map(BlockFormat::from);
    for isa in Isa::available() {
        let cpu = Cpu::with_isa(isa);
        for [x, w] in [["", ""], ["fp8_e4m3", "fp6_e3m2"], ["fp8_e4m3", "fp8_e4m3"], ["fp4_e2m1", "fp4_e2m1"]] {
            let formats = [format(x), format(w)];
            let one = time(cpu, 1, formats);
            for rows in 2..=4 {
                let several = time(cpu, rows, formats);
                // Twice as long, for what else a machine may do meanwhile: the mistake this is about takes twenty times.
                let limit = one * 2 * rows as u32;
                assert!(several <= limit, "{isa}, {x} by {w}: {rows} rows take {several:?}, one row {one:?}");
            }
        }
    }
}
