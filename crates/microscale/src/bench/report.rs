//! The measurements as text, Markdown, CSV and JSON.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use super::{Repetition, Timing};

/// Measurements and what they are held against.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Where they were taken.
    pub machine: Machine,
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
    /// The mean of each.
    pub fn mean(self, other: Peaks) -> Peaks {
        Peaks { read: self.read.midpoint(other.read), products: self.products.midpoint(other.products) }
    }

    fn median(all: impl Iterator<Item = Peaks>) -> Peaks {
        let (read, products): (Vec<f64>, Vec<f64>) = all.map(|peaks| (peaks.read, peaks.products)).unzip();
        Peaks { read: median(&read), products: median(&products) }
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
    /// Each repetition's part of what the machine could do then, the median of these.
    share_of_read: f64,
    share_of_products: f64,
}

impl Timing {
    fn rates(&self) -> Rates {
        let rate = |r: &Repetition| self.run.tokens as f64 / r.seconds;
        let of_all = |number: &dyn Fn(&Repetition) -> f64| self.repetitions.iter().map(number).collect::<Vec<f64>>();
        let all = of_all(&rate);
        let median = median(&all);
        Rates {
            median,
            min: all.iter().copied().fold(f64::NAN, f64::min),
            max: all.iter().copied().fold(f64::NAN, f64::max),
            bytes: median * self.bytes_per_token,
            operations: median * self.operations_per_token,
            share_of_read: self::median(&of_all(&|r| rate(r) * self.bytes_per_token / r.peaks.read)),
            share_of_products: self::median(&of_all(&|r| rate(r) * self.operations_per_token / r.peaks.products)),
            all,
        }
    }

    /// The median of what the machine could do beside.
    fn peaks(&self) -> Peaks {
        Peaks::median(self.repetitions.iter().map(|r| r.peaks))
    }
}

/// Of an even number the mean of the two in the middle; NaN of none.
fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    at(sorted.len().saturating_sub(1) / 2).midpoint(at(sorted.len() / 2))
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
             bits_per_weight,gb_s,gflop_s,read_peak_gb_s,bf16_peak_gflop_s,share_of_read_peak,share_of_bf16_peak,load_s,\
             peak_memory_bytes\n",
        );
        for entry in &self.results {
            let (timing, rates, peaks) = (&entry.timing, entry.timing.rates(), entry.timing.peaks());
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
                peaks.read / 1e9,
                peaks.products / 1e9,
                rates.share_of_read,
                rates.share_of_products,
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
        let peaks = self.peaks();
        json!({
            "machine": { "cpu": self.machine.cpu, "isa": self.machine.isa, "threads": self.machine.threads },
            "version": env!("CARGO_PKG_VERSION"),
            "peaks": { "read_gb_s": peaks.read / 1e9, "bf16_gflop_s": peaks.products / 1e9 },
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
            "share_of_read_peak": rates.share_of_read,
            "share_of_bf16_peak": rates.share_of_products,
            "peaks_beside": {
                "read_gb_s": timing.repetitions.iter().map(|r| r.peaks.read / 1e9).collect::<Vec<_>>(),
                "bf16_gflop_s": timing.repetitions.iter().map(|r| r.peaks.products / 1e9).collect::<Vec<_>>(),
            },
            "load_s": entry.load_s,
            "peak_memory_bytes": entry.peak_memory_bytes,
        })
    }

    /// What the table shows of a measurement.
    fn cells(&self, entry: &Entry) -> [String; HEADS.len()] {
        let (timing, rates) = (&entry.timing, entry.timing.rates());
        let share = |share: f64| format!("{:.0} %", 100.0 * share);
        [
            entry.model.clone(),
            entry.recipe.clone(),
            format!("{:.2}", timing.bits_per_weight),
            timing.run.to_string(),
            short(rates.median),
            short(rates.min),
            short(rates.max),
            short(rates.bytes / 1e9),
            share(rates.share_of_read),
            short(rates.operations / 1e9),
            share(rates.share_of_products),
            entry.peak_memory_bytes.map_or("–".to_owned(), |bytes| format!("{:.2} GB", bytes as f64 / 1e9)),
        ]
    }

    /// The median of what the machine could do beside all repetitions.
    fn peaks(&self) -> Peaks {
        Peaks::median(self.results.iter().flat_map(|entry| &entry.timing.repetitions).map(|r| r.peaks))
    }

    fn below(&self) -> String {
        let repetitions = self.results.first().map_or(0, |entry| entry.timing.repetitions.len());
        let peaks = self.peaks();
        format!(
            "median of {repetitions}; GB/s of packed weights read, GFLOP/s of products; peaks before and after each \
             repetition {} GB/s, {} GFLOP/s (median); {}, {}, {} threads; microscale {}",
            short(peaks.read / 1e9),
            short(peaks.products / 1e9),
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
        let at = |seconds, read: f64| {
            let second = Peaks { read: 2.0 * read, products: 4e9 };
            Repetition { seconds, peaks: Peaks { read: 0.0, products: 44e9 }.mean(second) }
        };
        let timing = Timing {
            run,
            repetitions: vec![at(2.0, 4e9), at(1.0, 16e9), at(4.0, 8e9), at(8.0, 1e9)],
            bytes_per_token: 1e9,
            operations_per_token: 4e9,
            bits_per_weight: 6.25,
        };
        Report {
            machine: Machine { cpu: "a CPU".to_owned(), isa: "scalar".to_owned(), threads: 2 },
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
        // Of the repetitions 4 of 4, 8 of 16, 2 of 8 and 1 of 1 GB/s.
        assert_eq!((&result["share_of_read_peak"], &result["share_of_bf16_peak"]), (&json!(0.75), &json!(0.5)));
        assert_eq!(result["peaks_beside"]["read_gb_s"], json!([4.0, 16.0, 8.0, 1.0]));
        assert_eq!((&result["phase"], &result["peak_memory_bytes"]), (&json!("decode"), &Value::Null));
        assert_eq!(json["peaks"], json!({"read_gb_s": 6.0, "bf16_gflop_s": 24.0}), "medians");
        let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["machine", "version", "peaks", "results"]);
    }

    #[test]
    fn every_form_has_a_line_per_result() {
        let report = sample();
        let text = report.to_text();
        assert!(
            text.contains("decode 8 after 3")
                && text.contains("75 %")
                && text.contains("50 %")
                && text.contains("a CPU"),
            "{text}"
        );
        let csv = report.to_csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert!(lines.len() == 2 && lines[1].starts_with("m,\"proj=fp6/fp8,mlp=fp4\",decode,8,3,2,scalar,3,1,8,"));
        assert_eq!(lines[0].split(',').count() + 1, lines[1].split(',').count(), "a quoted comma");
        assert_eq!(report.to_markdown().lines().next().unwrap().matches('|').count(), HEADS.len() + 1);
    }
}
