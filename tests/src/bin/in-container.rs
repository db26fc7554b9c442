//! What tests do inside containers that busybox can't. It is mounted into them as a volume.
//!
//!     in-container watch PATH…    prints "ready", then a line for each inotify event: its kind, and its name or the path
//!     in-container connect PATH   joins standard input and output to a UNIX socket; the end of input is a half-close
//!     in-container SECONDS        sleeps, whatever the program's name is
//!     in-container ping PATH      prints how long a connection takes, and one byte there and back; the median of 100
//!     in-container hold PATH N    opens so many connections, with one byte there and back on each, and keeps them until the
//!                                 server closes the last
//!     in-container lock PATH      takes both kinds of lock of the file (fcntl(2), flock(2)), prints "locked" or "busy", and
//!                                 keeps them until input ends
//!     in-container files DIR N    makes N files of 4 KiB, lists them with their sizes, asks for each, reads them, removes them;
//!                                 prints how many milliseconds each of these took
//!     in-container hold           waits for input, splices it to a socket that nobody reads, prints "held" and sleeps: the kernel
//!                                 keeps the input's pipe locked all the while
//!     in-container use MIB        prints "ready"; uses so much memory after a line of input, prints "used"; frees it after another,
//!                                 prints "freed"; ends when input ends
//!     in-container map PATH WORD  makes a file, writes the word through a mapping and ends without a word about it
//!     in-container unique         prints what no two machines may have in common, a name and a value on each line

use std::fs::{self, File};
use std::hash::BuildHasher;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, SpliceFFlags, fcntl, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, socket};
use nix::unistd::gettid;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["unique"] => unique(),
        ["hold"] => hold_input(),
        ["use", mib] => use_memory(mib.parse().map_err(io::Error::other)?),
        ["watch", ref paths @ ..] if !paths.is_empty() => watch(paths),
        ["connect", path] => connect(path),
        ["ping", path] => ping(path),
        ["hold", path, count] => hold(path, count.parse().map_err(io::Error::other)?),
        ["lock", path] => lock(path),
        ["map", path, word] => map(path, word.as_bytes()),
        ["files", directory, count] => {
            files(&Path::new(directory).join("files"), count.parse().map_err(io::Error::other)?)
        }
        [seconds] if seconds.parse::<u64>().is_ok() => {
            thread::sleep(Duration::from_secs(seconds.parse().unwrap_or(0)));
            Ok(())
        }
        _ => Err(io::Error::other(
            "usage: in-container watch PATH… | connect PATH | ping PATH | hold PATH N | hold | lock PATH \
             | files DIR N | use MIB | map PATH WORD | unique",
        )),
    }
}

#[allow(unsafe_code)] // Memory that a file is mapped into.
fn map(path: &str, word: &[u8]) -> io::Result<()> {
    let file = File::options().read(true).write(true).create_new(true).open(path)?;
    let length = NonZeroUsize::new(word.len()).ok_or(io::ErrorKind::InvalidInput)?;
    file.set_len(u64::try_from(word.len()).map_err(io::Error::other)?)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: A new mapping at an address of the kernel's choice, which stays as long as the process.
    let mapped = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &file, 0) }?;
    // SAFETY: So much is mapped and the file has it. Nobody else knows of the mapping.
    unsafe { std::ptr::copy_nonoverlapping(word.as_ptr(), mapped.as_ptr().cast(), word.len()) };
    Ok(())
}

fn hold_input() -> io::Result<()> {
    let (socket, _peer) = UnixStream::pair()?;
    socket.set_nonblocking(true)?;
    while (&socket).write(&[0; 4096]).is_ok() {}
    socket.set_nonblocking(false)?;
    let stdin = io::stdin();
    let mut input = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    poll(&mut input, PollTimeout::NONE)?;
    let (tell, told) = mpsc::channel();
    thread::spawn(move || {
        let _ = tell.send(gettid());
        splice(io::stdin(), None, socket, None, 4096, SpliceFFlags::empty())
    });
    let state = format!("/proc/self/task/{}/syscall", told.recv().map_err(io::Error::other)?);
    // A thread that runs has no number there.
    while !fs::read_to_string(&state)?.starts_with(&format!("{} ", libc::SYS_splice)) {
        thread::yield_now();
    }
    println!("held");
    loop {
        thread::park();
    }
}

fn watch(paths: &[&str]) -> io::Result<()> {
    let kinds = [
        (AddWatchFlags::IN_CREATE, "create"),
        (AddWatchFlags::IN_MOVED_TO, "moved-to"),
        (AddWatchFlags::IN_DELETE, "delete"),
        (AddWatchFlags::IN_DELETE_SELF, "delete-self"),
        (AddWatchFlags::IN_ATTRIB, "attrib"),
    ];
    let all = kinds.iter().fold(AddWatchFlags::empty(), |all, (kind, _)| all | *kind);
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let mut watched = Vec::new();
    for path in paths {
        watched.push((inotify.add_watch(*path, all)?, *path));
    }
    let mut out = io::stdout().lock();
    writeln!(out, "ready")?;
    loop {
        for event in inotify.read_events()? {
            let path = watched.iter().find(|(watch, _)| *watch == event.wd).map_or("?", |(_, path)| path);
            let name = event.name.map_or_else(|| path.into(), |name| name.to_string_lossy().into_owned());
            for (_, kind) in kinds.iter().filter(|(kind, _)| event.mask.contains(*kind)) {
                writeln!(out, "{kind} {name}")?;
            }
        }
    }
}

fn connect(path: &str) -> io::Result<()> {
    let stream = UnixStream::connect(path)?;
    let (mut reader, mut writer) = (stream.try_clone()?, stream);
    let sender = thread::spawn(move || {
        io::copy(&mut io::stdin().lock(), &mut writer)?;
        writer.shutdown(Shutdown::Write)
    });
    io::copy(&mut reader, &mut io::stdout().lock())?;
    // A server that has ended needs no more input: what is still to be sent fails, or there is none.
    if sender.is_finished() { sender.join().unwrap_or(Ok(())) } else { Ok(()) }
}

fn ping(path: &str) -> io::Result<()> {
    let (mut whole, mut one) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let start = Instant::now();
        let mut stream = UnixStream::connect(path)?;
        let mut byte = [0];
        // A connection is there when it has answered once.
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        whole.push(start.elapsed());
        let start = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        one.push(start.elapsed());
    }
    whole.sort();
    one.sort();
    let median = |times: &[Duration]| times.get(50).copied().unwrap_or_default();
    println!("connection and first byte {:?}, one byte {:?}", median(&whole), median(&one));
    Ok(())
}

fn hold(path: &str, count: usize) -> io::Result<()> {
    let mut streams = Vec::new();
    for _ in 0..count {
        let mut stream = UnixStream::connect(path)?;
        let mut byte = [0];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        streams.push(stream);
    }
    streams.last_mut().map_or(Ok(0), |last| last.read(&mut [0])).map(drop)
}

fn lock(path: &str) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let whole = nix::libc::flock {
        l_type: nix::libc::F_WRLCK as nix::libc::c_short,
        l_whence: nix::libc::SEEK_SET as nix::libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let posix = fcntl(&file, FcntlArg::F_SETLK(&whole)).map(drop);
    let bsd = Flock::lock(file.try_clone()?, FlockArg::LockExclusiveNonblock);
    match (posix, &bsd) {
        (Ok(()), Ok(_)) => println!("locked"),
        (Err(Errno::EAGAIN | Errno::EACCES), Err((_, Errno::EWOULDBLOCK))) => {
            println!("busy");
            return Ok(());
        }
        (posix, bsd) => {
            let bsd = bsd.as_ref().map(drop).map_err(|(_, error)| *error);
            return Err(io::Error::other(format!("fcntl: {posix:?}, flock: {bsd:?}")));
        }
    }
    io::copy(&mut io::stdin().lock(), &mut io::sink()).map(drop)
}

fn use_memory(mib: usize) -> io::Result<()> {
    let mut lines = io::stdin().lines();
    println!("ready");
    lines.next().transpose()?;
    // So large an allocation is a mapping of its own.
    let memory = std::hint::black_box(vec![1_u8; mib << 20]);
    println!("used");
    lines.next().transpose()?;
    drop(memory);
    println!("freed");
    lines.try_for_each(|line| line.map(drop))
}

/// Files in a directory of [`files`].
const FILES_OF_ONE: usize = 100;

fn files(top: &Path, count: usize) -> io::Result<()> {
    fs::create_dir(top)?;
    let directories: Vec<PathBuf> =
        (0..count.div_ceil(FILES_OF_ONE)).map(|number| top.join(format!("directory-{number}"))).collect();
    let paths: Vec<PathBuf> = directories
        .iter()
        .flat_map(|directory| (0..FILES_OF_ONE).map(|number| directory.join(format!("file-{number}.txt"))))
        .take(count)
        .collect();
    let mut times = Vec::new();
    let mut time = |step: &dyn Fn() -> io::Result<()>| {
        let start = Instant::now();
        step()?;
        times.push(format!("{:.1}", start.elapsed().as_secs_f64() * 1e3));
        Ok::<_, io::Error>(())
    };
    time(&|| {
        directories.iter().try_for_each(fs::create_dir)?;
        paths.iter().try_for_each(|path| File::create_new(path)?.write_all(&[b'x'; 4096]))
    })?;
    time(&|| {
        directories.iter().try_for_each(|directory| {
            fs::read_dir(directory)?.try_for_each(|entry| entry?.metadata().map(drop))
        })
    })?;
    time(&|| paths.iter().try_for_each(|path| fs::metadata(path).map(drop)))?;
    time(&|| paths.iter().try_for_each(|path| fs::read(path).map(drop)))?;
    time(&|| fs::remove_dir_all(top))?;
    println!("{}", times.join(" "));
    Ok(())
}

/// Random numbers by all the ways that a program has to them, and what the kernel makes of them for TCP.
fn unique() -> io::Result<()> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    println!("urandom {}", hex(&bytes));
    // The standard library seeds its hashes by getrandom(2).
    println!("getrandom {:x}", std::hash::RandomState::new().hash_one(0));
    println!("at-random {}", hex(&auxiliary_random()?));
    for name in ["uuid", "boot_id"] {
        print!("{name} {}", fs::read_to_string(format!("/proc/sys/kernel/random/{name}"))?);
    }
    println!("mktemp {}", tempfile::tempdir()?.path().display());
    let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let stream = TcpStream::connect(listener.local_addr()?)?;
    println!("ports {} {}", listener.local_addr()?.port(), stream.local_addr()?.port());
    // The first packet that came is the connection's first: 20 bytes of IPv4, then ports and the sequence number (RFC 9293).
    let mut packet = [0; 64];
    recv(raw.as_raw_fd(), &mut packet, MsgFlags::empty())?;
    let [s0, s1, s2, s3] = [24, 25, 26, 27].map(|at| packet.get(at).copied().unwrap_or_default());
    println!("tcp-sequence {:08x}", u32::from_be_bytes([s0, s1, s2, s3]));
    Ok(())
}

/// The 16 bytes that the kernel gave this program when it was executed (AT_RANDOM of getauxval(3)).
fn auxiliary_random() -> io::Result<[u8; 16]> {
    const AT_RANDOM: u64 = 25;
    let auxv = fs::read("/proc/self/auxv")?;
    let words: Vec<u64> =
        auxv.chunks_exact(8).filter_map(|word| word.try_into().ok().map(u64::from_ne_bytes)).collect();
    let pair = words
        .chunks_exact(2)
        .find_map(|pair| <[u64; 2]>::try_from(pair).ok().filter(|[key, _]| *key == AT_RANDOM));
    let [_, address] = pair.ok_or(io::ErrorKind::NotFound)?;
    let mut bytes = [0; 16];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, address)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
