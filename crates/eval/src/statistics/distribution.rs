//! The distributions the tests need: normal, Student's t, binomial.

/// Quantiles of the standard normal distribution that planning a test takes.
pub(super) const Z_80: f64 = 0.841_621_233_572_914_3;
pub(super) const Z_95: f64 = 1.644_853_626_951_472_2;
pub(super) const Z_975: f64 = 1.959_963_984_540_054;

/// P(Z > z) for a standard normal Z.
pub(super) fn normal_above(z: f64) -> f64 {
    0.5 * libm::erfc(z * std::f64::consts::FRAC_1_SQRT_2)
}

/// P(T > t) for Student's t with `freedom` degrees of freedom.
pub(super) fn student_above(t: f64, freedom: f64) -> f64 {
    if t.is_nan() {
        return f64::NAN;
    }
    // P(|T| > |t|) is the incomplete beta function at ν / (ν + t²); squares beyond the largest double leave 0.
    let tail = 0.5 * incomplete_beta(freedom / (freedom + t * t), 0.5 * freedom, 0.5);
    if t > 0.0 { tail } else { 1.0 - tail }
}

/// The regularized incomplete beta function I_x(a, b).
fn incomplete_beta(x: f64, a: f64, b: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let beta = libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b);
    let front = libm::exp(a * libm::log(x) + b * libm::log1p(-x) - beta);
    // The fraction converges fast on one side of the mean; the other is its mirror image.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * fraction(x, a, b) / a
    } else {
        1.0 - front * fraction(1.0 - x, b, a) / b
    }
}

/// The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method.
fn fraction(x: f64, a: f64, b: f64) -> f64 {
    let away_from_zero = |v: f64| if v.abs() < 1e-300 { 1e-300 } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / away_from_zero(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for m in 1..10_000 {
        let m = f64::from(m);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut step = 1.0;
        for term in [even, odd] {
            d = 1.0 / away_from_zero(1.0 + term * d);
            c = away_from_zero(1.0 + term / c);
            step = c * d;
            value *= step;
        }
        if (step - 1.0).abs() < 1e-16 {
            break;
        }
    }
    value
}

/// The binomial distribution of `n` trials of probability `p`, to draw from.
pub(super) struct Binomial {
    /// The smallest outcome kept; what lies below has a probability under 2⁻⁶⁰ in all.
    first: usize,
    /// P(X ≤ first + i).
    cumulated: Vec<f64>,
}

impl Binomial {
    pub(super) fn new(n: usize, p: f64) -> Self {
        if n == 0 || p <= 0.0 || p >= 1.0 {
            return Binomial { first: if p >= 1.0 { n } else { 0 }, cumulated: vec![1.0] };
        }
        let (trials, odds) = (n as f64, p / (1.0 - p));
        let mode = (((trials + 1.0) * p) as usize).min(n);
        let k = mode as f64;
        let log = libm::lgamma(trials + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(trials - k + 1.0)
            + k * libm::log(p)
            + (trials - k) * libm::log1p(-p);
        let at_mode = libm::exp(log);
        let negligible = at_mode * 1e-22;
        let mut below = vec![at_mode];
        for i in (1..=mode).rev() {
            let i = i as f64;
            let next = below[below.len() - 1] * i / ((trials - i + 1.0) * odds);
            if next < negligible {
                break;
            }
            below.push(next);
        }
        let first = mode + 1 - below.len();
        below.reverse();
        for i in mode..n {
            let i = i as f64;
            let next = below[below.len() - 1] * (trials - i) * odds / (i + 1.0);
            if next < negligible {
                break;
            }
            below.push(next);
        }
        let mut sum = 0.0;
        let cumulated = below.into_iter().map(|p| {
            sum += p;
            sum
        });
        Binomial { first, cumulated: cumulated.collect() }
    }

    /// The smallest outcome x with P(X ≤ x) > `uniform`, which lies in [0, 1).
    pub(super) fn draw(&self, uniform: f64) -> usize {
        let at = self.cumulated.partition_point(|&c| c <= uniform);
        self.first + at.min(self.cumulated.len() - 1)
    }
}
