//! Lays ggml's and llama.cpp's shared libraries beside the binary, and tells
//! the linker to look for them there.
//!
//! llama-cpp-sys-2 leaves them in its own build folder: the libraries in `lib`,
//! under a versioned name that the loader asks for, and the plug-ins, one an
//! instruction set, in `backends`. After this script the profile's folder
//! (`target/release`) holds all of them, and the folder can be copied anywhere.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() {
    // Each binary looks beside itself; tests and examples lie one folder
    // deeper. `RPATH`, not `RUNPATH`, also holds for what the libraries need.
    // The same two lines stand in the build script of the package with the binary.
    if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,$ORIGIN,-rpath,$ORIGIN/..");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_LLAMA_BACKENDS_DIR");

    let backends = PathBuf::from(
        env::var_os("DEP_LLAMA_BACKENDS_DIR").expect("llama-cpp-sys-2 names its plug-ins' folder"),
    );
    let built = backends.parent().expect("the plug-ins' folder lies in a build folder");
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo names an output folder"));
    let profile = out_dir.ancestors().nth(3).expect("cargo's output folder lies three deep in the profile's");
    for folder in [backends.clone(), built.join("lib"), built.join("lib64")] {
        println!("cargo:rerun-if-changed={}", folder.display());
        place_libraries(&folder, profile).unwrap_or_else(|error| {
            panic!("cannot lay the libraries of {} into {}: {error}", folder.display(), profile.display())
        });
    }
}

/// Puts every shared library of `from` into `to`, under its own name.
fn place_libraries(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return Ok(());
    }
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if !is_loaded_at_run_time(name) {
            continue;
        }
        // A versioned name is a link to a longer one, which would not survive a
        // copy of the folder's files: lay the file itself there.
        let library = fs::canonicalize(&path)?;
        let target = to.join(name);
        match fs::remove_file(&target) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if fs::hard_link(&library, &target).is_err() {
            fs::copy(&library, &target)?;
        }
    }
    Ok(())
}

/// Tells the names that the loader asks for from those of the linker and of
/// exact versions: `libllama.so.0` and `libggml-cpu-haswell.so`, but neither
/// `libllama.so` nor `libllama.so.0.6.0`.
fn is_loaded_at_run_time(name: &str) -> bool {
    let is_plugin = name.starts_with("libggml-") && name != "libggml-base.so" && name.ends_with(".so");
    let version = name.split_once(".so.").map(|(_, version)| version);
    let is_soname = version.is_some_and(|version| version.bytes().all(|byte| byte.is_ascii_digit()));
    is_plugin || is_soname || name.ends_with(".dylib") || name.ends_with(".dll")
}
