//! Which frames the driver wants, as it says on the control queue (virtio 1.2 §5.1.6.5).
//!
//! Pods on a bridge hear what each of them says to groups: a router solicitation or a report of multicast listeners wakes all, and
//! nearly none is for them. So a guest gets those of the groups that it has joined.
#![forbid(unsafe_code)]

use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET, VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI,
    VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_ERR, VIRTIO_NET_OK,
};

/// An Ethernet address.
pub(super) type Mac = [u8; 6];

/// Most groups that are told apart. A driver that has more gets the frames of all.
pub(super) const MOST_GROUPS: usize = 64;
/// Longest table of addresses that is read.
const MOST_ADDRESSES: u32 = 1024;
/// Length of `struct virtio_net_ctrl_hdr`: class and command.
const HEADER: usize = 2;

/// What the driver has said. Frames for a single station it gets in any case.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(super) struct Wanted {
    promiscuous: bool,
    all_groups: bool,
    /// `None`: more than [`MOST_GROUPS`].
    groups: Option<Vec<Mac>>,
}

impl Default for Wanted {
    /// A driver that has said nothing yet gets all.
    fn default() -> Self {
        Self { promiscuous: true, all_groups: false, groups: Some(Vec::new()) }
    }
}

impl Wanted {
    /// The groups whose frames are wanted; `None` for all.
    pub(super) fn groups(&self) -> Option<&[Mac]> {
        if self.promiscuous || self.all_groups { None } else { self.groups.as_deref() }
    }

    /// Whether a driver can have said this.
    pub(super) fn is_possible(&self) -> bool {
        self.groups.as_ref().is_none_or(|groups| groups.len() <= MOST_GROUPS)
    }

    /// Takes a command, and returns its answer.
    pub(super) fn command(&mut self, from: impl Read) -> u8 {
        let taken = self.take(from).unwrap_or(false);
        // The constants are of a C header, and fit.
        (if taken { VIRTIO_NET_OK } else { VIRTIO_NET_ERR }) as u8
    }

    /// Fails for a command that is cut off; false is one that does not exist.
    fn take(&mut self, mut from: impl Read) -> io::Result<bool> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        match header.map(u32::from) {
            [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_PROMISC] => self.promiscuous = switch(from)?,
            [VIRTIO_NET_CTRL_RX, VIRTIO_NET_CTRL_RX_ALLMULTI] => self.all_groups = switch(from)?,
            [VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_TABLE_SET] => {
                // Those of single stations come first.
                table(&mut from)?;
                let groups = table(&mut from)?;
                self.groups = (groups.len() <= MOST_GROUPS).then_some(groups);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

fn switch(mut from: impl Read) -> io::Result<bool> {
    let mut on = [0];
    from.read_exact(&mut on)?;
    Ok(on != [0])
}

/// Reads `struct virtio_net_ctrl_mac`.
fn table(from: &mut impl Read) -> io::Result<Vec<Mac>> {
    let mut count = [0; 4];
    from.read_exact(&mut count)?;
    let count = u32::from_le_bytes(count);
    if count > MOST_ADDRESSES {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut addresses = Vec::new();
    for _ in 0..count {
        let mut address = Mac::default();
        from.read_exact(&mut address)?;
        addresses.push(address);
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: u8 = 0;
    const ERR: u8 = 1;
    const GROUP: Mac = [0x33, 0x33, 0, 0, 0, 1];

    /// The command that sets tables with so many addresses.
    fn tables(stations: u32, groups: u32) -> Vec<u8> {
        let mut command = vec![1, 0];
        for (count, address) in [(stations, [2; 6]), (groups, GROUP)] {
            command.extend(count.to_le_bytes());
            (0..count).for_each(|_| command.extend(address));
        }
        command
    }

    /// A driver that has said what Linux's does when an interface comes up.
    fn up() -> Wanted {
        let mut wanted = Wanted::default();
        for command in [vec![0, 0, 0], vec![0, 1, 0], tables(1, 2)] {
            assert_eq!(wanted.command(command.as_slice()), OK);
        }
        wanted
    }

    #[test]
    fn all_frames_are_wanted_until_the_driver_says_which() {
        assert_eq!(Wanted::default().groups(), None);
        assert_eq!(up().groups(), Some(&[GROUP; 2][..]));
        for (class, command) in [(0, 0), (0, 1)] {
            let mut wanted = up();
            assert_eq!(wanted.command(&[class, command, 1][..]), OK);
            assert_eq!(wanted.groups(), None);
            assert_eq!(wanted.command(&[class, command, 0][..]), OK);
            assert_eq!(wanted.groups(), Some(&[GROUP; 2][..]));
        }
    }

    #[test]
    fn who_has_joined_many_groups_gets_all() {
        let most = u32::try_from(MOST_GROUPS).unwrap();
        let mut wanted = up();
        assert_eq!(wanted.command(tables(MOST_ADDRESSES, most + 1).as_slice()), OK);
        assert_eq!(wanted.groups(), None);
        assert_eq!(wanted.command(tables(0, most).as_slice()), OK);
        assert_eq!(wanted.groups().map(<[Mac]>::len), Some(MOST_GROUPS));
    }

    #[test]
    fn a_command_that_is_cut_off_too_large_or_unknown_changes_nothing() {
        let mut commands: Vec<_> = (0..tables(1, 1).len()).map(|len| tables(1, 1)[..len].to_vec()).collect();
        commands.push(tables(0, MOST_ADDRESSES + 1));
        commands.push([&[1, 0][..], &u32::MAX.to_le_bytes(), &[0; 64]].concat());
        commands.extend([vec![0, 2, 1], vec![1, 1, 2, 2, 2, 2, 2, 2], vec![4, 0, 1, 0]]);
        for command in commands {
            let mut wanted = up();
            assert_eq!(wanted.command(command.as_slice()), ERR, "{command:?}");
            assert_eq!(wanted, up(), "{command:?}");
        }
    }
}
