//! Memory of a pod by part.

use std::fs;
use std::io;

use super::{Part, field, required};

const KIB: u64 = 1024;

/// Memory of a pod in bytes. Pages that it shares with others are not its own, but for `template`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Guest memory that is the pod's alone.
    pub guest: u64,
    /// Guest memory that is still its template's, which all pods that are forked from it share.
    pub template: u64,
    /// Private memory of the VMM, without its guest's.
    pub vmm: u64,
    /// Private memory of the owner: the shim, or `monohull run`.
    pub owner: u64,
    /// Private memory of the fs server.
    pub fs: u64,
    /// Page tables of the three.
    pub page_tables: u64,
}

/// Memory of a VMM in KiB.
#[derive(Debug, Default, PartialEq, Eq)]
struct Split {
    guest: u64,
    template: u64,
    own: u64,
}

impl Memory {
    /// Each part with its name in metrics.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("guest", self.guest),
            ("template", self.template),
            ("vmm", self.vmm),
            ("owner", self.owner),
            ("fs", self.fs),
            ("page_tables", self.page_tables),
        ]
    }

    /// What the host would have again without the pod: all but what others share.
    pub fn private(&self) -> u64 {
        self.parts().iter().filter(|(part, _)| *part != "template").map(|(_, bytes)| bytes).sum()
    }

    /// This, and what process `pid` has.
    pub(super) fn with(mut self, part: Part, pid: i32) -> io::Result<Self> {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
        self.page_tables += required(&read("status")?, "VmPTE")? * KIB;
        match part {
            Part::Owner => self.owner = private(&read("smaps_rollup")?)?,
            Part::Fs => self.fs = private(&read("smaps_rollup")?)?,
            Part::Vmm => {
                let Split { guest, template, own } = split(&read("smaps")?);
                (self.guest, self.template, self.vmm) = (guest * KIB, template * KIB, own * KIB);
            }
        }
        Ok(self)
    }
}

fn private(rollup: &str) -> io::Result<u64> {
    Ok((required(rollup, "Private_Clean")? + required(rollup, "Private_Dirty")?) * KIB)
}

/// Tells a guest's memory from its VMM's in `/proc/PID/smaps` (proc(5)).
fn split(smaps: &str) -> Split {
    let mut all = Split::default();
    let (mut resident, mut anonymous, mut private) = (0, 0, 0);
    for line in smaps.lines() {
        let number = |name| field(line, name).unwrap_or_default();
        match line.split_once(':').map(|(name, _)| name) {
            Some("Rss") => resident = number("Rss"),
            Some("Anonymous") => anonymous = number("Anonymous"),
            Some("Private_Clean") => private = number("Private_Clean"),
            Some("Private_Dirty") => private += number("Private_Dirty"),
            // The last line of a mapping. Of what can be written, guest memory alone is left out of core dumps ("dd").
            Some("VmFlags") => {
                let flag = |flag| line.split_whitespace().any(|word| word == flag);
                if flag("dd") && flag("wr") {
                    // What the guest has not written to is the template's file, however few pods map it.
                    all.guest += anonymous;
                    all.template += resident.saturating_sub(anonymous);
                } else {
                    all.own += private;
                }
                (resident, anonymous, private) = (0, 0, 0);
            }
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0008000000 rw-p 00000000 00:01 77 /run/monohull/_templates/x/memory
Rss:               50000 kB
Private_Clean:     10000 kB
Private_Dirty:      8000 kB
Anonymous:          8000 kB
VmFlags: rd wr mr mw me nr dd
7f1000000000-7f1000001000 r--p 00000000 00:01 78 /monohull-vmm
Rss:                 700 kB
Private_Clean:       100 kB
Private_Dirty:         0 kB
Anonymous:             0 kB
VmFlags: rd mr mw me
7f2000000000-7f2000001000 rw-p 00000000 00:00 0 [heap]
Rss:                 300 kB
Private_Clean:         0 kB
Private_Dirty:       300 kB
Anonymous:           300 kB
VmFlags: rd wr mr mw me
";

    #[test]
    fn a_guests_memory_is_told_from_its_templates_and_its_vmms() {
        assert_eq!(split(SMAPS), Split { guest: 8000, template: 42_000, own: 400 });
    }

    #[test]
    fn this_process_has_private_memory_and_page_tables() {
        let own = std::process::id().try_into().unwrap();
        let memory = Memory::default().with(Part::Owner, own).unwrap();
        assert!(memory.owner > 0 && memory.page_tables > 0, "{memory:?}");
        assert_eq!(memory.private(), memory.owner + memory.page_tables);
    }
}
