//! What the guides have in common.

use std::path::Path;
use std::time::Duration;

use lab::{Lab, LabBuilder, Namespace};

/// Long enough for anything that happens at all, also on a busy machine.
pub const SOON: Duration = Duration::from_secs(60);

/// The script that makes docker's options.
pub const MK_DOCKER_OPTS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../dist/mk-docker-opts.sh");

/// A lab whose flanneld is the one just built.
pub fn lab() -> LabBuilder {
    let flanneld = Path::new(env!("CARGO_BIN_EXE_flanneld"));
    Lab::builder().bin_dir(flanneld.parent().unwrap())
}

/// Runs a piece of shell in `place` that must succeed.
pub fn sh(place: &Namespace, script: &str) -> String {
    place
        .exec(["sh", "-euc", script])
        .unwrap_or_else(|e| panic!("{e}"))
}

/// Runs a piece of bash in `place` that must succeed.
pub fn bash(place: &Namespace, script: &str) -> String {
    place
        .exec(["bash", "-euo", "pipefail", "-c", script])
        .unwrap_or_else(|e| panic!("{e}"))
}

/// The words that systemd makes of `$name` in a unit's command line, `text` being the
/// `EnvironmentFile=`: a value between double quotes, then split at white space.
pub fn systemd_words(text: &str, name: &str) -> Vec<String> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    let value = line
        .unwrap_or_else(|| panic!("no {name} in {text:?}"))
        .trim();
    let value = value
        .strip_prefix('"')
        .and_then(|v| v.strip_suffix('"'))
        .unwrap_or(value);
    assert!(!value.contains(['"', '\'', '\\', '$']), "{value}");
    value.split_whitespace().map(String::from).collect()
}
