//! The network device.
