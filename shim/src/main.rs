//! `containerd-shim-monohull-v2`: containerd's shim for Monohull pods.
//!
//! `start` leaves one serving process per pod behind, which speaks containerd's task API and calls the runtime library.
//! `delete` cleans up when that process has died.

mod abandonment;
mod address;
mod args;
mod birth;
mod bootstrap;
mod bundle;
mod connections;
mod container;
mod delete;
mod error;
mod events;
mod guest;
mod hooks;
mod info;
mod io;
mod logger;
mod namespaces;
mod options;
mod pod;
mod process;
mod rights;
mod sandbox;
mod sandbox_config;
mod server;
mod stand_in;
mod task;
mod template;
mod watch;

use std::error::Error;
use std::process::ExitCode;

use args::{Action, Args};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The serving process has no standard error; its log does.
            let text = error::chain(&*error);
            tracing::error!(error = text, "shim has failed");
            eprintln!("containerd-shim-monohull-v2: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args = Args::parse(std::env::args().skip(1))?;
    match args.action {
        Action::Serve => server::serve(&args)?,
        Action::Start => bootstrap::start(&args)?,
        Action::Delete => delete::delete(&args)?,
        Action::Template => template::build()?,
        Action::Info => info::print_info()?,
        Action::Version => info::print_version()?,
    }
    Ok(())
}
