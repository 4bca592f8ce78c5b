//! Waiting for a device: on native ones by blocking, in a browser by yielding to the page.
//!
//! There is one way to wait, and it is async. A native device moves on only while somebody polls it, so its
//! futures poll it and are ready when they come back; what blocks is a thin layer over them, and absent where
//! a page must not be blocked.

use crate::device::Device;
use crate::error::DeviceError;

impl Device {
    /// Waits until everything that was submitted is done. Blocks.
    ///
    /// # Errors
    /// As [`Device::check`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn wait(&self) -> Result<(), DeviceError> {
        pollster::block_on(self.wait_async())
    }

    /// As [`Device::wait`], for hosts that must not block. On a native device it blocks all the same. May be
    /// dropped at any time.
    ///
    /// # Errors
    /// As [`Device::check`], and [`DeviceError::OutOfMemory`] for memory that a browser gave before it knew
    /// that there is none.
    pub async fn wait_async(&self) -> Result<(), DeviceError> {
        #[cfg(target_arch = "wasm32")]
        self.submitted().await?;
        self.drive()?;
        self.settle().await
    }

    /// Has the device call back whoever waits for something that was submitted: a native one, by waiting for it.
    #[cfg(not(target_arch = "wasm32"))]
    pub(crate) fn drive(&self) -> Result<(), DeviceError> {
        use std::panic::{AssertUnwindSafe, catch_unwind};

        // wgpu has no error for a device that is lost while somebody waits: it tells the callback, and panics.
        let polled = catch_unwind(AssertUnwindSafe(|| self.wgpu.poll(wgpu::PollType::wait_indefinitely())));
        self.check()?;
        let failed = |why: String| DeviceError::Failed { why };
        let polled = polled.map_err(|_| failed("waiting for it failed".to_owned()))?;
        polled.map(|_| ()).map_err(|error| failed(error.to_string()))
    }

    /// Has the device call back whoever waits for something that was submitted: a browser's does so by itself.
    #[cfg(target_arch = "wasm32")]
    pub(crate) fn drive(&self) -> Result<(), DeviceError> {
        self.check()
    }

    /// Hears what a browser still had to say of what was made, and whether the device refused anything.
    pub(crate) async fn settle(&self) -> Result<(), DeviceError> {
        self.health.settle().await
    }

    /// Yields until everything that was submitted is done.
    #[cfg(target_arch = "wasm32")]
    async fn submitted(&self) -> Result<(), DeviceError> {
        let (sender, done) = futures_channel::oneshot::channel();
        self.queue.on_submitted_work_done(move || {
            // Whoever waited may have given up.
            let _ = sender.send(());
        });
        done.await.map_err(|_| DeviceError::Failed { why: "waiting for it failed".to_owned() })
    }
}
