#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use ipnet::IpNet;
use model::Family;
use model::object::PeerCommands;

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// Commands that write what they get to a log.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    /// `script` is what both commands do besides; `$1` is `add` or `remove`.
    fn new(script: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let text = format!(
            "log={}\necho \"$1 $SUBNET $PUBLIC_IP $(cat)\" >> $log\n{script}\n",
            log.display()
        );
        fs::write(dir.path().join("script"), text).unwrap();
        fs::write(&log, "").unwrap();
        World { dir }
    }

    fn door(&self) -> Commands {
        let mut door = Commands::new(Some(self.dir.path().join("commands")));
        door.set_scope(&scope());
        door
    }

    fn line(&self, what: &str) -> Arc<str> {
        format!("sh {} {what}", self.dir.path().join("script").display()).into()
    }

    fn peer(&self, n: u8, data: &str, prepared: bool) -> Object {
        let subnet: IpNet = format!("10.1.{n}.0/24").parse().unwrap();
        let only = |net| Dual {
            v4: Some(net),
            v6: None,
        };
        let command = PeerCommand {
            commands: Arc::new(PeerCommands {
                add: Some(self.line("add")),
                remove: Some(self.line("remove")),
                limit: LONG,
                prepared,
            }),
            env: CommandEnv {
                network: scope().network,
                subnet: only(subnet),
                public_ip: Dual {
                    v4: Some(format!("192.0.2.{n}").parse().unwrap()),
                    v6: None,
                },
            },
            data: data.into(),
            earlier: false,
        };
        Object::PeerCommand(SubnetKey::new(only(subnet)).unwrap(), command)
    }

    fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("log")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn journal(&self) -> std::path::PathBuf {
        self.dir.path().join("commands/10.1.0.0-16")
    }
}

fn scope() -> Scope {
    Scope {
        devices: Vec::new(),
        iface: "eth0".parse().unwrap(),
        network: Dual::from_fn(|of| (of == Family::V4).then(|| "10.1.0.0/16".parse().unwrap())),
        own: Dual::default(),
        take_over: false,
    }
}

async fn event(door: &mut Commands) -> KernelEvent {
    tokio::time::timeout(LONG, door.event()).await.unwrap()
}

/// Asks for a change until it is accepted, as the reconciler does.
async fn accepted(door: &mut Commands, op: &Op) -> Outcome {
    let start = Instant::now();
    loop {
        match door.apply(std::slice::from_ref(op)).await.remove(0) {
            Outcome::Refused(error) if start.elapsed() > LONG => panic!("{error}"),
            Outcome::Refused(_) => tokio::task::yield_now().await,
            accepted => return accepted,
        }
    }
}

async fn done(door: &mut Commands, op: Op) {
    if accepted(door, &op).await == Outcome::UnderWay {
        let expected = match &op {
            Op::Put(object) => KernelEvent::Saw(object.clone()),
            Op::Del(object) => KernelEvent::Gone(object.clone()),
        };
        assert_eq!(event(door).await, expected);
    }
}

async fn observed(door: &mut Commands) -> Vec<Object> {
    let mut seen = Vec::new();
    door.observe(&mut |object| seen.push(object)).await.unwrap();
    seen
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_peer_comes_changes_and_goes() {
    let world = World::new("");
    let mut door = world.door();
    let (one, other) = (world.peer(2, "a", false), world.peer(2, "b", false));
    done(&mut door, Op::Put(one.clone())).await;
    assert_eq!(observed(&mut door).await, std::slice::from_ref(&one));
    let file = world.journal().join("10.1.2.0-24");
    assert_eq!((mode(&file), mode(&world.journal())), (0o600, 0o700));
    // Asked again, nothing is run.
    done(&mut door, Op::Put(one)).await;
    done(&mut door, Op::Put(other.clone())).await;
    done(&mut door, Op::Del(other)).await;
    assert_eq!(
        world.log(),
        [
            "add 10.1.2.0/24 192.0.2.2 a",
            "remove 10.1.2.0/24 192.0.2.2 a",
            "add 10.1.2.0/24 192.0.2.2 b",
            "remove 10.1.2.0/24 192.0.2.2 b",
        ]
    );
    assert!(observed(&mut door).await.is_empty() && !world.journal().exists());
}

#[tokio::test]
async fn what_failed_is_removed_and_tried_again() {
    let world =
        World::new("[ $1 = remove ] || [ $(grep -c add $log) -ge 2 ] || { echo no >&2; exit 3; }");
    let mut door = world.door();
    let peer = world.peer(2, "", false);
    let op = Op::Put(peer.clone());
    assert_eq!(
        door.apply(std::slice::from_ref(&op)).await,
        [Outcome::UnderWay]
    );
    let KernelEvent::Refused(refused, error) = event(&mut door).await else {
        panic!("not refused");
    };
    assert_eq!(refused, op);
    assert_eq!(error.reason, "SubnetAddCommand: exit status: 3: no");
    let early = door.apply(std::slice::from_ref(&op)).await;
    assert!(matches!(&early[..], [Outcome::Refused(again)] if *again == error));
    done(&mut door, op).await;
    let began: Vec<String> = world
        .log()
        .iter()
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(began, ["add", "remove", "add"]);
}

#[tokio::test]
async fn a_restart_removes_who_left_and_adds_again_who_stayed() {
    let world = World::new("");
    let mut door = world.door();
    let (stays, leaves) = (world.peer(2, "x", true), world.peer(3, "y", true));
    done(&mut door, Op::Put(stays.clone())).await;
    done(&mut door, Op::Put(leaves)).await;
    drop(door);
    fs::write(world.journal().join("10.1.4.0-24"), "edited by hand").unwrap();
    let mut door = world.door();
    let seen = observed(&mut door).await;
    assert_eq!(seen.len(), 2);
    let earlier = |object: &Object| match object {
        Object::PeerCommand(_, peer) => peer.earlier,
        _ => false,
    };
    assert!(seen.iter().all(earlier));
    done(&mut door, Op::Put(stays)).await;
    let gone = Op::Del(seen[1].clone());
    done(&mut door, gone).await;
    assert_eq!(
        world.log()[2..],
        [
            "add 10.1.2.0/24 192.0.2.2 x",
            "remove 10.1.3.0/24 192.0.2.3 y"
        ]
    );
}

/// `ip route add` of a route that an earlier run of the daemon added.
#[tokio::test]
async fn a_command_that_says_it_is_there_already_is_believed_where_nothing_undid_it() {
    for prepared in [false, true] {
        let world = World::new("case $1 in add) mkdir $log.there;; *) rmdir $log.there;; esac");
        let peer = world.peer(2, "", prepared);
        let mut door = world.door();
        done(&mut door, Op::Put(peer.clone())).await;
        drop(door);
        let mut door = world.door();
        let op = Op::Put(peer);
        if prepared {
            assert_eq!(
                door.apply(std::slice::from_ref(&op)).await,
                [Outcome::UnderWay]
            );
            assert!(matches!(event(&mut door).await, KernelEvent::Refused(..)));
        }
        done(&mut door, op).await;
        assert_eq!(world.log().len(), if prepared { 4 } else { 2 });
    }
}

#[tokio::test]
async fn peers_wait_until_the_node_is_prepared() {
    let world = World::new("[ $1 != prepare ] || [ $(grep -c prepare $log) -ge 2 ]");
    let mut door = world.door();
    let (post, peer) = (
        PostStartup {
            line: world.line("prepare"),
            env: CommandEnv::default(),
            limit: LONG,
        },
        world.peer(2, "", true),
    );
    let ops = [
        Op::Put(Object::PostStartup((), post)),
        Op::Put(peer.clone()),
    ];
    assert_eq!(
        door.apply(&ops).await,
        [Outcome::UnderWay, Outcome::UnderWay]
    );
    assert!(matches!(event(&mut door).await, KernelEvent::Refused(..)));
    done(&mut door, ops[0].clone()).await;
    assert_eq!(event(&mut door).await, KernelEvent::Saw(peer));
    let log = world.log();
    assert!(
        log[1].starts_with("prepare") && log[2].starts_with("add"),
        "{log:?}"
    );
    assert_eq!(log.len(), 3);
}

#[tokio::test]
async fn a_command_that_hangs_holds_back_nobody_else() {
    let world = World::new("[ $SUBNET != 10.1.2.0/24 ] || sleep 1000");
    let mut door = world.door();
    let (hangs, works) = (world.peer(2, "", false), world.peer(3, "", false));
    let ops = [Op::Put(hangs), Op::Put(works.clone())];
    door.apply(&ops).await;
    assert_eq!(event(&mut door).await, KernelEvent::Saw(works));
}

#[tokio::test]
async fn who_leaves_while_being_added_is_removed_afterwards() {
    let world = World::new("[ $1 = remove ] || while [ ! -e $log.go ]; do sleep 0.01; done");
    let mut door = world.door();
    let peer = world.peer(2, "", false);
    door.apply(&[Op::Put(peer.clone())]).await;
    let started = async {
        while world.log().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, started).await.unwrap();
    let del = Op::Del(peer.clone());
    assert_eq!(door.apply(&[del]).await, [Outcome::UnderWay]);
    fs::write(world.dir.path().join("log.go"), "").unwrap();
    assert_eq!(event(&mut door).await, KernelEvent::Gone(peer));
    assert_eq!(world.log().len(), 2);
}
