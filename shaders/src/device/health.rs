//! What goes wrong on a device behind our back: wgpu reports errors and losses to callbacks, from any
//! thread, and by itself would end the process. A browser also answers later what wgpu itself knows at once.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::error::DeviceError;

/// What an error scope caught, once that is known. A page's belongs to its thread.
#[cfg(not(target_arch = "wasm32"))]
type Caught = Pin<Box<dyn Future<Output = Option<wgpu::Error>> + Send>>;
#[cfg(target_arch = "wasm32")]
type Caught = Pin<Box<dyn Future<Output = Option<wgpu::Error>>>>;

/// How a device is.
pub(super) struct Health {
    told: Arc<Told>,
    /// Memory that was asked for and may turn out not to be there: none on native devices.
    pending: Mutex<Vec<(DeviceError, Caught)>>,
}

/// What callbacks told: the first trouble since somebody asked, and whether the device is gone for good.
#[derive(Default)]
struct Told(Mutex<State>);

#[derive(Default)]
struct State {
    lost: Option<String>,
    trouble: Option<DeviceError>,
}

impl Health {
    /// Watches a device from now on.
    pub(super) fn watch(device: &wgpu::Device) -> Health {
        let told = Arc::new(Told::default());
        let watcher = Arc::clone(&told);
        device.on_uncaptured_error(Arc::new(move |error| watcher.note(&error)));
        let watcher = Arc::clone(&told);
        device.set_device_lost_callback(move |reason, why| {
            // Dropping a device reports it as lost, too; nobody is left to ask then.
            let why = if why.is_empty() { format!("{reason:?}") } else { why };
            watcher.state().lost = Some(why);
        });
        Health { told, pending: Mutex::default() }
    }

    /// The first trouble that nobody took yet; a loss stays.
    pub(super) fn take(&self) -> Result<(), DeviceError> {
        let mut state = self.told.state();
        if let Some(why) = &state.lost {
            return Err(DeviceError::Lost { why: why.clone() });
        }
        state.trouble.take().map_or(Ok(()), Err)
    }

    pub(super) fn is_lost(&self) -> bool {
        self.told.state().lost.is_some()
    }

    /// Ends a scope around memory that was asked for. `none_left` is given now where it is known now that there
    /// is none, and by [`Health::settle`] otherwise.
    pub(super) fn close(
        &self,
        scope: wgpu::ErrorScopeGuard,
        none_left: DeviceError,
    ) -> Result<(), DeviceError> {
        let mut caught: Caught = Box::pin(scope.pop());
        match caught.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(None) => Ok(()),
            Poll::Ready(Some(_)) => Err(none_left),
            Poll::Pending => {
                lock(&self.pending).push((none_left, caught));
                Ok(())
            }
        }
    }

    /// As [`Health::take`], once all scopes have answered.
    pub(super) async fn settle(&self) -> Result<(), DeviceError> {
        let pending = std::mem::take(&mut *lock(&self.pending));
        for (none_left, caught) in pending {
            if caught.await.is_some() {
                // What was refused later was refused because of this.
                self.told.state().trouble = Some(none_left);
                break;
            }
        }
        self.take()
    }
}

impl Told {
    fn note(&self, error: &wgpu::Error) {
        tracing::warn!(error = %error, "the device reported an error");
        let trouble = DeviceError::Failed { why: error.to_string() };
        self.state().trouble.get_or_insert(trouble);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
