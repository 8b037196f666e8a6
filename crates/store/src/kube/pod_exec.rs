//! A program in a pod, as `kubectl exec` runs it: a WebSocket whose messages begin with a channel's number.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use hyper::Method;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::failure::Failure;
use super::http::Client;
use super::settings::is_name;

/// The protocols that API servers speak, the newest first. Both carry the same channels.
const PROTOCOLS: &str = "v5.channel.k8s.io, v4.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
/// How the program ended, as a `Status`.
const END: u8 = 3;

/// Bytes of standard error that are kept.
const MOST_STDERR: usize = 64 << 10;

/// How long the connection may be silent after the program's end: its output may come a moment later, and some proxies
/// keep the connection open.
const AFTER_END: Duration = Duration::from_secs(5);

/// Which program, and where.
#[derive(Clone, Copy, Debug)]
pub struct PodExec<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The pod.
    pub pod: &'a str,
    /// The container.
    pub container: &'a str,
    /// The program and its arguments.
    pub command: &'a [&'a str],
    /// What it reads; its standard input is not closed after that.
    pub stdin: Option<&'a str>,
    /// Bytes of standard output that are accepted.
    pub limit: usize,
}

/// How a program in a pod ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodOutput {
    /// All that it wrote.
    pub stdout: Vec<u8>,
    /// The beginning of what it wrote there.
    pub stderr: String,
    /// Its exit status; `None` if it could not be started, or was killed.
    pub status: Option<i32>,
    /// The kubelet's own words of that, if it did not end with 0.
    pub message: String,
}

/// Runs the program and waits for its end.
pub(super) async fn run(client: &Client, what: &PodExec<'_>) -> Result<PodOutput, Failure> {
    let path = path(what)?;
    let key = base64::engine::general_purpose::STANDARD.encode(fastrand::u128(..).to_be_bytes());
    let headers = [
        ("connection", "Upgrade".to_owned()),
        ("upgrade", "websocket".to_owned()),
        ("sec-websocket-version", "13".to_owned()),
        ("sec-websocket-key", key),
        ("sec-websocket-protocol", PROTOCOLS.to_owned()),
    ];
    let (_, upgraded) = client.upgrade(Method::GET, &path, &headers).await?;
    let mut socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    let broken = |error: &dyn std::fmt::Display| {
        Failure::Away(format!(
            "{}: pod {}/{}: the connection to the program broke: {error}",
            client.place(),
            what.namespace,
            what.pod
        ))
    };
    if let Some(text) = what.stdin {
        let message = [&[STDIN], text.as_bytes()].concat();
        let sent = socket.send(Message::Binary(Bytes::from(message))).await;
        sent.map_err(|e| broken(&e))?;
    }
    read(&mut socket, what.limit).await.map_err(|e| broken(&e))
}

/// Takes in what the program writes, until its end.
async fn read<S: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<S>,
    limit: usize,
) -> Result<PodOutput, String> {
    let mut output = PodOutput::default();
    let mut ended = false;
    loop {
        let next = socket.next();
        let message = if ended {
            timeout(AFTER_END, next).await.unwrap_or(None)
        } else {
            next.await
        };
        let message = match message {
            Some(Ok(message)) => message,
            // API servers close the connection without a farewell.
            Some(Err(_)) if ended => break,
            Some(Err(error)) => return Err(error.to_string()),
            None => break,
        };
        let data = match &message {
            Message::Binary(data) => &data[..],
            Message::Text(text) => text.as_bytes(),
            Message::Close(_) => break,
            _ => continue,
        };
        ended |= output.take(data);
        if output.stdout.len() > limit {
            return Err(format!("it writes more than {limit} bytes"));
        }
    }
    if ended {
        Ok(output)
    } else {
        Err("it ended before the program did".to_owned())
    }
}

fn path(what: &PodExec<'_>) -> Result<String, Failure> {
    for name in [what.namespace, what.pod, what.container] {
        if !is_name(name) {
            return Err(Failure::Refused(format!(
                "{name:?} is no name of an object"
            )));
        }
    }
    let mut path = format!(
        "/api/v1/namespaces/{}/pods/{}/exec?container={}&stdout=true&stderr=true",
        what.namespace, what.pod, what.container
    );
    if what.stdin.is_some() {
        path.push_str("&stdin=true");
    }
    for word in what.command {
        path.push_str("&command=");
        for byte in word.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    Ok(path)
}

impl PodOutput {
    /// Takes one message; returns whether it says how the program ended.
    fn take(&mut self, message: &[u8]) -> bool {
        match message.split_first() {
            Some((&STDOUT, data)) => self.stdout.extend_from_slice(data),
            Some((&STDERR, data)) if self.stderr.len() < MOST_STDERR => {
                self.stderr.push_str(&String::from_utf8_lossy(data));
            }
            Some((&END, data)) => {
                self.end(data);
                return true;
            }
            _ => {}
        }
        false
    }

    fn end(&mut self, status: &[u8]) {
        let status: Value = serde_json::from_slice(status).unwrap_or_default();
        if status["status"] == "Success" {
            self.status = Some(0);
            return;
        }
        let causes = status["details"]["causes"].as_array();
        let code = causes
            .into_iter()
            .flatten()
            .find(|cause| cause["reason"] == "ExitCode");
        self.status = code.and_then(|cause| cause["message"].as_str()?.parse().ok());
        self.message = status["message"].as_str().unwrap_or("it failed").to_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXEC: PodExec<'_> = PodExec {
        namespace: "kube-flannel",
        pod: "p",
        container: "c",
        command: &["/bin/a", "b c&d"],
        stdin: None,
        limit: 10,
    };

    #[test]
    fn words_stay_words_and_names_are_no_path() {
        let path_of = |what: &PodExec<'_>| path(what).map_err(|e| e.to_string());
        assert!(
            path_of(&EXEC)
                .unwrap()
                .ends_with("stderr=true&command=/bin/a&command=b%20c%26d")
        );
        let bad = PodExec {
            pod: "a/b?",
            ..EXEC
        };
        assert!(path_of(&bad).unwrap_err().contains("a/b?"));
    }

    /// A program whose server sends these messages and keeps the connection open.
    async fn after(messages: &'static [&'static [u8]]) -> Result<PodOutput, String> {
        let (ours, theirs) = tokio::io::duplex(4096);
        let mut server = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
        tokio::spawn(async move {
            for message in messages {
                let message = Message::Binary(Bytes::from_static(message));
                server.send(message).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        let mut client = WebSocketStream::from_raw_socket(ours, Role::Client, None).await;
        let hour = Duration::from_secs(3600);
        let read = timeout(hour, read(&mut client, 10)).await;
        read.unwrap_or_else(|_| Err("no end".into()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_stays_open_after_the_end_does_not_cost_the_output() {
        let output = after(&[b"\x01one", b"\x03{\"status\":\"Success\"}", b"\x01two"]).await;
        let output = output.unwrap();
        assert_eq!(output.status, Some(0));
        assert_eq!(output.stdout, b"onetwo");
        assert_eq!(after(&[b"\x01one"]).await.unwrap_err(), "no end");
        let error = after(&[b"\x01more than it may be"]).await.unwrap_err();
        assert!(error.contains("more than 10 bytes"), "{error}");
    }

    #[test]
    fn channels_and_ends() {
        let mut output = PodOutput::default();
        assert!(!output.take(b"\x01one"));
        assert!(!output.take(b"\x02two") && !output.take(b"") && !output.take(b"\x09x"));
        let failed = br#"{"status":"Failure","message":"exit code 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#;
        assert!(output.take(&[b"\x03", &failed[..]].concat()));
        let want = PodOutput {
            stdout: b"one".to_vec(),
            stderr: "two".into(),
            status: Some(3),
            message: "exit code 3".into(),
        };
        assert_eq!(output, want);
        assert!(
            output.take(
                br#"~{"status":"Success"}"#.map(|b| if b == b'~' { END } else { b }).as_slice()
            )
        );
        assert_eq!(output.status, Some(0));
        let mut garbage = PodOutput::default();
        assert!(garbage.take(b"\x03{"));
        assert_eq!(
            (garbage.status, garbage.message.as_str()),
            (None, "it failed")
        );
    }
}
