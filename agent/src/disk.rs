//! The image disks: a disk's extents become partitions, which the kernel calls `vda1` to `vda255`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use monohull_protocol::agent::Extent;
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::Interest;

use crate::error::{Doing, Error, Result};
use crate::{kmsg, sys};

/// Bytes per sector (virtio 1.2 §5.2.2).
const SECTOR: u64 = 512;
/// Most partitions of a disk (`DISK_MAX_PARTS` of linux/blkdev.h, less the disk itself).
const PARTITIONS: u8 = 255;
/// For the host to make good on an extent it has already told us of. It normally has before it tells us.
const GROWTH_DEADLINE: Duration = Duration::from_secs(10);
/// The kernel's own multicast group of NETLINK_KOBJECT_UEVENT.
const KERNEL_EVENTS: u32 = 1;

/// A partition made for an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    disk: u32,
    number: u8,
}

impl Partition {
    /// Its device.
    pub(crate) fn device(&self) -> Result<PathBuf> {
        Ok(PathBuf::from(format!("/dev/{}{}", name(self.disk)?, self.number)))
    }

    /// The number of its device: major and minor.
    pub(crate) fn device_number(&self) -> Result<(u32, u32)> {
        let device = self.device()?;
        let number = device.metadata().doing(|| format!("examine {}", device.display()))?.rdev();
        Ok((libc::major(number), libc::minor(number)))
    }
}

/// Who uses the partition numbers of the disks.
#[derive(Debug, Default)]
pub(crate) struct Disks(Mutex<BTreeMap<u32, Numbers>>);

/// The partitions of one disk by number.
type Numbers = BTreeMap<u8, Entry>;

/// A partition that exists. The kernel allows no overlap, so containers with the same extent share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    start: u64,
    sectors: u64,
    read_only: bool,
    /// 0: the kernel still had it open when it was to be removed.
    users: usize,
}

impl Disks {
    /// Makes a partition for `extent`. The disk's growth is announced by an interrupt that may be a little later than
    /// the request, so this waits for the kernel to see it. That takes a disk which was never empty: the kernel
    /// announces no growth from size 0.
    pub(crate) async fn add(&self, extent: &Extent) -> Result<Partition> {
        let name = name(extent.disk)?;
        let end = extent.start.checked_add(extent.sectors).filter(|end| *end <= u64::MAX / SECTOR);
        let end = end.filter(|_| extent.sectors > 0).ok_or_else(|| {
            Error::Invalid(format!("extent: {} sectors at {} are no range", extent.sectors, extent.start))
        })?;
        tokio::time::timeout(GROWTH_DEADLINE, grown(&name, end)).await.doing(|| {
            format!("wait until disk {name} has {end} sectors: it did not grow; was the extent added to it?")
        })??;
        self.make(&name, extent)
    }

    fn make(&self, name: &str, extent: &Extent) -> Result<Partition> {
        let Extent { disk, start, sectors, read_only, .. } = *extent;
        let mut disks = self.lock();
        let numbers = disks.entry(disk).or_default();
        let same =
            |entry: &Entry| (entry.start, entry.sectors, entry.read_only) == (start, sectors, read_only);
        if let Some((number, entry)) = numbers.iter_mut().find(|(_, entry)| same(entry)) {
            entry.users += 1;
            return Ok(Partition { disk, number: *number });
        }
        let device = File::open(format!("/dev/{name}")).doing(|| format!("open disk {name}"))?;
        let number = free_number(numbers, |stale| sys::delete_partition(&device, stale).is_ok());
        let number = number.ok_or_else(|| {
            Error::Precondition(format!("disk {name} has no free partition: {PARTITIONS} extents are in use"))
        })?;
        sys::add_partition(&device, number, start * SECTOR, sectors * SECTOR)
            .doing(|| format!("make partition {number} of {name}"))?;
        numbers.insert(number, Entry { start, sectors, read_only, users: 1 });
        let partition = Partition { disk, number };
        drop(disks);
        if read_only {
            let device = partition.device()?;
            let result = File::open(&device).and_then(sys::set_read_only);
            if result.is_err() {
                self.remove(partition)?;
            }
            result.doing(|| format!("make {} read-only", device.display()))?;
        }
        Ok(partition)
    }

    /// Gives a partition back. With its last user, who must have unmounted it, it is removed.
    pub(crate) fn remove(&self, partition: Partition) -> Result<()> {
        let name = name(partition.disk)?;
        let mut disks = self.lock();
        let numbers = disks.entry(partition.disk).or_default();
        let Some(entry) = numbers.get_mut(&partition.number) else { return Ok(()) };
        entry.users = entry.users.saturating_sub(1);
        if entry.users > 0 {
            return Ok(());
        }
        let device = File::open(format!("/dev/{name}")).doing(|| format!("open disk {name}"))?;
        match sys::delete_partition(&device, partition.number) {
            Ok(()) => {
                numbers.remove(&partition.number);
            }
            Err(error) => {
                kmsg::info(format!("partition {} of {name} is kept for now: {error}", partition.number));
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, Numbers>> {
        // The map is consistent at every point where a holder could have panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The lowest number that is free, or that `reclaim` makes free.
fn free_number(numbers: &mut Numbers, mut reclaim: impl FnMut(u8) -> bool) -> Option<u8> {
    numbers.retain(|number, entry| entry.users > 0 || !reclaim(*number));
    (1..=PARTITIONS).find(|number| !numbers.contains_key(number))
}

/// `vda` for disk 0.
fn name(disk: u32) -> Result<String> {
    let letter = u8::try_from(disk).ok().and_then(|disk| (b'a'..=b'z').nth(disk.into()));
    let letter = letter.ok_or_else(|| Error::Invalid(format!("extent: there is no disk {disk}")))?;
    Ok(format!("vd{}", char::from(letter)))
}

fn sectors(disk: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/sys/block/{disk}/size"))
        .doing(|| format!("read the size of disk {disk}"))?;
    text.trim().parse().doing(|| format!("parse the size of disk {disk}, {text:?}"))
}

/// Waits until `disk` has `end` sectors.
async fn grown(disk: &str, end: u64) -> Result<()> {
    if sectors(disk)? >= end {
        return Ok(());
    }
    let what = || "listen for kernel events".to_owned();
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT)).doing(what)?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL_EVENTS)).doing(what)?;
    let socket = sys::watch(socket, Interest::READABLE).doing(what)?;
    // Looked at again only now: growth from here on is an event in the socket.
    while sectors(disk)? < end {
        let mut ready = socket.readable().await.doing(what)?;
        let mut event = [0_u8; 4096];
        while recv(socket.get_ref(), &mut event, RecvFlags::empty()).is_ok() {}
        ready.clear_ready();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(users: usize) -> Entry {
        Entry { start: 0, sectors: 1, read_only: true, users }
    }

    #[test]
    fn numbers_are_reused_lowest_first() {
        let mut numbers = Numbers::from([(1, entry(1)), (2, entry(0)), (3, entry(2))]);
        assert_eq!(free_number(&mut numbers, |_| true), Some(2));
        assert_eq!(free_number(&mut Numbers::from([(1, entry(0))]), |_| false), Some(2));
    }

    #[test]
    fn all_255_numbers_can_be_used_and_no_more() {
        let mut numbers: Numbers = (1..255).map(|number| (number, entry(1))).collect();
        assert_eq!(free_number(&mut numbers, |_| true), Some(255));
        numbers.insert(255, entry(1));
        assert_eq!(free_number(&mut numbers, |_| true), None);
    }

    #[test]
    fn disks_have_the_kernels_names() {
        assert_eq!(name(0).unwrap(), "vda");
        assert_eq!(name(25).unwrap(), "vdz");
        assert!(name(26).is_err());
    }
}
