//! The fake VMM's side of its control socket.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use monohull_protocol::RPC_PORT;
use monohull_vmm::api::{
    Action, CONTROL_FD, Done, Event, ExitReason, FromVmm, MAX_MESSAGE, Reply, Request, SECTOR, Saved,
};

use super::{Fake, Mode};

impl Fake {
    /// What a VMM does that has no guest to speak of.
    pub(super) async fn misbehave(&self) {
        match self.mode {
            Mode::ConnectsNothing => {
                self.send(FromVmm::Event(Event::GuestConnected { port: RPC_PORT }), &[]);
            }
            Mode::Bloats => {
                let bytes = vec![b' '; MAX_MESSAGE + 1];
                nix::sys::socket::send(
                    std::os::fd::AsRawFd::as_raw_fd(&self.control.as_fd()),
                    &bytes,
                    nix::sys::socket::MsgFlags::empty(),
                )
                .unwrap();
            }
            _ => {
                for start in 0..1000_u64 {
                    let mark = |number| ("x".repeat(1000), start * 100 + number);
                    let marks = (0..40).map(mark).collect();
                    self.send(FromVmm::Event(Event::Started { marks }), &[]);
                }
                return;
            }
        }
        std::future::pending::<()>().await;
    }

    /// An answer to nobody's request, one of a wrong kind, and the same again.
    fn answer_wrongly(&self, id: u64) {
        let memory = Ok(Done::Memory { plugged_mib: u32::MAX });
        for (id, result) in [(id + 1000, Ok(Done::Ok)), (id, memory.clone()), (id, memory)] {
            self.send(FromVmm::Reply(Reply { id, result }), &[]);
        }
    }

    /// Serves the owner's requests until it goes.
    pub(super) fn serve_requests(&self) {
        let mut sectors = 0;
        while let Ok(Some((request, fds))) = self.control.receive::<Request>() {
            match self.mode {
                Mode::AnswersNothing => continue,
                Mode::AnswersWrongly => {
                    self.answer_wrongly(request.id);
                    continue;
                }
                Mode::HangsUp => {
                    // SAFETY: nothing uses it any more: this thread, its only user by now, sleeps for good.
                    drop(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
                    loop {
                        std::thread::park();
                    }
                }
                _ => {}
            }
            let result = match request.action {
                Action::AddExtent { .. } if self.mode == Mode::RefusesExtents => {
                    Err("the disk is full".into())
                }
                Action::AddExtent { read_only } => {
                    let size = File::from(fds.into_iter().next().unwrap()).metadata().unwrap().len() / SECTOR;
                    self.note(&format!("extent at {sectors} read_only={read_only}"));
                    sectors += size;
                    Ok(Done::ExtentAdded { start: sectors - size, sectors: size })
                }
                Action::Stop if self.mode == Mode::Immortal => continue,
                Action::Stop => {
                    self.note("stop");
                    self.exit(ExitReason::Stopped);
                    return;
                }
                // A guest that takes what it is given, a moment later.
                Action::SetMemory { mib } => {
                    self.note(&format!("memory {mib}"));
                    let result = Ok(Done::Memory { plugged_mib: 0 });
                    self.send(FromVmm::Reply(Reply { id: request.id, result }), &[]);
                    self.send(FromVmm::Event(Event::MemoryReached { mib }), &[]);
                    continue;
                }
                Action::AwaitReports { mib } => {
                    self.note(&format!("await reports {mib}"));
                    self.send(FromVmm::Event(Event::FreeReported), &[]);
                    Ok(Done::Ok)
                }
                Action::Snapshot if self.mode == Mode::RefusesSnapshots => Err("no room".into()),
                Action::Snapshot => {
                    self.note("snapshot");
                    for fd in fds {
                        File::from(fd).write_all(b"saved").unwrap();
                    }
                    Ok(Done::Saved(Saved { state_bytes: 5, memory_bytes: 5 }))
                }
                other => {
                    self.note(&format!("{other:?}"));
                    Ok(Done::Ok)
                }
            };
            self.send(FromVmm::Reply(Reply { id: request.id, result }), &[]);
        }
        std::process::exit(0);
    }
}
