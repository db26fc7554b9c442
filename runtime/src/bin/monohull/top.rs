//! `monohull top`: what pods use, now.

mod sample;
mod screen;
mod view;

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use clap::Args;
use monohull_runtime::settings::Settings;
use monohull_runtime::watch_descriptor;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::failure::{Failure, print};
use crate::session::{Event, Signals};
use crate::terminal;
use sample::Sampler;
use screen::Key;
use view::{Sort, View};

/// The shortest time between two looks: each costs the host some milliseconds a pod.
const LEAST_DELAY: f64 = 0.2;
/// The longest: an hour.
const MOST_DELAY: f64 = 3600.0;

/// Columns and rows of a terminal that does not tell.
const FALLBACK: (u16, u16) = (80, 24);

/// Show what pods use, live
///
/// A table of the pods of this host that is drawn again and again. CPU, network and disk are rates since the last look.
#[derive(Args, Debug)]
#[command(after_help = "\
Columns:
  CPU %     of one CPU, the guest's and what runs for it
  GUEST     guest memory in MiB that the host has given, and what the VM may have
  HOST      memory in MiB that the host would have again without the pod, guest included
  NET, DISK KiB/s to and from the pod, and from and to the host's disks

Keys:
  c m n d a p   sort by CPU, memory, network, disk, age, pod
  q             quit

Exit codes:
  0  quit      1  the state can't be read      2  wrong usage

Examples:
  monohull top
  monohull top --once --sort memory
  monohull top -b -d 10 > pods.txt")]
pub(crate) struct Arguments {
    /// Seconds between two looks
    #[arg(short, long, default_value = "2", value_parser = delay, value_name = "SECONDS")]
    delay: Duration,
    /// Print one table and end: rates are those of one interval
    #[arg(long, conflicts_with = "batch")]
    once: bool,
    /// Print a table at each interval instead of drawing it, until ended
    #[arg(short, long)]
    batch: bool,
    /// What to sort by
    #[arg(long, value_enum, default_value_t = Sort::Cpu)]
    sort: Sort,
}

fn delay(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "write a number of seconds".to_owned())?;
    if (LEAST_DELAY..=MOST_DELAY).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(format!("it must be from {LEAST_DELAY} to {MOST_DELAY} seconds"))
    }
}

/// Runs the command.
pub(crate) fn top(arguments: &Arguments) -> Result<u8, Failure> {
    let live = !arguments.once && !arguments.batch;
    if live && !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
        return Err(
            Failure::new("standard input and output are no terminal: use --once or --batch").with_code(2)
        );
    }
    let settings = Settings::load().map_err(|e| Failure::of("cannot load the settings", &e))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::of("cannot start the event loop", &e))?;
    runtime.block_on(async {
        let mut top = Top::new(settings, arguments)?;
        if live { top.live().await } else { top.print(arguments.once).await }
    })?;
    Ok(0)
}

/// The command while it runs.
struct Top {
    sampler: Sampler,
    view: View,
    timer: AsyncFd<OwnedFd>,
    signals: Signals,
}

impl Top {
    fn new(settings: Settings, arguments: &Arguments) -> Result<Self, Failure> {
        Ok(Self {
            sampler: Sampler::new(settings),
            view: View::new(arguments.sort),
            timer: timer(arguments.delay).map_err(|e| Failure::of("cannot make a timer", &e))?,
            signals: Signals::new().map_err(|e| Failure::of("cannot catch signals", &e))?,
        })
    }

    /// Prints tables: one, or until a signal comes.
    async fn print(&mut self, once: bool) -> Result<(), Failure> {
        self.sampler.look()?;
        loop {
            tokio::select! {
                expired = expired(&self.timer) => expired?,
                _ = self.signals.terminating() => return Ok(()),
            }
            let rows = self.sampler.look()?;
            print(&self.view.table(rows, None))?;
            if once {
                return Ok(());
            }
            print("\n")?;
        }
    }

    /// Draws tables until told to stop.
    async fn live(&mut self) -> Result<(), Failure> {
        let failed = |e| Failure::of("cannot use the terminal", &e);
        let (stdin, stdout) = (io::stdin(), io::stdout());
        let keys = stdin.as_fd().try_clone_to_owned().and_then(|fd| watch_descriptor(fd, Interest::READABLE));
        let keys = keys.map_err(failed)?;
        // Whatever ends this function gives the terminal back.
        let _screen = terminal::Screen::enter(stdout.as_fd()).map_err(failed)?;
        let mut rows = self.sampler.look()?;
        loop {
            print(&screen::frame(
                &self.view.table(rows.clone(), None),
                terminal::size().unwrap_or(FALLBACK),
            ))?;
            tokio::select! {
                expired = expired(&self.timer) => {
                    expired?;
                    rows = self.sampler.look()?;
                }
                key = screen::key(&keys) => match key.map_err(failed)? {
                    Key::Quit => return Ok(()),
                    Key::Sort(sort) => self.view = View::new(sort),
                    Key::Other => {}
                },
                event = self.signals.next() => if let Event::Terminating(_) = event {
                    return Ok(());
                },
            }
        }
    }
}

/// A timer that expires again and again, each `delay`.
fn timer(delay: Duration) -> io::Result<AsyncFd<OwnedFd>> {
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let delay = Timespec::try_from(delay).map_err(io::Error::other)?;
    let each = Itimerspec { it_interval: delay, it_value: delay };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &each)?;
    watch_descriptor(timer, Interest::READABLE)
}

async fn expired(timer: &AsyncFd<OwnedFd>) -> Result<(), Failure> {
    let read = |timer: &OwnedFd| Ok(rustix::io::read(timer, &mut [0; 8])?);
    let read = timer.async_io(Interest::READABLE, read).await;
    read.map(drop).map_err(|e| Failure::of("cannot read the timer", &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_seconds_within_reason() {
        assert_eq!(delay("2"), Ok(Duration::from_secs(2)));
        assert_eq!(delay("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "inf", "4000", "1s", ""] {
            assert!(delay(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_timer_expires_again_and_again() {
        let timer = timer(Duration::from_millis(1)).unwrap();
        for _ in 0..3 {
            assert!(expired(&timer).await.is_ok());
        }
    }
}
