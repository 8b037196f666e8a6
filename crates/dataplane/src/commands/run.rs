//! Runs one command of the network configuration: without a shell, with a time limit, in a process group
//! of its own.

#![allow(unsafe_code, reason = "a signal to a process group")]

use std::env;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// As much as is kept of what a command prints, in bytes.
const MOST_KEPT: usize = 64 << 10;

/// As much as is shown of what a command complains about, in characters.
const MOST_SHOWN: usize = 300;

/// How long output is waited for after the command has ended: a process that it left in the background may
/// hold the pipe open.
const GRACE: Duration = Duration::from_millis(200);

/// What commands do not get of the daemon's environment: a secret, and what is said to its supervisor.
const HIDDEN: [&str; 8] = [
    "FLANNELD_ETCD_PASSWORD",
    "FLANNELD_ETCD_USERNAME",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
];

/// Runs a command to its end and returns what it printed on its standard output, trimmed. White space
/// separates the arguments; then `$NAME` and `${NAME}` are replaced by variables of `env` and of the
/// daemon's own environment. Nothing else is special: a value never becomes more than one argument.
/// Dropping the future kills the command and what it started.
///
/// # Errors
/// Why it cannot be started, how it ended, or that it took too long; with what it printed.
pub async fn run(
    line: &str,
    env: &[(&str, String)],
    input: &str,
    limit: Duration,
) -> Result<String, String> {
    let value_of = |name: &str| {
        let given = env.iter().find(|(of, _)| *of == name);
        match given {
            Some((_, value)) => value.clone(),
            None if HIDDEN.contains(&name) => String::new(),
            None => env::var(name).unwrap_or_default(),
        }
    };
    let mut words = line.split_whitespace().map(|word| expand(word, value_of));
    let program = words.next().filter(|program| !program.is_empty());
    let program = program.ok_or("its first word is empty, so that it names no program")?;
    let mut command = Command::new(&program);
    command
        .args(words)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    for name in HIDDEN {
        command.env_remove(name);
    }
    let mut child = command
        .spawn()
        .map_err(|error| format!("cannot start {program}: {error}"))?;
    let mut group = Group(child.id());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let input = format!("{input}\n");
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let status = {
        let feed = async {
            if let Some(mut pipe) = stdin {
                // A command need not read its input.
                let _ = pipe.write_all(input.as_bytes()).await;
            }
        };
        let pipes = async { tokio::join!(feed, keep(stdout, &mut out), keep(stderr, &mut err)) };
        tokio::pin!(pipes);
        let ended = async {
            tokio::select! {
                status = child.wait() => {
                    let _ = tokio::time::timeout(GRACE, &mut pipes).await;
                    status
                }
                _ = &mut pipes => child.wait().await,
            }
        };
        tokio::time::timeout(limit, ended).await
    };
    let failed = |how: String| {
        let said = if shown(&err).is_empty() {
            shown(&out)
        } else {
            shown(&err)
        };
        if said.is_empty() {
            how
        } else {
            format!("{how}: {said}")
        }
    };
    match status {
        Ok(Ok(status)) => {
            // What it left running in the background is meant to run.
            group.release();
            if status.success() {
                Ok(String::from_utf8_lossy(&out).trim().to_owned())
            } else {
                Err(failed(status.to_string()))
            }
        }
        Ok(Err(error)) => Err(failed(format!("its end is unknown: {error}"))),
        Err(_) => {
            group.kill();
            // Not left as a zombie.
            let _ = child.wait().await;
            let seconds = limit.as_secs();
            Err(failed(format!(
                "killed because it took more than {seconds} s"
            )))
        }
    }
}

/// Reads a pipe to its end and keeps its beginning.
async fn keep(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut pipe) = pipe else { return Ok(()) };
    let mut part = [0; 4096];
    loop {
        let read = pipe.read(&mut part).await?;
        if read == 0 {
            return Ok(());
        }
        let room = MOST_KEPT.saturating_sub(kept.len()).min(read);
        kept.extend_from_slice(part.get(..room).unwrap_or_default());
    }
}

/// Returns output on one line: control characters escaped, white space joined, cut.
fn shown(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let safe = line.chars().flat_map(|char| {
        let control = char.is_control();
        let plain = (!control).then_some(char);
        let escaped = control.then(|| char.escape_default());
        plain.into_iter().chain(escaped.into_iter().flatten())
    });
    safe.take(MOST_SHOWN).collect()
}

/// Replaces `$NAME` and `${NAME}`. A `$` before anything else stays.
fn expand(word: &str, value_of: impl Fn(&str) -> String) -> String {
    let mut expanded = String::with_capacity(word.len());
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('$') {
        expanded.push_str(before);
        let braced = after
            .strip_prefix('{')
            .and_then(|inside| inside.split_once('}'));
        let plain = after
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(after.len());
        (rest, _) = match (braced, after.split_at_checked(plain)) {
            (Some((name, behind)), _) => (behind, expanded.push_str(&value_of(name))),
            (None, Some((name, behind))) if !name.is_empty() => {
                (behind, expanded.push_str(&value_of(name)))
            }
            (None, _) => (after, expanded.push('$')),
        };
    }
    expanded.push_str(rest);
    expanded
}

/// The process group of a command. Killed when this value is dropped, unless it was released.
struct Group(Option<u32>);

impl Group {
    fn release(&mut self) {
        self.0 = None;
    }

    fn kill(&mut self) {
        let id = self.0.take().and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id.filter(|id| *id > 1) {
            // SAFETY: no memory is involved. The group's leader was not waited for yet, so that the id is
            // still the group's.
            unsafe { libc::kill(-id, libc::SIGKILL) };
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    #[test]
    fn only_variables_are_special() {
        let value_of = |name: &str| format!("<{name}>");
        for (word, expected) in [
            ("plain", "plain"),
            ("$SUBNET", "<SUBNET>"),
            ("a${SUBNET}b", "a<SUBNET>b"),
            ("$A/$B_1-", "<A>/<B_1>-"),
            ("100$", "100$"),
            ("$(id)", "$(id)"),
            ("${open", "${open"),
            ("'$A'", "'<A>'"),
            ("$$A", "$<A>"),
            ("ä$Aö", "ä<A>ö"),
        ] {
            assert_eq!(expand(word, value_of), expected, "{word}");
        }
    }

    #[tokio::test]
    async fn a_command_gets_its_arguments_environment_and_input() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        let text = "echo \"$#:$1:$SUBNET\"; cat; echo out of it >&2\n";
        std::fs::write(&script, text).unwrap();
        let env = [("SUBNET", "10.1.2.0/24 ; $(id)".to_owned())];
        let line = format!("sh {} $SUBNET;x   ${{HOME}}", script.display());
        let printed = run(&line, &env, "the data", LIMIT).await.unwrap();
        assert_eq!(
            printed,
            "2:10.1.2.0/24 ; $(id);x:10.1.2.0/24 ; $(id)\nthe data"
        );
    }

    #[tokio::test]
    async fn what_goes_wrong_is_named() {
        let said = async |line: &str| run(line, &[], "", LIMIT).await.unwrap_err();
        let text = said("/nonexistent/program x").await;
        assert!(text.contains("cannot start /nonexistent/program"), "{text}");
        assert!(said("$NOT_SET_ANYWHERE x").await.contains("no program"));
        let text = said("ls /nonexistent/\u{1b}[31m").await;
        assert!(
            text.contains("exit status: 2: ls:") && !text.contains('\u{1b}'),
            "{text}"
        );
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let (script, pid) = (dir.path().join("script"), dir.path().join("pid"));
        let text = format!("sleep 1000 &\necho $! > {}\nwait\n", pid.display());
        std::fs::write(&script, text).unwrap();
        let line = format!("sh {}", script.display());
        let error = run(&line, &[], "", Duration::from_secs(1)).await;
        assert!(error.unwrap_err().contains("took more than 1 s"));
        let pid = std::fs::read_to_string(&pid).unwrap();
        let status = format!("/proc/{}/stat", pid.trim());
        let gone = || match std::fs::read_to_string(&status) {
            // A zombie until its new parent looks.
            Ok(stat) => stat.contains(") Z"),
            Err(_) => true,
        };
        tokio::time::timeout(LIMIT, async {
            while !gone() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn what_it_leaves_in_the_background_is_neither_waited_for_nor_killed() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("script");
        std::fs::write(&script, "sleep 1000 &\necho $!\n").unwrap();
        let pid = run(&format!("sh {}", script.display()), &[], "", LIMIT).await;
        let pid = pid.unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        assert!(!stat.contains(") Z"), "{stat}");
        let killed = std::process::Command::new("kill").arg(&pid).status();
        assert!(killed.unwrap().success());
    }
}
