//! What is made from the description of the command line: shell completions and manual pages.

use std::fs;
use std::path::PathBuf;

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell as Generator;

use crate::failure::{Failure, print};

/// Print a script that completes monohull's commands in a shell
///
/// Packages have them where the shells look; for one shell of one user it goes wherever that reads it.
#[derive(Args, Debug)]
#[command(after_help = "\
Exit codes:
  0  printed      1  standard output is closed      2  wrong usage

Examples:
  . <(monohull completions bash)
  monohull completions fish > ~/.config/fish/completions/monohull.fish")]
pub(crate) struct Completions {
    /// Of this shell
    shell: Shell,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Write manual pages, one for each command
#[derive(Args, Debug)]
#[command(hide = true)]
pub(crate) struct Man {
    /// Into this directory, which is made
    directory: PathBuf,
}

/// Runs `monohull completions`.
pub(crate) fn completions(mut command: Command, arguments: &Completions) -> Result<u8, Failure> {
    let shell = match arguments.shell {
        Shell::Bash => Generator::Bash,
        Shell::Zsh => Generator::Zsh,
        Shell::Fish => Generator::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "monohull", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

/// Runs `monohull man`.
pub(crate) fn man(command: Command, arguments: &Man) -> Result<u8, Failure> {
    let written = fs::create_dir_all(&arguments.directory)
        .and_then(|()| clap_mangen::generate_to(command, &arguments.directory));
    written.map_err(|e| Failure::of("cannot write the manual pages", &e))?;
    Ok(0)
}
