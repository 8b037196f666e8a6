//! The command line.

use std::path::PathBuf;

use crate::goals::SIZES;
use crate::target::Kind;

/// What `flannel-bench --help` says.
pub const HELP: &str = "\
Measures flanneld against ip -batch and bridge -batch, in network namespaces on this machine.

flannel-bench [--quick] [--only PART]... [--store STORE]... [--peers N]... [--save] [--bin-dir DIR]

  --quick        fewer runs: a first impression in about a minute
  --only PART    cold, ready, follow, idle, rules, plugin, kube, pods or tunnels;
                 repeatable
  --store STORE  etcd or directory; repeatable
  --peers N      100, 1000, 5000, 10000 or 15000; repeatable
  --save         also write docs/benchmarks/ and the table in docs/benchmarks.md
  --bin-dir DIR  where flanneld is (default: beside this program)
  --plugin FILE  the CNI plugin (default: the static one that `make bench` builds)

Results go to target/bench/. The exit status is 1 when something that must be reached is not.
Needs root, or user namespaces; ip and bridge (iproute2), etcd, iptables, nft.";

/// A part of the benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// exec to everything in the kernel; memory; requests.
    Cold,
    /// exec to `subnet.env`.
    Ready,
    /// A lease put to its route.
    Follow,
    /// Nothing to do.
    Idle,
    /// Kubernetes: thousands of Nodes.
    Kube,
    /// Kubernetes: from the manifest to pods.
    Pods,
    /// Tunnels in user space.
    Tunnels,
    /// Traffic rules.
    Rules,
    /// The CNI plugin.
    Plugin,
}

/// The command line, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// `--quick`.
    pub quick: bool,
    /// `--save`.
    pub save: bool,
    /// `--only`; empty is all.
    pub only: Vec<Part>,
    /// `--store`; empty is all.
    pub stores: Vec<Kind>,
    /// `--peers`; empty is all.
    pub peers: Vec<u32>,
    /// `--bin-dir`.
    pub bin_dir: Option<PathBuf>,
    /// `--plugin`.
    pub plugin: Option<PathBuf>,
    /// `--help`.
    pub help: bool,
}

impl Args {
    /// Reads the arguments.
    ///
    /// # Errors
    /// Says which one is wrong and what is expected.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Args, String> {
        let mut out = Args::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--quick" => out.quick = true,
                "--save" => out.save = true,
                "-h" | "--help" => out.help = true,
                "--only" => out.only.push(match args.next().as_deref() {
                    Some("cold") => Part::Cold,
                    Some("ready") => Part::Ready,
                    Some("follow") => Part::Follow,
                    Some("idle") => Part::Idle,
                    Some("kube") => Part::Kube,
                    Some("pods") => Part::Pods,
                    Some("tunnels") => Part::Tunnels,
                    Some("rules") => Part::Rules,
                    Some("plugin") => Part::Plugin,
                    other => {
                        return Err(format!(
                            "--only {}: expected cold, ready, follow, idle, rules, plugin, kube, pods or tunnels",
                            other.unwrap_or("")
                        ));
                    }
                }),
                "--store" => out.stores.push(match args.next().as_deref() {
                    Some("etcd") => Kind::Etcd,
                    Some("directory") => Kind::Directory,
                    other => {
                        return Err(format!(
                            "--store {}: expected etcd or directory",
                            other.unwrap_or("")
                        ));
                    }
                }),
                "--peers" => match args.next().as_deref().map(str::parse) {
                    Some(Ok(peers)) if SIZES.iter().any(|size| size.peers == peers) => {
                        out.peers.push(peers)
                    }
                    _ => return Err("--peers: expected 100, 1000, 5000, 10000 or 15000".into()),
                },
                "--bin-dir" => match args.next() {
                    Some(dir) => out.bin_dir = Some(dir.into()),
                    None => return Err("--bin-dir: expected a directory".into()),
                },
                "--plugin" => match args.next() {
                    Some(file) => out.plugin = Some(file.into()),
                    None => return Err("--plugin: expected a file".into()),
                },
                other => return Err(format!("{other}: no such option; see --help")),
            }
        }
        Ok(out)
    }

    /// Whether `part` is to be measured.
    pub fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    /// Whether to measure with so many peers.
    pub fn wants_peers(&self, peers: u32) -> bool {
        self.peers.is_empty() || self.peers.contains(&peers)
    }

    /// Whether to measure on `store`.
    pub fn wants_store(&self, store: Kind) -> bool {
        self.stores.is_empty() || self.stores.contains(&store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_mistakes_named() {
        let parse = |line: &str| Args::parse(line.split_whitespace().map(str::to_owned));
        let args = parse("--quick --only cold --only idle").unwrap();
        assert!(
            args.quick
                && args.wants(Part::Cold)
                && args.wants(Part::Idle)
                && !args.wants(Part::Ready)
        );
        assert!(parse("").unwrap().wants(Part::Follow));
        assert_eq!(
            parse("--only x").unwrap_err(),
            "--only x: expected cold, ready, follow, idle, rules, plugin, kube, pods or tunnels"
        );
        assert!(!parse("--peers 5000").unwrap().wants_peers(100));
        assert!(parse("--peers 7").is_err());
        assert!(parse("--no").unwrap_err().starts_with("--no:"));
    }
}
