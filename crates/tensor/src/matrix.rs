//! Activations: a bf16 matrix, one row per token.

use half::bf16;
use half::vec::HalfBitsVecExt;

use crate::spare::{Reusable, Spare, capacity};

/// A row-major bf16 matrix in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<bf16>,
}

impl Matrix {
    /// Takes `rows · columns` values, row by row.
    ///
    /// # Panics
    /// If there are more or fewer.
    pub fn new(rows: usize, columns: usize, values: Vec<bf16>) -> Matrix {
        assert_eq!(values.len(), rows * columns, "a matrix of {rows} x {columns}");
        Matrix { rows, columns, values }
    }

    /// A matrix of zeros.
    pub fn zeros(rows: usize, columns: usize) -> Matrix {
        // Zeros of a built-in type come from the system as they are.
        Matrix { rows, columns, values: vec![0u16; rows * columns].reinterpret_into() }
    }

    /// A matrix of any values, to be written over: in memory that another had, where there is some.
    pub(crate) fn reused(rows: usize, columns: usize) -> Matrix {
        let count = rows * columns;
        if !is_kept(count) {
            return Matrix::zeros(rows, columns);
        }
        let mut values = SPARE.take_with(count * size_of::<bf16>()).unwrap_or_else(|| {
            // A little more than asked for, so that it will serve others too.
            Matrix::zeros(1, count.next_multiple_of(count.next_power_of_two() / 8)).into_values()
        });
        values.resize(count, bf16::ZERO);
        Matrix { rows, columns, values }
    }

    /// Number of rows (tokens).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (features).
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// One row.
    pub fn row(&self, i: usize) -> &[bf16] {
        &self.values[i * self.columns..][..self.columns]
    }

    /// One row, to write.
    pub fn row_mut(&mut self, i: usize) -> &mut [bf16] {
        &mut self.values[i * self.columns..][..self.columns]
    }

    /// A matrix of these rows, in this order.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn gather(&self, rows: &[u32]) -> Matrix {
        let values = rows.iter().flat_map(|&i| self.row(i as usize)).copied().collect();
        Matrix::new(rows.len(), self.columns, values)
    }

    /// All values, row by row.
    pub fn values(&self) -> &[bf16] {
        &self.values
    }

    /// All values, row by row, to write.
    pub fn values_mut(&mut self) -> &mut [bf16] {
        &mut self.values
    }

    /// The values, row by row.
    pub fn into_values(mut self) -> Vec<bf16> {
        std::mem::take(&mut self.values)
    }
}

/// At most what some batches of a small model need, of which having memory cleared takes a part that shows. Weights too are
/// matrices before they are quantized, so that more would be kept for nothing.
static SPARE: Spare<Vec<bf16>> = Spare::new(8 << 20);

/// Whether the memory of so many values is worth keeping.
fn is_kept(values: usize) -> bool {
    values >= 1 << 13
}

impl Reusable for Vec<bf16> {
    fn capacity(&self) -> usize {
        capacity(self)
    }
}

impl Drop for Matrix {
    fn drop(&mut self) {
        if is_kept(self.values.capacity()) {
            SPARE.give([std::mem::take(&mut self.values)]);
        }
    }
}
