//! Writes a guest: code that is entered at 16 MiB with the first GiB mapped one to one, as straight-line accesses to
//! addresses that are known beforehand, with loops around them.

use super::driver::{DEVICES, WINDOW};

/// Where a program can have anything mapped: the last 2 MiB of its memory, which nothing is in.
pub(crate) const WINDOW_ON_MEMORY: u32 = 30 << 20;
/// The UART's data port.
pub(crate) const UART: u16 = 0x3f8;

/// A guest that is being written.
pub(crate) struct Program(Vec<u8>);

impl Program {
    /// One that sees the devices' registers at [`DEVICES`].
    pub(crate) fn new() -> Self {
        let mut program = Self(Vec::new());
        // The second entry of the page directory: a 2 MiB page, present and writable.
        program.store64(0xb008, WINDOW | 0x83);
        assert_eq!(DEVICES, 2 << 20, "what that entry maps");
        program
    }

    /// Its code, after whose end the guest halts.
    pub(crate) fn code(mut self) -> Vec<u8> {
        self.halt();
        self.0
    }

    /// An instruction that accesses `address`: its opcode, with the middle bits of the byte that names the operand.
    fn access(&mut self, opcode: &[u8], operand: u8, address: u32) {
        assert!(address < 1 << 30, "addresses beyond the mapped GiB are not for a program");
        self.0.extend(opcode);
        self.0.extend([0x04 | operand << 3, 0x25]);
        self.0.extend(address.to_le_bytes());
    }

    /// Reads an address, for what the reading does.
    pub(crate) fn load(&mut self, address: u32, width: u8) {
        match width {
            1 => self.access(&[0x8a], 0, address),
            2 => self.access(&[0x66, 0x8b], 0, address),
            4 => self.access(&[0x8b], 0, address),
            _ => self.access(&[0x48, 0x8b], 0, address),
        }
    }

    pub(crate) fn store8(&mut self, address: u32, value: u8) {
        self.access(&[0xc6], 0, address);
        self.0.push(value);
    }

    /// Stores the 16 bits at `from`, and `more`, to another address.
    pub(crate) fn copy16(&mut self, from: u32, to: u32, more: u16) {
        self.load(from, 2);
        self.0.extend([0x66, 0x05]); // add ax, more
        self.0.extend(more.to_le_bytes());
        self.access(&[0x66, 0x89], 0, to);
    }

    pub(crate) fn store16(&mut self, address: u32, value: u16) {
        self.access(&[0x66, 0xc7], 0, address);
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn store32(&mut self, address: u32, value: u32) {
        self.access(&[0xc7], 0, address);
        self.0.extend(value.to_le_bytes());
    }

    pub(crate) fn store64(&mut self, address: u32, value: u64) {
        self.0.extend([0x48, 0xb8]); // mov rax, value
        self.0.extend(value.to_le_bytes());
        self.access(&[0x48, 0x89], 0, address);
    }

    /// Stores `width` bytes of a value.
    pub(crate) fn store(&mut self, address: u32, width: u8, value: u64) {
        match width {
            1 => self.store8(address, value as u8),
            2 => self.store16(address, value as u16),
            4 => self.store32(address, value as u32),
            _ => self.store64(address, value),
        }
    }

    pub(crate) fn store_bytes(&mut self, address: u32, bytes: &[u8]) {
        for (at, byte) in (address..).zip(bytes) {
            self.store8(at, *byte);
        }
    }

    /// Counts a number in memory up by one.
    pub(crate) fn increment32(&mut self, address: u32) {
        self.access(&[0xff], 0, address);
    }

    /// Counts a number in memory up by one.
    pub(crate) fn increment16(&mut self, address: u32) {
        self.access(&[0x66, 0xff], 0, address);
    }

    pub(crate) fn fence(&mut self) {
        self.0.extend([0x0f, 0xae, 0xf0]); // mfence
    }

    /// Jumps back by the condition with this code.
    fn jump(&mut self, opcode: &[u8], to: usize) {
        self.0.extend(opcode);
        let after = self.0.len() + 4;
        self.0.extend((to as i32 - after as i32).to_le_bytes());
    }

    /// Waits until the 32 bits at `address` are `value`.
    pub(crate) fn wait32(&mut self, address: u32, value: u32) {
        let again = self.0.len();
        self.access(&[0x81], 7, address); // cmp dword [address], value
        self.0.extend(value.to_le_bytes());
        self.jump(&[0x0f, 0x85], again); //  jne again
    }

    /// Waits until the 16 bits at both addresses are the same.
    pub(crate) fn wait_same16(&mut self, address: u32, other: u32) {
        let again = self.0.len();
        self.load(address, 2);
        self.access(&[0x66, 0x39], 0, other); // cmp [other], ax
        self.jump(&[0x0f, 0x85], again);
    }

    /// Waits until the 16 bits at both addresses are the same, or one of `bits` at `flags` is set.
    pub(crate) fn wait_same16_or(&mut self, address: u32, other: u32, flags: u32, bits: u32) {
        let again = self.0.len();
        self.load(flags, 4);
        self.0.push(0xa9); //                    test eax, bits
        self.0.extend(bits.to_le_bytes());
        self.0.extend([0x0f, 0x85, 0, 0, 0, 0]); // jnz done
        let jump = self.0.len();
        self.wait_once16(address, other, again);
        let done = (self.0.len() - jump) as i32;
        self.0[jump - 4..jump].copy_from_slice(&done.to_le_bytes());
    }

    fn wait_once16(&mut self, address: u32, other: u32, again: usize) {
        self.load(address, 2);
        self.access(&[0x66, 0x39], 0, other);
        self.jump(&[0x0f, 0x85], again);
    }

    /// Says `x` unless the 32 bits at `address` are `value`.
    pub(crate) fn expect32(&mut self, address: u32, value: u32) {
        self.access(&[0x81], 7, address);
        self.0.extend(value.to_le_bytes());
        self.0.extend([0x74, 7]); // je, over what follows
        self.print(b'x');
    }

    /// Maps the 2 MiB of guest memory or whatever is at `physical` to [`WINDOW_ON_MEMORY`].
    pub(crate) fn look_at(&mut self, physical: u64) {
        self.store64(0xb000 + 8 * (WINDOW_ON_MEMORY >> 21), physical | 0x83);
        self.access(&[0x0f, 0x01], 7, WINDOW_ON_MEMORY); // invlpg
    }

    /// Resets the machine through the keyboard controller.
    pub(crate) fn reset_machine(&mut self) {
        self.out(0x64, 0xfe);
    }

    /// Does `body` so many times.
    pub(crate) fn repeat(&mut self, times: u32, body: impl FnOnce(&mut Self)) {
        self.0.push(0xb9); //              mov ecx, times
        self.0.extend(times.to_le_bytes());
        let again = self.0.len();
        self.0.push(0x51); //              push rcx
        body(self);
        self.0.extend([0x59, 0xff, 0xc9]); // pop rcx; dec ecx
        self.jump(&[0x0f, 0x85], again);
    }

    /// Does `body` for ever.
    pub(crate) fn forever(mut self, body: impl FnOnce(&mut Self)) -> Vec<u8> {
        let again = self.0.len();
        body(&mut self);
        self.jump(&[0xe9], again);
        self.0
    }

    /// Writes a byte to a port.
    pub(crate) fn out(&mut self, port: u16, byte: u8) {
        self.0.extend([0x66, 0xba]); //      mov dx, port
        self.0.extend(port.to_le_bytes());
        self.0.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }

    /// Tells the test.
    pub(crate) fn print(&mut self, byte: u8) {
        self.out(UART, byte);
    }

    /// Tells the test what is in memory or in a register.
    pub(crate) fn print_from(&mut self, address: u32, bytes: u32) {
        self.0.extend([0x66, 0xba]);
        self.0.extend(UART.to_le_bytes());
        for at in address..address + bytes {
            self.load(at, 1);
            self.0.push(0xee);
        }
    }

    /// Tells the test the 32 bits that are in a register of a device.
    pub(crate) fn print_register(&mut self, address: u32) {
        const HERE: u32 = 0x1f_0000;
        self.load(address, 4);
        self.access(&[0x89], 0, HERE);
        self.print_from(HERE, 4);
    }

    /// Sends `count` bytes from `address` on to a port with one instruction.
    pub(crate) fn out_string(&mut self, port: u16, address: u32, count: u32) {
        self.0.extend([0x66, 0xba]);
        self.0.extend(port.to_le_bytes());
        self.0.push(0xbe); //           mov esi, address
        self.0.extend(address.to_le_bytes());
        self.0.push(0xb9); //           mov ecx, count
        self.0.extend(count.to_le_bytes());
        self.0.extend([0xf3, 0x6e]); // rep outsb
    }

    /// Runs on at an address.
    pub(crate) fn jump_to(&mut self, address: u32) {
        self.0.push(0xb8); //           mov eax, address
        self.0.extend(address.to_le_bytes());
        self.0.extend([0xff, 0xe0]); // jmp rax
    }

    fn halt(&mut self) {
        self.0.extend([0xfa, 0xf4, 0xeb, 0xfd]); // cli; 1: hlt; jmp 1b
    }
}
