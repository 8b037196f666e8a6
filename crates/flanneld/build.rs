//! Leaves unwind tables out of the release build for glibc, where a panic aborts: a tenth of the program. The Makefile
//! does the same for the static programs.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|set| set == value);
    if is("PROFILE", "release")
        && is("CARGO_CFG_TARGET_ENV", "gnu")
        && is("CARGO_CFG_PANIC", "abort")
    {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../dist/no-unwind-tables.ld"
        );
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{script}");
    }
}
