//! Tells the linker where the binary and the tests look for the engine's shared
//! libraries: beside themselves, and one folder up, since tests lie in `deps`.
//!
//! The engine's own build script lays the libraries there.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        // `RPATH`, not `RUNPATH`, also holds for what the libraries themselves need.
        println!("cargo:rustc-link-arg=-Wl,--disable-new-dtags,-rpath,$ORIGIN,-rpath,$ORIGIN/..");
    }
}
