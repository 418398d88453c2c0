//! Which queries a tile has.

use super::super::sides::TILE;

/// A tile of queries: all query heads of one token, then those of the next, or one of them of several tokens.
pub(super) struct Queries {
    pub(super) rows: usize,
    /// By row, the position of its token.
    pub(super) positions: [usize; TILE],
    /// By row, which of the group's heads it is.
    pub(super) heads: [usize; TILE],
}

impl Queries {
    /// The tile that begins with the given head of the token at `position`.
    #[inline(always)]
    pub(super) fn new(rows: usize, (mut position, mut head): (usize, usize), group: usize) -> Queries {
        let mut queries = Queries { rows, positions: [0; TILE], heads: [0; TILE] };
        for (to, to_head) in queries.positions.iter_mut().zip(&mut queries.heads) {
            (*to, *to_head) = (position, head);
            head += 1;
            if head == group {
                (position, head) = (position + 1, 0);
            }
        }
        queries
    }

    /// A whole tile of one head's queries, of tokens from this position on.
    #[inline(always)]
    pub(super) fn of_head(position: usize, head: usize) -> Queries {
        let mut positions = [position; TILE];
        for (row, position) in positions.iter_mut().enumerate() {
            *position += row;
        }
        Queries { rows: TILE, positions, heads: [head; TILE] }
    }

    /// The position of the last row's token.
    pub(super) fn last(&self) -> usize {
        self.positions[self.rows - 1]
    }

    /// How many rows, from the first on, come before a token.
    #[inline(always)]
    pub(super) fn before(&self, token: usize) -> usize {
        self.positions.iter().take_while(|&&position| position < token).count()
    }
}
