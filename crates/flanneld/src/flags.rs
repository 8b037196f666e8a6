//! The table of flags, and Go's way of writing them: `-flag value`, `-flag=value`, `--flag value`,
//! `--flag=value`; a boolean is `-flag`, `-flag=true` or `-flag=false`. Every flag can come from
//! the environment as `FLANNELD_` + upper case; the command line wins.

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// How a flag takes its value.
#[derive(Clone, Copy, PartialEq)]
pub enum Takes {
    /// One value; given twice, the last one counts.
    Value,
    /// One value each time it is given; all count.
    Repeated,
    /// `true` or `false`; alone it means `true`.
    Bool,
}

/// One flag.
pub struct Flag {
    /// Its name, without dashes.
    pub name: &'static str,
    /// How it takes its value.
    pub takes: Takes,
    /// What it is when nobody gives it.
    pub default: &'static str,
    /// One line of help; empty hides the flag.
    pub help: &'static str,
}

const fn value(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag {
        name,
        takes: Takes::Value,
        default,
        help,
    }
}

const fn repeated(name: &'static str, help: &'static str) -> Flag {
    Flag {
        name,
        takes: Takes::Repeated,
        default: "",
        help,
    }
}

const fn boolean(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag {
        name,
        takes: Takes::Bool,
        default,
        help,
    }
}

/// Every flag there is, in the order of the help text.
pub const FLAGS: &[Flag] = &[
    value(
        "etcd-endpoints",
        "http://127.0.0.1:4001,http://127.0.0.1:2379",
        "comma-separated etcd endpoints",
    ),
    value(
        "etcd-prefix",
        "/coreos.com/network",
        "etcd prefix under which config and subnets live",
    ),
    value("etcd-keyfile", "", "key file for the client certificate"),
    value("etcd-certfile", "", "client certificate file"),
    value(
        "etcd-cafile",
        "",
        "certificate authority that signs the servers' certificates",
    ),
    value("etcd-username", "", "user name for etcd"),
    value(
        "etcd-password",
        "",
        "password for etcd (visible to other users of the host: prefer the file)",
    ),
    value(
        "etcd-password-file",
        "",
        "file that holds the password for etcd",
    ),
    value(
        "store-dir",
        "",
        "keep leases in this directory instead of etcd",
    ),
    boolean(
        "kube-subnet-mgr",
        "false",
        "use the Kubernetes API instead of etcd",
    ),
    value(
        "kube-api-url",
        "",
        "Kubernetes API server (default: the kubeconfig's; else the one that every pod is told of)",
    ),
    value(
        "kubeconfig-file",
        "",
        "kubeconfig file with the API server and the credentials for it",
    ),
    value(
        "kube-annotation-prefix",
        "flannel.alpha.coreos.com",
        "prefix of the node annotations; at most one /",
    ),
    value(
        "net-config-path",
        "/etc/kube-flannel/net-conf.json",
        "network configuration file (Kubernetes only)",
    ),
    value(
        "cni-conf-source",
        "",
        "CNI configuration to put in place once the network stands; empty: none",
    ),
    value(
        "cni-conf-file",
        "/etc/cni/net.d/10-flannel.conflist",
        "where to put it",
    ),
    repeated(
        "iface",
        "interface for traffic between nodes, by name or address; the first that matches",
    ),
    repeated(
        "iface-regex",
        "the same as a regular expression, tried after every -iface",
    ),
    value(
        "iface-can-reach",
        "",
        "use the interface through which the kernel reaches this address",
    ),
    value(
        "public-ip",
        "",
        "IPv4 address that the other nodes send to (default: the interface's)",
    ),
    value(
        "public-ipv6",
        "",
        "IPv6 address that the other nodes send to (default: the interface's)",
    ),
    value(
        "subnet-file",
        "/run/flannel/subnet.env",
        "where to write the subnet, MTU and so on",
    ),
    value(
        "subnet-lease-renew-margin",
        "60",
        "renew the lease this many minutes before it expires, 1 to 1439",
    ),
    value(
        "tx-checksum-offload",
        "",
        "vxlan: who makes checksums, the device beneath (on) or the tunnel's (off); auto knows devices that get it wrong (default: TxChecksumOffload in the network configuration)",
    ),
    value(
        "wireguard-implementation",
        "auto",
        "wireguard: what carries the packets, the kernel's module (kernel) or flanneld (userspace); auto takes the kernel's where there is one",
    ),
    value(
        "backend",
        "",
        "a backend that this node tries beside the network's, with other nodes that try it, too: a type, or an object like Backend of the network configuration",
    ),
    value(
        "wireguard-psk-file",
        "",
        "wireguard: file with the key that all nodes share, in place of PSK in the network configuration",
    ),
    value(
        "ipsec-psk-file",
        "",
        "ipsec: file with the secret that all nodes share, in place of PSK in the network configuration",
    ),
    boolean(
        "ip-masq",
        "false",
        "masquerade traffic that leaves the network",
    ),
    boolean(
        "ip-masq-ipv6",
        "",
        "masquerade IPv6 traffic that leaves the network (default: as -ip-masq)",
    ),
    boolean(
        "ip-masq-fully-random-disable",
        "false",
        "masquerade without --random-fully",
    ),
    boolean(
        "ip-blackhole-route",
        "false",
        "add a blackhole route for the node's own subnet",
    ),
    boolean(
        "iptables-forward-rules",
        "true",
        "accept the network's traffic in FORWARD",
    ),
    value(
        "iptables-resync",
        "5",
        "check the rules this often, in seconds",
    ),
    boolean(
        "check-tunnel-sources",
        "false",
        "drop tunnel packets that do not come from an address that a node publishes (vxlan, udp, ipip)",
    ),
    value("healthz-ip", "0.0.0.0", "address of the health server"),
    value(
        "healthz-port",
        "0",
        "port of the health server; 0 turns it off",
    ),
    value(
        "health-page",
        "off",
        "page for people at /mesh of the health server: off, local (for clients on this host) or all",
    ),
    value(
        "probe-port",
        "8286",
        "UDP port on which the nodes probe each other; the same on all nodes; 0 turns probes off",
    ),
    boolean(
        "set-node-network-unavailable",
        "true",
        "maintain the node's NetworkUnavailable condition",
    ),
    value(
        "charon-vici",
        "",
        "backend ipsec: the socket of a charon that somebody else starts; empty: start one if nobody listens at /var/run/charon.vici",
    ),
    boolean(
        "teardown-on-stop",
        "false",
        "when told to stop, take the network down (default: leave it in place)",
    ),
    value("log-format", "text", "text or json"),
    value("v", "0", "log verbosity, 0 to 10"),
    value("vmodule", "", "accepted for compatibility; has no effect"),
    value(
        "log_backtrace_at",
        "",
        "accepted for compatibility; has no effect",
    ),
    boolean("logtostderr", "true", ""),
    boolean("alsologtostderr", "false", ""),
    value("stderrthreshold", "", ""),
    value("log_dir", "", ""),
    boolean("plain-routes", "false", ""),
    boolean("version", "false", "print the version and exit"),
];

/// The flags as given, by environment and command line.
pub struct Given {
    matches: ArgMatches,
    from_env: Vec<&'static str>,
}

/// The name of the environment variable that stands for a flag.
pub fn env_name(flag: &str) -> String {
    format!("FLANNELD_{}", flag.to_ascii_uppercase().replace('-', "_"))
}

fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.name == name)
}

/// Parses the command line and the environment.
///
/// # Errors
/// Clap's: an unknown flag, a missing value, an argument that is no flag, or a request for help.
pub fn parse(
    args: impl IntoIterator<Item = String>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<Given, clap::Error> {
    let args = two_dashes(args);
    let on_line = |flag: &Flag| {
        let long = format!("--{}", flag.name);
        args.iter().any(|arg| {
            *arg == long
                || arg
                    .strip_prefix(&long)
                    .is_some_and(|rest| rest.starts_with('='))
        })
    };
    let mut words = vec!["flanneld".to_owned()];
    let mut from_env = Vec::new();
    for flag in FLAGS.iter().filter(|flag| !on_line(flag)) {
        if let Some(value) = env(&env_name(flag.name)).filter(|value| !value.is_empty()) {
            words.push(format!("--{}={value}", flag.name));
            from_env.push(flag.name);
        }
    }
    words.extend(args.iter().cloned());
    Ok(Given {
        matches: command()
            .try_get_matches_from(words)
            .map_err(|error| stray_boolean(&args).unwrap_or(error))?,
        from_env,
    })
}

impl Given {
    /// The value of a flag, or its default.
    pub fn value(&self, name: &'static str) -> &str {
        let given = self
            .matches
            .get_many::<String>(name)
            .and_then(|mut values| values.next_back());
        given
            .map(String::as_str)
            .or_else(|| find(name).map(|flag| flag.default))
            .unwrap_or_default()
    }

    /// Every value of a repeated flag.
    pub fn values(&self, name: &'static str) -> Vec<&str> {
        self.matches
            .get_many::<String>(name)
            .into_iter()
            .flatten()
            .map(String::as_str)
            .collect()
    }

    /// How the user wrote the flag: for messages.
    pub fn spelled(&self, name: &'static str) -> String {
        let value = self.value(name);
        match self.from_env.contains(&name) {
            true => format!("{}={value}", env_name(name)),
            false => format!("-{name} {value}"),
        }
    }
}

/// Returns what to write in place of `-ip-masq true`: for Go, `true` would end all flags.
fn stray_boolean(args: &[String]) -> Option<clap::Error> {
    args.windows(2).find_map(|pair| {
        let flag = find(pair[0].strip_prefix("--")?)?;
        let value = pair[1].as_str();
        (flag.takes == Takes::Bool && matches!(value, "true" | "false")).then(|| {
            command().error(
                ErrorKind::UnknownArgument,
                format!(
                    "unexpected argument '{value}': write -{}={value}",
                    flag.name
                ),
            )
        })
    })
}

/// One dash to two, where the word is a flag and not a flag's value.
fn two_dashes(args: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut value_follows = false;
    let mut flags_end = false;
    let mut rewrite = |arg: String| {
        if std::mem::take(&mut value_follows) || flags_end || !arg.starts_with('-') || arg == "-" {
            return arg;
        }
        if arg == "--" {
            flags_end = true;
            return arg;
        }
        let word = arg.trim_start_matches('-');
        let (name, has_value) = match word.split_once('=') {
            Some((name, _)) => (name, true),
            None => (word, false),
        };
        value_follows = !has_value && find(name).is_some_and(|flag| flag.takes != Takes::Bool);
        match name {
            "h" => "--help".to_owned(),
            _ => format!("--{word}"),
        }
    };
    args.into_iter().map(&mut rewrite).collect()
}

/// The whole command line, with two dashes: for help, and for the shells' completions.
pub fn command() -> Command {
    let args = FLAGS.iter().map(|flag| {
        let arg = Arg::new(flag.name)
            .long(flag.name)
            .action(ArgAction::Append)
            .hide(flag.help.is_empty());
        let help = match flag.default {
            "" => flag.help.to_owned(),
            default => format!("{} [default: {default}]", flag.help),
        };
        match flag.takes {
            Takes::Bool => arg
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .help(help),
            _ => arg
                .num_args(1)
                .allow_hyphen_values(true)
                .value_name("VALUE")
                .help(help),
        }
    });
    Command::new("flanneld")
        .about("Leases a subnet for this node and makes the kernel carry packets between the nodes' containers")
        .override_usage("flanneld [-FLAG[=VALUE]]...")
        .after_help(
            "One dash or two, `-flag value` or `-flag=value`; a boolean is `-flag`, `-flag=true` or `-flag=false`.\n\
             Every flag can be set as FLANNELD_ + upper case with '_' for '-' (FLANNELD_ETCD_ENDPOINTS); the command line wins.",
        )
        .disable_version_flag(true)
        .args(args)
}

#[cfg(test)]
mod tests;
