//! Memory of what is gone, for what is to come: to get new memory from the system takes longer than to fill it.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// What holds memory that another of its kind can use.
pub(crate) trait Reusable: Default {
    /// Bytes of memory, used or not.
    fn capacity(&self) -> usize;
}

/// The bytes a vector has room for.
pub(crate) fn capacity<T>(vec: &Vec<T>) -> usize {
    vec.capacity() * size_of::<T>()
}

/// Bytes up to which memory comes in sizes of powers of two.
const SMALL: usize = 64 << 10;

/// Makes room in a vector for `len` elements. Small sizes are rounded up, so that what has served one serves most others.
pub(crate) fn make_room<T>(vec: &mut Vec<T>, len: usize) {
    if vec.capacity() < len && len * size_of::<T>() <= SMALL {
        vec.reserve_exact(len.next_power_of_two() - vec.len());
    }
}

/// Things that are gone, as far as they are kept. What is taken of them is as it was given.
pub(crate) struct Spare<T> {
    /// Things, and the bytes they hold.
    kept: Mutex<(Vec<T>, usize)>,
    /// Bytes to keep at most.
    most: usize,
}

impl<T: Reusable> Spare<T> {
    pub(crate) const fn new(most: usize) -> Self {
        Spare { kept: Mutex::new((Vec::new(), 0)), most }
    }

    /// So many, with what memory there is.
    pub(crate) fn take(&self, count: usize) -> Vec<T> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (things, bytes) = &mut *kept;
        let mut taken = things.split_off(things.len().saturating_sub(count));
        *bytes -= taken.iter().map(T::capacity).sum::<usize>();
        drop(kept);
        taken.resize_with(count, T::default);
        taken
    }

    /// One, until it is dropped.
    pub(crate) fn borrow(&'static self) -> Borrowed<T> {
        Borrowed { thing: self.take(1).pop().unwrap_or_default(), spare: self }
    }

    /// The one with the least memory that has so many bytes of it, if there is one.
    pub(crate) fn take_with(&self, least: usize) -> Option<T> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (things, bytes) = &mut *kept;
        let fitting =
            things.iter().enumerate().map(|(i, thing)| (thing.capacity(), i)).filter(|(has, _)| *has >= least);
        let (has, i) = fitting.min()?;
        *bytes -= has;
        Some(things.remove(i))
    }

    /// Keeps them. Where there is no room for all, those go that nobody has wanted for longest.
    pub(crate) fn give(&self, given: impl IntoIterator<Item = T>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let (things, bytes) = &mut *kept;
        let mut rejected = Vec::new();
        for thing in given {
            if thing.capacity() <= self.most {
                *bytes += thing.capacity();
                things.push(thing);
            } else {
                rejected.push(thing);
            }
        }
        let mut oldest = 0;
        while *bytes > self.most {
            *bytes -= things[oldest].capacity();
            oldest += 1;
        }
        rejected.extend(things.drain(..oldest));
        drop(kept); // what is rejected is freed after this
    }
}

/// A thing that another may have used and that the next may use.
pub(crate) struct Borrowed<T: Reusable + 'static> {
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
        self.spare.give([std::mem::take(&mut self.thing)]);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn sizes(taken: &[Vec<bf16>]) -> Vec<usize> {
        taken.iter().map(Vec::capacity).collect()
    }

    #[test]
    fn what_is_given_is_taken_as_far_as_there_is_room() {
        let spare = Spare::new(500);
        spare.give([100, 101, 102].map(Vec::with_capacity));
        assert_eq!(sizes(&spare.take(3)), [101, 102, 0], "the oldest has made room");
        assert_eq!(spare.take(1), [Vec::new()]);
        spare.give([Vec::with_capacity(250)]);
        assert_eq!(sizes(&spare.take(1)), [250], "what was taken has left its room");
        spare.give([100, 251].map(Vec::with_capacity));
        assert_eq!(sizes(&spare.take(2)), [100, 0], "what has room nowhere drives nothing out");
    }

    #[test]
    fn the_smallest_that_will_do_is_taken() {
        let spare = Spare::new(5000);
        spare.give([300, 100, 200].map(Vec::with_capacity));
        let take = |least: usize| spare.take_with(2 * least).map(|vec| vec.capacity());
        assert_eq!([150, 150, 150, 100].map(take), [Some(200), Some(300), None, Some(100)]);
        spare.give([Vec::with_capacity(2500)]);
        assert_eq!(take(2500), Some(2500), "what was taken has left its room");
    }
}
