//! Kubernetes with real kubelets: from the manifest to pods that run.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::{Kube, Lab, wait_for};
use serde_json::{Value, json};

use crate::figure::{Figure, Goal, JudgedAs};
use crate::stage::PATIENCE;
use crate::stats::{median, ms};

const NODES: u32 = 2;
const READY_MS: Goal = Goal {
    must: 6_000.0,
    aim: 2_000.0,
};

/// Measures it in a cluster of its own each time; `root` is the project's directory.
///
/// # Errors
/// Something does not work at all: no figures then.
pub fn measure(root: &Path, quick: bool) -> anyhow::Result<Vec<Figure>> {
    let rounds = if quick { 1 } else { 5 };
    let file = root.join("deploy/kube-flannel.yml");
    let manifest = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let (mut after_daemons, mut after_apply) = (vec![], vec![]);
    for round in 1..=rounds {
        let (daemons, apply) = once(&manifest)?;
        eprintln!("two kubelets: pods Ready {round} of {rounds}: {daemons:.0} ms");
        after_daemons.push(daemons);
        after_apply.push(apply);
    }
    let figure = |work, samples: &[f64], goal| {
        let (ours, value) = ((median(samples), "ms"), JudgedAs::Value);
        Figure::new(work, ("kubernetes", NODES), ours, None, value, goal).samples(samples)
    };
    Ok(vec![
        figure(
            "flanneld's pods run → pods Ready, under kubelets",
            &after_daemons,
            Some(READY_MS),
        ),
        figure("kubectl apply → pods Ready", &after_apply, None),
    ])
}

/// Milliseconds from the moment that all flannelds ran, and from the manifest's, until a pod on each
/// node is Ready.
fn once(manifest: &str) -> anyhow::Result<(f64, f64)> {
    let lab = Lab::builder()
        .nodes(NODES as usize)
        .kubelets()
        .image(lab::flannel_image()?)
        .build()?;
    let kube = lab.kube().context("the lab has no Kubernetes")?;
    kube.apply(manifest)?;
    let applied = Instant::now();
    for node in 1..=NODES {
        kube.create_pod(&format!("pod{node}"), &format!("n{node}"), &[], &json!({}))?;
    }
    let mut running = None;
    let since = wait_for("a pod on each node is Ready", PATIENCE, || {
        if running.is_none() && count(kube, "kube-flannel", "/state/running")? == NODES {
            running = Some(Instant::now());
        }
        match count(kube, "default", "/ready")? {
            NODES => Ok(running.map_or(Duration::ZERO, |since| since.elapsed())),
            ready => Err(format!("{ready} of {NODES}")),
        }
    })?;
    Ok((ms(since), ms(applied.elapsed())))
}

/// How many pods of a namespace have a first container of which this is there and not false.
fn count(kube: &Kube, namespace: &str, what: &str) -> Result<u32, String> {
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let list = kube.api().get(&path).map_err(|e| e.to_string())?;
    let pods = list["items"].as_array().map_or(&[][..], Vec::as_slice);
    let pointer = format!("/status/containerStatuses/0{what}");
    let has = |pod: &&Value| {
        pod.pointer(&pointer)
            .is_some_and(|value| *value != Value::Bool(false))
    };
    Ok(u32::try_from(pods.iter().filter(has).count()).unwrap_or(u32::MAX))
}
