//! The CNI plugin's own share of an ADD: with a delegate that only answers, less that delegate alone.
//!
//! The two are run in turn, so that what else happens on the machine meets both alike.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::figure::{Figure, Goal, JudgedAs};
use crate::stats::{median, ms};

pub const ADD: &str = "CNI ADD beside its delegate alone";

const SHARE_MS: Goal = Goal {
    must: 1.0,
    aim: 0.5,
};

/// How many of each are measured.
const ROUNDS: usize = 200;
/// How many more go before, which fill caches.
const WARM: usize = 10;

const SUBNET_ENV: &str = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.80.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
const DELEGATE: &str = "#!/bin/sh\necho '{\"cniVersion\":\"1.0.0\",\"ips\":[]}'\n";

/// The plugin as it is shipped, linked statically: `--plugin`, else where `make bench` builds it, beside the
/// directory of the other programs.
///
/// # Errors
/// It is not there; says what builds it.
pub fn find(given: Option<&Path>, bin_dir: &Path) -> anyhow::Result<PathBuf> {
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let built = bin_dir.join("../..").join(&triple).join("release/flannel");
    let beside = bin_dir.join("..").join(&triple).join("release/flannel");
    let candidates = match given {
        Some(file) => vec![file.to_path_buf()],
        None => vec![beside, built],
    };
    let found = candidates.iter().find(|file| file.is_file());
    let found = found.with_context(|| {
        format!(
            "no CNI plugin {}: `cargo build --release -p cni --target {triple}` builds it, and --plugin names another",
            candidates[0].display()
        )
    })?;
    fs::canonicalize(found).with_context(|| found.display().to_string())
}

/// Measures it, with all files below `dir`, which is in memory as `/run` is.
///
/// # Errors
/// The plugin cannot be run, or fails.
pub fn measure(plugin: &Path, dir: &Path) -> anyhow::Result<Figure> {
    eprintln!("CNI plugin: {ROUNDS} times ADD");
    let dir = dir.join("cni-bench");
    let at = |name: &str| dir.join(name);
    let write = |name: &str, text: &str| fs::write(at(name), text).with_context(|| name.to_owned());
    fs::create_dir_all(&dir).context("directory of the plugin's files")?;
    write("subnet.env", SUBNET_ENV)?;
    write("bridge", DELEGATE)?;
    fs::set_permissions(at("bridge"), fs::Permissions::from_mode(0o755)).context("bridge")?;
    let config = serde_json::json!({
        "cniVersion": "1.0.0", "name": "cbr0", "type": "flannel",
        "subnetFile": at("subnet.env"), "dataDir": at("data"),
        "delegate": {"hairpinMode": true, "isDefaultGateway": true}});
    write("stdin", &config.to_string())?;

    let delegate = at("bridge");
    let (mut with, mut alone) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + WARM {
        // Every other round backwards: who follows whom matters.
        let programs = [(plugin, &mut with), (&*delegate, &mut alone)];
        let run = |(program, times): (&Path, &mut Vec<f64>)| -> anyhow::Result<()> {
            let took = add(program, &dir, round)?;
            if round >= WARM {
                times.push(ms(took));
            }
            Ok(())
        };
        match round % 2 {
            0 => programs.into_iter().try_for_each(run)?,
            _ => programs.into_iter().rev().try_for_each(run)?,
        }
    }
    fs::remove_dir_all(&dir).context("directory of the plugin's files")?;
    let (ours, reference) = ((median(&with), "ms"), Some(median(&alone)));
    let goal = Some(SHARE_MS);
    Ok(Figure::new(
        ADD,
        ("–", 0),
        ours,
        reference,
        JudgedAs::Difference,
        goal,
    ))
}

/// One ADD by `program`: from before it is started until it has ended.
fn add(program: &Path, dir: &Path, round: usize) -> anyhow::Result<Duration> {
    let shown = || program.display().to_string();
    let stdin = fs::File::open(dir.join("stdin")).context("stdin")?;
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", format!("c{round}"))
        .env("CNI_NETNS", "/proc/self/ns/net")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", dir)
        .stdin(stdin)
        .stderr(Stdio::inherit());
    let began = Instant::now();
    let output = command.output().with_context(shown)?;
    let took = began.elapsed();
    let answer = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && answer.contains("\"ips\""),
        "{}: {}: {answer}",
        shown(),
        output.status
    );
    Ok(took)
}
