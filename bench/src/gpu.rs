//! What NVIDIA's tool says of a GPU: memory, utilisation, power. Nothing where there is none.

use std::process::{Command, Stdio};

/// The first GPU, at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Gpu {
    /// Its name.
    pub name: String,
    /// Memory in use, by all processes.
    pub memory_used_mib: f64,
    /// Share of time in which something computed, of the last moments, in per cent.
    pub utilisation_percent: f64,
    /// Power draw; none where the GPU does not say.
    pub power_w: Option<f64>,
}

impl Gpu {
    /// Asks `nvidia-smi`, which reads NVML; none where there is no GPU or no such tool.
    pub fn read() -> Option<Self> {
        let fields = "--query-gpu=name,memory.used,utilization.gpu,power.draw";
        let mut command = Command::new("nvidia-smi");
        let output = command.args([fields, "--format=csv,noheader,nounits"]).stderr(Stdio::null()).output();
        let output = output.ok().filter(|output| output.status.success())?;
        Self::parse(&String::from_utf8_lossy(&output.stdout))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.lines().next()?.split(',').map(str::trim);
        let name = fields.next()?.to_owned();
        let memory_used_mib = fields.next()?.parse().ok()?;
        let utilisation_percent = fields.next()?.parse().ok()?;
        Some(Self { name, memory_used_mib, utilisation_percent, power_w: fields.next()?.parse().ok() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_tool_is_read() {
        let gpu = Gpu::parse("NVIDIA H100 80GB HBM3, 1234, 87, 512.25\n").unwrap();
        assert_eq!((gpu.name.as_str(), gpu.power_w), ("NVIDIA H100 80GB HBM3", Some(512.25)));
        assert_eq!(Gpu::parse("Tesla, 1, 0, [N/A]\n").unwrap().power_w, None);
        assert_eq!(Gpu::parse("No devices were found\n"), None);
    }
}
