//! `monohull-agent`: PID 1 of a pod's VM, and (with `container-helper`) the helper it executes itself as.

#![cfg_attr(test, allow(dead_code))]

mod cgroup;
mod clock;
mod container;
mod debug;
mod devices;
mod disk;
mod early;
mod error;
mod executable;
mod forward;
#[cfg(test)]
mod guest_tests;
mod helper;
mod home;
mod kmsg;
mod line;
mod mirror;
mod mount;
mod network;
mod paths;
mod pipe;
mod pod;
mod pod_pids;
mod process;
mod reaper;
mod reporting;
mod sandbox;
mod server;
mod share;
mod socket;
mod spec;
mod stats;
mod stdio;
mod storage;
mod sys;
mod terminal;
mod vsock;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use monohull_protocol::CONTAINERS;

use crate::container::Environment;
use crate::error::{Doing, Result, chain};
use crate::pod::Pod;
use crate::process::Launcher;
use crate::reaper::Reaper;
use crate::server::End;
use crate::storage::Sources;

fn main() -> ExitCode {
    let started_us = clock::boot_us();
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == helper::ARGUMENT) {
        return match helper::main(arguments.get(2).map(String::as_str)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                kmsg::error(format!("container helper: {error}"));
                ExitCode::FAILURE
            }
        };
    }
    match arguments.get(1).map(String::as_str) {
        Some(pod_pids::MAKER) => return pod_pids::make(),
        Some(pod_pids::KEEPER) => pod_pids::keep(),
        _ => {}
    }
    if std::process::id() != 1 {
        eprintln!("monohull-agent is PID 1 of a Monohull VM; there is nothing to do for it elsewhere");
        return ExitCode::FAILURE;
    }
    // A panic of PID 1 is one of the kernel: its record should say what happened.
    std::panic::set_hook(Box::new(|panic| kmsg::error(panic)));
    match run(started_us) {
        Ok(()) => power_down(),
        Err(error) => {
            // PID 1 must not return: the kernel panics, and its record keeps what is said here.
            kmsg::error(chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(started_us: u64) -> Result<()> {
    early::prepare()?;
    // Threads, once made, stay: in a guest full of processes there may be none to be had.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::MAX)
        .build()
        .doing(|| "start the async runtime".into())?;
    let result = runtime.block_on(serve(started_us));
    // Closes every connection, and with that waits until the host has the last answer; but not for threads: a container
    // may hold one up for good.
    runtime.shutdown_background();
    result
}

async fn serve(started_us: u64) -> Result<()> {
    tokio::task::spawn_blocking(|| ()).await.doing(|| "start a thread for what may block".into())?;
    let state = PathBuf::from(helper::STATE);
    for directory in [CONTAINERS, helper::STATE] {
        std::fs::create_dir_all(directory).doing(|| format!("make {directory}"))?;
    }
    let launcher = Launcher { reaper: Reaper::start()?, agent: early::AGENT.into(), state };
    let environment = Environment { launcher, sources: Sources::default(), containers: CONTAINERS.into() };
    let pod = Arc::new(Pod::new(environment, started_us));
    tokio::spawn(vsock::accept_streams(vsock::listen()?, Arc::clone(&pod)));
    // A lost connection is dialled again: a VM forked from a template finds its transport reset. If the host
    // refuses, there is nobody to serve.
    loop {
        let (connection, reset) = vsock::dial().await?;
        if server::serve(&pod, connection, reset.wait()).await? == End::Shutdown {
            return Ok(());
        }
    }
}

/// Resets the machine, which ends the VM.
fn power_down() -> ExitCode {
    rustix::fs::sync();
    if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::Restart) {
        kmsg::error(format!("reset the machine: {error}"));
    }
    // PID 1 must not return; the kernel panics, and the VMM sees that.
    ExitCode::FAILURE
}
