//! One TCP connection that lives through whatever is done to the network under it.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::Doing;
use crate::{Error, Namespace};

/// A connection that gives nothing for so long is taken for dead.
const DEAD: Duration = Duration::from_secs(30);

/// How much [`bulk`] hands to the kernel with one call, as iperf3 does. With a few KiB the calls themselves take
/// longer than a fast tunnel.
const CHUNK: usize = 128 << 10;

/// A TCP connection between two places that sends a little now and then and waits for its echo.
#[derive(Debug)]
pub struct Flow {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<FlowReport>>,
}

/// What became of a [`Flow`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowReport {
    /// Messages that came back.
    pub echoed: usize,
    /// The longest time a message took to come back.
    pub longest_stall: Duration,
    /// Why the connection broke, if it did.
    pub broken: Option<String>,
}

impl Flow {
    /// Connects `from` to `ip`, an address of `to`, and sends a message every `interval`.
    ///
    /// # Errors
    /// No connection could be made.
    pub fn start(
        from: &Namespace,
        to: &Namespace,
        ip: IpAddr,
        interval: Duration,
    ) -> Result<Flow, Error> {
        let (near, far) = connect(from, to, ip)?;
        let thread = |name: &str| std::thread::Builder::new().name(name.into());
        // Ends when the connection does.
        thread("echo")
            .spawn(move || echo(far))
            .doing(|| "start a thread".into())?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let run = move || converse(near, interval, &told);
        let thread = thread("flow")
            .spawn(run)
            .doing(|| "start a thread".into())?;
        Ok(Flow {
            stop,
            thread: Some(thread),
        })
    }

    /// Closes the connection and tells how it fared.
    pub fn stop(mut self) -> FlowReport {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(report)) => report,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => FlowReport {
                echoed: 0,
                longest_stall: Duration::ZERO,
                broken: None,
            },
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends `bytes` over a new connection from `from` to `ip`, an address of `to`; returns how long it
/// took until the last one had arrived.
///
/// # Errors
/// No connection could be made, or it broke.
pub fn bulk(from: &Namespace, to: &Namespace, ip: IpAddr, bytes: u64) -> Result<Duration, Error> {
    let (near, mut far) = connect(from, to, ip)?;
    let start = Instant::now();
    let what = || format!("{bytes} bytes from {} to {ip}", from.name());
    std::thread::scope(|s| {
        let sent = s.spawn(move || {
            let mut near = near;
            let data = vec![0x5a; CHUNK];
            let mut left = bytes;
            while left > 0 {
                let now = left.min(CHUNK as u64);
                near.write_all(&data[..now as usize])?;
                left -= now;
            }
            Ok::<_, io::Error>(())
        });
        let mut buffer = vec![0; CHUNK];
        let mut received = 0;
        loop {
            match far.read(&mut buffer) {
                Ok(0) => break,
                Ok(more) => received += more as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).doing(what),
            }
        }
        sent.join()
            .unwrap_or_else(|p| std::panic::resume_unwind(p))
            .doing(what)?;
        match received == bytes {
            true => Ok(start.elapsed()),
            false => Err(Error::Bad(format!("{}: only {received} arrived", what()))),
        }
    })
}

fn connect(from: &Namespace, to: &Namespace, ip: IpAddr) -> Result<(TcpStream, TcpStream), Error> {
    let listen = || TcpListener::bind(SocketAddr::new(ip, 0));
    let listener = to
        .run(listen)?
        .doing(|| format!("{}: listen on {ip}", to.name()))?;
    let at = listener
        .local_addr()
        .doing(|| "address of a listener".into())?;
    let what = || format!("{}: connect to {at}", from.name());
    let near = from
        .run(|| TcpStream::connect_timeout(&at, Duration::from_secs(5)))?
        .doing(what)?;
    let (far, _) = listener.accept().doing(what)?;
    for end in [&near, &far] {
        end.set_nodelay(true)
            .and_then(|()| end.set_read_timeout(Some(DEAD)))
            .doing(what)?;
    }
    Ok((near, far))
}

fn echo(mut stream: TcpStream) {
    let mut message = [0; 8];
    while stream
        .read_exact(&mut message)
        .and_then(|()| stream.write_all(&message))
        .is_ok()
    {}
}

fn converse(mut stream: TcpStream, interval: Duration, stop: &AtomicBool) -> FlowReport {
    let mut report = FlowReport {
        echoed: 0,
        longest_stall: Duration::ZERO,
        broken: None,
    };
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        let sent = (report.echoed as u64).to_be_bytes();
        let mut back = [0; 8];
        let round = stream
            .write_all(&sent)
            .and_then(|()| stream.read_exact(&mut back));
        report.longest_stall = report.longest_stall.max(start.elapsed());
        match round {
            Ok(()) if back == sent => report.echoed += 1,
            Ok(()) => {
                report.broken = Some(format!("message {} came back as another", report.echoed))
            }
            Err(e) => report.broken = Some(format!("message {}: {e}", report.echoed)),
        }
        if report.broken.is_some() {
            break;
        }
        crate::wait::pause(interval.saturating_sub(start.elapsed()));
    }
    report
}
