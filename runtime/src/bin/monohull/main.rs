//! `monohull`: containers in microVMs from the command line, and tools to look at running pods.

mod block;
mod check;
mod clone;
mod debug;
mod exec;
mod failure;
mod generated;
mod install;
mod logs;
mod metrics;
mod migrate;
mod owner;
#[cfg(test)]
mod pages;
mod prepare;
mod process;
mod ps;
mod run;
mod scratch;
mod session;
mod size;
mod snapshot;
mod spec;
mod streams;
mod table;
mod template;
mod terminal;
mod top;
mod trace;
mod user;
mod volume;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Containers in microVMs: run one without a daemon, look at running pods, check this machine
#[derive(Debug, Parser)]
#[command(name = "monohull", version, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Settings are read from /etc/monohull/config.toml, or the file that MONOHULL_CONFIG names.
Start with `monohull check`. Every command has its own --help, with examples and exit codes.";

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Arguments),
    Run(Box<run::Arguments>),
    Snapshot(snapshot::Arguments),
    Clone(clone::Arguments),
    Ps(ps::Arguments),
    Top(top::Arguments),
    Trace(trace::Arguments),
    Logs(logs::Arguments),
    Debug(debug::Arguments),
    Exec(exec::Arguments),
    Metrics(metrics::Arguments),
    Template(template::Arguments),
    Install(Box<install::Arguments>),
    Uninstall(install::UninstallArguments),
    Completions(generated::Completions),
    Man(generated::Man),
    MigrateConfig(migrate::Arguments),
}

fn main() -> ExitCode {
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // Nothing is left to do if standard error is closed.
            let _ = error.print();
            let run = std::env::args_os()
                .nth(1)
                .is_some_and(|command| ["run", "clone", "exec"].iter().any(|name| command == *name));
            return ExitCode::from(match error.exit_code() {
                0 => 0,
                _ if run => run::OWN_FAILURE,
                _ => 2,
            });
        }
    };
    let result = match command {
        Command::Check(arguments) => check::check(&arguments),
        Command::Run(arguments) => run::run(*arguments),
        Command::Snapshot(arguments) => snapshot::snapshot(&arguments),
        Command::Clone(arguments) => clone::clone(&arguments),
        Command::Ps(arguments) => ps::ps(&arguments),
        Command::Top(arguments) => top::top(&arguments),
        Command::Metrics(arguments) => metrics::metrics(&arguments),
        Command::Trace(arguments) => trace::trace(&arguments),
        Command::Logs(arguments) => logs::logs(&arguments),
        Command::Debug(arguments) => debug::debug(&arguments),
        Command::Exec(arguments) => exec::exec(arguments),
        Command::Template(arguments) => template::template(&arguments),
        Command::Install(arguments) => install::install(&arguments),
        Command::Uninstall(arguments) => install::uninstall(&arguments),
        Command::Completions(arguments) => generated::completions(Cli::command(), &arguments),
        Command::Man(arguments) => generated::man(Cli::command(), &arguments),
        Command::MigrateConfig(arguments) => migrate::migrate(&arguments),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
