//! From an adapter's file to the matrices that kernels take.

use std::path::Path;

use quern_adapters::Adapter;
use quern_shaders::lora::LoraMatrices;
use quern_shaders::model::ModelShape;
use quern_shaders::step::MODULES;

/// One module's matrices in memory.
pub(crate) struct Module {
    layer_idx: u32,
    module_idx: u32,
    rank: u32,
    a: Vec<f32>,
    b: Vec<f32>,
    scale: f32,
}

impl Module {
    /// As the runner takes them.
    pub(crate) fn matrices(&self) -> LoraMatrices<'_> {
        LoraMatrices {
            layer_idx: self.layer_idx,
            module_idx: self.module_idx,
            rank: self.rank,
            a: &self.a,
            b: &self.b,
            scale: self.scale,
        }
    }
}

/// Reads a GGUF LoRA or a PEFT folder, or says why it is none for this model. Blocks on the disk.
pub(crate) fn read(path: &Path, shape: &ModelShape) -> Result<Vec<Module>, String> {
    let adapter = Adapter::open(path).map_err(|error| error.to_string())?;
    let base = if shape.head_norms { "qwen3" } else { "qwen2" };
    if let Some(other) = adapter.architecture.as_deref().filter(|found| *found != base) {
        return Err(format!("it was trained on a {other} model, and this one is {base}"));
    }
    let mut modules = Vec::new();
    for module in &adapter.modules {
        let module_idx = MODULES.iter().position(|name| *name == module.target);
        let (Some(layer_idx), Some(module_idx)) = (module.layer_idx, module_idx) else {
            return Err(format!(
                "it changes {}, and there are kernels for layers' modules only",
                module.tensor
            ));
        };
        let rank =
            u32::try_from(module.rank).map_err(|_| format!("{}: no rank is so large", module.tensor))?;
        modules.push(Module {
            layer_idx,
            module_idx: module_idx as u32,
            rank,
            a: adapter.a(module).map_err(|error| error.to_string())?,
            b: adapter.b(module).map_err(|error| error.to_string())?,
            scale: module.scale as f32,
        });
    }
    Ok(modules)
}
