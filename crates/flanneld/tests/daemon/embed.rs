//! A node inside another program: the example, and programs that use it badly.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flanneld::node::{
    Environment, NetConfig, Node, NodeBuilder, NodeError, Phase, StoreChoice, Teardown,
};
use lab::{Lab, StoreKind, wait_for};
use serde_json::json;
use store::EtcdSettings;
use tokio::runtime::Runtime;
use tokio::time::timeout;

use crate::scene::{self, SOON, mesh};

/// Where the lab shows its store directory to the nodes.
const STORE: &str = "/run/lab/store";

/// The example program, as cargo builds it along with the tests.
fn example() -> PathBuf {
    let flanneld = Path::new(env!("CARGO_BIN_EXE_flanneld"));
    let program = flanneld.with_file_name("examples").join("embed");
    assert!(
        program.is_file(),
        "{} is missing: cargo build -p flanneld --example embed",
        program.display()
    );
    program
}

fn lab_of(nodes: usize) -> Lab {
    let lab = scene::lab().nodes(nodes).store(StoreKind::Directory);
    lab.build().unwrap()
}

fn runtime() -> Runtime {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().build().unwrap()
}

fn network(json: &str) -> NetConfig {
    NetConfig::from_json(json).unwrap()
}

fn node(state: &str) -> NodeBuilder {
    Node::builder(StoreChoice::Directory(STORE.into()), state)
        .network(network(r#"{"Network": "172.30.0.0/16"}"#))
}

#[test]
fn the_example_is_a_node_among_others_and_leaves_nothing() {
    let lab = lab_of(2);
    let (one, two) = (lab.node(1), lab.node(2));
    let clean = two.picture().unwrap();
    one.flanneld().start_ready(SOON).unwrap();
    let mut program = two
        .spawn(Command::new(example()).args([STORE, "/run/flannel"]))
        .unwrap();
    wait_for("the example writes subnet.env", SOON, || two.subnet_env()).unwrap();
    for node in [one, two] {
        node.add_pods(1).unwrap();
    }
    mesh(&lab);

    let pid = program.id().to_string();
    let mut signal = Command::new("kill");
    assert!(signal.args(["-INT", &pid]).status().unwrap().success());
    let ended = wait_for("the example ends", SOON, || {
        program.try_wait().unwrap().ok_or("it runs")
    });
    assert!(ended.unwrap().success());
    let left = clean.difference(&two.picture().unwrap()).into_iter();
    let left: Vec<String> = left.filter(|line| line.contains("flannel")).collect();
    assert!(left.is_empty(), "{left:#?}");
    let rules =
        two.exec(["iptables-save"]).unwrap() + &two.exec(["nft", "list", "ruleset"]).unwrap();
    assert!(!rules.to_lowercase().contains("flannel"), "{rules}");
    assert!(two.subnet_env().is_err());
}

#[test]
fn the_documents_show_the_example_as_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let example = std::fs::read_to_string(root.join("examples/embed.rs")).unwrap();
    let page = std::fs::read_to_string(root.join("../../docs/embedding.md")).unwrap();
    assert!(
        page.contains(&format!("```rust\n{example}```\n")),
        "docs/embedding.md shows other code than examples/embed.rs"
    );
}

#[test]
fn a_program_has_two_networks_and_each_goes_without_the_other() {
    let lab = lab_of(1);
    let place = lab.node(1);
    place
        .run(|| {
            let second =
                network(r#"{"Network": "10.60.0.0/16", "Backend": {"Type": "vxlan", "VNI": 2}}"#);
            let one = node("/run/one").start().unwrap();
            // One place of a store holds one network.
            let two = Node::builder(
                StoreChoice::Directory("/run/lab/store-2".into()),
                "/run/two",
            );
            let two = two.network(second).start().unwrap();
            runtime().block_on(async {
                for node in [&one, &two] {
                    let status = timeout(SOON, node.announced()).await.unwrap().unwrap();
                    assert_eq!((status.mtu, node.mtu()), (Some(1450), Some(1450)));
                }
                let subnet = |node: &Node| node.lease().unwrap().key.to_string();
                assert!(subnet(&one).starts_with("172.30.") && subnet(&two).starts_with("10.60."));
                assert_eq!(one.peers().await.unwrap(), []);
                timeout(SOON, one.stop(Teardown::Remove))
                    .await
                    .unwrap()
                    .unwrap();
                assert_eq!(one.status().phase, Phase::Ended);
                assert_eq!(one.peers().await, Err(NodeError::NotRunning));
                assert_eq!(two.status().phase, Phase::Announced);
                assert!(!Path::new("/run/one/subnet.env").exists());
                assert!(Path::new("/run/two/subnet.env").exists());
                // Asked again, it has ended.
                one.stop(Teardown::Keep).await.unwrap();
                timeout(SOON, two.stop(Teardown::Remove))
                    .await
                    .unwrap()
                    .unwrap();
            });
        })
        .unwrap();
    let left = place.exec(["ip", "link"]).unwrap();
    assert!(!left.contains("flannel"), "{left}");
}

/// Where log lines go.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn log_lines_of_two_nodes_of_a_program_have_their_names() {
    // Alone in a process: tracing's places in the code are shared with tests that have no subscriber.
    if std::env::var_os("FLANNEL_ALONE").is_none() {
        let test = "embed::log_lines_of_two_nodes_of_a_program_have_their_names";
        let mut again = Command::new(std::env::current_exe().unwrap());
        again.args([test, "--exact"]).env("FLANNEL_ALONE", "1");
        assert!(again.status().unwrap().success());
        return;
    }
    let lab = lab_of(1);
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let subscriber = tracing::Dispatch::new(subscriber);
    let run = |number: usize, name: Option<&str>| {
        let network = json!({
            "Network": format!("10.{number}.0.0/16"),
            "Backend": {"Type": "vxlan", "VNI": number},
        });
        let directory = format!("/run/{number}");
        let store = StoreChoice::Directory(format!("/run/lab/store-{number}").into());
        let mut builder =
            Node::builder(store, &directory).network(self::network(&network.to_string()));
        if let Some(name) = name {
            builder = builder.name(name);
        }
        let (node, runner) = builder.prepare();
        runtime().block_on(async {
            let follow = async {
                timeout(SOON, node.announced()).await.unwrap().unwrap();
                node.request_stop(Teardown::Remove);
            };
            let (ended, ()) = tokio::join!(Box::pin(runner.run()), Box::pin(follow));
            ended.unwrap();
        });
    };
    let place = lab.node(1);
    std::thread::scope(|scope| {
        for (number, name) in [(61, None), (62, Some("blue"))] {
            let (subscriber, run) = (&subscriber, &run);
            scope.spawn(move || {
                let logged = || tracing::dispatcher::with_default(subscriber, || run(number, name));
                // In the node's namespaces, and with more stack than the lab's thread has.
                let apart = || std::thread::scope(|scope| scope.spawn(logged).join());
                place.run(apart).unwrap().unwrap();
            });
        }
    });
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    for (name, subnet) in [
        ("node{name=\"/run/61\"}", "10.61."),
        ("node{name=\"blue\"}", "10.62."),
    ] {
        let mut own = text.lines().filter(|line| line.contains(name));
        assert!(own.any(|line| line.contains(subnet)), "{text}");
    }
    let unnamed = text.lines().find(|line| !line.contains("node{name="));
    assert_eq!(unnamed, None, "{text}");
}

#[test]
fn the_same_network_twice_is_waited_for_and_a_dropped_node_makes_room() {
    let lab = lab_of(1);
    lab.node(1)
        .run(|| {
            let one = node("/run/one").start().unwrap();
            runtime().block_on(async {
                timeout(SOON, one.announced()).await.unwrap().unwrap();
                let two = node("/run/two").start().unwrap();
                let mut changes = two.changes();
                timeout(SOON, async {
                    loop {
                        let status = changes.next().await.unwrap();
                        if status.problems.iter().any(|p| p.contains("waiting")) {
                            break;
                        }
                    }
                })
                .await
                .unwrap();
                // Without a stop: its data path stays, and the other one takes over.
                drop(one);
                timeout(SOON, two.announced()).await.unwrap().unwrap();
                timeout(SOON, two.stop(Teardown::Remove))
                    .await
                    .unwrap()
                    .unwrap();
            });
        })
        .unwrap();
}

#[test]
fn a_stop_in_the_middle_of_the_start_ends_it() {
    let lab = lab_of(1);
    let place = lab.node(1);
    place
        .run(|| {
            runtime().block_on(async {
                // Before it has begun, and at moments that get later, until one comes up first.
                for (round, teardown) in [Teardown::Keep, Teardown::Remove]
                    .into_iter()
                    .cycle()
                    .enumerate()
                {
                    let node = node("/run/one").start().unwrap();
                    let wait = Duration::from_millis(round as u64 * 7);
                    let is_up = timeout(wait, node.announced()).await.is_ok();
                    timeout(SOON, node.stop(teardown)).await.unwrap().unwrap();
                    assert_eq!(node.status().phase, Phase::Ended);
                    let is_left = Path::new("/run/one/subnet.env").exists();
                    if is_up && teardown == Teardown::Remove {
                        assert!(!is_left);
                        break;
                    }
                    assert!(round < 200, "it never comes up");
                }
            });
        })
        .unwrap();
    let left = place.exec(["ip", "link"]).unwrap();
    assert!(!left.contains("flannel"), "{left}");
}

#[test]
fn a_full_network_is_an_error_with_a_type() {
    let lab = lab_of(2);
    // One subnet for two nodes.
    let full =
        r#"{"Network": "172.30.0.0/16", "SubnetMin": "172.30.7.0", "SubnetMax": "172.30.7.0"}"#;
    let start = |number: usize| {
        let begin = || node("/run/one").network(network(full)).start().unwrap();
        lab.node(number).run(begin).unwrap()
    };
    // A node can be handed to another thread.
    let one = start(1);
    runtime().block_on(async {
        timeout(SOON, one.announced()).await.unwrap().unwrap();
        let two = start(2);
        let ended = timeout(SOON, two.announced()).await.unwrap();
        assert!(matches!(ended, Err(NodeError::NoSubnet(_))), "{ended:?}");
        assert_eq!(two.stop(Teardown::Remove).await, ended.map(drop));
        timeout(SOON, one.stop(Teardown::Remove))
            .await
            .unwrap()
            .unwrap();
    });
}

#[test]
fn a_setting_that_cannot_be_used_is_named() {
    let etcd = EtcdSettings {
        endpoints: "ftp://127.0.0.1".into(),
        prefix: "/coreos.com/network".into(),
        ..EtcdSettings::default()
    };
    let node = Node::builder(StoreChoice::Etcd(Box::new(etcd)), "/nowhere");
    let node = node.start().unwrap();
    let ended = runtime().block_on(async { timeout(SOON, node.ended()).await.unwrap() });
    assert!(
        matches!(&ended, Err(NodeError::Settings(text)) if text.contains("ftp://127.0.0.1")),
        "{ended:?}"
    );
    let refused = node.set_network(network(r#"{"Network": "172.30.0.0/16"}"#));
    assert!(
        matches!(refused, Err(NodeError::Settings(_))),
        "{refused:?}"
    );
}

#[test]
fn the_program_changes_its_network_while_it_runs() {
    let lab = lab_of(1);
    let begin = || node("/run/one").start().unwrap();
    let one = lab.node(1).run(begin).unwrap();
    runtime().block_on(async {
        timeout(SOON, one.announced()).await.unwrap().unwrap();
        let host_gw = r#"{"Network": "172.30.0.0/16", "Backend": {"Type": "host-gw"}}"#;
        one.set_network(network(host_gw)).unwrap();
        let mut changes = one.changes();
        let changed = async { while changes.next().await.unwrap().mtu != Some(1500) {} };
        timeout(SOON, changed).await.unwrap();
        // What cannot be applied is reported, and what was in force stays.
        one.set_network(network(r#"{"Network": "10.60.0.0/16"}"#))
            .unwrap();
        let refused = async { while changes.next().await.unwrap().degraded.is_none() {} };
        timeout(SOON, refused).await.unwrap();
        assert!(one.lease().unwrap().key.to_string().starts_with("172.30."));
        timeout(SOON, one.stop(Teardown::Remove))
            .await
            .unwrap()
            .unwrap();
    });
}

#[test]
fn a_closure_of_the_program_that_panics_ends_the_node_and_nothing_else() {
    let kube = StoreChoice::Kube(Box::default());
    let node =
        Node::builder(kube, "/nowhere").environment(Environment::new(|_| panic!("on purpose")));
    let node = node.start().unwrap();
    let ended = runtime().block_on(async { timeout(SOON, node.ended()).await.unwrap() });
    assert_eq!(ended, Err(NodeError::Died));
    assert_eq!(node.status().phase, Phase::Ended);
}

/// A program may hand the node to any of its threads.
#[test]
fn a_node_can_be_sent_and_its_dropped_runner_is_its_end() {
    fn sent<T: Send>(_: &T) {}
    let (node, runner) = node("/nowhere").prepare();
    sent(&runner);
    sent(&node);
    sent(&node.changes());
    sent(&node.peers());
    sent(&node.announced());
    sent(&node.stop(Teardown::Keep));
    drop(runner);
    assert_eq!(runtime().block_on(node.ended()), Err(NodeError::Died));
    assert_eq!(node.status().phase, Phase::Ended);
}
