//! Rows as a table.

use std::cmp::Ordering;

use clap::ValueEnum;

use super::sample::Row;
use crate::ps;
use crate::table::Table;

/// What the table is sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    /// Most CPU first.
    Cpu,
    /// Most of the host's memory first.
    Memory,
    /// Most traffic first.
    Network,
    /// Most bytes to and from disks first.
    Disk,
    /// Youngest first.
    Age,
    /// By namespace and name.
    Pod,
}

/// How rows are shown.
#[derive(Debug)]
pub(super) struct View {
    sort: Sort,
}

impl View {
    pub(super) fn new(sort: Sort) -> Self {
        Self { sort }
    }

    /// The table as text.
    pub(super) fn table(&self, mut rows: Vec<Row>, width: Option<usize>) -> String {
        rows.sort_by(|a, b| self.order(a, b).then_with(|| by_name(a, b)));
        let mut table = Table::new(&[
            "POD",
            "NAMESPACE",
            ">CPU %",
            ">GUEST MIB",
            ">HOST MIB",
            ">NET IN",
            ">OUT",
            ">DISK IN",
            ">OUT",
            ">AGE",
            "",
        ]);
        for row in &rows {
            let [net_in, net_out] = pair(row.network);
            let [disk_in, disk_out] = pair(row.disk);
            table.push([
                row.pod.clone(),
                if row.namespace.is_empty() { "-".into() } else { row.namespace.clone() },
                row.cpu.map_or("-".into(), |cpu| format!("{cpu:.1}")),
                format!("{}/{}", row.guest_mib, row.limit_mib),
                row.host_mib.to_string(),
                net_in,
                net_out,
                disk_in,
                disk_out,
                ps::age(row.age),
                String::new(),
            ]);
        }
        table.render(width)
    }

    fn order(&self, a: &Row, b: &Row) -> Ordering {
        let sum = |rates: Option<[f64; 2]>| rates.map_or(0.0, |[to, from]| to + from);
        match self.sort {
            Sort::Cpu => b.cpu.unwrap_or_default().total_cmp(&a.cpu.unwrap_or_default()),
            Sort::Memory => b.host_mib.cmp(&a.host_mib),
            Sort::Network => sum(b.network).total_cmp(&sum(a.network)),
            Sort::Disk => sum(b.disk).total_cmp(&sum(a.disk)),
            Sort::Age => a.age.cmp(&b.age),
            Sort::Pod => Ordering::Equal,
        }
    }
}

fn by_name(a: &Row, b: &Row) -> Ordering {
    (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod))
}

fn pair(rates: Option<[f64; 2]>) -> [String; 2] {
    rates.map_or(["-".into(), "-".into()], |rates| rates.map(|rate| format!("{rate:.0}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let row = |pod: &str, cpu, host_mib, network, disk, age| Row {
            pod: pod.into(),
            cpu: Some(cpu),
            host_mib,
            network: Some([network, 0.0]),
            disk: Some([0.0, disk]),
            age,
            ..Row::default()
        };
        vec![row("a", 1.0, 30, 5.0, 0.0, 9), row("b", 3.0, 10, 9.0, 1.0, 8), row("c", 2.0, 20, 0.0, 2.0, 7)]
    }

    #[test]
    fn each_key_sorts_by_its_column() {
        for (sort, expected) in [
            (Sort::Cpu, "bca"),
            (Sort::Memory, "acb"),
            (Sort::Network, "bac"),
            (Sort::Disk, "cba"),
            (Sort::Age, "cba"),
            (Sort::Pod, "abc"),
        ] {
            let text = View::new(sort).table(rows(), None);
            let order: String = text.lines().skip(1).map(|line| &line[..1]).collect();
            assert_eq!(order, expected, "{sort:?}\n{text}");
        }
    }

    #[test]
    fn unknown_rates_are_dashes() {
        let row = Row { pod: "p1".into(), limit_mib: 640, age: 61, ..Row::default() };
        let text = View::new(Sort::Cpu).table(vec![row], None);
        let cells: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(cells, ["p1", "-", "-", "0/640", "0", "-", "-", "-", "-", "1m", "1s"]);
    }
}
