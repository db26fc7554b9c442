//! Whether a figure grows.

/// What a figure may grow by and still be as good as constant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Allowance {
    /// A part of what it was.
    pub(crate) part: f64,
    /// And so much.
    pub(crate) amount: f64,
}

impl Allowance {
    /// For what is counted: nothing.
    pub(crate) const NONE: Self = Self { part: 0.0, amount: 0.0 };
}

/// The figures of the thirds of a run, without its first tenth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Thirds {
    /// Their medians.
    pub(crate) medians: [f64; 3],
    /// Three times the median deviation from them: what chance does.
    pub(crate) noise: f64,
}

impl Thirds {
    /// Of a figure's samples in their order; `None` of fewer than three that count.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let counted = samples.get(samples.len() / 10..)?;
        let third = counted.len() / 3;
        if third == 0 {
            return None;
        }
        let (first, rest) = counted.split_at_checked(third)?;
        let (middle, last) = rest.split_at_checked(rest.len() - third)?;
        let medians = [first, middle, last].map(median);
        let deviations: Vec<f64> = [first, middle, last]
            .into_iter()
            .zip(medians)
            .flat_map(|(samples, median)| samples.iter().map(move |sample| (sample - median).abs()))
            .collect();
        Some(Self { medians, noise: 3.0 * median(&deviations) })
    }

    /// Whether it has grown beyond noise and allowance to the end: the last third is above the first *and* the middle one. What
    /// is reached early and then kept is no trend.
    pub(crate) fn grows(&self, allowance: Allowance) -> bool {
        let [first, middle, last] = self.medians;
        let above =
            |earlier: f64| last - earlier > self.noise.max(allowance.part * earlier + allowance.amount);
        above(first) && last - middle > self.noise.max((allowance.part * middle + allowance.amount) / 2.0)
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
    f64::midpoint(at(sorted.len().saturating_sub(1) / 2), at(sorted.len() / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grows(samples: &[f64], allowance: Allowance) -> bool {
        Thirds::of(samples).unwrap().grows(allowance)
    }

    /// What a generator of seed 1 makes of the numbers below 10.
    fn noise(count: usize) -> impl Iterator<Item = f64> {
        (0..count as u32).map(|number| f64::from(number.wrapping_mul(2_654_435_761) >> 16 & 0xff) / 25.6)
    }

    #[test]
    fn a_file_more_each_time_is_a_trend() {
        let files: Vec<_> = (0..30).map(f64::from).collect();
        assert!(grows(&files, Allowance::NONE));
    }

    #[test]
    fn noise_is_none() {
        let samples: Vec<_> = noise(60).map(|noise| 100.0 + noise).collect();
        assert!(!grows(&samples, Allowance::NONE));
    }

    #[test]
    fn growth_is_seen_through_noise() {
        let samples: Vec<_> = noise(60).zip(0..).map(|(noise, at)| noise + f64::from(at)).collect();
        assert!(grows(&samples, Allowance::NONE));
    }

    #[test]
    fn what_is_reached_early_and_kept_is_none() {
        let samples: Vec<_> = (0..30).map(|at| if at < 12 { 1.0 } else { 5.0 }).collect();
        assert!(!grows(&samples, Allowance::NONE));
    }

    #[test]
    fn little_growth_is_allowed() {
        let samples: Vec<_> = (0..30).map(|at| 1000.0 + f64::from(at)).collect();
        assert!(!grows(&samples, Allowance { part: 0.05, amount: 0.0 }));
        assert!(grows(&samples, Allowance { part: 0.01, amount: 0.0 }));
    }

    #[test]
    fn too_few_samples_tell_nothing() {
        assert_eq!(Thirds::of(&[1.0, 2.0]), None);
    }
}
