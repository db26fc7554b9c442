//! What belongs to interfaces, as the kernel tells it, made into what the guest's kernel is told.
//!
//! The messages pass almost as they are: whatever a route or rule has, metrics, tables, several gateways, the guest's has
//! too. Left out is what the guest's kernel makes by itself, and the state that only means something here.

use std::net::{IpAddr, Ipv6Addr};

use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteProtocol, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};

use super::super::{LOOPBACK, NetworkError};
use super::Interface;

/// The table that the kernel fills (`RT_TABLE_LOCAL` of linux/rtnetlink.h).
const LOCAL_TABLE: u8 = 255;
/// Priority and table of the rules in every namespace (net/ipv4/fib_rules.c, net/ipv6/fib6_rules.c).
const DEFAULT_RULES: [(u32, u8); 3] = [(0, LOCAL_TABLE), (32766, 254), (32767, 253)];

/// Entries by kind.
#[derive(Debug, Default)]
pub(super) struct Entries {
    addresses: Vec<Vec<u8>>,
    /// Routes to directly attached networks: those through a gateway need the route to the gateway first.
    direct: Vec<Vec<u8>>,
    via: Vec<Vec<u8>>,
    neighbours: Vec<Vec<u8>>,
    rules: Vec<Vec<u8>>,
}

impl Entries {
    /// All, in the order in which they can be made.
    pub(super) fn in_order(self) -> Vec<Vec<u8>> {
        [self.addresses, self.direct, self.via, self.neighbours, self.rules].concat()
    }

    pub(super) fn add_address(&mut self, mut message: AddressMessage, interfaces: &[Interface]) {
        let Some(interface) = interfaces.iter().find(|i| i.index == message.header.index) else { return };
        let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Flags(all) => flags = *all,
                // The guest makes the same from the same MAC.
                AddressAttribute::Address(IpAddr::V6(ip)) if *ip == link_local(&interface.mac) => return,
                _ => {}
            }
        }
        // The guest hears the same routers and makes the same addresses, with their lifetimes.
        if message.header.family == AddressFamily::Inet6
            && !flags.contains(AddressFlags::Permanent)
            && interface.accepts_ra()
        {
            return;
        }
        message.attributes.retain(|attribute| {
            !matches!(attribute, AddressAttribute::CacheInfo(_) | AddressAttribute::Flags(_))
        });
        // The routes that came with the address are told like all others: a plugin may have replaced them.
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
        self.addresses.push(bytes(RouteNetlinkMessage::NewAddress(message)));
    }

    pub(super) fn add_route(
        &mut self,
        mut message: RouteMessage,
        interfaces: &[Interface],
    ) -> Result<(), NetworkError> {
        if !concerns_guest(&message) {
            return Ok(());
        }
        let mut known = true;
        let mut see = |index: u32| known &= index == LOOPBACK || interfaces.iter().any(|i| i.index == index);
        let mut via = false;
        for attribute in &mut message.attributes {
            match attribute {
                RouteAttribute::Oif(index) => see(*index),
                RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => via = true,
                RouteAttribute::MultiPath(hops) => {
                    via = true;
                    for hop in hops {
                        see(hop.interface_index);
                        hop.flags &= RouteNextHopFlags::Onlink;
                    }
                }
                RouteAttribute::Encap(_) => {
                    let text = "it has a route that encapsulates, which is not supported".into();
                    return Err(NetworkError::Unsupported(text));
                }
                _ => {}
            }
        }
        if !known {
            tracing::warn!(?message, "a route through an interface that the guest does not have is left out");
            return Ok(());
        }
        message.header.flags &= RouteFlags::Onlink;
        message.attributes.retain(|attribute| {
            use RouteAttribute as A;
            // Expires: of routes that routers told of. Other: nexthop objects, which are written out as well.
            !matches!(attribute, A::CacheInfo(_) | A::Expires(_) | A::EncapType(_) | A::Other(_))
        });
        let list = if via { &mut self.via } else { &mut self.direct };
        list.push(bytes(RouteNetlinkMessage::NewRoute(message)));
        Ok(())
    }

    pub(super) fn add_neighbour(&mut self, mut message: NeighbourMessage, interfaces: &[Interface]) {
        let known = interfaces.iter().any(|interface| interface.index == message.header.ifindex);
        // The others are the kernel's to learn.
        if !known || message.header.state != NeighbourState::Permanent {
            return;
        }
        message.attributes.retain(|attribute| {
            matches!(attribute, NeighbourAttribute::Destination(_) | NeighbourAttribute::LinkLayerAddress(_))
        });
        self.neighbours.push(bytes(RouteNetlinkMessage::NewNeighbour(message)));
    }

    pub(super) fn add_rule(&mut self, mut message: RuleMessage) {
        if is_default(&message) {
            return;
        }
        message.header.flags &= RuleFlags::Invert;
        self.rules.push(bytes(RouteNetlinkMessage::NewRule(message)));
    }
}

fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
    let mut message = NetlinkMessage::from(message);
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    bytes
}

/// Whether a route is the guest's as well, and not one that its kernel makes or learns by itself.
fn concerns_guest(message: &RouteMessage) -> bool {
    let header = &message.header;
    let kind = matches!(
        header.kind,
        RouteType::Unicast
            | RouteType::BlackHole
            | RouteType::Unreachable
            | RouteType::Prohibit
            | RouteType::Throw
    );
    let link_local = message.attributes.iter().any(|attribute| {
        matches!(attribute, RouteAttribute::Destination(RouteAddress::Inet6(ip)) if ip.is_unicast_link_local())
    });
    let kernels = header.protocol == RouteProtocol::Kernel;
    kind && header.table != LOCAL_TABLE
        && header.protocol != RouteProtocol::Ra
        && !(kernels && (link_local || header.kind != RouteType::Unicast))
}

fn is_default(message: &RuleMessage) -> bool {
    let mut priority = 0;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            // These are in every answer of the kernel, and say nothing there.
            RuleAttribute::Table(_)
            | RuleAttribute::SuppressPrefixLen(u32::MAX)
            | RuleAttribute::Protocol(_) => {}
            _ => return false,
        }
    }
    message.header.action == RuleAction::ToTable
        && !message.header.flags.contains(RuleFlags::Invert)
        && DEFAULT_RULES.contains(&(priority, message.header.table))
}

/// The link-local address that the kernel makes from a MAC (RFC 4291, appendix A).
fn link_local(mac: &[u8]) -> Ipv6Addr {
    let &[a, b, c, d, e, f] = mac else { return Ipv6Addr::UNSPECIFIED };
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_local_addresses_are_the_kernels() {
        assert_eq!(link_local(&[2, 0, 0, 0xaa, 0, 1]).to_string(), "fe80::ff:feaa:1");
    }

    #[test]
    fn the_rules_of_every_namespace_are_told_from_others() {
        let rule = |priority, table| {
            let mut message = RuleMessage::default();
            message.header.action = RuleAction::ToTable;
            message.header.table = table;
            message.attributes.push(RuleAttribute::Priority(priority));
            message
        };
        assert!(is_default(&rule(0, 255)) && is_default(&rule(32766, 254)) && is_default(&rule(32767, 253)));
        assert!(!is_default(&rule(100, 254)));
        let mut source = rule(32766, 254);
        source.attributes.push(RuleAttribute::Source([10, 1, 2, 3].into()));
        assert!(!is_default(&source));
        let mut inverted = rule(32766, 254);
        inverted.header.flags |= RuleFlags::Invert;
        assert!(!is_default(&inverted));
    }
}
