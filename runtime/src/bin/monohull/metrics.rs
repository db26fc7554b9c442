//! `monohull metrics`: what pods use and what became of them, for Prometheus.

mod collect;
mod exposition;
mod family;
mod server;
#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::pod as pod_for_tests;

use std::net::SocketAddr;

use clap::Args;
use monohull_runtime::settings::Settings;

use crate::failure::{Failure, print};

/// Print what pods use and what became of them, for Prometheus
///
/// Prints metrics of every pod of this host and of the host's pods as a whole, in Prometheus' text format. With --listen it serves
/// them by HTTP until it is ended: /metrics, and /healthz for probes. docs/metrics.md lists them.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  printed, or ended by a signal      1  the state can't be read, or the address not be used      2  wrong usage

Examples:
  monohull metrics | grep monohull_pod_memory_bytes
  monohull metrics --listen 127.0.0.1:9476")]
pub(crate) struct Arguments {
    /// Serve them at this address and port. It is for those who may know of every pod of this host: nobody is asked who he is
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
}

/// Runs the command.
pub(crate) fn metrics(arguments: &Arguments) -> Result<u8, Failure> {
    let settings = Settings::load().map_err(|e| Failure::of("cannot load the settings", &e))?;
    match arguments.listen {
        None => print(&collect::text(&settings)?)?,
        Some(address) => server::run(settings, address)?,
    }
    Ok(0)
}
