//! When it does nothing, or not everything.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use lab::Lab;
use serde_json::Value;

use crate::host::{Rules, SOON, cleans, cleanup, furnish, witness};

fn alone() -> Lab {
    Lab::builder().nodes(1).without_flanneld().build().unwrap()
}

#[test]
fn a_clean_host_is_left_alone() {
    let lab = alone();
    let node = lab.node(1);
    furnish(node, Rules::Nft);
    let before = witness(node);
    let (out, err) = cleanup(
        node,
        0,
        &["--yes", "--gateway-routes", "--cni-bridge=br-theirs"],
    );
    assert!(
        out.is_empty() && err.contains("nothing of flannel's is here"),
        "{out}{err}"
    );
    for name in [
        "device flannel.9: no flannel made it: it is bridge",
        "device flannel.8: no flannel made it: it is vxlan",
        "bridge br-theirs: nothing tells",
    ] {
        assert!(err.contains(&format!("left alone: {name}")), "{err}");
    }
    assert_eq!(before, witness(node));
}

/// Somebody points it at the wrong place.
#[test]
fn files_that_are_not_flannel_s_stay() {
    let lab = alone();
    let node = lab.node(1);
    let lay = "mkdir -p /run/mine /run/flannel/sub; echo root:x:0:0 >/run/mine/passwd
               echo '{}' >/run/mine/empty; echo '[1]' >/run/mine/list; echo other >/run/flannel/other
               echo 'DOCKER_OPTS=\"--live-restore\"' >/run/docker_opts.env
               ln -s /run/mine/passwd /run/mine/link; mkfifo /run/mine/pipe";
    node.exec(["sh", "-ec", lay]).unwrap();
    let before = witness(node);
    let args = [
        "--yes",
        "--subnet-file=/run/mine/passwd",
        "--subnet-file=/run/mine/pipe",
        "--cni-data-dir=/run/mine",
    ];
    let (out, err) = cleanup(node, 0, &args);
    assert!(out.is_empty(), "{out}");
    for file in ["passwd", "empty", "list"] {
        assert!(
            err.contains(&format!("left alone: file /run/mine/{file}: ")),
            "{err}"
        );
    }
    assert_eq!(before, witness(node));
}

/// A process that ends with the value; a lab waits for all that were started in it.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill().and_then(|()| self.0.wait());
    }
}

/// Upstream's daemon is another program with the same name; one in another network namespace does not
/// matter.
#[test]
fn any_flanneld_that_runs_here_is_named() {
    let lab = Lab::builder().nodes(2).without_flanneld().build().unwrap();
    let node = lab.node(1);
    let before = witness(node);
    node.write("/run/flannel/subnet.env", "FLANNEL_NETWORK=172.30.0.0/16\n")
        .unwrap();
    let program = lab.shared_dir().join("upstream/flanneld");
    std::fs::create_dir(program.parent().unwrap()).unwrap();
    std::fs::copy("/bin/sleep", &program).unwrap();
    let start = |place: &lab::Node| {
        let mut command = Command::new(Path::new(lab::SHARED_DIR).join("upstream/flanneld"));
        command
            .arg("600")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Sleeper(place.spawn(&mut command).unwrap())
    };
    let _elsewhere = start(lab.node(2));
    let here = start(node);
    for args in [&[][..], &["--yes"]] {
        let (out, err) = cleanup(node, 1, args);
        assert!(out.contains("rm /run/flannel/subnet.env"), "{out}");
        assert!(err.contains("flanneld runs here, process "), "{err}");
        assert_eq!(err.matches("runs here").count(), 1, "{err}");
    }
    let (json, _) = cleanup(node, 1, &["--yes", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["removed"], false);
    assert_eq!(json["daemons"].as_array().unwrap().len(), 1, "{json}");
    assert!(node.read("/run/flannel/subnet.env").is_ok());
    drop(here);
    cleans(node, &before, &[]);
}

/// Ours under another name, and a program that holds upstream's packages.
#[test]
fn a_daemon_is_known_by_what_it_is_made_of() {
    let lab = Lab::builder().nodes(1).build().unwrap();
    let node = lab.node(1);
    let before = witness(node);
    let flanneld = lab::flannel_bin_dir().unwrap().join("flanneld");
    let dir = lab.shared_dir().join("renamed");
    std::fs::create_dir(&dir).unwrap();
    std::fs::copy(flanneld, dir.join("network-agent")).unwrap();
    // What runs is a copy of `sleep`; what follows it in the file is not looked at by the kernel.
    let mut k3s = std::fs::read("/bin/sleep").unwrap();
    k3s.extend(b"\0github.com/flannel-io/flannel/pkg/backend/vxlan.init\0");
    std::fs::write(dir.join("renamed-too"), k3s).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.join("renamed-too"), mode).unwrap();
    let start = |program: &str, args: &[&str]| {
        let path = Path::new(lab::SHARED_DIR).join("renamed").join(program);
        let mut command = Command::new(path);
        command.args(args).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Sleeper(node.spawn(&mut command).unwrap())
    };
    let store = format!("--store-dir={}/store", lab::SHARED_DIR);
    let ours = start("network-agent", &[&store, "-iface=eth0", "-ip-masq"]);
    lab::wait_for("subnet.env is there", SOON, || {
        node.read("/run/flannel/subnet.env").map(drop)
    })
    .unwrap();
    let (_, err) = cleanup(node, 1, &["--yes"]);
    assert!(err.contains("network-agent"), "{err}");
    let said = format!("process {}: stop it first", ours.0.id());
    assert!(err.contains(&said) && !err.contains("restores"), "{err}");
    assert!(node.read("/run/flannel/subnet.env").is_ok());
    let (json, _) = told_by_check(node);
    assert!(
        json.contains(&format!("runs, process {}", ours.0.id())),
        "{json}"
    );
    drop(ours);
    cleans(node, &before, &[]);

    node.write("/run/flannel/subnet.env", "FLANNEL_NETWORK=172.30.0.0/16\n")
        .unwrap();
    let theirs = start("renamed-too", &["600"]);
    let (_, err) = cleanup(node, 1, &["--yes"]);
    assert!(
        err.contains("renamed-too, which has a flannel in it, runs here"),
        "{err}"
    );
    drop(theirs);
    cleans(node, &before, &[]);
}

fn told_by_check(node: &lab::Node) -> (String, String) {
    let output = node
        .output([env!("CARGO_BIN_EXE_flannelctl"), "check", "--json"])
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

/// Nothing shows that a daemon runs, but what is removed comes back.
#[test]
fn files_stay_where_somebody_restores_the_rest() {
    let lab = alone();
    let node = lab.node(1);
    let env = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.5.1/24\nFLANNEL_MTU=1450\n";
    node.write("/run/flannel/subnet.env", env).unwrap();
    let add = "ip link add flannel.1 type vxlan id 1 local 192.168.78.1 dev eth0 dstport 8472";
    node.exec(["sh", "-ec", add]).unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("while :; do {add}; sleep 0.1; done")]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let somebody = Sleeper(node.spawn(&mut command).unwrap());
    let (_, err) = cleanup(node, 1, &["--yes"]);
    assert!(
        err.contains("flannel.1") && err.contains("a flannel runs here"),
        "{err}"
    );
    assert!(node.read("/run/flannel/subnet.env").is_ok());
    drop(somebody);
    cleanup(node, 0, &["--yes"]);
    assert!(node.read("/run/flannel/subnet.env").is_err());
}

#[test]
fn the_containers_bridge_goes_when_it_is_flannel_s_and_empty() {
    let lab = alone();
    let node = lab.node(1);
    let before = witness(node);
    let env = "FLANNEL_NETWORK=172.30.0.0/16\nFLANNEL_SUBNET=172.30.5.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    node.write("/run/flannel/subnet.env", env).unwrap();
    let lay =
        "ip link add cni0 type bridge; ip addr add 172.30.5.1/24 dev cni0; ip link set cni0 up
               ip link add port type veth peer name far; ip link set port master cni0";
    node.exec(["sh", "-ec", lay]).unwrap();
    let (shown, err) = cleanup(node, 3, &[]);
    assert!(
        !shown.contains("cni0") && err.contains("bridge cni0: 1 devices are plugged into it"),
        "{err}"
    );
    node.exec(["ip", "link", "del", "port"]).unwrap();
    let (shown, err) = cleanup(node, 3, &["--keep-cni-bridge"]);
    assert!(
        !shown.contains("cni0") && err.contains("--keep-cni-bridge"),
        "{err}"
    );
    node.exec(["ip", "addr", "add", "10.1.1.1/24", "dev", "cni0"])
        .unwrap();
    let (shown, _) = cleanup(node, 3, &[]);
    assert!(!shown.contains("cni0"), "somebody else's address: {shown}");
    node.exec(["ip", "addr", "del", "10.1.1.1/24", "dev", "cni0"])
        .unwrap();
    let shown = cleans(node, &before, &[]);
    assert!(shown.contains("ip link del cni0"), "{shown}");
}
