//! The rows that were measured, and how they are printed.

use serde::Serialize;

use crate::stats::Cell;

/// The participant that is no runtime.
pub const FLOOR: &str = "floor";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    Ms,
    Seconds,
    PodsPerSecond,
    MbPerSecond,
    KiB,
    MiB,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Self::Ms => "ms",
            Self::Seconds => "s",
            Self::PodsPerSecond => "pods/s",
            Self::MbPerSecond => "MB/s",
            Self::KiB => "KiB",
            Self::MiB => "MiB",
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Self::PodsPerSecond | Self::MbPerSecond)
    }
}

#[derive(Debug, Serialize)]
pub struct Row {
    pub what: String,
    pub unit: Unit,
    /// Participant and its samples.
    pub cells: Vec<(String, Cell)>,
}

impl Row {
    fn cell(&mut self, who: &str) -> &mut Cell {
        let at = match self.cells.iter().position(|(name, _)| name == who) {
            Some(at) => at,
            None => {
                self.cells.push((who.to_owned(), Cell::Samples(Vec::new())));
                self.cells.len() - 1
            }
        };
        &mut self.cells[at].1
    }

    fn find(&self, who: &str) -> Option<&Cell> {
        self.cells
            .iter()
            .find(|(name, _)| name == who)
            .map(|(_, cell)| cell)
    }
}

/// Everything that was measured, in the order of its first sample.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub rows: Vec<Row>,
    /// Facts beside the figures.
    pub notes: Vec<String>,
}

impl Report {
    pub fn row(&mut self, what: &str, unit: Unit) -> &mut Row {
        let at = match self.rows.iter().position(|row| row.what == what) {
            Some(at) => at,
            None => {
                self.rows.push(Row {
                    what: what.to_owned(),
                    unit,
                    cells: Vec::new(),
                });
                self.rows.len() - 1
            }
        };
        &mut self.rows[at]
    }

    pub fn add(&mut self, what: &str, unit: Unit, who: &str, value: f64) {
        self.row(what, unit).cell(who).push(value);
    }

    /// The first failure is kept: those after it often follow from it.
    pub fn fail(&mut self, what: &str, unit: Unit, who: &str, error: &anyhow::Error) {
        let cell = self.row(what, unit).cell(who);
        if matches!(cell, Cell::Samples(_)) {
            *cell = Cell::Failed(format!("{error:#}"));
        }
    }

    /// The table for people.
    pub fn table(&self, runtimes: &[String]) -> String {
        let mut header = vec!["what".to_owned(), "unit".to_owned()];
        header.extend(runtimes.iter().cloned());
        header.extend(runtimes.iter().skip(1).map(|name| format!("{name} is")));
        header.push(FLOOR.to_owned());
        let mut lines = vec![header];
        let mut failures = Vec::new();
        for row in &self.rows {
            lines.push(line(row, runtimes));
            for (who, cell) in &row.cells {
                if let Cell::Failed(why) = cell {
                    failures.push(format!("{who}, {}: {why}", row.what));
                }
            }
        }
        let mut text = align(&lines);
        for note in self.notes.iter().chain(&failures) {
            text.push_str(note);
            text.push('\n');
        }
        text
    }
}

fn line(row: &Row, runtimes: &[String]) -> Vec<String> {
    let mut line = vec![row.what.clone(), row.unit.name().to_owned()];
    line.extend(runtimes.iter().map(|name| show(row.find(name))));
    let own = runtimes.first().and_then(|name| row.find(name)?.median());
    line.extend(runtimes.iter().skip(1).map(|name| {
        let other = row.find(name).and_then(Cell::median);
        own.zip(other)
            .map_or_else(String::new, |(own, other)| ratio(row.unit, own, other))
    }));
    line.push(show(row.find(FLOOR)));
    line
}

/// How many times slower or bigger the other is.
fn ratio(unit: Unit, own: f64, other: f64) -> String {
    let times = if unit.more_is_better() {
        own / other
    } else {
        other / own
    };
    if times.is_finite() {
        format!("{times:.1}x")
    } else {
        String::new()
    }
}

fn show(cell: Option<&Cell>) -> String {
    match cell {
        None => "-".to_owned(),
        Some(Cell::Failed(_)) => "failed".to_owned(),
        Some(cell) => match (cell.median(), cell.percentile(0.9)) {
            (Some(median), Some(p90)) if p90 != median => format!("{} ({})", digits(median), digits(p90)),
            (Some(median), _) => digits(median),
            _ => "-".to_owned(),
        },
    }
}

/// Three digits that count.
fn digits(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn align(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|text| text.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for line in lines {
        let cells: Vec<String> = line
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| match column {
                0 | 1 => format!("{cell:<width$}"),
                _ => format!("{cell:>width$}"),
            })
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_ratios_and_failures() {
        let mut report = Report::default();
        report.add("start", Unit::Ms, "a", 2.0);
        report.add("start", Unit::Ms, "b", 5.0);
        report.add("start", Unit::Ms, FLOOR, 0.5);
        report.add("rate", Unit::PodsPerSecond, "a", 200.0);
        report.fail("rate", Unit::PodsPerSecond, "b", &anyhow::anyhow!("no socket"));
        let table = report.table(&["a".to_owned(), "b".to_owned()]);
        let lines: Vec<Vec<&str>> = table.lines().map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["start", "ms", "2.00", "5.00", "2.5x", "0.50"]);
        assert_eq!(lines[2], ["rate", "pods/s", "200", "failed", "-"]);
        assert_eq!(table.lines().last(), Some("b, rate: no socket"));
    }
}
