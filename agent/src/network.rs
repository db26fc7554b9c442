//! The pod's network interfaces, addresses, routes, neighbours and rules, as the host's pod network namespace has them.

mod nic;

use std::collections::HashMap;
use std::path::Path;

use futures_util::StreamExt;
use monohull_protocol::agent;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::{Handle, LinkUnspec};

use crate::error::{Doing, Error, Result};
pub(crate) use nic::Nic;

const DEVICES: &str = "/sys/class/net";
/// The index that every network namespace gives its loopback device (`LOOPBACK_IFINDEX` of linux/net_namespace.h).
const LOOPBACK: u32 = 1;
/// Longest name of an interface, without its final 0 (`IFNAMSIZ` of linux/if.h).
const NAME_MAX: usize = 15;

/// Brings the loopback device up.
pub(crate) async fn bring_up_loopback() -> Result<()> {
    let handle = connect()?;
    handle
        .link()
        .set(LinkUnspec::new_with_index(LOOPBACK).up().build())
        .execute()
        .await
        .doing(|| "bring up lo".into())
}

/// What the network is, as far as the host has said.
#[derive(Debug, Default)]
pub(crate) struct Network {
    /// Entries of agent.proto, each with the guest's indexes.
    entries: Vec<RouteNetlinkMessage>,
}

impl Network {
    /// Makes the network what `wanted` says. Nothing waits for a carrier or for duplicate address detection.
    pub(crate) async fn configure(&mut self, wanted: &agent::Network) -> Result<()> {
        let handle = connect()?;
        let mut indexes = HashMap::from([(LOOPBACK, LOOPBACK)]);
        for interface in &wanted.interfaces {
            let index = set_up_interface(&handle, interface)
                .await
                .map_err(|error| error.within(format_args!("interface {}", interface.name)))?;
            indexes.insert(interface.index, index);
        }
        let entries =
            wanted.entries.iter().map(|bytes| entry(bytes, &indexes)).collect::<Result<Vec<_>>>()?;
        for gone in self.entries.iter().rev().filter(|entry| !entries.contains(entry)) {
            remove(&handle, gone.clone()).await?;
        }
        for entry in &entries {
            add(&handle, entry.clone()).await?;
        }
        self.entries = entries;
        Ok(())
    }
}

/// The devices that no interface of `wanted` uses and that containers can see. They would not be there on the host.
pub(crate) fn spares(wanted: &agent::Network) -> Result<Vec<Nic>> {
    let used = |number| wanted.interfaces.iter().any(|interface| interface.nic == number);
    let spares = (0..).zip(nic::all()?).filter(|(number, nic)| !used(*number) && nic.is_bound());
    Ok(spares.map(|(_, nic)| nic).collect())
}

fn connect() -> Result<Handle> {
    let (connection, handle, _) = rtnetlink::new_connection().doing(|| "open a netlink socket".into())?;
    // Ends when the handle is dropped.
    tokio::spawn(connection);
    Ok(handle)
}

/// Returns the device's index.
async fn set_up_interface(handle: &Handle, interface: &agent::Interface) -> Result<u32> {
    check_name(&interface.name)?;
    let mac = check_mac(&interface.mac)?;
    let device = nic::nth(interface.nic)?.device()?;
    let index = index(&device)?;
    if device != interface.name {
        make_way(handle, &interface.name).await?;
    }
    let mut link = LinkUnspec::new_with_index(index).name(&interface.name).address(mac);
    if interface.mtu > 0 {
        link = link.mtu(interface.mtu);
    }
    handle.link().set(link.build()).execute().await.doing(|| format!("configure {device}"))?;
    // Addresses come from the host, which has seen to it that they are unique: no waiting.
    set_ipv6(&interface.name, "accept_dad", "0")?;
    interface.ipv6.iter().try_for_each(|(key, value)| set_ipv6(&interface.name, key, value))?;
    let up = up(index, interface.no_arp);
    handle.link().set(up).execute().await.doing(|| "bring it up".into())?;
    Ok(index)
}

fn up(index: u32, no_arp: bool) -> LinkMessage {
    let mut link = LinkUnspec::new_with_index(index).up().build();
    link.header.change_mask |= LinkFlags::Noarp;
    link.header.flags.set(LinkFlags::Noarp, no_arp);
    link
}

fn set_ipv6(interface: &str, key: &str, value: &str) -> Result<()> {
    if key.contains('/') || key.starts_with('.') {
        return Err(Error::Invalid(format!("ipv6: {key:?} is not the name of a setting")));
    }
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/{key}");
    match std::fs::write(&path, value) {
        // IPv6 is switched off on the kernel's command line.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.doing(|| format!("write {value} to {path}")),
    }
}

/// Gives a device that has the name `name`, if there is one, another that nobody wants.
async fn make_way(handle: &Handle, name: &str) -> Result<()> {
    if !Path::new(DEVICES).join(name).exists() {
        return Ok(());
    }
    let number = index(name)?;
    let link = LinkUnspec::new_with_index(number).name(format!("unused{number}")).build();
    handle.link().set(link).execute().await.doing(|| format!("rename the other device called {name}"))
}

fn index(name: &str) -> Result<u32> {
    let path = format!("{DEVICES}/{name}/ifindex");
    let text = std::fs::read_to_string(&path)
        .map_err(|_| Error::Invalid(format!("there is no interface {name:?}")))?;
    text.trim().parse().doing(|| format!("parse {path}"))
}

/// The kernel's rules (`dev_valid_name` of net/core/dev.c); a name becomes a path component.
fn check_name(name: &str) -> Result<()> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    if name.is_empty() || name.len() > NAME_MAX || name == "." || name == ".." || name.contains(bad) {
        return Err(Error::Invalid(format!("{name:?} is not a name for an interface")));
    }
    Ok(())
}

fn check_mac(mac: &[u8]) -> Result<Vec<u8>> {
    if mac.len() != 6 {
        return Err(Error::Invalid(format!("mac: {} bytes, not 6", mac.len())));
    }
    Ok(mac.to_vec())
}

/// Reads an entry of agent.proto. `indexes` leads from the host's indexes to the guest's.
fn entry(bytes: &[u8], indexes: &HashMap<u32, u32>) -> Result<RouteNetlinkMessage> {
    let bad = |why: &dyn std::fmt::Display| Error::Invalid(format!("network entry: {why}"));
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).map_err(|error| bad(&error))?;
    let NetlinkPayload::InnerMessage(mut message) = message.payload else {
        return Err(bad(&"it is not an rtnetlink message"));
    };
    let translate = |index: &mut u32| {
        let own = indexes.get(index);
        *index = *own.ok_or_else(|| bad(&format_args!("there is no interface with index {index}")))?;
        Ok(())
    };
    match &mut message {
        RouteNetlinkMessage::NewAddress(address) => translate(&mut address.header.index)?,
        RouteNetlinkMessage::NewNeighbour(neighbour) => translate(&mut neighbour.header.ifindex)?,
        RouteNetlinkMessage::NewRoute(route) => translate_route(route, translate)?,
        // It names interfaces by their names.
        RouteNetlinkMessage::NewRule(_) => {}
        _ => return Err(bad(&"it is neither an address nor a route, neighbour or rule")),
    }
    Ok(message)
}

fn translate_route(route: &mut RouteMessage, translate: impl Fn(&mut u32) -> Result<()>) -> Result<()> {
    for attribute in &mut route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => translate(index)?,
            RouteAttribute::MultiPath(hops) => {
                hops.iter_mut().try_for_each(|hop| translate(&mut hop.interface_index))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Adds an entry. One that is there already is left or replaced.
async fn add(handle: &Handle, entry: RouteNetlinkMessage) -> Result<()> {
    let how = match &entry {
        RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::NewNeighbour(_) => NLM_F_REPLACE,
        // Several routes may differ in nothing but their interface: none replaces another.
        RouteNetlinkMessage::NewRoute(_) => NLM_F_APPEND,
        _ => NLM_F_EXCL,
    };
    request(handle, entry, NLM_F_CREATE | how, "add", &[libc::EEXIST]).await
}

/// Removes an entry. One that is gone, perhaps with its interface, is no error.
async fn remove(handle: &Handle, entry: RouteNetlinkMessage) -> Result<()> {
    let removal = match entry {
        RouteNetlinkMessage::NewAddress(address) => RouteNetlinkMessage::DelAddress(address),
        RouteNetlinkMessage::NewNeighbour(neighbour) => RouteNetlinkMessage::DelNeighbour(neighbour),
        RouteNetlinkMessage::NewRoute(route) => RouteNetlinkMessage::DelRoute(route),
        RouteNetlinkMessage::NewRule(rule) => RouteNetlinkMessage::DelRule(rule),
        _ => return Ok(()),
    };
    let gone = [libc::EADDRNOTAVAIL, libc::ENODEV, libc::ENOENT, libc::ESRCH];
    request(handle, removal, 0, "remove", &gone).await
}

async fn request(
    handle: &Handle,
    message: RouteNetlinkMessage,
    flags: u16,
    verb: &str,
    fine: &[i32],
) -> Result<()> {
    let described = describe(&message);
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut handle = handle.clone();
    let mut answers = handle.request(message).doing(|| format!("{verb} {described}"))?;
    while let Some(answer) = answers.next().await {
        if let NetlinkPayload::Error(error) = answer.payload
            && !fine.contains(&-error.raw_code())
        {
            return Err(error.to_io()).doing(|| format!("{verb} {described}"));
        }
    }
    Ok(())
}

/// An entry for a message to the user, who knows it in the words of ip(8).
fn describe(entry: &RouteNetlinkMessage) -> String {
    use RouteNetlinkMessage as Message;
    match entry {
        Message::NewAddress(address) | Message::DelAddress(address) => {
            format!("address {:?}", address.attributes)
        }
        Message::NewRoute(route) | Message::DelRoute(route) => format!("route {:?}", route.attributes),
        Message::NewNeighbour(neighbour) | Message::DelNeighbour(neighbour) => {
            format!("neighbour {:?}", neighbour.attributes)
        }
        Message::NewRule(rule) | Message::DelRule(rule) => format!("rule {:?}", rule.attributes),
        _ => "a message of another kind".into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use rtnetlink::RouteMessageBuilder;
    use rtnetlink::packet_route::link::LinkMessage;

    use super::*;

    fn bytes(message: RouteNetlinkMessage) -> Vec<u8> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn default_route(interface: u32) -> RouteMessage {
        let gateway = Ipv4Addr::new(10, 1, 2, 1);
        RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(interface).build()
    }

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for name in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-bytes-xx"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
        assert!(check_name("eth0.100").is_ok());
        assert!(set_ipv6("eth0", "../all/forwarding", "1").is_err());
    }

    #[test]
    fn the_hosts_indexes_become_the_guests() {
        let indexes = HashMap::from([(1, 1), (7, 3)]);
        let entry = entry(&bytes(RouteNetlinkMessage::NewRoute(default_route(7))), &indexes).unwrap();
        assert_eq!(entry, RouteNetlinkMessage::NewRoute(default_route(3)));
    }

    #[test]
    fn entries_that_make_no_sense_are_refused() {
        let indexes = HashMap::from([(1, 1)]);
        let unknown = bytes(RouteNetlinkMessage::NewRoute(default_route(7)));
        let other_kind = bytes(RouteNetlinkMessage::NewLink(LinkMessage::default()));
        for (bytes, why) in [
            (unknown, "no interface with index 7"),
            (other_kind, "neither an address"),
            (vec![1, 2, 3], "network entry"),
        ] {
            let error = entry(&bytes, &indexes).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
