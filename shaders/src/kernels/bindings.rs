//! Reads a kernel's bindings out of its text.

use crate::texels::Texel;

/// How a kernel uses what is bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// `var<uniform>`.
    Uniform,
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
    /// `texture_storage_2d<..., read>`.
    Texels(Texel),
}

/// One `@group(0) @binding(N) var<...> name: type;`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Binding {
    pub number: u32,
    pub name: String,
    pub access: Access,
}

impl Binding {
    pub(super) fn layout_entry(&self) -> wgpu::BindGroupLayoutEntry {
        wgpu::BindGroupLayoutEntry {
            binding: self.number,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: self.access.binding_type(),
            count: None,
        }
    }
}

impl Access {
    fn binding_type(self) -> wgpu::BindingType {
        let buffer = |ty| wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None };
        match self {
            Access::Uniform => buffer(wgpu::BufferBindingType::Uniform),
            Access::Read => buffer(wgpu::BufferBindingType::Storage { read_only: true }),
            Access::ReadWrite => buffer(wgpu::BufferBindingType::Storage { read_only: false }),
            Access::Texels(texel) => wgpu::BindingType::StorageTexture {
                access: wgpu::StorageTextureAccess::ReadOnly,
                format: texel.format(),
                view_dimension: wgpu::TextureViewDimension::D2,
            },
        }
    }
}

/// All bindings of a text, each on a line of its own, in the order of their numbers.
///
/// # Panics
/// When a line that begins as a binding does not go on as one: the kernels are ours.
pub(super) fn read(wgsl: &str) -> Vec<Binding> {
    const BEGIN: &str = "@group(0) @binding(";
    let line = |line: &str| {
        let rest = line.trim().strip_prefix(BEGIN)?;
        let parsed = parse(rest);
        Some(parsed.unwrap_or_else(|| panic!("not a binding that this crate writes: {line}")))
    };
    let mut bindings: Vec<Binding> = wgsl.lines().filter_map(line).collect();
    bindings.sort_by_key(|binding| binding.number);
    bindings
}

fn parse(rest: &str) -> Option<Binding> {
    let (number, rest) = rest.split_once(") var")?;
    let (space, declared) = match rest.strip_prefix('<') {
        Some(rest) => rest.split_once("> ")?,
        None => ("", rest.strip_prefix(' ')?),
    };
    let (name, ty) = declared.split_once(": ")?;
    let access = match (space, ty) {
        ("uniform", _) => Access::Uniform,
        ("storage, read", _) => Access::Read,
        ("storage, read_write", _) => Access::ReadWrite,
        ("", "texture_storage_2d<r32uint, read>;") => Access::Texels(Texel::Word),
        ("", "texture_storage_2d<rgba32uint, read>;") => Access::Texels(Texel::Words),
        ("", "texture_storage_2d<rgba32float, read>;") => Access::Texels(Texel::Floats),
        _ => return None,
    };
    Some(Binding { number: number.parse().ok()?, name: name.to_owned(), access })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bindings_come_in_the_order_of_their_numbers() {
        let text = "@group(0) @binding(1) var<storage, read_write> out: array<f32>;\n\
                    fn main() {}\n\
                    @group(0) @binding(2) var quants: texture_storage_2d<rgba32uint, read>;\n\
                    @group(0) @binding(0) var<uniform> params: Params;\n";
        let names: Vec<_> = read(text).into_iter().map(|b| (b.number, b.name, b.access)).collect();
        let expected = [
            (0, "params".to_owned(), Access::Uniform),
            (1, "out".to_owned(), Access::ReadWrite),
            (2, "quants".to_owned(), Access::Texels(Texel::Words)),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    #[should_panic(expected = "not a binding")]
    fn others_are_refused() {
        read("@group(0) @binding(0) var textures: texture_2d<f32>;");
    }
}
