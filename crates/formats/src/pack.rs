//! Packing codes at their true width.
//!
//! One little-endian bit stream per row: code i takes bits [i·w, (i+1)·w). So two 4-bit codes share a byte, the even
//! one low, and four 6-bit codes share three bytes:
//!
//! ```text
//! byte      0        1        2
//! bits  76543210 76543210 76543210
//! code  11000000 22221111 33333322
//! ```
//!
//! This is the order of compressed-tensors, AMD Quark and MLX. A row takes ⌈n·w/8⌉ bytes; the spare bits are zero.

use alloc::vec;
use alloc::vec::Vec;

/// Bytes that `n` codes of `bits` bits take.
pub const fn packed_len(n: usize, bits: u32) -> usize {
    (n * bits as usize).div_ceil(8)
}

/// Packs one row of codes, `bits` (4, 6 or 8) each. Bits of a code above its width are ignored.
pub fn pack(codes: &[u8], bits: u32) -> Vec<u8> {
    let mask = (1u16 << bits) - 1;
    let mut bytes = vec![0u8; packed_len(codes.len(), bits)];
    for (i, &code) in codes.iter().enumerate() {
        let (byte, shift) = (i * bits as usize / 8, i * bits as usize % 8);
        let word = (u16::from(code) & mask) << shift;
        bytes[byte] |= word as u8;
        if word > 0xFF {
            bytes[byte + 1] |= (word >> 8) as u8;
        }
    }
    bytes
}

/// Code `i` of a packed row.
///
/// # Panics
/// If the row is too short for it.
pub fn unpack_one(bytes: &[u8], bits: u32, i: usize) -> u8 {
    let (byte, shift) = (i * bits as usize / 8, i * bits as usize % 8);
    let high = if shift + bits as usize > 8 { bytes[byte + 1] } else { 0 };
    let word = u16::from(bytes[byte]) | u16::from(high) << 8;
    ((word >> shift) & ((1 << bits) - 1)) as u8
}

/// The codes of a packed row; inverse of [`pack`].
///
/// # Panics
/// If `bytes` is shorter than `packed_len(codes.len(), bits)`.
pub fn unpack(bytes: &[u8], bits: u32, codes: &mut [u8]) {
    // Whole groups of bytes at a time, then what is left.
    let done = match bits {
        4 => {
            let pairs = codes.as_chunks_mut::<2>().0;
            pairs.iter_mut().zip(bytes).for_each(|(codes, byte)| *codes = [byte & 15, byte >> 4]);
            2 * pairs.len()
        }
        6 => {
            let fours = codes.as_chunks_mut::<4>().0;
            for (codes, &[a, b, c]) in fours.iter_mut().zip(bytes.as_chunks::<3>().0) {
                *codes = [a & 63, a >> 6 | b << 2 & 63, b >> 4 | c << 4 & 63, c >> 2];
            }
            4 * fours.len()
        }
        _ => {
            codes.copy_from_slice(&bytes[..codes.len()]);
            codes.len()
        }
    };
    for (i, code) in codes.iter_mut().enumerate().skip(done) {
        *code = unpack_one(bytes, bits, i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_at_every_length() {
        for bits in [4, 6, 8] {
            for n in 0..70 {
                let codes: Vec<u8> = (0..n).map(|i| (i * 37 + 11) as u8 & ((1u16 << bits) - 1) as u8).collect();
                let bytes = pack(&codes, bits);
                assert_eq!(bytes.len(), packed_len(n, bits));
                let mut again = vec![0; n];
                unpack(&bytes, bits, &mut again);
                assert_eq!(again, codes);
            }
        }
    }

    #[test]
    fn the_byte_order_is_the_documented_one() {
        assert_eq!(pack(&[0x1, 0x2], 4), [0x21]);
        let word = 0b000001 | 0b000010 << 6 | 0b000100 << 12 | 0b100000u32 << 18;
        assert_eq!(pack(&[0b000001, 0b000010, 0b000100, 0b100000], 6), word.to_le_bytes()[..3]);
        assert_eq!(pack(&[0x3F], 6), [0x3F]);
    }
}
