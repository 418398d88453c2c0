//! Records of a data file: JSON lines or Parquet rows, as ordered maps from column to value.

use bytes::Bytes;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use serde_json::{Map, Value};

use crate::Error;
use crate::files::File;

/// One record with the column accessors the tasks need. Accessors fail with the reason, said to the user.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record(pub(crate) Map<String, Value>);

impl Record {
    pub(crate) fn has(&self, column: &str) -> bool {
        self.0.contains_key(column)
    }

    pub(crate) fn value(&self, column: &str) -> Result<&Value, String> {
        self.0.get(column).ok_or_else(|| {
            let present: Vec<&str> = self.0.keys().map(String::as_str).collect();
            format!("field `{column}` is missing; the record has: {}", present.join(", "))
        })
    }

    pub(crate) fn text(&self, column: &str) -> Result<&str, String> {
        text(self.value(column)?, column)
    }

    /// A non-empty list of texts.
    pub(crate) fn texts(&self, column: &str) -> Result<Vec<String>, String> {
        texts(self.value(column)?, column)
    }

    /// A whole number below `count`, written as a number or as digits.
    pub(crate) fn index(&self, column: &str, count: usize) -> Result<usize, String> {
        let value = self.value(column)?;
        let number = match value {
            Value::Number(number) => number.as_u64(),
            Value::String(digits) => digits.parse().ok(),
            _ => None,
        };
        number.and_then(|number| usize::try_from(number).ok()).filter(|&number| number < count).ok_or_else(|| {
            format!("field `{column}` must be the index of the right choice, 0 to {}; found {value}", count - 1)
        })
    }
}

/// `value` as a text; `column` names it in the reason.
pub(crate) fn text<'a>(value: &'a Value, column: &str) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("field `{column}` must be a text; found {value}"))
}

/// `value` as a non-empty list of texts; `column` names it in the reason.
pub(crate) fn texts(value: &Value, column: &str) -> Result<Vec<String>, String> {
    match value.as_array() {
        Some(list) if !list.is_empty() => list.iter().map(|item| text(item, column).map(str::to_owned)).collect(),
        _ => Err(format!("field `{column}` must be a list of at least one text; found {value}")),
    }
}

/// The records of a `.jsonl` or `.parquet` file, each with its line (or row), from 1. Blank lines are passed over.
pub(crate) fn read_records(file: &File) -> Result<Vec<(usize, Record)>, Error> {
    let bytes = file.read()?;
    let records = if file.name().to_ascii_lowercase().ends_with(".parquet") {
        parquet_records(file, Bytes::from(bytes.into_owned()))?
    } else {
        json_records(file, &bytes)?
    };
    if records.is_empty() {
        return Err(Error::Record { file: file.label.clone(), line: 1, reason: "the file holds no record".to_owned() });
    }
    Ok(records)
}

/// The lines of a text file, each with its number from 1. The last line may lack its line feed.
pub(crate) fn text_lines<'a>(file: &File, bytes: &'a [u8]) -> Result<Vec<(usize, &'a str)>, Error> {
    let lines = bytes.split(|&byte| byte == b'\n').enumerate();
    let lines = lines.map(|(index, line)| {
        let line_number = index + 1;
        let text = std::str::from_utf8(line).map_err(|_| Error::Record {
            file: file.label.clone(),
            line: line_number,
            reason: "the line is not UTF-8; convert the file".to_owned(),
        })?;
        Ok((line_number, text.strip_suffix('\r').unwrap_or(text)))
    });
    let mut lines = lines.collect::<Result<Vec<_>, Error>>()?;
    lines.retain(|(_, text)| !text.trim().is_empty());
    Ok(lines)
}

fn json_records(file: &File, bytes: &[u8]) -> Result<Vec<(usize, Record)>, Error> {
    let lines = text_lines(file, bytes)?.into_iter();
    lines
        .map(|(line, text)| match serde_json::from_str(text) {
            Ok(map) => Ok((line, Record(map))),
            Err(error) => Err(Error::Record {
                file: file.label.clone(),
                line,
                reason: format!("expected one JSON object per line: {error}"),
            }),
        })
        .collect()
}

fn parquet_records(file: &File, bytes: Bytes) -> Result<Vec<(usize, Record)>, Error> {
    let unusable = |error: parquet::errors::ParquetError| Error::File {
        file: file.label.clone(),
        reason: format!("not a usable Parquet file: {error}"),
    };
    let reader = SerializedFileReader::new(bytes).map_err(unusable)?;
    let rows = reader.get_row_iter(None).map_err(unusable)?.enumerate();
    rows.map(|(index, row)| {
        let record = row
            .map_err(|error| error.to_string())
            .and_then(|row| row_to_map(&row))
            .map_err(|reason| Error::Record { file: file.label.clone(), line: index + 1, reason })?;
        Ok((index + 1, Record(record)))
    })
    .collect()
}

fn row_to_map(row: &Row) -> Result<Map<String, Value>, String> {
    row.get_column_iter().map(|(name, field)| Ok((name.clone(), field_to_json(name, field)?))).collect()
}

/// The column types that occur in task data; any other is refused rather than guessed at.
fn field_to_json(name: &str, field: &Field) -> Result<Value, String> {
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => (*value).into(),
        Field::Byte(value) => (*value).into(),
        Field::Short(value) => (*value).into(),
        Field::Int(value) => (*value).into(),
        Field::Long(value) => (*value).into(),
        Field::UByte(value) => (*value).into(),
        Field::UShort(value) => (*value).into(),
        Field::UInt(value) => (*value).into(),
        Field::ULong(value) => (*value).into(),
        Field::Str(value) => value.as_str().into(),
        Field::Group(row) => Value::Object(row_to_map(row)?),
        Field::ListInternal(list) => {
            let items = list.elements().iter().map(|item| field_to_json(name, item));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        other => return Err(format!("column `{name}` has a type this task does not use: {other}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Files;

    fn records(text: &'static str) -> Result<Vec<(usize, Record)>, Error> {
        let files = Files::from_memory("memory", [("a.jsonl", text.as_bytes())]);
        read_records(&files.list()[0])
    }

    #[test]
    fn lines_are_numbered_and_blank_ones_passed_over() {
        let found = records("{\"b\":1,\"a\":2}\r\n\n{\"c\":3}").unwrap();
        assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 3]);
        assert_eq!(found[0].1.0.keys().collect::<Vec<_>>(), ["b", "a"]);
    }

    #[test]
    fn a_line_inside_a_json_string_is_kept_whole() {
        let found = records("{\"a\":\"x\u{2028}y\u{85}z\"}\n").unwrap();
        assert_eq!(found[0].1.text("a").unwrap(), "x\u{2028}y\u{85}z");
    }

    #[test]
    fn bad_files_are_named_with_their_line() {
        assert_eq!(records("").unwrap_err().to_string(), "memory/a.jsonl:1: the file holds no record");
        assert!(
            records("{}\n[1]\n").unwrap_err().to_string().starts_with("memory/a.jsonl:2: expected one JSON object")
        );
        let files = Files::from_memory("memory", [("a.jsonl", b"{}\n\xff\n".as_slice()), ("b.parquet", b"PAR1")]);
        assert!(read_records(&files.list()[0]).unwrap_err().to_string().contains("a.jsonl:2: the line is not UTF-8"));
        assert!(read_records(&files.list()[1]).unwrap_err().to_string().contains("not a usable Parquet file"));
    }

    #[test]
    fn accessors_say_what_is_wrong() {
        let record = records(r#"{"a":1,"list":[],"digits":"1","far":7}"#).unwrap().remove(0).1;
        assert_eq!(record.text("x").unwrap_err(), "field `x` is missing; the record has: a, list, digits, far");
        assert_eq!(record.text("a").unwrap_err(), "field `a` must be a text; found 1");
        assert!(record.texts("list").is_err());
        assert_eq!(record.index("digits", 2).unwrap(), 1);
        assert_eq!(
            record.index("far", 2).unwrap_err(),
            "field `far` must be the index of the right choice, 0 to 1; found 7"
        );
    }
}
