//! The measurements as text, Markdown, CSV and JSON.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::Timing;

/// Measurements and what they are held against.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Where they were taken.
    pub machine: Machine,
    /// The most that the machine did.
    pub peaks: Peaks,
    /// The measurements, in the order they were taken.
    pub results: Vec<Entry>,
}

/// The machine as the run used it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// The instruction set in use.
    pub isa: String,
    /// Threads in use.
    pub threads: usize,
}

/// The rates of [`microscale_tensor::peaks`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Peaks {
    /// Bytes per second read from memory.
    pub read: f64,
    /// Floating-point operations per second in products.
    pub products: f64,
}

impl Peaks {
    /// The larger of each.
    pub fn max(self, other: Peaks) -> Peaks {
        Peaks { read: self.read.max(other.read), products: self.products.max(other.products) }
    }
}

/// One line of the report.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The model's name.
    pub model: String,
    /// The recipe's name.
    pub recipe: String,
    /// What was timed.
    pub timing: Timing,
    /// Seconds to read and quantize the model.
    pub load_s: f64,
    /// The most memory the process held with this model; `None` where the system does not say.
    pub peak_memory_bytes: Option<u64>,
}

/// What follows from the times.
struct Rates {
    /// Tokens per second of each repetition.
    all: Vec<f64>,
    median: f64,
    min: f64,
    max: f64,
    /// Bytes and operations per second, at the median.
    bytes: f64,
    operations: f64,
}

impl Timing {
    fn rates(&self) -> Rates {
        let all: Vec<f64> = self.seconds.iter().map(|seconds| self.run.tokens as f64 / seconds).collect();
        let mut sorted = all.clone();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted.len().saturating_sub(1) / 2, sorted.len() / 2);
        let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
        let median = (at(low) + at(high)) / 2.0;
        Rates {
            median,
            min: at(0),
            max: at(sorted.len().saturating_sub(1)),
            bytes: median * self.bytes_per_token,
            operations: median * self.operations_per_token,
            all,
        }
    }
}

const HEADS: [&str; 12] = [
    "MODEL",
    "RECIPE",
    "BITS/WEIGHT",
    "RUN",
    "TOKENS/S",
    "MIN",
    "MAX",
    "GB/S",
    "OF PEAK",
    "GFLOP/S",
    "OF PEAK",
    "MEMORY",
];
/// Columns of words, which stand to the left.
const WORDS: [usize; 3] = [0, 1, 3];

impl Report {
    /// A table for people, with the peaks and the machine below.
    pub fn to_text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(HEADS);
        for entry in &self.results {
            table.add_row(self.cells(entry));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            if !WORDS.contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        format!("{}\n\n{}\n", table.trim_fmt(), self.below())
    }

    /// The same in Markdown.
    pub fn to_markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | ").replace('\n', " "));
        let rules = (0..HEADS.len()).map(|i| if WORDS.contains(&i) { ":--" } else { "--:" }.to_owned());
        let mut text = line(&HEADS.map(str::to_owned)) + &line(&rules.collect::<Vec<_>>());
        for entry in &self.results {
            text += &line(&self.cells(entry).map(|cell| cell.replace('|', "\\|")));
        }
        format!("{text}\n{}\n", self.below())
    }

    /// One line per measurement, all numbers in full; those of the machine are repeated in each.
    pub fn to_csv(&self) -> String {
        let mut text = String::from(
            "model,recipe,phase,tokens,context,threads,isa,tokens_per_s,tokens_per_s_min,tokens_per_s_max,bytes_per_token,\
             bits_per_weight,gb_s,gflop_s,read_peak_gb_s,bf16_peak_gflop_s,load_s,peak_memory_bytes\n",
        );
        for entry in &self.results {
            let (timing, rates) = (&entry.timing, entry.timing.rates());
            let names = [quote(&entry.model), quote(&entry.recipe), timing.run.phase.name().to_owned()];
            let counts = [timing.run.tokens, timing.run.context, self.machine.threads].map(|n| n.to_string());
            let numbers = [
                rates.median,
                rates.min,
                rates.max,
                timing.bytes_per_token,
                timing.bits_per_weight,
                rates.bytes / 1e9,
                rates.operations / 1e9,
                self.peaks.read / 1e9,
                self.peaks.products / 1e9,
                entry.load_s,
            ];
            let mut cells: Vec<String> = names.into_iter().chain(counts).collect();
            cells.push(self.machine.isa.clone());
            cells.extend(numbers.map(|number| number.to_string()));
            cells.push(entry.peak_memory_bytes.map(|bytes| bytes.to_string()).unwrap_or_default());
            text += &(cells.join(",") + "\n");
        }
        text
    }

    /// Everything, for programs. Giga is 10⁹.
    pub fn to_json(&self) -> Value {
        json!({
            "machine": { "cpu": self.machine.cpu, "isa": self.machine.isa, "threads": self.machine.threads },
            "version": env!("CARGO_PKG_VERSION"),
            "peaks": { "read_gb_s": self.peaks.read / 1e9, "bf16_gflop_s": self.peaks.products / 1e9 },
            "results": self.results.iter().map(|entry| self.result(entry)).collect::<Vec<_>>(),
        })
    }

    fn result(&self, entry: &Entry) -> Value {
        let (timing, rates) = (&entry.timing, entry.timing.rates());
        json!({
            "model": entry.model,
            "recipe": entry.recipe,
            "phase": timing.run.phase.name(),
            "tokens": timing.run.tokens,
            "context": timing.run.context,
            "threads": self.machine.threads,
            "tokens_per_s": { "median": rates.median, "min": rates.min, "max": rates.max, "all": rates.all },
            "bytes_per_token": timing.bytes_per_token,
            "bits_per_weight": timing.bits_per_weight,
            "gb_s": rates.bytes / 1e9,
            "gflop_s": rates.operations / 1e9,
            "share_of_read_peak": rates.bytes / self.peaks.read,
            "share_of_bf16_peak": rates.operations / self.peaks.products,
            "load_s": entry.load_s,
            "peak_memory_bytes": entry.peak_memory_bytes,
        })
    }

    /// What the table shows of a measurement.
    fn cells(&self, entry: &Entry) -> [String; HEADS.len()] {
        let (timing, rates) = (&entry.timing, entry.timing.rates());
        let share = |rate: f64, peak: f64| format!("{:.0} %", 100.0 * rate / peak);
        [
            entry.model.clone(),
            entry.recipe.clone(),
            format!("{:.2}", timing.bits_per_weight),
            timing.run.to_string(),
            short(rates.median),
            short(rates.min),
            short(rates.max),
            short(rates.bytes / 1e9),
            share(rates.bytes, self.peaks.read),
            short(rates.operations / 1e9),
            share(rates.operations, self.peaks.products),
            entry.peak_memory_bytes.map_or("–".to_owned(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9)),
        ]
    }

    fn below(&self) -> String {
        let repetitions = self.results.first().map_or(0, |entry| entry.timing.seconds.len());
        format!(
            "median of {repetitions}; GB/s of packed weights read, GFLOP/s of products; peaks {} GB/s, {} GFLOP/s, measured \
             beside; {}, {}, {} threads; microscale {}",
            short(self.peaks.read / 1e9),
            short(self.peaks.products / 1e9),
            self.machine.cpu,
            self.machine.isa,
            self.machine.threads,
            env!("CARGO_PKG_VERSION"),
        )
    }
}

/// Three or more significant digits.
fn short(number: f64) -> String {
    match number.abs() {
        n if n < 10.0 => format!("{number:.2}"),
        n if n < 100.0 => format!("{number:.1}"),
        _ => format!("{number:.0}"),
    }
}

/// A cell of comma-separated values; the names of inline recipes have commas.
fn quote(cell: &str) -> String {
    if cell.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::{Phase, Run};
    use super::*;

    fn sample() -> Report {
        let run = Run { phase: Phase::Decode, tokens: 8, context: 3 };
        let timing = Timing {
            run,
            seconds: vec![2.0, 1.0, 4.0, 8.0],
            bytes_per_token: 1e9,
            operations_per_token: 4e9,
            bits_per_weight: 6.25,
        };
        Report {
            machine: Machine { cpu: "a CPU".to_owned(), isa: "scalar".to_owned(), threads: 2 },
            peaks: Peaks { read: 6e9, products: 1e9 }.max(Peaks { read: 5e9, products: 24e9 }),
            results: vec![Entry {
                model: "m".to_owned(),
                recipe: "proj=fp6/fp8,mlp=fp4".to_owned(),
                timing,
                load_s: 0.5,
                peak_memory_bytes: None,
            }],
        }
    }

    #[test]
    fn rates_are_those_of_the_median() {
        let json = sample().to_json();
        let result = &json["results"][0];
        assert_eq!(result["tokens_per_s"], json!({"median": 3.0, "min": 1.0, "max": 8.0, "all": [4.0, 8.0, 2.0, 1.0]}));
        assert_eq!((&result["gb_s"], &result["gflop_s"]), (&json!(3.0), &json!(12.0)));
        assert_eq!((&result["share_of_read_peak"], &result["share_of_bf16_peak"]), (&json!(0.5), &json!(0.5)));
        assert_eq!((&result["phase"], &result["peak_memory_bytes"]), (&json!("decode"), &Value::Null));
        assert_eq!(json["peaks"], json!({"read_gb_s": 6.0, "bf16_gflop_s": 24.0}));
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["machine", "version", "peaks", "results"]);
    }

    #[test]
    fn every_form_has_a_line_per_result() {
        let report = sample();
        let text = report.to_text();
        assert!(text.contains("decode 8 after 3") && text.contains("50 %") && text.contains("a CPU"), "{text}");
        let csv = report.to_csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert!(lines.len() == 2 && lines[1].starts_with("m,\"proj=fp6/fp8,mlp=fp4\",decode,8,3,2,scalar,3,1,8,"));
        assert_eq!(lines[0].split(',').count() + 1, lines[1].split(',').count(), "a quoted comma");
        assert_eq!(report.to_markdown().lines().next().unwrap().matches('|').count(), HEADS.len() + 1);
    }
}
