//! Where activations wait between layers: in memory as far as there is room, in a temporary file beyond.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};

use half::bf16;
use half::slice::HalfFloatSliceExt;
use microscale_tensor::{Backend, Matrix};

use crate::convert::to_bf16;
use crate::{Dtype, Error};

/// The activations of a chunk of requests. The file has no name: it is gone with the process, however that ends.
pub(crate) struct Shelf<'b, B> {
    backend: &'b B,
    /// Bytes of memory left.
    room: usize,
    file: Option<File>,
    /// Bytes of the file.
    end: u64,
}

/// A place on the shelf.
pub(crate) enum Place<B: Backend> {
    /// In memory.
    Memory(B::Activation),
    /// At an offset of the file, a matrix of this shape.
    File(u64, [usize; 2]),
}

impl<'b, B: Backend> Shelf<'b, B> {
    /// A shelf with this many bytes of memory.
    pub(crate) fn new(backend: &'b B, room: usize) -> Self {
        Shelf { backend, room, file: None, end: 0 }
    }

    /// Puts activations `[tokens, features]` on the shelf.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn put(&mut self, x: B::Activation, [tokens, features]: [usize; 2]) -> Result<Place<B>, Error> {
        let bytes = tokens * features * size_of::<bf16>();
        if let Some(room) = self.room.checked_sub(bytes) {
            self.room = room;
            return Ok(Place::Memory(x));
        }
        let place = Place::File(self.end, [tokens, features]);
        self.write(self.end, &x)?;
        self.end += bytes as u64;
        Ok(place)
    }

    /// Puts what `work` makes of the activations there in their place; it may be fewer rows.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub(crate) fn replace(
        &mut self,
        place: &mut Place<B>,
        work: impl FnOnce(&B::Activation) -> B::Activation,
    ) -> Result<(), Error> {
        match place {
            Place::Memory(x) => *x = work(x),
            Place::File(at, shape) => {
                let x = self.read(*at, *shape)?;
                *shape = self.write(*at, &work(&x))?;
            }
        }
        Ok(())
    }

    /// Shows `work` the activations there.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn show<R>(&mut self, place: &Place<B>, work: impl FnOnce(&B::Activation) -> R) -> Result<R, Error> {
        match place {
            Place::Memory(x) => Ok(work(x)),
            Place::File(at, shape) => Ok(work(&self.read(*at, *shape)?)),
        }
    }

    fn file(&mut self) -> std::io::Result<&mut File> {
        match &mut self.file {
            Some(file) => Ok(file),
            none => Ok(none.insert(tempfile::tempfile()?)),
        }
    }

    /// Writes activations to the file and answers with their shape.
    fn write(&mut self, at: u64, x: &B::Activation) -> Result<[usize; 2], Error> {
        let matrix = self.backend.download(x);
        let mut write = || {
            let file = self.file()?;
            file.seek(SeekFrom::Start(at))?;
            let mut buffer = BufWriter::with_capacity(1 << 20, file);
            let bits = matrix.values().reinterpret_cast();
            bits.iter().try_for_each(|bits| buffer.write_all(&bits.to_le_bytes()))?;
            buffer.flush()
        };
        write().map_err(failed)?;
        Ok([matrix.rows(), matrix.columns()])
    }

    fn read(&mut self, at: u64, [tokens, features]: [usize; 2]) -> Result<B::Activation, Error> {
        let mut bytes = vec![0; tokens * features * size_of::<bf16>()];
        let mut read = || {
            let file = self.file()?;
            file.seek(SeekFrom::Start(at))?;
            file.read_exact(&mut bytes)
        };
        read().map_err(failed)?;
        let (values, _) = to_bf16(&bytes, Dtype::BF16);
        Ok(self.backend.upload(Matrix::new(tokens, features, values)))
    }
}

fn failed(source: std::io::Error) -> Error {
    Error::Spill { directory: std::env::temp_dir(), source }
}

#[cfg(test)]
mod tests {
    use microscale_tensor::Cpu;

    use super::*;

    #[test]
    fn what_finds_no_room_is_in_the_file() {
        let cpu = Cpu::new();
        let matrix = |first: u16, rows: u16| {
            Matrix::new(usize::from(rows), 2, (first..first + 2 * rows).map(bf16::from_bits).collect())
        };
        let mut shelf = Shelf::new(&cpu, 15);
        let mut places: Vec<Place<Cpu>> =
            [0, 0x3F80, 0xFF7F].map(|first| shelf.put(cpu.upload(matrix(first, 3)), [3, 2]).unwrap()).into();
        assert!(matches!(places[..], [Place::Memory(_), Place::File(0, _), Place::File(12, _)]));
        let others = [matrix(7, 3), matrix(0x4000, 2), matrix(1, 3)];
        for (place, other) in places.iter_mut().zip(&others) {
            shelf.replace(place, |_| cpu.upload(other.clone())).unwrap();
        }
        for (place, expected) in places.iter().zip(&others) {
            let found = shelf.show(place, |x| cpu.download(x)).unwrap();
            let bits = |m: &Matrix| m.values().iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!((found.rows(), bits(&found)), (expected.rows(), bits(expected)));
        }
    }
}
