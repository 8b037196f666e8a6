//! `flannelctl top` in a terminal: tmux on a node of the lab, with a broken node in the mesh.

#![cfg(feature = "top")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::process::{Command, Output, Stdio};
use std::time::Duration;

use lab::{Lab, Node, StoreKind, wait_for};
use model::Family;

const CTL: &str = env!("CARGO_BIN_EXE_flannelctl");
const SOON: Duration = Duration::from_secs(60);

/// A terminal of 80 columns and 24 lines on a node.
struct Terminal<'a> {
    node: &'a Node,
    dir: tempfile::TempDir,
}

impl<'a> Terminal<'a> {
    fn open(node: &'a Node, program: &str) -> Terminal<'a> {
        let dir = tempfile::tempdir().unwrap();
        let terminal = Terminal { node, dir };
        let size = ["-x", "80", "-y", "24"];
        let new = ["-f", "/dev/null", "new-session", "-d"];
        terminal.tmux(&[&new[..], &size, &[program]].concat());
        terminal
    }

    fn command(&self, args: &[&str]) -> Output {
        let mut command = Command::new("tmux");
        command
            .arg("-S")
            .arg(self.dir.path().join("socket"))
            .args(args)
            .env_remove("TMUX")
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let tmux = self.node.spawn(&mut command).unwrap();
        tmux.wait_with_output().unwrap()
    }

    fn tmux(&self, args: &[&str]) -> String {
        let output = self.command(args);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn press(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// Waits until the picture is as it should be; returns its lines.
    #[track_caller]
    fn shows(&self, what: &str, is: impl Fn(&[&str]) -> bool) {
        wait_for(what, SOON, || {
            let picture = self.tmux(&["capture-pane", "-p"]);
            let lines: Vec<&str> = picture.lines().collect();
            if is(&lines) { Ok(()) } else { Err(picture) }
        })
        .unwrap();
    }
}

impl Drop for Terminal<'_> {
    fn drop(&mut self) {
        // It has ended already where the program has.
        drop(self.command(&["kill-server"]));
    }
}

fn has(lines: &[&str], part: &str) -> bool {
    lines.iter().any(|line| line.contains(part))
}

/// Whether the table has a node's row.
fn is_row(lines: &[&str], subnet: &str) -> bool {
    let is = |line: &&str| line.get(1..).is_some_and(|row| row.starts_with(subnet));
    lines.iter().any(is)
}

/// Returns the first line of the table, without its mark.
fn first<'a>(lines: &[&'a str]) -> &'a str {
    let mut below = lines.iter().skip_while(|line| !line.contains("SUBNET"));
    below.nth(1).map(|line| &line[1..]).unwrap_or_default()
}

#[test]
fn a_broken_node_appears_and_keys_are_obeyed() {
    let lab = Lab::builder()
        .nodes(3)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    let (a, b, c) = (lab.node(1), lab.node(2), lab.node(3));
    let subnet = |node: &Node| {
        let env = node.subnet_env().unwrap();
        env.cidr(Family::V4).unwrap().trunc().to_string()
    };
    let [own, broken, good] = [a, b, c].map(subnet);

    // Without a terminal it says what to do instead.
    let mut command = Command::new(CTL);
    command.arg("top").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = a.spawn(&mut command).unwrap().wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("--once"), "{error}");

    let terminal = Terminal::open(a, &format!("{CTL} top --delay=1"));
    terminal.shows("both nodes are reachable", |lines| {
        let reachable = |subnet: &str| {
            let mut all = lines.iter();
            all.any(|line| line.contains(subnet) && line.contains("reachable"))
        };
        has(lines, &own) && has(lines, "flannel.1") && reachable(&broken) && reachable(&good)
    });
    for rule in [
        "add table ip t",
        "add chain ip t in { type filter hook input priority -300; }",
        "add rule ip t in udp dport 8472 drop",
    ] {
        b.exec(["nft", rule]).unwrap();
    }
    terminal.shows("the broken node comes first, with the reason", |lines| {
        let row = first(lines);
        row.starts_with(&broken) && row.contains("failing") && has(lines, "vxlan (UDP 8472)")
    });
    // The log has it, too.
    terminal.shows("the log", |lines| {
        let mut log = lines.iter().skip_while(|line| !line.contains("THE LOG"));
        log.any(|line| line.contains("probes of") && line.contains("fail"))
    });
    terminal.press(&["/", &good, "Enter"]);
    terminal.shows("only what was asked for", |lines| {
        let is_other = |line: &&str| line.get(1..).is_some_and(|row| row.starts_with(&broken));
        first(lines).starts_with(&good) && !lines.iter().any(is_other)
    });
    terminal.press(&["Escape"]);
    terminal.shows("all of them", |lines| {
        is_row(lines, &broken) && is_row(lines, &good)
    });
    terminal.press(&["s"]);
    terminal.shows("the order of subnets", |lines| {
        has(lines, "order: subnet") && is_row(lines, &broken) && is_row(lines, &good)
    });
    terminal.press(&["End"]);
    terminal.shows("the last one is chosen", |lines| {
        let mut rows = lines.iter().skip_while(|line| !line.contains("SUBNET"));
        rows.nth(2).is_some_and(|line| line.starts_with('>'))
    });
    terminal.tmux(&["resize-window", "-x", "44", "-y", "10"]);
    terminal.shows("a small terminal", |lines| {
        lines.len() <= 10 && has(lines, &broken) && has(lines, "failing") && has(lines, "q quit")
    });
    a.flanneld().stop().unwrap();
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);
    terminal.shows("the daemon has ended", |lines| {
        has(lines, "no flanneld") && has(lines, &broken)
    });
    terminal.press(&["q"]);
    wait_for("q ends it", SOON, || {
        let output = terminal.command(&["has-session"]);
        if output.status.success() {
            Err("it is open")
        } else {
            Ok(())
        }
    })
    .unwrap();
}

#[test]
fn one_frame_is_printed_for_scripts() {
    let lab = Lab::builder()
        .nodes(2)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    let node = lab.node(1);
    wait_for("the other node is shown", SOON, || {
        let args = [CTL, "top", "--once", "--delay=1"];
        let text = node.exec(args).map_err(|e| e.to_string())?;
        let has_rates = text.contains("flannel.1  in ") && text.contains("pkt/s");
        if has_rates && text.contains("reachable  ") && text.contains("ready") {
            Ok(())
        } else {
            Err(text)
        }
    })
    .unwrap();
}

#[test]
fn a_signal_leaves_the_terminal_as_it_was() {
    let lab = Lab::builder()
        .nodes(1)
        .store(StoreKind::Directory)
        .build()
        .unwrap();
    lab.start().unwrap();
    let node = lab.node(1);
    let dir = tempfile::tempdir().unwrap();
    let (go, pid) = (dir.path().join("go"), dir.path().join("pid"));
    let script = dir.path().join("script");
    let text = format!(
        "(until [ -e {go} ]; do sleep 0.1; done; kill -TERM $(cat {pid})) &\n\
        sh -c 'echo $$ >{pid}; exec {CTL} top --delay=1'\n\
        echo ended with $?\nstty -a | tr ' ' '\\n' | grep icanon\nread line\n",
        go = go.display(),
        pid = pid.display()
    );
    std::fs::write(&script, text).unwrap();
    let terminal = Terminal::open(node, &format!("sh {}", script.display()));
    terminal.shows("top is there", |lines| has(lines, "q quit"));
    std::fs::write(&go, "").unwrap();
    terminal.shows("the terminal is restored", |lines| {
        has(lines, "ended with 143") && lines.contains(&"icanon") && !has(lines, "q quit")
    });
}
