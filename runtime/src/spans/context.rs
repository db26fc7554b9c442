//! Which trace and span something belongs to (W3C Trace Context, <https://www.w3.org/TR/trace-context/>).

use std::io;

/// A span of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    trace: [u8; 16],
    span: [u8; 8],
    /// Whether who has begun the trace records it.
    pub(super) sampled: bool,
}

impl Context {
    /// Reads a `traceparent`: "00-<32 digits>-<16 digits>-<2 digits>", in hexadecimal. Later versions may have more behind.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let version: [u8; 1] = digits(fields.next()?)?;
        let (trace, span) = (digits(fields.next()?)?, digits(fields.next()?)?);
        let [flags] = digits(fields.next()?)?;
        let good = version != [0xff] && (version != [0] || fields.next().is_none());
        let known = trace != [0; 16] && span != [0; 8];
        (good && known).then_some(Self { trace, span, sampled: flags & 1 == 1 })
    }

    /// A new span of the same trace, or of a new one.
    pub(super) fn below(parent: Option<Self>) -> io::Result<Self> {
        let trace = match parent {
            Some(parent) => parent.trace,
            None => super::random()?,
        };
        Ok(Self { trace, span: super::random()?, sampled: true })
    }

    /// The trace's id in hexadecimal digits, as OTLP's JSON has it.
    pub(super) fn trace(&self) -> String {
        hexadecimal(&self.trace)
    }

    /// The span's.
    pub(super) fn span(&self) -> String {
        hexadecimal(&self.span)
    }
}

fn digits<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 2 * N || !text.as_bytes().iter().all(lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
