//! What a cgroup has used, as containerd counts it. Files of controllers that the kernel lacks count as empty.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::str::FromStr;

use monohull_protocol::agent::{
    CpuStat, HugeTlbStat, IoEntry, IoStat, MemoryEvents, MemoryStat, Metrics, PidsStat,
};
use protobuf::MessageField;

/// Reads the statistics of the cgroup that has this directory.
pub(crate) fn read(directory: &Path) -> Metrics {
    let group = Group(directory);
    Metrics {
        pids: MessageField::some(PidsStat {
            current: group.number("pids.current"),
            limit: group.number("pids.max"),
            ..Default::default()
        }),
        cpu: MessageField::some(group.cpu()),
        memory: MessageField::some(group.memory()),
        io: MessageField::some(IoStat { usage: group.io(), ..Default::default() }),
        hugetlb: group.huge_pages(),
        memory_events: MessageField::some(group.memory_events()),
        ..Default::default()
    }
}

/// A cgroup's directory.
struct Group<'a>(&'a Path);

impl Group<'_> {
    fn text(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap_or_default()
    }

    /// The only number of a file; 2^64-1 for "max".
    fn number(&self, file: &str) -> u64 {
        parse_number(self.text(file).trim())
    }

    /// A file with one key and one number a line.
    fn table(&self, file: &str) -> Table {
        Table(self.text(file).lines().filter_map(|line| pair(line, ' ')).collect())
    }

    fn cpu(&self) -> CpuStat {
        let stat = self.table("cpu.stat");
        CpuStat {
            usage_usec: stat.get("usage_usec"),
            user_usec: stat.get("user_usec"),
            system_usec: stat.get("system_usec"),
            nr_periods: stat.get("nr_periods"),
            nr_throttled: stat.get("nr_throttled"),
            throttled_usec: stat.get("throttled_usec"),
            ..Default::default()
        }
    }

    fn memory(&self) -> MemoryStat {
        let stat = self.table("memory.stat");
        MemoryStat {
            anon: stat.get("anon"),
            file: stat.get("file"),
            kernel_stack: stat.get("kernel_stack"),
            slab: stat.get("slab"),
            sock: stat.get("sock"),
            shmem: stat.get("shmem"),
            file_mapped: stat.get("file_mapped"),
            file_dirty: stat.get("file_dirty"),
            file_writeback: stat.get("file_writeback"),
            anon_thp: stat.get("anon_thp"),
            inactive_anon: stat.get("inactive_anon"),
            active_anon: stat.get("active_anon"),
            inactive_file: stat.get("inactive_file"),
            active_file: stat.get("active_file"),
            unevictable: stat.get("unevictable"),
            slab_reclaimable: stat.get("slab_reclaimable"),
            slab_unreclaimable: stat.get("slab_unreclaimable"),
            pgfault: stat.get("pgfault"),
            pgmajfault: stat.get("pgmajfault"),
            usage: self.number("memory.current"),
            usage_limit: self.number("memory.max"),
            swap_usage: self.number("memory.swap.current"),
            swap_limit: self.number("memory.swap.max"),
            max_usage: self.number("memory.peak"),
            ..Default::default()
        }
    }

    fn memory_events(&self) -> MemoryEvents {
        let events = self.table("memory.events");
        MemoryEvents {
            low: events.get("low"),
            high: events.get("high"),
            max: events.get("max"),
            oom: events.get("oom"),
            oom_kill: events.get("oom_kill"),
            ..Default::default()
        }
    }

    /// Lines like "254:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0".
    fn io(&self) -> Vec<IoEntry> {
        let text = self.text("io.stat");
        let entry = |line: &str| {
            let (device, rest) = line.split_once(' ')?;
            let (major, minor) = device.split_once(':')?;
            let stat = Table(rest.split(' ').filter_map(|word| pair(word, '=')).collect());
            Some(IoEntry {
                major: parse(major)?,
                minor: parse(minor)?,
                rbytes: stat.get("rbytes"),
                wbytes: stat.get("wbytes"),
                rios: stat.get("rios"),
                wios: stat.get("wios"),
                ..Default::default()
            })
        };
        text.lines().filter_map(entry).collect()
    }

    /// One entry for each size of huge pages, which the names of files tell ("hugetlb.2MB.current").
    fn huge_pages(&self) -> Vec<HugeTlbStat> {
        let files = fs::read_dir(self.0).into_iter().flatten().flatten();
        let sizes = files.filter_map(|file| {
            let name = file.file_name().into_string().ok()?;
            let size = name.strip_prefix("hugetlb.")?.strip_suffix(".current")?;
            (!size.contains('.')).then(|| size.to_owned())
        });
        let mut entries: Vec<_> = sizes
            .map(|size| HugeTlbStat {
                current: self.number(&format!("hugetlb.{size}.current")),
                max: self.number(&format!("hugetlb.{size}.max")),
                failcnt: self.table(&format!("hugetlb.{size}.events")).get("max"),
                pagesize: size,
                ..Default::default()
            })
            .collect();
        entries.sort_by(|a, b| a.pagesize.cmp(&b.pagesize));
        entries
    }
}

struct Table(HashMap<String, u64>);

impl Table {
    fn get(&self, key: &str) -> u64 {
        self.0.get(key).copied().unwrap_or_default()
    }
}

fn pair(text: &str, separator: char) -> Option<(String, u64)> {
    let (key, value) = text.split_once(separator)?;
    Some((key.into(), parse(value)?))
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn parse_number(text: &str) -> u64 {
    if text == "max" { u64::MAX } else { parse(text).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_groups_files_become_containerds_numbers() {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("cpu.stat", "usage_usec 10\nuser_usec 7\nsystem_usec 3\nnr_periods 1\n"),
            ("memory.stat", "anon 4096\nfile 8192\ninactive_file 4096\n"),
            ("memory.current", "16384\n"),
            ("memory.max", "1048576\n"),
            ("memory.events", "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("io.stat", "254:1 rbytes=512 wbytes=1024 rios=1 wios=2 dbytes=0 dios=0\n259:0 \n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.max", "max\n"),
            ("hugetlb.2MB.events", "max 4\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        let metrics = read(dir.path());
        assert_eq!((metrics.pids.current, metrics.pids.limit), (3, u64::MAX));
        assert_eq!((metrics.cpu.usage_usec, metrics.cpu.system_usec, metrics.cpu.nr_throttled), (10, 3, 0));
        let memory = &metrics.memory;
        assert_eq!((memory.usage, memory.inactive_file, memory.usage_limit), (16384, 4096, 1 << 20));
        assert_eq!((metrics.memory_events.max, metrics.memory_events.oom_kill), (5, 1));
        let io: Vec<_> = metrics.io.usage.iter().map(|io| (io.major, io.minor, io.wbytes, io.rios)).collect();
        assert_eq!(io, [(254, 1, 1024, 1), (259, 0, 0, 0)]);
        let huge: Vec<_> =
            metrics.hugetlb.iter().map(|huge| (huge.pagesize.as_str(), huge.failcnt)).collect();
        assert_eq!(huge, [("2MB", 4)]);
    }

    #[test]
    fn a_group_without_controllers_counts_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).memory.usage, 0);
    }
}
