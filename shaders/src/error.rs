//! What can go wrong between a file and its logits.

/// Why a device cannot be used, or stopped being of use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No adapter is there, or none that has what is needed.
    #[error("{wanted} was asked for, and there is {}", list(found))]
    NoAdapter {
        /// What was asked for.
        wanted: String,
        /// Each adapter, with what it lacks.
        found: Vec<String>,
    },
    /// The driver does not open the adapter.
    #[error("{adapter} could not be opened: {why}")]
    Refused {
        /// The adapter's name.
        adapter: String,
        /// What the driver said.
        why: String,
    },
    /// There is no memory for something.
    #[error("the device has no memory for {what} ({:.1} MB)", *bytes as f64 / 1e6)]
    OutOfMemory {
        /// What it was for.
        what: String,
        /// How much was asked for.
        bytes: u64,
    },
    /// The device is gone, and all memory on it. Open it anew.
    #[error("the device is lost: {why}")]
    Lost {
        /// What the driver said.
        why: String,
    },
    /// The device refused a command.
    #[error("the device failed: {why}")]
    Failed {
        /// What wgpu said.
        why: String,
    },
}

fn list(found: &[String]) -> String {
    if found.is_empty() {
        let why = if cfg!(target_arch = "wasm32") {
            "this browser has no WebGPU, or keeps it from this page"
        } else {
            "a Vulkan driver is missing (on Debian without a GPU: mesa-vulkan-drivers)"
        };
        return format!("no adapter at all; {why}");
    }
    found.join("; ")
}
