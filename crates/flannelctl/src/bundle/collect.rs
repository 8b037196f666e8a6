//! What goes into the archive, and what could not be had.

use std::fmt::Display;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use dataplane::host::{Interface, interfaces};
use dataplane::paths::policy_rules;
use dataplane::{Dataplane, Kernel, Scope};
use flanneld::{subnet_file, version};
use model::{Family, Op};
use store::{Administer, Timing};

use super::archive::Archive;
use crate::check::report::Report;
use crate::check::scene::Scene;
use crate::check::settings::Settings;
use crate::runtime::wait_for;
use crate::status_socket;

/// How long one program, or the daemon, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Programs that show what the kernel holds, for those who read their output every day; those that are not
/// installed are left out. None of them shows a key.
const COMMANDS: [(&str, &str); 24] = [
    ("ip-link", "ip -d -s link show"),
    ("ip-address", "ip address show"),
    ("ip-route", "ip -d route show table all"),
    ("ip-6-route", "ip -6 -d route show table all"),
    ("ip-rule", "ip rule show"),
    ("ip-6-rule", "ip -6 rule show"),
    ("ip-nexthop", "ip -d nexthop show"),
    ("ip-neigh", "ip neigh show"),
    ("bridge-fdb", "bridge -d fdb show"),
    ("bridge-link", "bridge -d link show"),
    ("nft", "nft -a list ruleset"),
    ("iptables-nft", "iptables-nft-save -c"),
    ("iptables-legacy", "iptables-legacy-save -c"),
    ("iptables", "iptables-save -c"),
    ("ip6tables-nft", "ip6tables-nft-save -c"),
    ("ip6tables-legacy", "ip6tables-legacy-save -c"),
    ("ip6tables", "ip6tables-save -c"),
    ("wg", "wg show"),
    ("ethtool-flannel.1", "ethtool -k flannel.1"),
    ("sockets", "ss -Hlunp"),
    ("modules", "lsmod"),
    ("uname", "uname -a"),
    (
        "systemd",
        "systemctl --no-pager status flanneld containerd docker",
    ),
    ("dmesg", "dmesg --ctime"),
];

/// Switches of the kernel, below `/proc/sys/net`.
const SWITCHES: [&str; 4] = [
    "ipv4/ip_forward",
    "bridge/bridge-nf-call-iptables",
    "bridge/bridge-nf-call-ip6tables",
    "netfilter/nf_conntrack_max",
];

/// Switches of each device, below `/proc/sys/net/ipv4/conf` and `/proc/sys/net/ipv6/conf`.
const OF_DEVICES: [&str; 7] = [
    "forwarding",
    "rp_filter",
    "accept_local",
    "src_valid_mark",
    "disable_ipv6",
    "accept_ra",
    "mtu",
];

/// Where to look.
pub(super) struct Source<'a> {
    pub(super) socket: &'a Path,
    pub(super) log: Option<&'a Path>,
    pub(super) unit: &'a str,
    pub(super) lines: usize,
    pub(super) cni_conf_dir: &'a Path,
    pub(super) flags: &'a [String],
}

/// An archive that is being filled.
pub(super) struct Collection<'a> {
    pub(super) archive: &'a mut Archive,
    /// What could not be had, and why.
    pub(super) missing: Vec<String>,
}

impl Collection<'_> {
    /// Collects all there is.
    ///
    /// # Errors
    /// The archive takes no more.
    pub(super) fn everything(
        mut self,
        source: &Source<'_>,
        settings: &Result<Settings>,
    ) -> Result<()> {
        for (name, path) in [
            ("flanneld/status.json", "/v1/status"),
            ("flanneld/peers.json", "/v1/peers"),
            ("flanneld/metrics.txt", "/v1/metrics"),
        ] {
            self.put(name, status_socket::text(source.socket, path, PATIENCE))?;
        }
        self.log(source)?;
        self.check(source)?;
        self.switches()?;
        for (name, command) in COMMANDS {
            let mut words = command.split(' ');
            let program = words.next().unwrap_or_default();
            if let Some(output) = run(program, words) {
                self.put(&format!("kernel/{name}.txt"), output)?;
            }
        }
        let devices = interfaces().map(|all| all.iter().map(device).collect::<String>());
        self.put("kernel/interfaces.txt", devices)?;
        self.put("kernel/policy-rules.txt", rules())?;
        self.cni(source.cni_conf_dir)?;
        match settings {
            Ok(settings) => self.of_settings(settings)?,
            Err(error) => self
                .missing
                .push(format!("settings of flanneld: {error:#}")),
        }
        for file in [
            "/etc/os-release",
            "/proc/version",
            "/proc/meminfo",
            "/proc/loadavg",
        ] {
            let name = file.rsplit('/').next().unwrap_or(file);
            self.put(&format!("host/{name}.txt"), fs::read_to_string(file))?;
        }
        let mut text = format!("flannelctl {}\n", version::with_commit());
        text += "Secrets were removed: passwords, tokens, private keys.\n\nNot collected:\n";
        for line in &self.missing {
            text += &format!("- {line}\n");
        }
        self.archive.add("README.txt", &text)?;
        Ok(())
    }

    /// Adds a file, or notes why there is none.
    fn put<E: Display>(&mut self, name: &str, text: Result<String, E>) -> Result<()> {
        match text {
            Ok(text) => self
                .archive
                .add(name, &text)
                .with_context(|| name.to_owned())?,
            Err(error) => self.missing.push(format!("{name}: {error:#}")),
        }
        Ok(())
    }

    /// The last lines of the log.
    fn log(&mut self, source: &Source<'_>) -> Result<()> {
        let text = match source.log {
            Some(path) => fs::read(path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .map_err(|error| format!("--log {}: {error}", path.display())),
            None => {
                let lines = source.lines.to_string();
                let words = [
                    "-u",
                    source.unit,
                    "-n",
                    &lines,
                    "--no-pager",
                    "-o",
                    "short-iso",
                ];
                let none = || "no journalctl here: name the log with --log, or add `kubectl logs`";
                run("journalctl", words).unwrap_or_else(|| Err(none().to_owned()))
            }
        };
        let text = text.map(|text| {
            let skip = text.lines().count().saturating_sub(source.lines);
            let last = text.lines().skip(skip).map(|line| format!("{line}\n"));
            last.collect::<String>()
        });
        self.put("flanneld/log.txt", text)
    }

    /// What `flannelctl check` finds.
    fn check(&mut self, source: &Source<'_>) -> Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        let mut words = vec!["check", "--json"];
        if !source.flags.is_empty() {
            words.push("--");
            words.extend(source.flags.iter().map(String::as_str));
        }
        let found = run(&program.to_string_lossy(), words);
        let none = || "this program cannot be started".to_owned();
        self.put("check.json", found.unwrap_or_else(|| Err(none())))
    }

    fn switches(&mut self) -> Result<()> {
        let mut text = String::new();
        let mut read = |key: &str| {
            if let Ok(value) = fs::read_to_string(format!("/proc/sys/net/{key}")) {
                text += &format!("net/{key} = {}\n", value.trim());
            }
        };
        SWITCHES.iter().for_each(|key| read(key));
        for family in ["ipv4", "ipv6"] {
            let Ok(devices) = fs::read_dir(format!("/proc/sys/net/{family}/conf")) else {
                continue;
            };
            let mut names: Vec<String> = devices
                .filter_map(|device| device.ok()?.file_name().into_string().ok())
                .collect();
            names.sort_unstable();
            // Hundreds of containers say nothing that their bridge does not.
            names.retain(|name| !name.starts_with("veth"));
            for name in names {
                for switch in OF_DEVICES {
                    read(&format!("{family}/conf/{name}/{switch}"));
                }
            }
        }
        self.archive.add("kernel/sysctl.txt", &text)?;
        Ok(())
    }

    /// The CNI configurations; not what lies beside them, such as kubeconfigs of other plugins.
    fn cni(&mut self, dir: &Path) -> Result<()> {
        let files = match fs::read_dir(dir) {
            Ok(files) => files,
            Err(error) => {
                self.missing.push(format!("{}: {error}", dir.display()));
                return Ok(());
            }
        };
        for file in files.filter_map(Result::ok) {
            let path = file.path();
            let is_conf = path
                .extension()
                .is_some_and(|ext| ext == "conf" || ext == "conflist" || ext == "json");
            if is_conf && path.is_file() {
                let name = file.file_name().to_string_lossy().into_owned();
                self.put(&format!("cni/{name}"), fs::read_to_string(&path))?;
            }
        }
        Ok(())
    }

    /// What the settings lead to: files, store, kernel objects.
    fn of_settings(&mut self, settings: &Settings) -> Result<()> {
        let mut given = format!("{}\n", settings.source);
        settings
            .given
            .iter()
            .for_each(|word| given += &format!("{word}\n"));
        self.archive.add("flanneld/settings.txt", &given)?;
        let path = &settings.options.subnet_file;
        self.put("flanneld/subnet.env", fs::read_to_string(path))?;
        let config = wait_for(async {
            let store = settings.options.store.open(Timing::default())?;
            let read = tokio::time::timeout(PATIENCE, store.stored_config());
            let config = read.await.context("the store does not answer")??;
            let json = config.map(|config| config.json).unwrap_or_default();
            anyhow::Ok(String::from_utf8_lossy(&json).into_owned())
        });
        self.put("store/config.json", config)?;
        let mut report = Report::default();
        let scene = match Scene::gather(&mut report, settings) {
            Ok(scene) => scene,
            Err(error) => {
                self.missing
                    .push(format!("leases, kernel objects: {error:#}"));
                return Ok(());
            }
        };
        let leases = scene.stored.leases.iter().flatten();
        let leases: String = leases
            .map(|lease| {
                let kept = if lease.reserved { " (reservation)" } else { "" };
                match &lease.attrs {
                    Ok(attrs) => format!("{}{kept} {attrs:?}\n", lease.key),
                    Err(why) => format!("{}{kept} cannot be read: {why}\n", lease.key),
                }
            })
            .collect();
        self.archive.add("store/leases.txt", &leases)?;
        self.put("kernel/flannel-objects.txt", objects(&scene, settings))
    }
}

/// What of flannel's the kernel holds, as the commands that make it.
fn objects(scene: &Scene, settings: &Settings) -> Result<String> {
    let host = scene
        .host
        .as_ref()
        .context("the host's interface is not known")?;
    let config = scene.stored.config.as_ref();
    let config = config.context("the network configuration cannot be read")?;
    let own = subnet_file::previous(&settings.options.subnet_file);
    let scope = Scope {
        devices: scene.devices(),
        iface: host.iface,
        network: config.pools.map(|_, pool| pool.network),
        own: own.map(|key| *key.nets()).unwrap_or_default(),
        take_over: false,
    };
    wait_for(async {
        let mut kernel = Kernel::open(settings.options.plain_routes)?;
        kernel.set_scope(scope);
        let mut text = String::new();
        let mut each = |object| text += &format!("{}\n", Op::Put(object));
        kernel.observe(&mut each).await?;
        anyhow::Ok(text)
    })
}

/// An interface in one line, where `ip` is not installed.
fn device(device: &Interface) -> String {
    let addrs = device.addrs.iter().map(|addr| addr.net.to_string());
    let addrs: Vec<String> = addrs.collect();
    let state = match (device.up, device.running) {
        (false, _) => "down",
        (true, false) => "up, no carrier",
        (true, true) => "up",
    };
    format!(
        "{}: {} kind {:?} mtu {} {state} {}\n",
        device.index,
        device.name,
        device.kind,
        device.mtu,
        addrs.join(" ")
    )
}

fn rules() -> Result<String> {
    let mut text = String::new();
    for family in Family::ALL {
        text += &format!("{family}\n");
        for rule in policy_rules(family)? {
            text += &format!("{}: {} {}\n", rule.priority, rule.selector, rule.action);
        }
    }
    Ok(text)
}

/// Runs a program. Returns what it printed, or `None` if it is not installed.
fn run<'a>(
    program: &str,
    words: impl IntoIterator<Item = &'a str>,
) -> Option<Result<String, String>> {
    let mut command = Command::new(program);
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    let (out, err) = (child.stdout.take()?, child.stderr.take()?);
    let (done, read) = mpsc::channel();
    for (at, pipe) in [Box::new(out) as Box<dyn Read + Send>, Box::new(err)]
        .into_iter()
        .enumerate()
    {
        let done = done.clone();
        thread::spawn(move || {
            let (mut pipe, mut bytes) = (pipe, Vec::new());
            let _ = pipe.read_to_end(&mut bytes);
            let _ = done.send((at, bytes));
        });
    }
    drop(done);
    let mut outputs = [Vec::new(), Vec::new()];
    for _ in 0..2 {
        match read.recv_timeout(PATIENCE * 3) {
            Ok((at, bytes)) => outputs[at] = bytes,
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                return Some(Err(format!("{program} does not end")));
            }
        }
    }
    let _ = child.wait();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let [out, err] = outputs.each_ref().map(|bytes| text(bytes));
    Some(Ok(if err.is_empty() {
        out
    } else {
        format!("{out}\n{err}")
    }))
}
