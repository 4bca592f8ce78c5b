//! Embeds the WGSL files, and makes and validates every variant in the catalogue: a mistake in any of them
//! fails the build.

#[path = "src/kernels/catalog.rs"]
mod catalog;
#[path = "src/preprocess.rs"]
mod preprocess;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=wgsl");
    println!("cargo::rerun-if-changed=src/preprocess.rs");
    println!("cargo::rerun-if-changed=src/kernels/catalog.rs");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("wgsl");
    let mut files = BTreeMap::new();
    read_folder(&root, "", &mut files);
    validate_all(&files);
    let mut out =
        String::from("/// Each file below `wgsl/` with its text.\nconst SOURCES: &[(&str, &str)] = &[\n");
    for path in files.keys() {
        let whole = root.join(path);
        writeln!(out, "    ({path:?}, include_str!({:?})),", whole.display().to_string())
            .expect("writing to a string");
    }
    out.push_str("];\n");
    let to = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it")).join("sources.rs");
    fs::write(to, out).expect("the build's folder can be written to");
}

fn read_folder(folder: &Path, prefix: &str, files: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("the folder of kernels can be read") {
        let path = entry.expect("an entry of it, too").path();
        let name = path.file_name().expect("an entry has a name").to_string_lossy().into_owned();
        if path.is_dir() {
            read_folder(&path, &format!("{prefix}{name}/"), files);
        } else if name.ends_with(".wgsl") {
            files.insert(format!("{prefix}{name}"), fs::read_to_string(&path).expect("a kernel is text"));
        }
    }
}

fn validate_all(files: &BTreeMap<String, String>) {
    let mut mistakes = Vec::new();
    let source = |path: &str| files.get(path).map(String::as_str);
    for entry in catalog::KERNELS {
        for values in combinations(entry.axes) {
            let expanded = preprocess::expand(&format!("{}.wgsl", entry.name), &values, &source);
            let checked = expanded.and_then(|text| {
                let module =
                    naga::front::wgsl::parse_str(&text).map_err(|error| error.emit_to_string(&text))?;
                validator(&text).validate(&module).map_err(|error| error.emit_to_string(&text))
            });
            if let Err(why) = checked {
                mistakes.push(format!("{} with {values:?}: {why}", entry.name));
            }
        }
    }
    if !mistakes.is_empty() {
        eprintln!("{} variants of kernels are wrong:\n{}", mistakes.len(), mistakes.join("\n"));
        std::process::exit(1);
    }
}

/// Allows a text what every device that runs it has.
fn validator(text: &str) -> naga::valid::Validator {
    use naga::valid::Capabilities;
    // Halves in words are read as f32; every device can.
    let mut capabilities = Capabilities::SUBGROUP | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if text.contains("enable wgpu_cooperative_matrix;") {
        capabilities |= Capabilities::SHADER_FLOAT16 | Capabilities::COOPERATIVE_MATRIX;
    }
    let mut validator = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities);
    validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
    validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    validator
}

/// Every choice of one value an axis.
fn combinations(axes: &[(&'static str, &[&str])]) -> Vec<preprocess::Values> {
    let mut all = vec![preprocess::Values::new()];
    for (axis, allowed) in axes {
        let with = |values: &preprocess::Values, value: &str| {
            let mut values = values.clone();
            values.insert(axis, value.to_owned());
            values
        };
        all = all.iter().flat_map(|values| allowed.iter().map(|value| with(values, value))).collect();
    }
    all
}
