//! `flannelctl lab …`.

#![allow(unsafe_code, reason = "a handler for signals")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use std::time::Duration;

use anyhow::{Context, Result, bail};
use lab::{Lab, Namespace};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, kill, sigaction};
use nix::unistd::Pid;

use crate::cli::lab_args::Shape;
use crate::output::{line, progress};
use crate::running::{self, Claim, DIR_VAR, Running};

/// How soon after a manifest every Node must be Ready.
const NODES_READY: Duration = Duration::from_secs(120);

/// How soon after its start every pod must reach every other.
const MESH: Duration = Duration::from_secs(10);

/// Builds a lab in a process of its own and leaves it there.
pub(crate) fn up(shape: &Shape) -> Result<ExitCode> {
    let (name, file) = (&shape.name.name, running::file(&shape.name.name)?);
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command
        .args(["lab", "hold"])
        .args(shape.to_args())
        .arg("--file")
        .arg(&file);
    // Out of reach of this terminal's Ctrl-C; until it is told to stay, it ends with this process.
    command
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut holder = command
        .spawn()
        .context("start the process that holds the lab")?;
    let output = holder.stdout.take().context("no pipe from the holder")?;
    for said in BufReader::new(output).lines() {
        let said = said.context("read from the holder")?;
        match said.split_once(' ') {
            Some(("progress", text)) => progress(text),
            Some(("ready", _)) => {
                let stay = holder
                    .stdin
                    .take()
                    .map(|mut pipe| pipe.write_all(b"stay\n"));
                stay.context("no pipe to the holder")?
                    .context("tell the holder to stay")?;
                line(&format!(
                    "{name} is up: `flannelctl lab exec n1` for a shell on a node, `flannelctl lab down` to end it"
                ));
                return Ok(ExitCode::SUCCESS);
            }
            Some(("failed", json)) => bail!(
                "{}",
                serde_json::from_str::<String>(json).unwrap_or_default()
            ),
            _ => {}
        }
    }
    bail!(
        "the process that should hold the lab ended ({})",
        holder.wait().context("wait for the holder")?
    )
}

/// The other side of [`up`].
pub(crate) fn hold(shape: &Shape, file: &Path) -> Result<ExitCode> {
    let say = |word: &str, text: &str| line(&format!("{word} {text}"));
    let held = lab::become_root()
        .map_err(anyhow::Error::from)
        .and_then(|()| {
            let claim = Claim::take(&shape.name.name, file)?;
            // Whoever asked for the lab is gone before it was ready: nobody wants it any more.
            let abandoned = claim.another()?;
            std::thread::spawn(move || {
                let mut word = String::new();
                if std::io::stdin().take(5).read_to_string(&mut word).is_err() || word != "stay\n" {
                    drop(abandoned);
                    std::process::exit(1);
                }
                abandoned.keep();
            });
            let lab = shape
                .builder()
                .unlink_at_end(file)
                .held_until_end(claim.lock()?)
                .progress(move |text| say("progress", text))
                .build()?;
            start(shape, &lab)?;
            let name = shape.name.name.clone();
            claim.publish(&Running {
                name,
                shape: shape.to_args(),
                handles: lab.handles(),
            })?;
            Ok(lab)
        });
    match held {
        Ok(_lab) => {
            say("ready", "now");
            // Until `down` sends a signal.
            loop {
                std::thread::park();
            }
        }
        Err(e) => {
            say(
                "failed",
                &serde_json::to_string(&format!("{e:#}")).unwrap_or_default(),
            );
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Starts the daemons and waits until the pods reach each other, where the backend is one that
/// sees to that.
fn start(shape: &Shape, lab: &Lab) -> Result<()> {
    if let (true, Some(kube)) = (shape.kube, lab.kube()) {
        let Some(file) = &shape.manifest else {
            return Ok(());
        };
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        kube.apply(&text)?;
        return Ok(kube.wait_nodes_ready(NODES_READY)?);
    }
    lab.start()?;
    if shape.backend["Type"] != "alloc" {
        lab.wait_mesh(MESH)?;
    }
    Ok(())
}

/// Ends a lab.
pub(crate) fn down(name: &str) -> Result<ExitCode> {
    let running = Running::find(name)?;
    let pid = Pid::from_raw(running.handles.pid.cast_signed());
    kill(pid, Signal::SIGTERM).with_context(|| format!("end process {pid}"))?;
    running.wait_gone()?;
    line(&format!("{name} is gone"));
    Ok(ExitCode::SUCCESS)
}

/// Lists the labs.
pub(crate) fn status() -> Result<ExitCode> {
    let all = Running::all()?;
    if all.is_empty() {
        line("no lab; `flannelctl lab up` makes one");
    }
    for running in &all {
        line(&format!(
            "{}  process {}  {}",
            running.name,
            running.handles.pid,
            running.shape.join(" ")
        ));
        // From another user namespace one cannot look in; and only one can be entered.
        let inside = all.len() > 1 || running.handles.enter_user_namespace().is_ok();
        for name in running.handles.places.keys() {
            let place = running.handles.open(name).ok().filter(|_| inside);
            let about = place.map(|place| describe(&place)).unwrap_or_default();
            line(format!("  {name:<8} {about}").trim_end());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The addresses of a place, and what its flanneld was given.
fn describe(place: &Namespace) -> String {
    let addresses = place
        .exec(["ip", "-br", "addr", "show", "scope", "global"])
        .unwrap_or_default();
    let words = addresses.lines().flat_map(|l| l.split_whitespace().skip(2));
    words.collect::<Vec<_>>().join(" ")
}

/// Runs a command, or a shell, in a place of a running lab.
pub(crate) fn exec(name: &str, place: &str, command: &[String]) -> Result<ExitCode> {
    let running = Running::find(name)?;
    running.handles.enter_user_namespace()?;
    let place = running.handles.open(place)?;
    let mut command = match command {
        [] => {
            let mut shell = Command::new("bash");
            let prompt = format!("[{}] \\w # ", place.name());
            shell.args(["--norc", "-i"]).env("PS1", prompt);
            shell
        }
        [program, args @ ..] => {
            let mut command = Command::new(program);
            command.args(args);
            command
        }
    };
    // For kubectl, where the lab has a Kubernetes.
    command.env("KUBECONFIG", format!("{}/admin.conf", lab::KUBE_DIR));
    // A node that is a whole machine gets nothing else of this process's environment.
    if let Some(term) = std::env::var_os("TERM") {
        command.env("TERM", term);
    }
    let mut child = place.spawn(&mut command)?;
    Ok(exit_code(attend(&mut child)?))
}

/// Runs a command beside a lab that lives as long as it.
pub(crate) fn run(shape: &Shape, command: &[String]) -> Result<ExitCode> {
    let (name, dir) = (&shape.name.name, running::dir()?);
    let file = running::file(name)?;
    lab::become_root()?;
    let claim = Claim::take(name, &file)?;
    let lab = shape
        .builder()
        .unlink_at_end(&file)
        .held_until_end(claim.lock()?)
        .progress(progress)
        .build()?;
    start(shape, &lab)?;
    claim.publish(&Running {
        name: name.clone(),
        shape: shape.to_args(),
        handles: lab.handles(),
    })?;
    let [program, args @ ..] = command else {
        bail!("no command")
    };
    let mut command = Command::new(program);
    command
        .args(args)
        .env("FLANNEL_LAB", name)
        .env(DIR_VAR, &dir);
    let mut child = command
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let status = attend(&mut child)?;
    drop(lab);
    Ok(exit_code(status))
}

/// Waits for a child that owns the terminal: Ctrl-C is for it.
fn attend(child: &mut Child) -> Result<ExitStatus> {
    extern "C" fn leave_it_to_the_child(_: i32) {}
    let action = SigAction::new(
        SigHandler::Handler(leave_it_to_the_child),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in [Signal::SIGINT, Signal::SIGQUIT] {
        // SAFETY: the handler does nothing.
        unsafe { sigaction(signal, &action) }.context("set a signal handler")?;
    }
    child.wait().context("wait for the command")
}

/// As a shell tells it: the status, or 128 and the signal.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
