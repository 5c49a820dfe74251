//! Samples of one quantity, and what is shown of them.

use serde::Serialize;

/// What one participant's samples came to.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cell {
    Samples(Vec<f64>),
    /// Why there are none.
    Failed(String),
}

impl Cell {
    pub fn push(&mut self, value: f64) {
        if let Self::Samples(samples) = self {
            samples.push(value);
        }
    }

    /// The value below which `share` (0 to 1) of the samples lie, by nearest rank.
    pub fn percentile(&self, share: f64) -> Option<f64> {
        let Self::Samples(samples) = self else {
            return None;
        };
        let mut sorted = samples.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }

    pub fn median(&self) -> Option<f64> {
        self.percentile(0.5)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let cell = Cell::Samples((1..=10).rev().map(f64::from).collect());
        assert_eq!(cell.median(), Some(5.0));
        assert_eq!(cell.percentile(0.9), Some(9.0));
        assert_eq!(Cell::Samples(vec![7.0]).percentile(0.9), Some(7.0));
        assert_eq!(Cell::Samples(Vec::new()).median(), None);
        assert_eq!(Cell::Failed("gone".to_owned()).median(), None);
    }
}
