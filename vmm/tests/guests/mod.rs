//! Guests: 64-bit code that is entered at 16 MiB, with the first GiB mapped one to one and the zero page in RSI.

// Each test program uses a part of them.
#![allow(dead_code)]
// Starting a process with a descriptor of a given number has no safe interface.
#![allow(unsafe_code)]
// A failure of the test itself should stop it.
#![allow(clippy::unwrap_used)]

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};

/// Resets the machine through the keyboard controller.
const RESET: [u8; 6] = [
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xeb, 0xfe, // 1: jmp 1b
];

/// Waits for an interrupt that never comes.
pub(crate) const HALT: [u8; 4] = [
    0xfa, //       cli
    0xf4, //       1: hlt
    0xeb, 0xfd, // jmp 1b
];

/// Runs forever without ever leaving the guest.
pub(crate) const SPIN: [u8; 2] = [0xeb, 0xfe];

/// Invalid instruction with an empty interrupt table.
pub(crate) const TRIPLE_FAULT: [u8; 2] = [0x0f, 0x0b];

/// Prints through the UART's data port, and resets.
pub(crate) fn print_and_reset(text: &[u8]) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for byte in text {
        code.extend([0xb0, *byte, 0xee]); //       mov al, byte; out dx, al
    }
    code.extend(RESET);
    code
}

/// Writes a ramoops record with this text, and resets.
pub(crate) fn leave_record_and_reset(text: &str) -> Vec<u8> {
    let mut record = Vec::from(*b"DBGC");
    record.extend((text.len() as u32).to_le_bytes());
    record.extend((text.len() as u32).to_le_bytes());
    record.extend(text.as_bytes());
    let mut code = vec![0x48, 0x8d, 0x35]; //     lea rsi, [rip + 18]: after what follows here
    code.extend(18i32.to_le_bytes());
    code.push(0xbf); //                           mov edi, 0x100000
    code.extend(0x10_0000u32.to_le_bytes());
    code.push(0xb9); //                           mov ecx, length
    code.extend((record.len() as u32).to_le_bytes());
    code.extend([0xf3, 0xa4]); //                 rep movsb
    code.extend(RESET);
    code.extend(record);
    code
}

/// Checks what RSI points to: a zero page with a setup header, a command line that begins with "reboot=k", a memory map
/// of a small guest, and an initramfs that begins with "init". Resets if all is well, and triple-faults otherwise.
pub(crate) fn check_boot_parameters() -> Vec<u8> {
    let mut code = vec![
        0x66, 0x81, 0xbe, 0xfe, 0x01, 0x00, 0x00, 0x55, 0xaa, // cmp word [rsi + 0x1fe], 0xaa55
        0x75, 0x31, //                                            jne bad
        0x81, 0xbe, 0x02, 0x02, 0x00, 0x00, b'H', b'd', b'r', b'S', // cmp dword [rsi + 0x202], "HdrS"
        0x75, 0x25, //                                            jne bad
        0x8b, 0x9e, 0x28, 0x02, 0x00, 0x00, //                    mov ebx, [rsi + 0x228]: command line
        0x81, 0x3b, b'r', b'e', b'b', b'o', //                    cmp dword [rbx], "rebo"
        0x75, 0x17, //                                            jne bad
        0x80, 0xbe, 0xe8, 0x01, 0x00, 0x00,
        0x04, //              cmp byte [rsi + 0x1e8], 4: memory map entries
        0x75, 0x0e, //                                            jne bad
        0x8b, 0x9e, 0x18, 0x02, 0x00, 0x00, //                    mov ebx, [rsi + 0x218]: initramfs
        0x81, 0x3b, b'i', b'n', b'i', b't', //                    cmp dword [rbx], "init"
        0x74, 0x02, //                                            je good
        0x0f, 0x0b, //                                            bad: ud2
    ];
    code.extend(RESET); // good:
    code
}

/// Reads and writes ports and addresses where nothing is, in odd widths, and resets.
pub(crate) fn touch_nothings() -> Vec<u8> {
    let mut code = vec![
        0xbf, 0x80, 0x00, 0x00, 0x00, //             mov edi, 0x80
        0x66, 0xba, 0x34, 0x12, //                   mov dx, 0x1234
        0xec, //                                     in al, dx
        0x66, 0xed, //                               in ax, dx
        0xed, //                                     in eax, dx
        0xef, //                                     out dx, eax
        0xb9, 0x03, 0x00, 0x00, 0x00, //             mov ecx, 3
        0xf3, 0x6c, //                               rep insb
        0xb8, 0x83, 0x00, 0x00,
        0xd0, //             mov eax, 0xd0000083: a 2 MiB page at the first device's address
        0xbb, 0x08, 0xb0, 0x00, 0x00, //             mov ebx, 0xb008: second entry of the page directory
        0x48, 0x89, 0x03, //                         mov [rbx], rax
        0xbb, 0x00, 0x00, 0x20, 0x00, //             mov ebx, 0x200000: what it maps
        0x48, 0x8b, 0x83, 0x03, 0x01, 0x00, 0x00, // mov rax, [rbx + 0x103]
        0x48, 0x89, 0x43, 0x70, //                   mov [rbx + 0x70], rax
        0x8a, 0x43, 0x01, //                         mov al, [rbx + 1]
    ];
    code.extend(RESET);
    code
}

/// Reads the first device's magic number and the second one's id (entropy), and acknowledges the first. Resets if all is
/// well, and triple-faults otherwise.
pub(crate) fn find_virtio_devices() -> Vec<u8> {
    let mut code = vec![
        0xb8, 0x83, 0x00, 0x00,
        0xd0, //             mov eax, 0xd0000083: a 2 MiB page at the first device's address
        0xbb, 0x08, 0xb0, 0x00, 0x00, //             mov ebx, 0xb008: second entry of the page directory
        0x48, 0x89, 0x03, //                         mov [rbx], rax
        0xbb, 0x00, 0x00, 0x20, 0x00, //             mov ebx, 0x200000: what it maps
        0x81, 0x3b, b'v', b'i', b'r', b't', //       cmp dword [rbx], "virt"
        0x75, 0x16, //                               jne bad
        0x83, 0xbb, 0x08, 0x02, 0x00, 0x00, 0x04, // cmp dword [rbx + 0x208], 4
        0x75, 0x0d, //                               jne bad
        0xc7, 0x43, 0x70, 0x01, 0x00, 0x00, 0x00, // mov dword [rbx + 0x70], 1
        0x83, 0x7b, 0x70, 0x01, //                   cmp dword [rbx + 0x70], 1
        0x74, 0x02, //                               je good
        0x0f, 0x0b, //                               bad: ud2
    ];
    code.extend(RESET); // good:
    code
}

/// Writes to the address 4 GiB until it finds there what it wrote, and resets.
pub(crate) fn wait_for_memory_at_4_gib() -> Vec<u8> {
    let mut code = vec![
        0x48, 0xb8, 0x83, 0x00, 0x00, 0x00, 0x01, 0x00, 0x00,
        0x00, //                                     mov rax, 0x100000083: a 2 MiB page at 4 GiB
        0xbb, 0x08, 0xb0, 0x00, 0x00, //             mov ebx, 0xb008: second entry of the page directory
        0x48, 0x89, 0x03, //                         mov [rbx], rax
        0xbb, 0x00, 0x00, 0x20, 0x00, //             mov ebx, 0x200000: what it maps
        0xc6, 0x03, 0x5a, //                         again: mov byte [rbx], 0x5a
        0x80, 0x3b, 0x5a, //                         cmp byte [rbx], 0x5a
        0x75, 0xf8, //                               jne again
    ];
    code.extend(RESET);
    code
}

/// Where [`count`] keeps its counter, as 64 bits.
pub(crate) const COUNTER: u64 = 0x20_0000;

/// Counts up, in a register and in memory, and prints each number's low byte. Triple-faults when the two differ.
pub(crate) fn count() -> Vec<u8> {
    vec![
        0x31, 0xdb, //                   xor ebx, ebx
        0xbf, 0x00, 0x00, 0x20, 0x00, // mov edi, 0x200000
        0x66, 0xba, 0xf8, 0x03, //       mov dx, 0x3f8
        0x48, 0x89, 0x1f, //             mov [rdi], rbx
        0x48, 0x39, 0x1f, //             again: cmp [rdi], rbx
        0x75, 0x0b, //                   jne bad
        0x48, 0xff, 0xc3, //             inc rbx
        0x48, 0x89, 0x1f, //             mov [rdi], rbx
        0x88, 0xd8, //                   mov al, bl
        0xee, //                         out dx, al
        0xeb, 0xf0, //                   jmp again
        0x0f, 0x0b, //                   bad: ud2
    ]
}

/// Sets the entropy device's queue up and asks it for 8 bytes again and again; prints the low byte of the number of answers
/// after each.
pub(crate) fn draw_entropy() -> Vec<u8> {
    /// The device's registers: the second ones of what is mapped at 2 MiB.
    const DEVICE: u32 = 0x20_0200;
    const TABLE: u32 = 0x40_0000;
    const AVAILABLE: u32 = 0x40_1000;
    const USED: u32 = 0x40_2000;
    const BUFFER: u32 = 0x40_3000;
    let mut code = vec![
        0xb8, 0x83, 0x00, 0x00,
        0xd0, //                         mov eax, 0xd0000083: a 2 MiB page at the first device's address
        0xbb, 0x08, 0xb0, 0x00, 0x00, // mov ebx, 0xb008: second entry of the page directory
        0x48, 0x89, 0x03, //             mov [rbx], rax
    ];
    // mov dword [address], value
    let mut store = |address: u32, value: u32| {
        code.extend([0xc7, 0x04, 0x25]);
        code.extend(address.to_le_bytes());
        code.extend(value.to_le_bytes());
    };
    // One buffer, for the device to write.
    store(TABLE, BUFFER);
    store(TABLE + 8, 8);
    store(TABLE + 12, 2);
    // Status, features (VERSION_1, which is bit 32), queue 0, status.
    for (register, value) in [
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x38, 8),
        (0x80, TABLE),
        (0x90, AVAILABLE),
        (0xa0, USED),
        (0x44, 1),
        (0x70, 15),
    ] {
        store(DEVICE + register, value);
    }
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    code.extend([0x45, 0x31, 0xc0]); //       xor r8d, r8d
    let again = code.len();
    code.extend([0x66, 0x41, 0xff, 0xc0]); // inc r8w
    code.extend([0x66, 0x44, 0x89, 0x04, 0x25]); // mov [AVAILABLE + 2], r8w
    code.extend((AVAILABLE + 2).to_le_bytes());
    code.extend([0x0f, 0xae, 0xf0]); //       mfence
    code.extend([0xc7, 0x04, 0x25]); //       mov dword [DEVICE + 0x50], 0: kick
    code.extend((DEVICE + 0x50).to_le_bytes());
    code.extend([0; 4]);
    code.extend([0x66, 0x44, 0x39, 0x04, 0x25]); // wait: cmp [USED + 2], r8w
    code.extend((USED + 2).to_le_bytes());
    code.extend([0x75, 0xf5]); //             jne wait
    code.extend([0x44, 0x88, 0xc0]); //       mov al, r8b
    code.extend([0xee, 0xeb]); //             out dx, al; jmp again
    code.push((again as i64 - code.len() as i64 - 1) as u8);
    code
}

/// Starts a VMM with its control socket as descriptor 3, and with nothing else that ties it to this process.
pub(crate) fn spawn_with_control(binary: &Path, socket: OwnedFd) -> Child {
    // From 4 on, so that the copy below always leaves one that survives exec.
    let number = nix::fcntl::fcntl(&socket, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(4)).unwrap();
    drop(socket);
    let mut command = Command::new(binary);
    // SAFETY: one system call on two numbers.
    unsafe {
        command.pre_exec(move || match libc::dup2(number, 3) {
            3 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let child = command.spawn().unwrap();
    // SAFETY: made above, and owned by nobody else.
    drop(unsafe { OwnedFd::from_raw_fd(number) });
    child
}
