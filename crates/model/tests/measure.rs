//! Comparing, reporting, and telling conventions apart, on small files of known values.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use microscale_formats::{Convention, E2M1, INT8, ScaleRule, Ties};
use microscale_model::{
    Contents, Difference, FileQuantization, Float, Progress, compare, dequantize_file, differ, quantize_file, report,
};
use microscale_tensor::BlockFormat;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A file of matrices with 40 columns.
    fn write(&self, name: &str, tensors: &[(&str, &[f32])]) -> PathBuf {
        let bytes: BTreeMap<&str, Vec<u8>> =
            tensors.iter().map(|(name, x)| (*name, x.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
        let views = bytes
            .iter()
            .map(|(name, bytes)| (*name, TensorView::new(Dtype::F32, vec![bytes.len() / 160, 40], bytes).unwrap()));
        std::fs::write(self.path(name), safetensors::serialize(views, None).unwrap()).unwrap();
        self.path(name)
    }

    fn quantize(&self, source: &Path, name: &str, element: BlockFormat, ties: Ties) -> PathBuf {
        let options = FileQuantization { format: element, ties, unpacked: name == "bytes", select: &|_| true };
        quantize_file(source, &self.path(name), &options, &go_on).unwrap();
        self.path(name)
    }
}

fn values() -> Vec<f32> {
    let mut values: Vec<f32> = (0..120).map(|i| (i % 7) as f32 - 3.0).collect();
    values[0] = 6.0; // the scale of the first block is then 1, under floor too
    (values[1], values[2], values[3]) = (0.25, 0.75, -2.5); // ties of E2M1
    values[40] = 7.5; // clipped to 6 under floor
    values
}

fn found(a: &Path, b: &Path) -> Vec<(String, Option<Difference>)> {
    let found = compare(&Contents::of_file(a).unwrap(), &Contents::of_file(b).unwrap()).unwrap();
    assert_eq!(found.same(), found.tensors.iter().all(|t| t.difference.is_none()));
    found.tensors.into_iter().map(|t| (t.name, t.difference)).collect()
}

#[test]
fn files_are_compared_by_their_values() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let mut x = values();
    (x[7], x[8]) = (f32::NAN, 0.0);
    let a = folder.write("a", &[("w", &x), ("v", &x[..40])]);
    x[8] = -0.0;
    assert_eq!(found(&a, &folder.write("b", &[("w", &x), ("v", &x[..40])])), [("v".into(), None), ("w".into(), None)]);
    (x[50], x[60]) = (x[50] + 0.5, f32::INFINITY);
    let other = found(&a, &folder.write("b", &[("w", &x), ("u", &x[..40]), ("v", &x[..80])]));
    let Some(Difference::Values { values, codes_and_scales: None, max_abs, sqnr_db }) = other[2].1.clone() else {
        panic!("{other:?}")
    };
    let signal: f64 =
        self::values().iter().enumerate().filter(|(i, _)| ![7, 8, 60].contains(i)).map(|(_, x)| f64::from(x * x)).sum();
    assert_eq!((values, max_abs), ([2, 120], 0.5));
    assert!((sqnr_db - 10.0 * microscale_tensor::math::ln(signal / 0.25) / std::f64::consts::LN_10).abs() < 1e-9);
    assert_eq!(other[0], ("u".into(), Some(Difference::Missing)));
    assert_eq!(other[1], ("v".into(), Some(Difference::Shape([vec![1, 40], vec![2, 40]]))));
}

#[test]
fn quantized_files_by_codes_and_scales_too() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let source = folder.write("in", &[("w", &values())]);
    let format = BlockFormat { scale_rule: ScaleRule::Floor, ..E2M1.into() };
    let [even, away, bytes] = [("even", Ties::Even), ("away", Ties::Away), ("bytes", Ties::Even)]
        .map(|(name, ties)| folder.quantize(&source, name, format, ties));
    // 0.25, 0.75 and −2.5 are 0, 1, −2 and 0.5, 1, −3; 5 further ties of 2.5 there are none.
    let expected = Difference::Values { values: [2, 120], codes_and_scales: Some([2, 0]), max_abs: 1.0, sqnr_db: 0.0 };
    let [(_, Some(mut difference))]: [_; 1] = found(&even, &away).try_into().unwrap() else { panic!() };
    if let Difference::Values { sqnr_db, .. } = &mut difference {
        *sqnr_db = 0.0;
    }
    assert_eq!(difference, expected);
    let notes = |path: &Path| {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        header.metadata().as_ref().unwrap()["microscale.tensors"].clone()
    };
    assert!(notes(&away).contains("\"ties\":\"away\"") && !notes(&even).contains("ties"));
    assert_eq!(found(&even, &bytes), [("w".to_owned(), None)], "packed or not, the values are the same");
    dequantize_file(&even, &folder.path("back"), Float::Bf16, &go_on).unwrap();
    assert_eq!(found(&even, &folder.path("back")), [("w".to_owned(), None)]);
    let auto = BlockFormat { scale_rule: ScaleRule::Auto, ..format };
    assert!(notes(&folder.quantize(&source, "auto", auto, Ties::Even)).contains("\"scale_rule\":\"even\""));
}

#[test]
fn a_report_of_known_losses() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let mut x = values();
    x[119] = f32::NAN;
    let source = folder.write("in", &[("w", &x)]);
    let format = BlockFormat { scale_rule: ScaleRule::Floor, ..E2M1.into() };
    let packed = folder.quantize(&source, "out", format, Ties::Even);
    let read = |path: &Path| Contents::of_file(path).unwrap();
    let [tensor]: [_; 1] = report(&read(&source), &read(&packed)).unwrap().try_into().unwrap();
    // Errors: 0.25, 0.25 and 0.5 in the first block; 1.5 in the third, which is clipped; the last one is not finite.
    let noise = 0.0625 + 0.0625 + 0.25 + 2.25;
    let signal: f64 = x[..112].iter().map(|x| f64::from(x * x)).sum();
    let db = |ratio: f64| 10.0 * microscale_tensor::math::ln(ratio) / std::f64::consts::LN_10;
    assert!((tensor.sqnr_db - db(signal / noise)).abs() < 1e-9, "{tensor:?}");
    assert_eq!((tensor.clipped, tensor.not_finite, tensor.worst.len()), (1.0 / 120.0, 1, 2));
    assert_eq!((tensor.worst[0].row, tensor.worst[0].block, tensor.worst[0].max), (1, 0, 7.5));
    let energy: f64 = x[40..72].iter().map(|x| f64::from(x * x)).sum();
    assert!((tensor.worst[0].sqnr_db - db(energy / 2.25)).abs() < 1e-9);
    let other = folder.write("other", &[("v", &x)]);
    assert!(report(&read(&other), &read(&packed)).unwrap_err().to_string().contains("tensor w: the original has no"));
    assert!(report(&read(&source), &read(&source)).unwrap().is_empty());
}

#[test]
fn conventions_differ_where_they_should() {
    let folder = Folder(tempfile::tempdir().unwrap());
    let source = folder.write("in", &[("w", &values()), ("v", &values()[..40])]);
    let of = |name| Convention::from_name(name).unwrap();
    let counts = |element, a, b, tensor: &'static str| {
        let found = differ(&source, (element, 32), [of(a), of(b)], &|name| name == tensor).unwrap();
        assert_eq!((found.len(), found[0].name.as_str()), (1, tensor));
        (found[0].scales, found[0].codes)
    };
    assert_eq!(counts(E2M1, "ocp", "torchao-floor", "w"), ([0, 6], [0, 120]));
    assert_eq!(counts(E2M1, "ocp", "microxcaling", "v"), ([0, 2], [2, 40]));
    assert_eq!(counts(E2M1, "ocp", "ggml", "v"), ([0, 2], [1, 40]));
    assert_eq!(counts(E2M1, "ocp", "quark", "w").0, [1, 6], "7.5 rounds up");
    assert!(counts(INT8, "ocp", "mistralrs", "w").0[0] > 0);
    let none = differ(&source, (E2M1, 32), [of("ocp"), of("ggml")], &|_| false);
    assert!(none.unwrap_err().to_string().contains("no float matrix"));
}
