//! The thread that serves the health port. A connection costs a few system calls and no memory of its own until it is
//! answered; how many there are is bounded, and so is the time of each.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::sync::Arc;
use std::sync::mpsc as thread;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token, Waker};
use tokio::sync::mpsc;
use tracing::debug;

use super::head::{Head, Page, Request};
use crate::metrics::CONTENT_TYPE;

/// How long one exchange may take, from the connection's start to the last byte of the answer.
const EXCHANGE: Duration = Duration::from_secs(5);

/// Connections that are kept although their request is not complete or their answer not read: a quarter of the files
/// that this process may open, within these limits. One more closes the oldest: a well-behaved client is answered long
/// before its turn comes.
const FEWEST: usize = 64;
const MOST: usize = 4096;

/// Connections accepted in a row before those that are kept are looked at.
const BATCH: usize = 64;

/// How long a failed accept, as without a free file descriptor, is waited for.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// `/healthz` is answered without asking the main loop if that has answered anything within this time. A main loop that
/// hangs is found out by the probe.
const ALIVE: Duration = Duration::from_secs(10);

const LISTENER: Token = Token(usize::MAX);
const ANSWER: Token = Token(usize::MAX - 1);

/// What the main loop says.
#[derive(Debug)]
pub(super) enum Answer {
    /// `/readyz`: an error says why not. `/healthz` is content with either.
    Ready(Result<String, String>),
    /// `/metrics`.
    Metrics(String),
    /// `/mesh.json`.
    Mesh(String),
}

/// Who gets the page for people (`-health-page`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageFor {
    /// Nobody.
    #[default]
    Nobody,
    /// Clients on this host.
    Local,
    /// Everybody who reaches the port.
    All,
}

/// What the thread asks; each question is asked again only after its answer.
pub(super) struct Questions {
    pub(super) ready: mpsc::UnboundedReceiver<()>,
    pub(super) metrics: mpsc::UnboundedReceiver<()>,
    pub(super) mesh: mpsc::UnboundedReceiver<()>,
}

/// Gives the main loop's answers to the thread.
#[derive(Clone)]
pub(super) struct Answers {
    sender: thread::Sender<Answer>,
    waker: Arc<Waker>,
}

impl Answers {
    /// Answers the latest question of that kind.
    pub(super) fn give(&self, answer: Answer) {
        if self.sender.send(answer).is_ok()
            && let Err(error) = self.waker.wake()
        {
            debug!(%error, "health server: wake");
        }
    }
}

/// One side of a question.
struct Question {
    ask: mpsc::UnboundedSender<()>,
    /// It is on its way to the main loop.
    asked: bool,
}

impl Question {
    fn new() -> (Question, mpsc::UnboundedReceiver<()>) {
        let (ask, receiver) = mpsc::unbounded_channel();
        (Question { ask, asked: false }, receiver)
    }

    fn ask(&mut self) {
        if !self.asked {
            self.asked = self.ask.send(()).is_ok();
        }
    }
}

/// The port, before its thread is started.
pub(super) struct Port {
    listener: TcpListener,
    poll: Poll,
    ready: Question,
    metrics: Question,
    mesh: Question,
    page_for: PageFor,
    answers: thread::Receiver<Answer>,
    /// When the main loop answered last.
    alive: Option<Instant>,
    open: Open,
    /// Where everything that is read goes first.
    scratch: Box<[u8]>,
}

impl Port {
    /// Makes the port of a listener that does not block; returns what asks the main loop and what takes its answers.
    ///
    /// # Errors
    /// The system's, such as too many open files.
    pub(super) fn open(
        listener: std::net::TcpListener,
        page_for: PageFor,
    ) -> io::Result<(Port, Questions, Answers)> {
        let mut listener = TcpListener::from_std(listener);
        let poll = Poll::new()?;
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), ANSWER)?);
        let (ready, ready_asked) = Question::new();
        let (metrics, metrics_asked) = Question::new();
        let (mesh, mesh_asked) = Question::new();
        let (sender, answers) = thread::channel();
        let port = Port {
            listener,
            poll,
            ready,
            metrics,
            mesh,
            page_for,
            answers,
            alive: None,
            open: Open::new((open_files_limit() / 4).clamp(FEWEST, MOST)),
            scratch: vec![0; 16 << 10].into_boxed_slice(),
        };
        let questions = Questions {
            ready: ready_asked,
            metrics: metrics_asked,
            mesh: mesh_asked,
        };
        Ok((port, questions, Answers { sender, waker }))
    }

    /// Serves until the process ends.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        // Whether there may be more to accept: readiness is told once.
        let mut more = true;
        loop {
            let timeout = if more {
                Some(Duration::ZERO)
            } else {
                self.open.next_end()
            };
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != ErrorKind::Interrupted
            {
                debug!(%error, "health server: poll");
                pause();
            }
            for event in &events {
                match event.token() {
                    LISTENER => more = true,
                    ANSWER => {}
                    Token(slot) => self.go_on(slot),
                }
            }
            self.take_answers();
            if more {
                more = self.accept();
            }
            self.open.close_expired();
        }
    }

    /// Accepts some connections, and answers at once those whose request is there. Returns whether there may be more.
    fn accept(&mut self) -> bool {
        for _ in 0..BATCH {
            match self.listener.accept() {
                Ok((stream, from)) => {
                    let ip = from.ip().to_canonical();
                    let mut connection = Connection {
                        stream,
                        sees_page: match self.page_for {
                            PageFor::Nobody => false,
                            PageFor::Local => ip.is_loopback(),
                            PageFor::All => true,
                        },
                        until: Instant::now() + EXCHANGE,
                        head: Head::new(),
                        state: State::Reading,
                    };
                    if self.advance(&mut connection) == Outcome::Wait {
                        self.keep(connection);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    debug!(%error, "health server: accept");
                    self.open.close_oldest();
                    pause();
                    return true;
                }
            }
        }
        true
    }

    fn keep(&mut self, connection: Connection) {
        let slot = self.open.put(connection);
        let Some(connection) = self.open.get(slot) else {
            return;
        };
        let both = Interest::READABLE | Interest::WRITABLE;
        let registry = self.poll.registry();
        // What arrives meanwhile is reported: registering looks at the socket's state.
        if let Err(error) = registry.register(&mut connection.stream, Token(slot), both) {
            debug!(%error, "health server: register");
            self.open.close(slot);
        }
    }

    /// Goes on with a connection that is ready for something.
    fn go_on(&mut self, slot: usize) {
        let Some(mut connection) = self.open.take(slot) else {
            return;
        };
        match self.advance(&mut connection) {
            Outcome::Wait => self.open.put_back(slot, connection),
            Outcome::End => self.open.forget(slot),
        }
    }

    /// Does what can be done with a connection without waiting.
    fn advance(&mut self, connection: &mut Connection) -> Outcome {
        loop {
            match &mut connection.state {
                State::Reading => match connection.stream.read(&mut self.scratch) {
                    Ok(0) => return Outcome::End,
                    Ok(read) => {
                        let arrived = self.scratch.get(..read).unwrap_or_default();
                        if let Some(request) = connection.head.take(arrived) {
                            connection.state = self.answer(request, connection.sees_page);
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Outcome::Wait,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(_) => return Outcome::End,
                },
                State::Asking(_) => return Outcome::Wait,
                State::Writing(text, at) => {
                    let left = text.get(*at..).unwrap_or_default();
                    if left.is_empty() {
                        // What was sent beyond the request, if left unread, would reset the connection and might cost
                        // the client the answer.
                        let _ = connection.stream.read(&mut self.scratch);
                        return Outcome::End;
                    }
                    match connection.stream.write(left) {
                        Ok(written) => *at += written,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            return Outcome::Wait;
                        }
                        Err(error) if error.kind() == ErrorKind::Interrupted => {}
                        Err(_) => return Outcome::End,
                    }
                }
            }
        }
    }

    /// Answers a request, or asks the main loop.
    fn answer(&mut self, request: Request, sees_page: bool) -> State {
        let lives = self.alive.is_some_and(|at| at.elapsed() < ALIVE);
        let text = match request.page {
            Page::Health if lives => response("200 OK", RUNNING, request),
            Page::Health | Page::Ready => {
                self.ready.ask();
                return State::Asking(request);
            }
            Page::Metrics => {
                self.metrics.ask();
                return State::Asking(request);
            }
            Page::Mesh if sees_page => full_response("200 OK", PAGE_TYPE, PAGE, request),
            Page::MeshData if sees_page => {
                self.mesh.ask();
                return State::Asking(request);
            }
            Page::Unknown | Page::Mesh | Page::MeshData => response(
                "404 Not Found",
                "try /healthz, /readyz or /metrics",
                request,
            ),
            Page::Method => response("405 Method Not Allowed", "only GET", request),
            Page::Malformed => response("400 Bad Request", "only HTTP/1", request),
            Page::TooLong => response(
                "431 Request Header Fields Too Large",
                "at most 8 KiB",
                request,
            ),
        };
        State::Writing(text.into(), 0)
    }

    /// Gives the main loop's answers to everybody who waits for one.
    fn take_answers(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            self.alive = Some(Instant::now());
            match &answer {
                Answer::Ready(_) => self.ready.asked = false,
                Answer::Metrics(_) => self.metrics.asked = false,
                Answer::Mesh(_) => self.mesh.asked = false,
            }
            let mut responses = Responses::new(&answer);
            for slot in 0..self.open.slots() {
                if let Some(connection) = self.open.get(slot)
                    && let State::Asking(request) = connection.state
                    && let Some(text) = responses.response(request)
                {
                    connection.state = State::Writing(text, 0);
                    self.go_on(slot);
                }
            }
        }
    }
}

#[allow(clippy::disallowed_methods, reason = "not a thread of the runtime")]
fn pause() {
    std::thread::sleep(ACCEPT_PAUSE);
}

const RUNNING: &str = "flanneld is running";

const PAGE: &str = include_str!("page.html");

/// Nothing is loaded from elsewhere, and nobody may put the page into theirs.
const PAGE_TYPE: &str = "text/html; charset=utf-8\r\ncontent-security-policy: default-src 'none'; style-src 'unsafe-inline'; \
    script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'";

impl Answer {
    /// Returns the response to a request; `None` if this is no answer to it.
    fn response(&self, request: Request) -> Option<Vec<u8>> {
        let (code, body) = match (self, request.page) {
            (Answer::Ready(_), Page::Health) => ("200 OK", RUNNING),
            (Answer::Ready(Ok(text)), Page::Ready) => ("200 OK", text.as_str()),
            (Answer::Ready(Err(why)), Page::Ready) => ("503 Service Unavailable", why.as_str()),
            (Answer::Metrics(text), Page::Metrics) => ("200 OK", text.as_str()),
            (Answer::Mesh(text), Page::MeshData) => {
                let json = "application/json\r\ncache-control: no-store";
                return Some(full_response("200 OK", json, text, request));
            }
            _ => return None,
        };
        Some(response(code, body, request))
    }
}

/// The responses made of one answer: clients that ask for the same share them, however many they are.
struct Responses<'a> {
    answer: &'a Answer,
    made: Vec<(Request, Arc<[u8]>)>,
}

impl Responses<'_> {
    fn new(answer: &Answer) -> Responses<'_> {
        Responses {
            answer,
            made: Vec::new(),
        }
    }

    /// Returns the response to a request; `None` if this is no answer to it.
    fn response(&mut self, request: Request) -> Option<Arc<[u8]>> {
        if let Some((_, made)) = self.made.iter().find(|(other, _)| *other == request) {
            return Some(Arc::clone(made));
        }
        let made: Arc<[u8]> = self.answer.response(request)?.into();
        self.made.push((request, Arc::clone(&made)));
        Some(made)
    }
}

fn response(code: &str, body: &str, request: Request) -> Vec<u8> {
    full_response(code, CONTENT_TYPE, body, request)
}

/// `kind` may go on with more of the head.
fn full_response(code: &str, kind: &str, body: &str, request: Request) -> Vec<u8> {
    let shown = if request.bodiless { "" } else { body };
    format!(
        "HTTP/1.1 {code}\r\ncontent-type: {kind}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{shown}",
        body.len()
    )
    .into_bytes()
}

#[derive(PartialEq)]
enum Outcome {
    /// It waits for the client or for the main loop.
    Wait,
    /// It is over.
    End,
}

enum State {
    Reading,
    /// The main loop is asked for the page.
    Asking(Request),
    /// The answer, which others may share, and how much of it is written.
    Writing(Arc<[u8]>, usize),
}

struct Connection {
    stream: TcpStream,
    /// It may have the page for people.
    sees_page: bool,
    until: Instant,
    head: Head,
    state: State,
}

/// The connections that are kept, oldest first.
struct Open {
    most: usize,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots in the order they were filled, with their filling's number; a slot that was filled again is passed over.
    order: VecDeque<(usize, u64)>,
    fillings: u64,
}

#[derive(Default)]
struct Slot {
    connection: Option<Connection>,
    filling: u64,
}

impl Open {
    fn new(most: usize) -> Open {
        Open {
            most,
            slots: Vec::new(),
            free: Vec::new(),
            order: VecDeque::new(),
            fillings: 0,
        }
    }

    fn slots(&self) -> usize {
        self.slots.len()
    }

    fn get(&mut self, slot: usize) -> Option<&mut Connection> {
        self.slots.get_mut(slot)?.connection.as_mut()
    }

    fn take(&mut self, slot: usize) -> Option<Connection> {
        self.slots.get_mut(slot)?.connection.take()
    }

    fn put_back(&mut self, slot: usize, connection: Connection) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.connection = Some(connection);
        }
    }

    /// Keeps a connection; closes the oldest if there are too many. Returns its slot.
    fn put(&mut self, connection: Connection) -> usize {
        if self.slots.len() - self.free.len() >= self.most {
            self.close_oldest();
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() - 1
        });
        self.fillings += 1;
        if let Some(place) = self.slots.get_mut(slot) {
            *place = Slot {
                connection: Some(connection),
                filling: self.fillings,
            };
        }
        self.order.push_back((slot, self.fillings));
        // Those that have ended would pile up behind one that lasts.
        if self.order.len() > 2 * self.most {
            let slots = &self.slots;
            self.order.retain(|entry| is_current(slots, *entry));
        }
        slot
    }

    fn close(&mut self, slot: usize) {
        if self.take(slot).is_some() {
            self.forget(slot);
        }
    }

    /// Frees a slot whose connection was taken and has ended.
    fn forget(&mut self, slot: usize) {
        if let Some(place) = self.slots.get_mut(slot) {
            place.filling = 0;
            self.free.push(slot);
        }
    }

    /// Returns the slot that was filled first.
    fn oldest(&mut self) -> Option<usize> {
        while let Some(&entry) = self.order.front() {
            if is_current(&self.slots, entry) {
                return Some(entry.0);
            }
            self.order.pop_front();
        }
        None
    }

    fn close_oldest(&mut self) {
        if let Some(slot) = self.oldest() {
            self.close(slot);
        }
    }

    fn close_expired(&mut self) {
        while self.next_end() == Some(Duration::ZERO) {
            self.close_oldest();
        }
    }

    /// Returns how long the oldest may last.
    fn next_end(&mut self) -> Option<Duration> {
        let slot = self.oldest()?;
        let until = self.get(slot)?.until;
        Some(until.saturating_duration_since(Instant::now()))
    }
}

fn is_current(slots: &[Slot], (slot, filling): (usize, u64)) -> bool {
    slots.get(slot).is_some_and(|slot| slot.filling == filling)
}

/// How many files this process may open.
fn open_files_limit() -> usize {
    const DEFAULT: usize = 1024;
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    match line.and_then(|line| line.split_whitespace().next()) {
        Some("unlimited") => usize::MAX,
        Some(number) => number.parse().unwrap_or(DEFAULT),
        None => DEFAULT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_clients_share_one_large_response() {
        let answer = Answer::Mesh("{}".to_owned());
        let mut responses = Responses::new(&answer);
        let ask = |page, bodiless| Request { page, bodiless };
        let first = responses.response(ask(Page::MeshData, false)).unwrap();
        let second = responses.response(ask(Page::MeshData, false)).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        let head = responses.response(ask(Page::MeshData, true)).unwrap();
        assert!(first.ends_with(b"\r\n\r\n{}") && head.ends_with(b"\r\n\r\n"));
        assert_eq!(responses.response(ask(Page::Metrics, false)), None);
    }
}
