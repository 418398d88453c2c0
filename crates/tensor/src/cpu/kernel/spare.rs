//! Memory of what is gone, for what is to come: to get new memory from the system takes longer than to fill it.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// What holds memory that another of its kind can use.
pub(super) trait Reusable: Default {
    /// Bytes of memory, used or not.
    fn capacity(&self) -> usize;
}

/// The bytes a vector has room for.
pub(super) fn capacity<T>(vec: &Vec<T>) -> usize {
    vec.capacity() * size_of::<T>()
}

/// Bytes up to which memory comes in sizes of powers of two.
const SMALL: usize = 64 << 10;

/// Makes room in a vector for `len` elements. Small sizes are rounded up, so that what has served one serves most others.
pub(super) fn make_room<T>(vec: &mut Vec<T>, len: usize) {
    if vec.capacity() < len && len * size_of::<T>() <= SMALL {
        vec.reserve_exact(len.next_power_of_two() - vec.len());
    }
}

/// Things that are gone, as far as they are kept. What is taken of them is as it was given.
pub(super) struct Spare<T> {
    /// Things, and the bytes they hold.
    kept: Mutex<(Vec<T>, usize)>,
    /// Bytes to keep at most.
    most: usize,
}

impl<T: Reusable> Spare<T> {
    pub(super) const fn new(most: usize) -> Self {
        Spare { kept: Mutex::new((Vec::new(), 0)), most }
    }

    /// So many, with what memory there is.
    pub(super) fn take(&self, count: usize) -> Vec<T> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (things, bytes) = &mut *kept;
        let mut taken = things.split_off(things.len().saturating_sub(count));
        *bytes -= taken.iter().map(T::capacity).sum::<usize>();
        drop(kept);
        taken.resize_with(count, T::default);
        taken
    }

    /// One, until it is dropped.
    pub(super) fn borrow(&'static self) -> Borrowed<T> {
        Borrowed { thing: self.take(1).pop().unwrap_or_default(), spare: self }
    }

    /// Keeps them as far as there is room.
    pub(super) fn give(&self, mut given: Vec<T>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (things, bytes) = &mut *kept;
        while let Some(thing) = given.pop_if(|thing| *bytes + thing.capacity() <= self.most) {
            *bytes += thing.capacity();
            things.push(thing);
        }
        drop(kept); // what finds no room is freed after this
    }
}

/// A thing that another may have used and that the next may use.
pub(super) struct Borrowed<T: Reusable + 'static> {
    thing: T,
    spare: &'static Spare<T>,
}

impl<T: Reusable> Deref for Borrowed<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.thing
    }
}

impl<T: Reusable> DerefMut for Borrowed<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.thing
    }
}

impl<T: Reusable> Drop for Borrowed<T> {
    fn drop(&mut self) {
        self.spare.give(vec![std::mem::take(&mut self.thing)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Reusable for Vec<u8> {
        fn capacity(&self) -> usize {
            capacity(self)
        }
    }

    #[test]
    fn what_is_given_is_taken_as_far_as_there_is_room() {
        let spare = Spare::new(250);
        spare.give(vec![Vec::with_capacity(100), Vec::with_capacity(101), Vec::with_capacity(102)]);
        let taken: Vec<usize> = spare.take(3).iter().map(Vec::<u8>::capacity).collect();
        assert_eq!(taken, [102, 101, 0]);
        assert_eq!(spare.take(1), [Vec::<u8>::new()]);
        spare.give(vec![Vec::with_capacity(250)]);
        assert_eq!(spare.take(1)[0].capacity(), 250, "what was taken has left its room");
    }
}
