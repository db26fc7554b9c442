//! A VM's life, from the configuration to the last message.

use std::error::Error;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use nix::sys::prctl;
use vm_memory::GuestAddressSpace;

use crate::api::{Event, ExitReason, FromVmm, VmConfig};
use crate::builder::{self, Built};
use crate::control::{Control, Handles, Outbox};
use crate::device_set::Thread;
use crate::ending::{Cause, Ending};
use crate::event_loop::EventLoop;
use crate::guest::Guest;
use crate::ipc::Channel;
use crate::jail;
use crate::jail::filter::{self, Class};
use crate::marks::Marks;
use crate::panic_record;
use crate::threads::Starter;
use crate::vcpu;
use crate::virtio::GuestMemory;

/// Runs the VM whose owner is on `socket`, from its configuration to its end. Returns why it ended, after telling the
/// owner; `None` when the owner has gone.
pub fn run(socket: OwnedFd, mut marks: Marks) -> Option<ExitReason> {
    let channel = Arc::new(Channel::new(socket));
    let outbox = Outbox::new(channel.clone());
    let reason = match channel.receive::<VmConfig>() {
        Ok(None) => return None,
        Ok(Some((config, fds))) => {
            name_process(&config.name);
            match build(&config, fds, &outbox, &mut marks) {
                Ok(built) => run_built(built, channel, &outbox, marks)?,
                Err(error) => ExitReason::Failure(crate::describe(error.as_ref())),
            }
        }
        Err(error) => {
            ExitReason::Failure(format!("can't read the VM's configuration: {}", crate::describe(&error)))
        }
    };
    outbox.finish(reason.clone());
    Some(reason)
}

/// Gives up everything but `fds`, then builds the VM.
fn build(
    config: &VmConfig,
    fds: Vec<OwnedFd>,
    outbox: &Outbox,
    marks: &mut Marks,
) -> Result<Built, Box<dyn Error>> {
    jail::enter(config.user)?;
    marks.note("jailed");
    Ok(builder::build(config, fds, outbox, marks)?)
}

/// Tells an administrator whose VMM this is. The kernel cuts the name off.
fn name_process(pod: &str) {
    // It fails for a name with a zero byte in it, which is nobody's.
    if let Ok(name) = CString::new(format!("vmm:{pod}")) {
        let _ = prctl::set_name(&name);
    }
}

/// Runs a VM. `None` when the owner has gone.
fn run_built(built: Built, channel: Arc<Channel>, outbox: &Outbox, marks: Marks) -> Option<ExitReason> {
    let start = || {
        let ending = Ending::new()?;
        let machine = Machine::start(built, channel, outbox, &ending, marks)?;
        Ok::<_, io::Error>((machine, ending))
    };
    match start() {
        Ok((machine, ending)) => machine.run_to_end(&ending),
        Err(error) => Some(ExitReason::Failure(format!("can't start the VM: {error}"))),
    }
}

/// A VM that is served.
#[derive(Debug)]
struct Machine {
    guest: Arc<Mutex<Guest>>,
    events: EventLoop,
    memory: GuestMemory,
    handles: Handles,
    outbox: Outbox,
}

impl Machine {
    fn start(
        built: Built,
        channel: Arc<Channel>,
        outbox: &Outbox,
        ending: &Ending,
        mut marks: Marks,
    ) -> io::Result<Self> {
        let mut events = EventLoop::new(ending)?;
        let starter = Starter::new()?;
        let (memory, handles, paused) = (built.memory.clone(), built.devices.handles(&starter), built.paused);
        for device in built.devices.on(Thread::Main) {
            events.add_device(device);
        }
        let guest = Arc::new(Mutex::new(Guest::new(built, starter.clone(), ending.clone())));
        let handles = Handles { machine: Some(guest.clone()), ..handles };
        events.add(Control::new(channel, outbox.clone(), handles.clone(), starter, ending.clone())?);
        vcpu::init()?;
        filter::install(Class::Main)?;
        if !paused {
            crate::lock(&guest).run()?;
            marks.note("vcpus run");
        }
        // Everything else that is posted comes from the event loop, which does not run yet: this is the first message.
        outbox.post(FromVmm::Event(Event::Started { marks: marks.into_inner() }));
        Ok(Self { guest, events, memory, handles, outbox: outbox.clone() })
    }

    /// Serves until the VM ends, then stops it in order: CPUs, then what they had asked the disks for.
    fn run_to_end(mut self, ending: &Ending) -> Option<ExitReason> {
        let served = self.events.run_until(ending);
        let reason = match (served, ending.get()) {
            // The kernel tears down what is left faster than we could.
            (_, Some(Cause::Abandoned)) => return None,
            (_, Some(Cause::Reason(reason))) => reason.clone(),
            (Err(error), None) => ExitReason::Failure(format!("the event loop failed: {error}")),
            (Ok(()), None) => ExitReason::Failure("the event loop ended early".to_owned()),
        };
        crate::lock(&self.guest).stop();
        if let Some(disk) = &self.handles.disk {
            // The owner reads the disk's files next. A file that can't be flushed has failed the guest's own requests.
            let _ = crate::lock(disk).flush();
        }
        Some(match reason {
            // The way a panic ends too, told apart by what the guest kernel left.
            ExitReason::GuestShutdown | ExitReason::TripleFault => {
                let Some(panic) = panic_record::read(&self.memory.memory()) else { return Some(reason) };
                self.outbox.post(FromVmm::Event(Event::LastWords { text: panic.log }));
                panic.reason
            }
            other => other,
        })
    }
}
