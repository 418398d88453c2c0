//! What quantization cost each tensor, as a table or as JSON.

use comfy_table::{CellAlignment, Table, presets};
use microscale_model::{TensorReport, WorstBlock};
use serde_json::{Value, json};

/// A table without lines, whose first `texts` columns stand left and whose numbers stand right.
pub(crate) fn plain(heads: &[&str], texts: usize) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heads);
    table.column_iter_mut().skip(texts).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

/// Decibels; "exact" without any error.
pub(crate) fn decibels(db: f64) -> String {
    if db.is_infinite() && db > 0.0 { "exact".to_owned() } else { format!("{db:.2}") }
}

/// Decibels; JSON has no infinity.
pub(crate) fn json_decibels(db: f64) -> Value {
    if db.is_finite() { json!(db) } else { Value::Null }
}

pub(crate) fn table(tensors: &[TensorReport]) -> String {
    let mut table =
        plain(&["TENSOR", "FORMAT", "RULE", "SQNR dB", "CLIPPED %", "NOT FINITE", "WORST BLOCKS (row:block dB)"], 3);
    for tensor in tensors {
        let worst = tensor.worst.iter().map(|w| format!("{}:{} {}", w.row, w.block, decibels(w.sqnr_db)));
        table.add_row([
            tensor.name.clone(),
            tensor.packed.format.element.name().to_owned(),
            tensor.packed.format.scale_rule.name().to_owned(),
            decibels(tensor.sqnr_db),
            format!("{:.3}", 100.0 * tensor.clipped),
            tensor.not_finite.to_string(),
            worst.collect::<Vec<_>>().join(", "),
        ]);
    }
    format!("{}\n", table.trim_fmt())
}

pub(crate) fn json(tensors: &[TensorReport]) -> String {
    let block =
        |w: &WorstBlock| json!({"row": w.row, "block": w.block, "sqnr_db": json_decibels(w.sqnr_db), "max": w.max});
    let tensor = |t: &TensorReport| {
        json!({
            "name": t.name,
            "shape": t.packed.shape,
            "element": t.packed.format.element.name(),
            "block_size": t.packed.format.block_size,
            "scale_rule": t.packed.format.scale_rule.name(),
            "ties": t.packed.ties.name(),
            "sqnr_db": json_decibels(t.sqnr_db),
            "clipped": t.clipped,
            "not_finite_blocks": t.not_finite,
            "worst": t.worst.iter().map(block).collect::<Vec<_>>(),
        })
    };
    format!("{:#}\n", json!({"tensors": tensors.iter().map(tensor).collect::<Vec<_>>()}))
}
