//! VICI, the protocol of strongSwan's charon: messages of sections, lists and values, over a stream.
//! Its definition: `src/libcharon/plugins/vici/README.md` in strongSwan's sources.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long charon may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// How long a list may take: one of thousands of connections comes as thousands of events.
const LIST: Duration = Duration::from_secs(60);

/// The most events of a list that are read.
const MOST_EVENTS: usize = 100_000;

/// The longest packet that the protocol has, in bytes.
const LONGEST: usize = 512 << 10;

const REQUEST: u8 = 0;
const RESPONSE: u8 = 1;
const UNKNOWN: u8 = 2;
const REGISTER: u8 = 3;
const CONFIRM: u8 = 5;
const EVENT_UNKNOWN: u8 = 6;
const EVENT: u8 = 7;

const SECTION_START: u8 = 1;
const SECTION_END: u8 = 2;
const KEY_VALUE: u8 = 3;
const LIST_START: u8 = 4;
const LIST_ITEM: u8 = 5;
const LIST_END: u8 = 6;

/// What a message holds, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Section(pub(super) Vec<(String, Value)>);

/// What a name in a message stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    List(Vec<String>),
    Section(Section),
}

impl Section {
    /// Adds a value.
    pub(super) fn with(mut self, name: &str, text: impl Into<String>) -> Section {
        self.0.push((name.into(), Value::Text(text.into())));
        self
    }

    /// Adds a list of one value.
    pub(super) fn with_list(mut self, name: &str, text: impl Into<String>) -> Section {
        self.0.push((name.into(), Value::List(vec![text.into()])));
        self
    }

    /// Adds a section.
    pub(super) fn with_section(mut self, name: &str, section: Section) -> Section {
        self.0.push((name.into(), Value::Section(section)));
        self
    }

    /// Returns a value, empty if there is none.
    pub(super) fn text(&self, name: &str) -> &str {
        match self.get(name) {
            Some(Value::Text(text)) => text,
            _ => "",
        }
    }

    /// Returns a list, empty if there is none.
    pub(super) fn list(&self, name: &str) -> &[String] {
        match self.get(name) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    /// Returns the sections in it, by name.
    pub(super) fn sections(&self) -> impl Iterator<Item = (&str, &Section)> {
        self.0.iter().filter_map(|(name, value)| match value {
            Value::Section(section) => Some((name.as_str(), section)),
            Value::Text(_) | Value::List(_) => None,
        })
    }

    /// Returns a section, if it is there.
    pub(super) fn section(&self, name: &str) -> Option<&Section> {
        self.sections()
            .find_map(|(of, section)| (of == name).then_some(section))
    }

    fn get(&self, name: &str) -> Option<&Value> {
        let found = self.0.iter().find(|(of, _)| of == name);
        found.map(|(_, value)| value)
    }

    pub(super) fn write(&self, bytes: &mut Vec<u8>) -> io::Result<()> {
        for (name, value) in &self.0 {
            match value {
                Value::Text(text) => {
                    write_name(bytes, KEY_VALUE, name)?;
                    write_value(bytes, text)?;
                }
                Value::List(items) => {
                    write_name(bytes, LIST_START, name)?;
                    for item in items {
                        bytes.push(LIST_ITEM);
                        write_value(bytes, item)?;
                    }
                    bytes.push(LIST_END);
                }
                Value::Section(section) => {
                    write_name(bytes, SECTION_START, name)?;
                    section.write(bytes)?;
                    bytes.push(SECTION_END);
                }
            }
        }
        Ok(())
    }

    /// Reads a message.
    pub(super) fn read(bytes: &[u8]) -> Option<Section> {
        let mut rest = bytes;
        // The section at the end of which what follows belongs to the one before.
        let mut open: Vec<(String, Section)> = Vec::new();
        let mut current = Section::default();
        while let Some((kind, after)) = rest.split_first() {
            rest = after;
            match *kind {
                SECTION_START => {
                    let name = read_name(&mut rest)?;
                    open.push((name, std::mem::take(&mut current)));
                }
                SECTION_END => {
                    let (name, outer) = open.pop()?;
                    let inner = std::mem::replace(&mut current, outer);
                    current.0.push((name, Value::Section(inner)));
                }
                KEY_VALUE => {
                    let name = read_name(&mut rest)?;
                    let text = read_value(&mut rest)?;
                    current.0.push((name, Value::Text(text)));
                }
                LIST_START => {
                    let name = read_name(&mut rest)?;
                    let mut items = Vec::new();
                    loop {
                        let (kind, after) = rest.split_first()?;
                        rest = after;
                        match *kind {
                            LIST_ITEM => items.push(read_value(&mut rest)?),
                            LIST_END => break,
                            _ => return None,
                        }
                    }
                    current.0.push((name, Value::List(items)));
                }
                _ => return None,
            }
        }
        open.is_empty().then_some(current)
    }
}

fn too_long(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("{what} is too long"))
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "charon's answer cannot be understood",
    )
}

fn write_name(bytes: &mut Vec<u8>, kind: u8, name: &str) -> io::Result<()> {
    let len = u8::try_from(name.len()).map_err(|_| too_long("a name"))?;
    bytes.extend_from_slice(&[kind, len]);
    bytes.extend_from_slice(name.as_bytes());
    Ok(())
}

fn write_value(bytes: &mut Vec<u8>, value: &str) -> io::Result<()> {
    let len = u16::try_from(value.len()).map_err(|_| too_long("a value"))?;
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(value.as_bytes());
    Ok(())
}

fn read_name(rest: &mut &[u8]) -> Option<String> {
    let (len, after) = rest.split_first()?;
    take(rest, after, usize::from(*len))
}

fn read_value(rest: &mut &[u8]) -> Option<String> {
    let (len, after) = rest.split_first_chunk()?;
    take(rest, after, usize::from(u16::from_be_bytes(*len)))
}

fn take<'a>(rest: &mut &'a [u8], after: &'a [u8], len: usize) -> Option<String> {
    let (text, behind) = after.split_at_checked(len)?;
    *rest = behind;
    Some(String::from_utf8_lossy(text).into_owned())
}

/// A connection to charon.
pub(super) struct Client {
    stream: UnixStream,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// Nobody listens.
    pub(super) async fn connect(socket: &Path) -> io::Result<Client> {
        let connected = tokio::time::timeout(ANSWER, UnixStream::connect(socket));
        Ok(Client {
            stream: connected.await??,
        })
    }

    /// Returns the process at the other end.
    pub(super) fn process(&self) -> Option<i32> {
        self.stream.peer_cred().ok()?.pid()
    }

    /// Sends a command and returns the answer.
    ///
    /// # Errors
    /// The connection ended, the answer did not come in time or cannot be understood, or charon does not know
    /// the command.
    pub(super) async fn call(&mut self, command: &str, message: &Section) -> io::Result<Section> {
        self.send(REQUEST, command, message).await?;
        let answer = async {
            loop {
                let (kind, body) = self.receive().await?;
                match kind {
                    RESPONSE => return Section::read(&body).ok_or_else(malformed),
                    UNKNOWN => {
                        return Err(io::Error::other(format!("charon does not know {command}")));
                    }
                    _ => {}
                }
            }
        };
        tokio::time::timeout(ANSWER, answer).await?
    }

    /// Sends a command that must succeed.
    ///
    /// # Errors
    /// As [`Client::call`], or charon's own reason.
    pub(super) async fn order(&mut self, command: &str, message: &Section) -> io::Result<()> {
        let answer = self.call(command, message).await?;
        if answer.text("success") == "yes" {
            Ok(())
        } else {
            let reason: String = answer.text("errmsg").chars().take(300).collect();
            Err(io::Error::other(format!(
                "charon refuses {command}: {}",
                reason.escape_debug()
            )))
        }
    }

    /// Sends a command whose answers come as events; returns them.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub(super) async fn list(&mut self, command: &str, event: &str) -> io::Result<Vec<Section>> {
        tokio::time::timeout(LIST, self.events(command, event)).await?
    }

    async fn events(&mut self, command: &str, event: &str) -> io::Result<Vec<Section>> {
        self.send_event(REGISTER, event).await?;
        loop {
            match self.receive().await?.0 {
                CONFIRM => break,
                EVENT_UNKNOWN => {
                    return Err(io::Error::other(format!("charon does not know {event}")));
                }
                _ => {}
            }
        }
        self.send(REQUEST, command, &Section::default()).await?;
        let mut found = Vec::new();
        loop {
            let (kind, body) = self.receive().await?;
            match kind {
                RESPONSE => return Ok(found),
                UNKNOWN => return Err(io::Error::other(format!("charon does not know {command}"))),
                EVENT => {
                    let mut rest = &body[..];
                    let name = read_name(&mut rest).ok_or_else(malformed)?;
                    if name == event {
                        if found.len() >= MOST_EVENTS {
                            return Err(malformed());
                        }
                        found.push(Section::read(rest).ok_or_else(malformed)?);
                    }
                }
                _ => {}
            }
        }
    }

    async fn send_event(&mut self, kind: u8, event: &str) -> io::Result<()> {
        let mut body = Vec::new();
        write_name(&mut body, kind, event)?;
        self.transmit(&body).await
    }

    async fn send(&mut self, kind: u8, command: &str, message: &Section) -> io::Result<()> {
        let mut body = Vec::new();
        write_name(&mut body, kind, command)?;
        message.write(&mut body)?;
        self.transmit(&body).await
    }

    async fn transmit(&mut self, body: &[u8]) -> io::Result<()> {
        if body.len() > LONGEST {
            return Err(too_long("a message"));
        }
        let mut packet = (body.len() as u32).to_be_bytes().to_vec();
        packet.extend_from_slice(body);
        tokio::time::timeout(ANSWER, self.stream.write_all(&packet)).await?
    }

    /// Reads one packet: its kind and what follows.
    async fn receive(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let read = async {
            let len = self.stream.read_u32().await? as usize;
            if len == 0 || len > LONGEST {
                return Err(malformed());
            }
            let kind = self.stream.read_u8().await?;
            let mut body = vec![0; len - 1];
            self.stream.read_exact(&mut body).await?;
            Ok((kind, body))
        };
        tokio::time::timeout(ANSWER, read).await?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reads_back_as_written() {
        let message = Section::default()
            .with("key", "välue\0")
            .with_list("list", "10.1.2.0/24")
            .with_section(
                "section.with-signs/24",
                Section::default()
                    .with_section("inner", Section::default())
                    .with("after", ""),
            );
        let mut bytes = Vec::new();
        message.write(&mut bytes).unwrap();
        assert_eq!(Section::read(&bytes), Some(message));
        // Whatever is cut off is noticed, or ends where a message may end.
        for len in 0..bytes.len() {
            if let Some(read) = Section::read(&bytes[..len]) {
                let mut again = Vec::new();
                read.write(&mut again).unwrap();
                assert_eq!(again, bytes[..len]);
            }
        }
        let long = Section::default().with(&"n".repeat(256), "");
        assert!(long.write(&mut Vec::new()).is_err());
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [
            &[9][..],
            &[2],
            &[3, 1, b'a', 0, 9],
            &[4, 1, b'a', 3],
            &[1, 0],
        ] {
            assert_eq!(Section::read(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn fuzzed_messages() {
        let message = Section::default()
            .with("key", "value")
            .with_list("list", "10.1.2.0/24")
            .with_section("section", Section::default().with("after", ""));
        let mut bytes = Vec::new();
        message.write(&mut bytes).unwrap();
        fuzz::run("VICI message", &[&bytes], |input| {
            let read = Section::read(input);
            if let Some(section) = &read {
                let mut again = Vec::new();
                section.write(&mut again).unwrap();
                assert_eq!(Section::read(&again).as_ref(), read.as_ref());
            }
            read.map(|section| section.0.len())
        });
    }
}
