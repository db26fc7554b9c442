//! What a Linux guest on x86-64 finds when it starts: memory map, tables, CPU state.

pub(crate) mod boot;
pub(crate) mod cmdline;
pub(crate) mod cpu_state;
pub(crate) mod cpuid;
pub(crate) mod layout;
pub(crate) mod mptable;
pub(crate) mod msrs;
pub(crate) mod regs;
pub(crate) mod vm_state;
