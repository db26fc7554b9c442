//! The places where containers store files, with both runtimes.

use std::fs;
use std::io;

use monohull_tests::engine::{Client, Engine, IMAGE, MONOHULL, Output, RUNC, finish, unique};

/// A directory of a container.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// What it is.
    pub(crate) name: &'static str,
    snapshotter: &'static str,
    /// Its path in the container.
    pub(crate) path: &'static str,
}

/// All of them.
pub(crate) const PLACES: [Place; 3] = [
    Place { name: "directory root", snapshotter: "overlayfs", path: "/tmp" },
    Place { name: "volume", snapshotter: "overlayfs", path: "/volume" },
    Place { name: "block root", snapshotter: "erofs", path: "/tmp" },
];

/// Both runtimes, as their turns come.
pub(crate) const RUNTIMES: [&str; 2] = [RUNC, MONOHULL];

/// Where the containers have the host's directory of the tests' programs.
const TESTS: &str = "/opt/tests";

/// containerd 2.3 with a container for each runtime and kind of root.
pub(crate) struct Containers {
    engine: Engine,
    /// Runtime, snapshotter, id.
    started: Vec<(&'static str, &'static str, String)>,
}

impl Containers {
    /// Starts them; `options` gives further options of `ctr run`.
    pub(crate) fn start(options: impl FnOnce(&Engine) -> io::Result<Vec<String>>) -> io::Result<Self> {
        let sized = "[plugins.\"io.containerd.snapshotter.v1.erofs\"]\ndefault_size = \"256MiB\"\n";
        let engine = Engine::start_with(Client::Nerdctl, |_| Ok(sized.into()))?;
        let options = options(&engine)?;
        let mut containers = Self { engine, started: Vec::new() };
        for snapshotter in ["overlayfs", "erofs"] {
            for runtime in RUNTIMES {
                containers.run(runtime, snapshotter, &options)?;
            }
        }
        Ok(containers)
    }

    fn run(
        &mut self,
        runtime: &'static str,
        snapshotter: &'static str,
        options: &[String],
    ) -> io::Result<()> {
        let id = format!("bench-storage-{}", unique());
        let volume = self.engine.scratch().join(&id);
        fs::create_dir(&volume)?;
        let bind =
            |from: &str, to: &str, mode: &str| format!("type=bind,src={from},dst={to},options=rbind:{mode}");
        let mut ctr =
            self.engine.ctr(&["run", "--detach", "--runtime", runtime, "--snapshotter", snapshotter]);
        ctr.args(["--mount", &bind(TESTS, TESTS, "ro")]);
        ctr.args(["--mount", &bind(&volume.display().to_string(), "/volume", "rw")]);
        ctr.args(options).args([IMAGE, &id, "sleep", "10000"]);
        succeeded(runtime, &finish(&mut ctr))?;
        self.started.push((runtime, snapshotter, id));
        Ok(())
    }

    /// What a command printed that has run in the container which has `place`.
    pub(crate) fn exec(&self, runtime: &str, place: &Place, command: &[&str]) -> io::Result<Output> {
        let found = self.started.iter().find(|(of, has, _)| *of == runtime && *has == place.snapshotter);
        let (_, _, id) = found.ok_or_else(|| io::Error::other("no such container"))?;
        let output = ctr_exec(&self.engine, id, command);
        succeeded(runtime, &output)?;
        Ok(output)
    }
}

impl Drop for Containers {
    fn drop(&mut self) {
        for (_, _, id) in &self.started {
            let _ = finish(&mut self.engine.ctr(&["task", "delete", "--force", id]));
            let _ = finish(&mut self.engine.ctr(&["container", "delete", id]));
        }
    }
}

fn succeeded(runtime: &str, output: &Output) -> io::Result<()> {
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{runtime}: {}{}", output.text(), output.stderr)))
}

fn ctr_exec(engine: &Engine, id: &str, command: &[&str]) -> Output {
    let exec_id = format!("exec-{}", unique());
    finish(engine.ctr(&["task", "exec", "--exec-id", &exec_id, id]).args(command))
}
