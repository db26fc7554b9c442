//! How much of its free memory the kernel tells the host of (mm/page_reporting.c): blocks of some order and more, in zones that
//! have enough of them to go on while some are out of reach.

use std::fs;

use crate::error::{Doing, Result, chain};
use crate::kmsg;

/// Where the kernel says of what order the smallest block is.
const ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
/// How many blocks are out of reach at once (`PAGE_REPORTING_CAPACITY`).
const CAPACITY: u64 = 32;
const PAGE: u64 = 4096;

/// Bytes of memory that are or will be reported, as long as nobody takes them. None where the kernel does not say: one without
/// this feature, too, makes templates.
pub(crate) fn reportable() -> u64 {
    read().unwrap_or_else(|error| {
        kmsg::error(chain(&error));
        0
    })
}

fn read() -> Result<u64> {
    let read = |path: &str| fs::read_to_string(path).doing(|| format!("read {path}"));
    let order = read(ORDER)?.trim().parse().doing(|| format!("read {ORDER}"))?;
    Ok(of(order, &read("/proc/buddyinfo")?, &read("/proc/zoneinfo")?))
}

fn of(order: usize, buddyinfo: &str, zoneinfo: &str) -> u64 {
    let zones = buddyinfo.lines().filter_map(|line| {
        let (zone, counts) = line.split_once("zone")?.1.trim_start().split_once(' ')?;
        let blocks = (0..)
            .zip(counts.split_whitespace())
            .filter_map(|(order, count)| Some((order, count.parse().ok()?)));
        let pages = |least: usize| {
            let pages = blocks.clone().skip(least).map(|(order, count): (u32, u64)| count.checked_shl(order));
            pages.fold(0, |sum: u64, pages| sum.saturating_add(pages.unwrap_or(u64::MAX)))
        };
        let spare = low_watermark(zone, zoneinfo)? + (CAPACITY << order);
        (pages(0) > spare).then(|| pages(order))
    });
    zones.fold(0, u64::saturating_add).saturating_mul(PAGE)
}

/// In pages.
fn low_watermark(zone: &str, zoneinfo: &str) -> Option<u64> {
    let of_zone = |line: &&str| line.split_once("zone").is_some_and(|(_, name)| name.trim() == zone);
    let mut lines = zoneinfo.lines().skip_while(|line| !of_zone(line));
    lines.find_map(|line| line.trim().strip_prefix("low ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUDDYINFO: &str = "\
Node 0, zone      DMA      1      0      0      0      0      0      0      0      1      1      2 
Node 0, zone    DMA32      3      2      4      1      2      1      2      3      1      3    110 
";
    const ZONEINFO: &str = "\
Node 0, zone      DMA
  per-node stats
      nr_inactive_anon 0
  pages free     2817
        boost    0
        min      100
        low      125
        high     150
Node 0, zone    DMA32
  pages free     116000
        min      700
        low      875
        high     1050
";

    #[test]
    fn large_blocks_of_large_zones_are_reported() {
        assert_eq!(of(9, BUDDYINFO, ZONEINFO), (3 * 512 + 110 * 1024) * PAGE);
        assert_eq!(of(10, BUDDYINFO, ZONEINFO), 110 * 1024 * PAGE);
    }

    #[test]
    fn a_zone_keeps_what_it_needs_meanwhile() {
        let scarce = BUDDYINFO.replace("110", "14");
        assert_eq!(of(9, &scarce, ZONEINFO), 0);
        assert_eq!(of(9, BUDDYINFO, ""), 0);
    }
}
