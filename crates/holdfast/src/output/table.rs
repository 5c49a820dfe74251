//! Columns for people: left-aligned, two spaces between, no lines.

use std::io::{self, Write as _};

#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(head: &[&str]) -> Self {
        Self {
            rows: vec![head.iter().map(ToString::to_string).collect()],
        }
    }

    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    pub fn print(&self) -> io::Result<()> {
        io::stdout().lock().write_all(self.render().as_bytes())
    }

    pub fn render(&self) -> String {
        let mut widths = vec![0; self.rows.first().map_or(0, Vec::len)];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // What a container names itself must not drive the terminal.
                line.extend(cell.chars().map(|c| if c.is_control() { '?' } else { c }));
                line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_stay_harmless() {
        let mut table = Table::new(&["ID", "NAME", "STATE"]);
        table.row(["1".into(), "wëb".into(), "Running".into()]);
        table.row(["12345".into(), "\x1b[2J".into(), String::new()]);
        assert_eq!(
            table.render(),
            "ID     NAME  STATE\n1      wëb   Running\n12345  ?[2J\n"
        );
    }
}
