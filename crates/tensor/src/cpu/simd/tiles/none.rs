use std::mem::MaybeUninit;

use super::{Step, Sums};

/// Nothing: this platform has no tiles.
#[derive(Clone, Copy)]
pub(crate) enum Tiles {}

impl Tiles {
    pub(crate) fn detect() -> Option<Tiles> {
        None
    }

    pub(crate) fn configure(self) -> Configured {
        match self {}
    }
}

/// Nothing, likewise.
pub(crate) enum Configured {}

impl Configured {
    pub(crate) fn multiply<'a, const N: usize>(
        &self,
        _: &[Step; N],
        _: [&Step; N],
        _: &'a mut MaybeUninit<[Sums; N]>,
    ) -> &'a mut [Sums; N] {
        match *self {}
    }
}
