//! `flannelctl top`: this node and the others in a terminal, as long as it is open.

mod draw;
mod look;
mod model;
mod rates;

use std::io::{IsTerminal, stdin, stdout};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::layout::Rect;
use tokio::signal::unix::{SignalKind, signal};

use crate::output;
use crate::status_socket::SocketArgs;
use look::Look;
use model::{Model, Step};

/// Arguments of `flannelctl top`.
#[derive(Args)]
#[command(
    after_help = "Keys: q ends it; the arrows, PageUp, PageDown, Home and End choose a node, whose reason is shown in full; \
    s changes the order (health, subnet, time of an answer, loss), r reverses it; / keeps the nodes whose line contains \
    what is typed, Esc keeps all."
)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    socket: SocketArgs,
    /// Seconds between two looks
    #[arg(long, short, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    delay: u64,
    /// Print what it shows once, and end: for scripts
    #[arg(long)]
    once: bool,
    /// Only nodes whose line contains this
    #[arg(long, short, value_name = "TEXT", default_value = "")]
    filter: String,
}

/// How long keys are waited for before new reports are looked for.
const KEYS: Duration = Duration::from_millis(100);

/// The share of the time that the daemon may spend on reports: one in so many.
const SHARE: u32 = 20;

/// The exit status after SIGTERM, as of a program that it ends by itself.
const TERMINATED: u8 = 128 + 15;

/// Columns and most lines of what `--once` prints.
const COLUMNS: u16 = 120;
const LINES: u16 = 500;

/// Shows the node until a key ends it.
///
/// # Errors
/// There is no terminal; the daemon does not answer.
pub(crate) fn run(args: &TopArgs) -> Result<ExitCode> {
    let is_terminal = stdout().is_terminal() && stdin().is_terminal();
    if !args.once && !is_terminal {
        bail!(
            "top needs a terminal: --once prints what it shows, flannelctl peers -o json is for programs"
        );
    }
    if !args.once && std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
        bail!("TERM=dumb: this terminal cannot be drawn on: --once prints what top shows");
    }
    let socket = args.socket.socket.clone();
    let mut model = Model::new(Look::take(&socket)?, args.filter.clone());
    let delay = Duration::from_secs(args.delay);
    if args.once {
        // Rates are differences.
        pause(delay);
        model.follow(Look::take(&socket));
        print_once(&mut model);
        return Ok(ExitCode::SUCCESS);
    }
    let looks = follow(socket, delay)?;
    let is_terminated = watch_signals()?;
    let mut terminal = ratatui::try_init().context("the terminal cannot be drawn on")?;
    let ended = show(&mut terminal, &mut model, &looks, &is_terminated);
    ratatui::restore();
    ended?;
    Ok(if is_terminated.load(Ordering::Relaxed) {
        ExitCode::from(TERMINATED)
    } else {
        ExitCode::SUCCESS
    })
}

/// Returns what becomes true at SIGTERM and SIGINT: they must not end the program while the terminal is in raw mode.
fn watch_signals() -> Result<Arc<AtomicBool>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut term, mut interrupt) = {
        let _entered = runtime.enter();
        let term = signal(SignalKind::terminate())?;
        (term, signal(SignalKind::interrupt())?)
    };
    let is_terminated = Arc::new(AtomicBool::new(false));
    let flag = is_terminated.clone();
    let wait = move || {
        runtime.block_on(async {
            tokio::select! {
                _ = term.recv() => {}
                _ = interrupt.recv() => {}
            }
        });
        flag.store(true, Ordering::Relaxed);
    };
    thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(is_terminated)
}

/// Looks again and again, on a thread of its own: a daemon that hangs must not keep keys waiting.
fn follow(socket: PathBuf, delay: Duration) -> Result<Receiver<Result<Look>>> {
    let (sender, looks) = sync_channel(1);
    let look = move || {
        let mut took = Duration::ZERO;
        loop {
            pause(delay.max(took * SHARE));
            let began = std::time::Instant::now();
            let look = Look::take(&socket);
            // A daemon that did not answer may do so soon.
            took = if look.is_ok() {
                began.elapsed()
            } else {
                Duration::ZERO
            };
            if sender.send(look).is_err() {
                return;
            }
        }
    };
    thread::Builder::new().name("look".into()).spawn(look)?;
    Ok(looks)
}

#[allow(
    clippy::disallowed_methods,
    reason = "no runtime is on these threads, and looks are due at times"
)]
fn pause(time: Duration) {
    thread::sleep(time);
}

fn show(
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    looks: &Receiver<Result<Look>>,
    is_terminated: &AtomicBool,
) -> Result<()> {
    loop {
        terminal.draw(|frame| draw::draw(model, frame.buffer_mut()))?;
        loop {
            if is_terminated.load(Ordering::Relaxed) {
                return Ok(());
            }
            let is_new = match looks.try_recv() {
                Ok(look) => {
                    model.follow(look);
                    true
                }
                Err(TryRecvError::Empty) => false,
                Err(TryRecvError::Disconnected) => bail!("the thread that asks flanneld has ended"),
            };
            if event::poll(KEYS)? {
                match event::read()? {
                    Event::Key(key) if key.kind == KeyEventKind::Press => {
                        if !press(model, key) {
                            return Ok(());
                        }
                        break;
                    }
                    Event::Resize(..) => break,
                    _ => {}
                }
            }
            if is_new {
                break;
            }
        }
    }
}

/// Does what a key asks for. Returns whether to go on.
fn press(model: &mut Model, key: KeyEvent) -> bool {
    if key.modifiers.contains(KeyModifiers::CONTROL) {
        return key.code != KeyCode::Char('c');
    }
    if model.is_typing() {
        match key.code {
            KeyCode::Esc => model.set_filter(String::new()),
            KeyCode::Enter => model.end_typing(),
            KeyCode::Backspace => model.erase(),
            KeyCode::Char(c) => model.put(c),
            _ => {}
        }
        return true;
    }
    match key.code {
        KeyCode::Char('q') => return false,
        KeyCode::Char('s') => model.next_order(),
        KeyCode::Char('r') => model.reverse(),
        KeyCode::Char('/') => model.begin_typing(),
        KeyCode::Esc => model.set_filter(String::new()),
        KeyCode::Up | KeyCode::Char('k') => model.step(Step::Up(1)),
        KeyCode::Down | KeyCode::Char('j') => model.step(Step::Down(1)),
        KeyCode::PageUp => model.step(Step::Up(model.rows())),
        KeyCode::PageDown => model.step(Step::Down(model.rows())),
        KeyCode::Home => model.step(Step::First),
        KeyCode::End => model.step(Step::Last),
        _ => {}
    }
    true
}

fn print_once(model: &mut Model) {
    let (columns, lines) = ratatui::crossterm::terminal::size()
        .ok()
        // A terminal that nobody has told its size, as of `kubectl exec -t`, says 0.
        .filter(|(columns, lines)| stdout().is_terminal() && *columns > 0 && *lines > 0)
        .unwrap_or((COLUMNS, draw::lines_for_all(model).min(LINES)));
    let mut buffer = Buffer::empty(Rect::new(0, 0, columns, lines));
    draw::draw(model, &mut buffer);
    let width = usize::from(columns.max(1));
    for row in buffer.content().chunks(width) {
        let text: String = row.iter().map(|cell| cell.symbol()).collect();
        output::line(text.trim_end());
    }
}
