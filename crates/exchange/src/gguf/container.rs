//! The container: key-value pairs, tensor infos, aligned tensors. As ggml's docs/gguf.md has it, version 3.

use std::collections::{BTreeMap, BTreeSet};

use microscale_formats::BLOCK;
use microscale_model::transfer::{Container, Placed};

use crate::notes;

pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Tensors begin at multiples of this, where the file does not say otherwise.
const ALIGNMENT: usize = 32;
const KEY_ALIGNMENT: &str = "general.alignment";
/// More pairs or tensors than any file has, and dimensions than ggml has.
const MAX_ENTRIES: u64 = 1 << 20;
const MAX_DIMENSIONS: u32 = 4;

/// A value of a pair, as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

/// The numbers of value types.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// A type of ggml's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    F32 = 0,
    F16 = 1,
    Q8_0 = 8,
    Bf16 = 30,
    Mxfp4 = 39,
}

impl Type {
    /// The type of this number, if it is known here.
    fn of(number: u32) -> Option<Type> {
        [Type::F32, Type::F16, Type::Q8_0, Type::Bf16, Type::Mxfp4].into_iter().find(|known| *known as u32 == number)
    }

    /// Bytes of a row of `columns` values, if the type holds that many.
    pub(crate) fn row_bytes(self, columns: usize) -> Option<usize> {
        match self {
            Type::F32 => columns.checked_mul(4),
            Type::F16 | Type::Bf16 => columns.checked_mul(2),
            Type::Q8_0 | Type::Mxfp4 if !columns.is_multiple_of(BLOCK) => None,
            Type::Q8_0 => (columns / BLOCK).checked_mul(34),
            Type::Mxfp4 => (columns / BLOCK).checked_mul(17),
        }
    }
}

/// A file to be written.
pub(crate) struct File {
    /// The pairs, in order.
    pub(crate) pairs: Vec<(String, Value)>,
    /// This program's own notes.
    pub(crate) notes: BTreeMap<String, String>,
    /// Type and shape (slowest first) of every tensor, by name.
    pub(crate) tensors: BTreeMap<String, (Type, Vec<usize>)>,
}

impl Container for File {
    fn alignment(&self) -> usize {
        ALIGNMENT
    }

    fn header(&self, outputs: &[Placed], source_sha256: &str) -> Vec<u8> {
        let notes = notes::with_hash(&self.notes, source_sha256);
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((outputs.len() as u64).to_le_bytes());
        bytes.extend(((self.pairs.len() + notes.len()) as u64).to_le_bytes());
        for (key, value) in &self.pairs {
            put_text(&mut bytes, key);
            put_value(&mut bytes, value);
        }
        for (key, text) in notes {
            put_text(&mut bytes, &key);
            put_value(&mut bytes, &Value::Text(text));
        }
        for Placed { output, offset } in outputs {
            let (kind, shape) = &self.tensors[&output.name];
            put_text(&mut bytes, &output.name);
            bytes.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|&size| bytes.extend((size as u64).to_le_bytes()));
            bytes.extend((*kind as u32).to_le_bytes());
            bytes.extend((*offset as u64).to_le_bytes());
        }
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        bytes
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

fn put_value(bytes: &mut Vec<u8>, value: &Value) {
    let mut start = |kinds: &[u32], count: Option<usize>| {
        kinds.iter().for_each(|kind| bytes.extend(kind.to_le_bytes()));
        count.iter().for_each(|&count| bytes.extend((count as u64).to_le_bytes()));
    };
    match value {
        Value::U32(_) => start(&[U32], None),
        Value::F32(_) => start(&[F32], None),
        Value::Bool(_) => start(&[BOOL], None),
        Value::Text(_) => start(&[TEXT], None),
        Value::Texts(all) => start(&[ARRAY, TEXT], Some(all.len())),
        Value::I32s(all) => start(&[ARRAY, I32], Some(all.len())),
        Value::F32s(all) => start(&[ARRAY, F32], Some(all.len())),
    }
    match value {
        Value::U32(number) => bytes.extend(number.to_le_bytes()),
        Value::F32(number) => bytes.extend(number.to_le_bytes()),
        Value::Bool(flag) => bytes.push(u8::from(*flag)),
        Value::Text(text) => put_text(bytes, text),
        Value::Texts(all) => all.iter().for_each(|text| put_text(bytes, text)),
        Value::I32s(all) => all.iter().for_each(|number| bytes.extend(number.to_le_bytes())),
        Value::F32s(all) => all.iter().for_each(|number| bytes.extend(number.to_le_bytes())),
    }
}

/// A value that was read; arrays are not.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Found<'a> {
    Number(f64),
    Bool(bool),
    Text(&'a str),
    /// Type of the elements, number of them, and the bytes that begin with the first.
    Array(u32, u64, &'a [u8]),
}

/// A tensor that was read: its bytes lie within the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Info {
    pub(crate) name: String,
    pub(crate) kind: Type,
    /// Slowest first, at least one.
    pub(crate) shape: Vec<usize>,
    /// Offset in the file.
    pub(crate) offset: usize,
    pub(crate) bytes: usize,
}

/// What a file's header says.
pub(crate) struct Header<'a> {
    pub(crate) pairs: BTreeMap<&'a str, Found<'a>>,
    pub(crate) tensors: Vec<Info>,
}

impl<'a> Header<'a> {
    /// Parses a file's header. Whatever it claims is checked against the file before memory is taken for it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Header<'a>, String> {
        let mut cursor = Cursor { bytes, position: 0 };
        if cursor.take(4)? != MAGIC {
            return Err("does not begin with GGUF; expected a GGUF file, or a folder".to_owned());
        }
        let version = cursor.u32()?;
        if !(2..=VERSION).contains(&version) {
            return Err(format!("is GGUF of version {version}; this program reads 2 and 3, little-endian"));
        }
        let (tensors, pairs) = (cursor.u64()?, cursor.u64()?);
        if tensors > MAX_ENTRIES || pairs > MAX_ENTRIES {
            return Err(format!("is said to have {tensors} tensors and {pairs} pairs; the file is damaged"));
        }
        let mut found = BTreeMap::new();
        for _ in 0..pairs {
            let key = cursor.text()?;
            let kind = cursor.u32()?;
            let value = cursor.value(kind).map_err(|reason| format!("key {key}: {reason}"))?;
            if found.insert(key, value).is_some() {
                return Err(format!("key {key} is there twice; the file is damaged"));
            }
        }
        let infos: Vec<_> = (0..tensors).map(|_| cursor.info()).collect::<Result<_, _>>()?;
        let alignment = match found.get(KEY_ALIGNMENT) {
            None => ALIGNMENT,
            Some(&Found::Number(n)) if (1.0..=65536.0).contains(&n) && (n as usize).is_power_of_two() => n as usize,
            Some(other) => return Err(format!("key {KEY_ALIGNMENT} is {other:?}; the file is damaged")),
        };
        let data = cursor.position.next_multiple_of(alignment);
        let mut names = BTreeSet::new();
        let mut tensors = Vec::new();
        for (name, kind, shape, offset) in infos {
            let info = place(&name, kind, shape, offset, data, bytes.len())
                .map_err(|reason| format!("tensor {name}: {reason}"))?;
            if !names.insert(name) {
                return Err(format!("tensor {} is there twice; the file is damaged", info.name));
            }
            tensors.push(info);
        }
        check_overlaps(&tensors)?;
        Ok(Header { pairs: found, tensors })
    }

    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        match self.pairs.get(key) {
            Some(Found::Text(text)) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn number(&self, key: &str) -> Option<f64> {
        match self.pairs.get(key) {
            Some(Found::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// A whole number that fits.
    pub(crate) fn count(&self, key: &str) -> Option<u64> {
        self.number(key).filter(|number| number.fract() == 0.0 && (0.0..9e15).contains(number)).map(|n| n as u64)
    }

    /// Elements of an array.
    pub(crate) fn length(&self, key: &str) -> Option<u64> {
        match self.pairs.get(key) {
            Some(Found::Array(_, count, _)) => Some(*count),
            _ => None,
        }
    }
}

/// Checks that a tensor is of a known type and lies within the file.
fn place(name: &str, kind: u32, shape: Vec<usize>, offset: u64, data: usize, length: usize) -> Result<Info, String> {
    let kind = Type::of(kind).ok_or_else(|| {
        format!("is of ggml's type {kind}; known are F32, F16, BF16, Q8_0 and MXFP4, of which codes can be taken over")
    })?;
    let damaged = || "does not lie within the file; the file is damaged".to_owned();
    let (&columns, leading) = shape.split_last().ok_or_else(damaged)?;
    let rows = leading.iter().try_fold(1usize, |rows, &size| rows.checked_mul(size)).ok_or_else(damaged)?;
    let row = kind.row_bytes(columns).ok_or_else(|| format!("has rows of {columns} values, no multiple of 32"))?;
    let bytes = rows.checked_mul(row).ok_or_else(damaged)?;
    let offset = usize::try_from(offset).ok().and_then(|offset| offset.checked_add(data)).ok_or_else(damaged)?;
    match offset.checked_add(bytes) {
        Some(end) if end <= length && bytes > 0 => Ok(Info { name: name.to_owned(), kind, shape, offset, bytes }),
        _ => Err(damaged()),
    }
}

/// Refuses tensors that share bytes: what is made of a file would be any number of times as large.
fn check_overlaps(tensors: &[Info]) -> Result<(), String> {
    let mut sorted: Vec<&Info> = tensors.iter().collect();
    sorted.sort_by_key(|info| info.offset);
    match sorted.windows(2).find(|pair| pair[0].offset + pair[0].bytes > pair[1].offset) {
        None => Ok(()),
        Some(pair) => Err(format!("tensors {} and {} overlap; the file is damaged", pair[0].name, pair[1].name)),
    }
}

/// Reads a header from its beginning.
struct Cursor<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: u64) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.position..];
        let taken = usize::try_from(count).ok().and_then(|count| rest.get(..count));
        let taken = taken.ok_or("ends within its header; fetch it again")?;
        self.position += taken.len();
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        self.take(N as u64)?.try_into().map_err(|_| "ends within its header; fetch it again".to_owned())
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn text(&mut self) -> Result<&'a str, String> {
        let length = self.u64()?;
        std::str::from_utf8(self.take(length)?).map_err(|_| "has a text that is not UTF-8; it is damaged".to_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Found<'a>, String> {
        Ok(match kind {
            0 => Found::Number(f64::from(self.array::<1>()?[0])),
            1 => Found::Number(f64::from(i8::from_le_bytes(self.array()?))),
            2 => Found::Number(f64::from(u16::from_le_bytes(self.array()?))),
            3 => Found::Number(f64::from(i16::from_le_bytes(self.array()?))),
            U32 => Found::Number(f64::from(self.u32()?)),
            I32 => Found::Number(f64::from(i32::from_le_bytes(self.array()?))),
            F32 => Found::Number(f64::from(f32::from_le_bytes(self.array()?))),
            BOOL => Found::Bool(self.array::<1>()?[0] != 0),
            TEXT => Found::Text(self.text()?),
            10 => Found::Number(self.u64()? as f64),
            11 => Found::Number(i64::from_le_bytes(self.array()?) as f64),
            12 => Found::Number(f64::from_le_bytes(self.array()?)),
            ARRAY => {
                let (kind, count) = (self.u32()?, self.u64()?);
                let start = self.position;
                match width(kind) {
                    Some(width) => drop(self.take(count.checked_mul(width).ok_or("is longer than the file")?)?),
                    // Each text takes bytes of the file, so the loop ends with it.
                    None if kind == TEXT => (0..count).try_for_each(|_| self.text().map(|_| ()))?,
                    None => return Err(format!("is an array of the type {kind}, which is not known here")),
                }
                Found::Array(kind, count, &self.bytes[start..self.position])
            }
            other => return Err(format!("is of the type {other}, which is none of GGUF")),
        })
    }

    fn info(&mut self) -> Result<(String, u32, Vec<usize>, u64), String> {
        let name = self.text()?.to_owned();
        let dimensions = self.u32()?;
        if !(1..=MAX_DIMENSIONS).contains(&dimensions) {
            return Err(format!("tensor {name}: has {dimensions} dimensions; the file is damaged"));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = usize::try_from(self.u64()?).map_err(|_| format!("tensor {name}: is larger than memory"))?;
            shape.insert(0, size);
        }
        Ok((name, self.u32()?, shape, self.u64()?))
    }
}

/// Bytes of a value of a type, if all have as many.
fn width(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | BOOL => 1,
        2 | 3 => 2,
        U32 | I32 | F32 => 4,
        10..=12 => 8,
        _ => return None,
    })
}
