//! A device's registers and queues in a snapshot.
//!
//! The device is activated anew, as if its driver had just written DRIVER_OK, with queues that are where they were.
#![forbid(unsafe_code)]

use super::*;
use crate::persist::{Persist, PersistError};
use crate::virtio::interrupt::InterruptState;

/// The registers of one device.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct TransportState {
    /// The device's kind, so that no device gets another's.
    id: u32,
    status: u32,
    accepted: u64,
    features_half: u32,
    accepted_half: u32,
    selected: u32,
    queues: Vec<QueueConfig>,
    /// Where the device is in each of its queues, while it serves them.
    positions: Option<Vec<Position>>,
    interrupt: InterruptState,
}

/// How far a device is in a queue.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Position {
    next_avail: u16,
    next_used: u16,
}

impl Persist for MmioTransport {
    type State = TransportState;

    fn save(&self) -> Result<TransportState, PersistError> {
        let device = crate::lock(&self.device.0);
        let position =
            |queue: &Queue| Position { next_avail: queue.next_avail(), next_used: queue.next_used() };
        Ok(TransportState {
            id: device.id(),
            status: self.status(),
            accepted: self.accepted,
            features_half: self.features_half,
            accepted_half: self.accepted_half,
            selected: self.selected,
            queues: self.queues.clone(),
            positions: device.queues().map(|queues| queues.iter().map(position).collect()),
            interrupt: self.interrupt.save()?,
        })
    }

    fn restore(&mut self, state: &TransportState) -> Result<(), PersistError> {
        let impossible = |what| Err(PersistError::Impossible(what));
        if state.id != crate::lock(&self.device.0).id() {
            return impossible("it is that of another device");
        }
        let sizes = |queues: &[QueueConfig]| queues.iter().map(|queue| queue.max_size).collect::<Vec<_>>();
        if sizes(&state.queues) != sizes(&self.queues) {
            return impossible("its queues are not the device's");
        }
        let known = STEPS.iter().sum::<u32>() | VIRTIO_CONFIG_S_FAILED;
        if state.status & !known != 0 || !is_in_order(state.status) {
            return impossible("no driver gets to its status");
        }
        let negotiated = state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if negotiated && state.accepted & !self.offered != 0 {
            return impossible("it has features that the device does not offer");
        }
        self.interrupt.restore(&state.interrupt)?;
        self.registers.set(reg::STATUS, state.status);
        self.accepted = state.accepted;
        (self.features_half, self.accepted_half) = (state.features_half, state.accepted_half);
        self.selected = state.selected;
        self.queues.clone_from(&state.queues);
        self.show();
        match &state.positions {
            Some(positions) => self.reactivate(positions),
            None => Ok(()),
        }
    }
}

impl MmioTransport {
    fn reactivate(&self, positions: &[Position]) -> Result<(), PersistError> {
        let impossible = |what| Err(PersistError::Impossible(what));
        if self.status() & VIRTIO_CONFIG_S_DRIVER_OK == 0 {
            return impossible("the device serves a driver that is not ready");
        }
        let Ok(mut active) = self.active() else {
            return impossible("its queues are not in the guest's memory");
        };
        if positions.len() != active.queues.len() {
            return impossible("it does not say where its queues are");
        }
        for (queue, position) in active.queues.iter_mut().zip(positions) {
            queue.set_next_avail(position.next_avail);
            queue.set_next_used(position.next_used);
        }
        crate::lock(&self.device.0)
            .activate(active)
            .map_err(|_| PersistError::Impossible("the device can't serve what its driver has set up"))
    }

    /// Repeats what may have been under way between device and driver when the VM was saved: kicks that the device had not
    /// seen, and interrupts that the driver had not. Neither minds one too many. To be called once the device has its own state,
    /// which the driver can read from then on, and interrupts can reach the guest.
    pub(crate) fn wake(&self) {
        self.show_config();
        let device = crate::lock(&self.device.0);
        if device.queues().is_some() {
            for kick in device.kicks() {
                // It fails only when the counter is full, which is a kick as well.
                let _ = kick.write(1);
            }
        }
        self.interrupt.repeat();
    }
}
