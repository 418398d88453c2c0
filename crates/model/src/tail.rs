//! The rows of a pass that the last layer goes on with.

use std::ops::Range;

use microscale_tensor::Rotation;

use crate::batch::Batch;

/// Of every sequence its last rows, from the first on whose logits are wanted. The last layer needs keys and values of all
/// rows, but queries, and what follows from them, of these alone.
pub(crate) struct Tail {
    /// As the batch counts its rows, in order.
    pub(crate) rows: Vec<u32>,
    /// By sequence, its rows among these; there may be none.
    pub(crate) sequences: Vec<Range<usize>>,
    pub(crate) rotation: Rotation,
}

impl Tail {
    /// Of a batch and its rotation, for the logits of the rows `wanted`; `None` if these take all rows.
    pub(crate) fn new(batch: &Batch, rotation: &Rotation, wanted: impl IntoIterator<Item = u32>) -> Option<Tail> {
        let mut first: Vec<usize> = batch.sequences.iter().map(|sequence| sequence.rows.end).collect();
        for row in wanted {
            let row = row as usize;
            let sequence = batch.sequences.partition_point(|sequence| sequence.rows.end <= row);
            first[sequence] = first[sequence].min(row);
        }
        let (mut rows, mut sequences) = (Vec::new(), Vec::new());
        for (first, sequence) in first.into_iter().zip(&batch.sequences) {
            let start = rows.len();
            rows.extend((first..sequence.rows.end).map(|row| row as u32));
            sequences.push(start..rows.len());
        }
        if rows.len() == batch.tokens() {
            return None;
        }
        let rotation = Rotation { cos: rotation.cos.gather(&rows), sin: rotation.sin.gather(&rows) };
        Some(Tail { rows, sequences, rotation })
    }

    /// Where a row of the batch is among these.
    fn place(&self, row: u32) -> u32 {
        self.rows.partition_point(|&other| other < row) as u32
    }
}

/// Where rows of the batch are among those that the last layer leaves: `tail`, or all of them.
pub(crate) fn places(tail: Option<&Tail>, rows: impl IntoIterator<Item = u32>) -> Vec<u32> {
    rows.into_iter().map(|row| tail.map_or(row, |tail| tail.place(row))).collect()
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use microscale_tensor::Matrix;

    use super::*;

    /// Rows 0 to 3, 4 and 5, which follow them, and 6 to 8.
    fn batch() -> (Batch, Rotation) {
        let mut batch = Batch::default();
        batch.push(&[1, 2, 3, 4]);
        batch.push_after(0, &[5, 6]);
        batch.push(&[7, 8, 9]);
        let column = |factor: f32| Matrix::new(9, 1, (0..9).map(|i| bf16::from_f32(factor * i as f32)).collect());
        (batch, Rotation { cos: column(1.0), sin: column(10.0) })
    }

    #[test]
    fn every_sequence_keeps_its_rows_from_the_first_wanted_on() {
        let (batch, rotation) = batch();
        let tail = Tail::new(&batch, &rotation, [7, 3, 8]).unwrap();
        assert_eq!(tail.rows, [3, 7, 8]);
        assert_eq!(tail.sequences, [0..1, 1..1, 1..3]);
        assert_eq!([3, 7, 8].map(|row| tail.place(row)), [0, 1, 2]);
        assert_eq!(tail.rotation.sin.values(), [30.0, 70.0, 80.0].map(bf16::from_f32));
        // Rows between two that are wanted are kept too.
        assert_eq!(Tail::new(&batch, &rotation, [6, 8]).unwrap().rows, [6, 7, 8]);
    }

    #[test]
    fn there_is_none_where_all_rows_go_on() {
        let (batch, rotation) = batch();
        assert!(Tail::new(&batch, &rotation, [0, 4, 6]).is_none());
        assert!(Tail::new(&batch, &rotation, [0, 4, 7]).is_some());
    }
}
