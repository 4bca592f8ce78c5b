//! Steps for hosts that may block: what `step.rs` does, waited for.

use super::{AdapterError, Batch, DispatchTime, Runner, StepResult};
use crate::error::DeviceError;
use crate::lora::LoraMatrices;

impl Runner {
    /// As [`Runner::run_async`]. Blocks until the batch is done.
    ///
    /// # Errors
    /// The same.
    ///
    /// # Panics
    /// As there.
    pub fn run(&mut self, batch: &Batch<'_>) -> Result<StepResult<'_>, DeviceError> {
        pollster::block_on(self.run_async(batch))
    }

    /// As [`Runner::time_async`]. Blocks until the batch is done.
    ///
    /// # Errors
    /// The same.
    ///
    /// # Panics
    /// As there.
    pub fn time(&mut self, batch: &Batch<'_>) -> Result<Option<Vec<DispatchTime>>, DeviceError> {
        pollster::block_on(self.time_async(batch))
    }

    /// As [`Runner::load_adapter_async`]. Blocks until the adapter is on the device.
    ///
    /// # Errors
    /// The same.
    pub fn load_adapter(
        &mut self,
        adapter_id: u32,
        matrices: &[LoraMatrices<'_>],
    ) -> Result<(), AdapterError> {
        pollster::block_on(self.load_adapter_async(adapter_id, matrices))
    }

    /// As [`Runner::read_pages_async`]. Blocks until they are there.
    ///
    /// # Errors
    /// The same.
    pub fn read_pages(&self, pages: &[u32]) -> Result<Vec<u8>, DeviceError> {
        pollster::block_on(self.read_pages_async(pages))
    }
}
