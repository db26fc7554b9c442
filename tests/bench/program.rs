//! A program of the test host, for containers whose image has no libraries: it comes with its own.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use monohull_tests::engine::finish;

/// The dynamic linker that Debian's programs name.
const LINKER: &str = "ld-linux-x86-64.so.2";

/// A directory with a program and all that it loads.
#[derive(Debug)]
pub(crate) struct Program {
    directory: PathBuf,
    name: String,
}

impl Program {
    /// Copies the program of the test host at `path`.
    pub(crate) fn copy(path: &str, scratch: &Path) -> io::Result<Self> {
        let path = Path::new(path);
        let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let directory = scratch.join(&name);
        fs::create_dir(&directory)?;
        fs::copy(path, directory.join(&name))?;
        let libraries = finish(Command::new("ldd").arg(path)).text();
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')).map(Path::new) {
            if let Some(name) = library.file_name() {
                fs::copy(library, directory.join(name))?;
            }
        }
        Ok(Self { directory, name })
    }

    /// Options of `ctr run` that give it to a container.
    pub(crate) fn mount(&self) -> [String; 2] {
        let Self { directory, name } = self;
        ["--mount".into(), format!("type=bind,src={},dst=/{name},options=rbind:ro", directory.display())]
    }

    /// The first words of a command that runs it there.
    pub(crate) fn words(&self) -> [String; 4] {
        let name = &self.name;
        [format!("/{name}/{LINKER}"), "--library-path".into(), format!("/{name}"), format!("/{name}/{name}")]
    }
}
