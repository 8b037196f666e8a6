//! One test's own world: a directory, plugins that only record what they are asked, and, for tests with the
//! real plugins, a node and a container in namespaces. All of it ends with the test, however that ends.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// Debian's package containernetworking-plugins.
pub const PLUGINS: &str = "/usr/lib/cni";

pub const ENV_V4: &str = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.80.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
pub const ENV_DUAL: &str = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.80.1/24\nFLANNEL_IPV6_NETWORK=fd00::/48\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n";

/// A plugin that writes down its input and environment, then answers with the file `answer.<command>` and
/// the status in `exit.<command>`.
const RECORDER: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 9
cat >"stdin.$CNI_COMMAND"
env >"env.$CNI_COMMAND"
echo "$CNI_COMMAND $CNI_CONTAINERID" >>calls
echo "recorder speaking" >&2
case $CNI_COMMAND in
ADD) answer='{"cniVersion":"1.0.0","ips":[]}' ;;
*) answer= ;;
esac
if [ -f "answer.$CNI_COMMAND" ]; then cat "answer.$CNI_COMMAND"; else printf %s "$answer"; fi
[ ! -f "exit.$CNI_COMMAND" ] || exit "$(cat "exit.$CNI_COMMAND")"
"#;

/// The directory of a test and what is in it.
pub struct Scene {
    dir: TempDir,
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Answer {
    pub success: bool,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout)
            .unwrap_or_else(|error| panic!("{error}: {self:?}: {}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    #[track_caller]
    pub fn succeeded(self) -> Answer {
        assert!(self.success, "{}\n{}", self.text(), self.stderr);
        self
    }

    /// Asserts an error object of that code and returns `msg` and `details`.
    #[track_caller]
    pub fn failed(&self, code: u64) -> String {
        assert!(!self.success, "it succeeded: {}", self.text());
        let object = self.json();
        assert_eq!(object["code"], code, "{object}");
        assert!(object["cniVersion"].is_string(), "{object}");
        let msg = object["msg"].as_str().unwrap();
        format!("{msg} | {}", object["details"].as_str().unwrap_or_default())
    }
}

impl From<Output> for Answer {
    fn from(output: Output) -> Answer {
        Answer {
            success: output.status.success(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Scene {
    /// A scene whose plugins are recorders under the names bridge and other.
    pub fn new() -> Scene {
        let scene = Scene {
            dir: tempfile::Builder::new()
                .prefix("cni-test-")
                .tempdir()
                .unwrap(),
        };
        fs::create_dir(scene.path("bin")).unwrap();
        scene.plugin("bridge", RECORDER);
        scene.plugin("other", RECORDER);
        scene.write("subnet.env", ENV_V4);
        scene
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.path(name), text).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn plugin(&self, name: &str, text: &str) {
        let file = self.path("bin").join(name);
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What the recorders were asked: commands with their containers, one a line.
    pub fn calls(&self) -> String {
        self.read("bin/calls")
    }

    /// A configuration with this scene's files, and `more` keys.
    pub fn config(&self, more: Value) -> Value {
        let mut config = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "flannel",
            "subnetFile": self.path("subnet.env"),
            "dataDir": self.path("data"),
        });
        for (key, value) in more.as_object().unwrap() {
            match value {
                Value::Null => config.as_object_mut().unwrap().remove(key),
                value => config
                    .as_object_mut()
                    .unwrap()
                    .insert(key.clone(), value.clone()),
            };
        }
        config
    }

    /// The environment of a request.
    pub fn vars(&self, command: &str) -> BTreeMap<String, String> {
        [
            ("CNI_COMMAND", command.to_owned()),
            ("CNI_CONTAINERID", "c1".to_owned()),
            // Nothing is there, as with a container that is gone.
            ("CNI_NETNS", self.path("netns").display().to_string()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_PATH", self.path("bin").display().to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    /// Runs the plugin.
    pub fn run(&self, command: &str, config: &Value) -> Answer {
        self.run_with(&self.vars(command), config.to_string().as_bytes())
    }

    /// Runs the plugin with nothing in its environment but `vars` and `PATH`.
    pub fn run_with(&self, vars: &BTreeMap<String, String>, stdin: &[u8]) -> Answer {
        // A plugin that waits for ever is to fail its test, not to hold up all of them.
        let mut command = Command::new("timeout");
        command.args(["-s", "KILL", "60", env!("CARGO_BIN_EXE_flannel")]);
        feed(command, vars, stdin)
    }
}

/// Runs a program with that environment and input.
pub fn feed(mut command: Command, vars: &BTreeMap<String, String>, stdin: &[u8]) -> Answer {
    let mut child = command
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .envs(vars)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let stdin = stdin.to_vec();
    // A plugin that refuses early does not read it all: that is no fault.
    let writer = std::thread::spawn(move || drop(pipe.write_all(&stdin)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.into()
}

/// A network namespace and a mount namespace, held by a process that dies with the test's thread.
pub struct Namespace(Child);

impl Namespace {
    /// Makes one, in which `setup` was run.
    pub fn new(setup: &str) -> Namespace {
        let script = format!(
            "set -e; mount --make-rprivate /; ip link set lo up; echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad; {setup}\necho ready; exec sleep infinity"
        );
        let mut child = Command::new("setpriv")
            .args([
                "--pdeathsig",
                "KILL",
                "unshare",
                "--net",
                "--mount",
                "sh",
                "-c",
                &script,
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv and unshare are in util-linux");
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        let namespace = Namespace(child);
        assert_eq!(
            line, "ready\n",
            "the namespace's setup failed (root is needed)"
        );
        namespace
    }

    pub fn net(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// A program to be run in it.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.net()))
            .arg(format!("--mount=/proc/{}/ns/mnt", self.0.id()))
            .arg("--")
            .arg(program.as_ref());
        command
    }

    /// Runs a shell line in it.
    pub fn sh(&self, line: &str) -> Answer {
        let output = self.command("sh").args(["-c", line]).output().unwrap();
        output.into()
    }

    /// Runs a shell line that must succeed and returns what it prints.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        let answer = self.sh(line);
        assert!(answer.success, "{line}: {}{}", answer.text(), answer.stderr);
        answer.text()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A node and a container, with the real plugins.
pub struct Node {
    pub scene: Scene,
    pub host: Namespace,
    pub pod: Namespace,
}

impl Node {
    /// A node whose /run and /var/lib are the scene's: defaults and plugins' own files land there.
    pub fn new(subnet_env: &str) -> Node {
        let scene = Scene::new();
        fs::create_dir_all(scene.path("run/flannel")).unwrap();
        fs::create_dir_all(scene.path("lib")).unwrap();
        scene.write("run/flannel/subnet.env", subnet_env);
        let host = Namespace::new(&format!(
            "mount --bind {} /run; mount --bind {} /var/lib; ip link add up0 type veth peer name up1; ip addr add 192.0.2.1/24 dev up0; ip link set up0 up; ip link set up1 up",
            scene.path("run").display(),
            scene.path("lib").display()
        ));
        Node {
            scene,
            host,
            pod: Namespace::new(""),
        }
    }

    /// The environment of a request about the container.
    pub fn vars(&self, command: &str) -> BTreeMap<String, String> {
        let mut vars = self.scene.vars(command);
        vars.insert("CNI_NETNS".into(), self.pod.net());
        vars.insert("CNI_PATH".into(), PLUGINS.into());
        vars
    }

    /// Runs the plugin on the node for another container or interface: `more` replaces variables.
    pub fn run_for(&self, command: &str, config: &Value, more: &[(&str, &str)]) -> Answer {
        let program = self.host.command(env!("CARGO_BIN_EXE_flannel"));
        let mut vars = self.vars(command);
        for (name, value) in more {
            vars.insert((*name).to_owned(), (*value).to_owned());
        }
        feed(program, &vars, config.to_string().as_bytes())
    }

    /// Runs the plugin on the node.
    pub fn run(&self, command: &str, config: &Value) -> Answer {
        let program = self.host.command(env!("CARGO_BIN_EXE_flannel"));
        feed(program, &self.vars(command), config.to_string().as_bytes())
    }

    /// The addresses that host-local holds for the network `name`.
    pub fn held(&self, name: &str) -> Vec<String> {
        let dir = self.scene.path("lib/cni/networks").join(name);
        let Ok(entries) = fs::read_dir(dir) else {
            return Vec::new();
        };
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut held: Vec<String> = names
            .filter(|name| !name.starts_with("last_reserved") && name != "lock")
            .collect();
        held.sort();
        held
    }

    /// The saved file of the container.
    pub fn saved(&self) -> PathBuf {
        self.scene.path("lib/cni/flannel/c1")
    }
}
