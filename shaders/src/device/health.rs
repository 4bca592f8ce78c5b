//! What goes wrong on a device behind our back: wgpu reports errors and losses to callbacks, from any
//! thread, and by itself would end the process.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::DeviceError;

/// The first trouble since somebody asked, and whether the device is gone for good.
#[derive(Default)]
pub(super) struct Health(Mutex<State>);

#[derive(Default)]
struct State {
    lost: Option<String>,
    trouble: Option<DeviceError>,
}

impl Health {
    /// Watches a device from now on.
    pub(super) fn watch(device: &wgpu::Device) -> Arc<Health> {
        let health = Arc::new(Health::default());
        let watcher = Arc::clone(&health);
        device.on_uncaptured_error(Arc::new(move |error| watcher.note(&error)));
        let watcher = Arc::clone(&health);
        device.set_device_lost_callback(move |reason, why| {
            // Dropping a device reports it as lost, too; nobody is left to ask then.
            let why = if why.is_empty() { format!("{reason:?}") } else { why };
            watcher.state().lost = Some(why);
        });
        health
    }

    /// The first trouble that nobody took yet; a loss stays.
    pub(super) fn take(&self) -> Result<(), DeviceError> {
        let mut state = self.state();
        if let Some(why) = &state.lost {
            return Err(DeviceError::Lost { why: why.clone() });
        }
        state.trouble.take().map_or(Ok(()), Err)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.state().lost.is_some()
    }

    fn note(&self, error: &wgpu::Error) {
        tracing::warn!(error = %error, "the device reported an error");
        let trouble = DeviceError::Failed { why: error.to_string() };
        self.state().trouble.get_or_insert(trouble);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
