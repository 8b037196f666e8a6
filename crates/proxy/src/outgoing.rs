//! Packets that wait to be sent, and how they are put together for the kernel.

#![allow(unsafe_code, reason = "pieces that point into a buffer")]

use std::io;
use std::net::SocketAddr;
use std::ops::Range;

use crate::segment::Segment;
use crate::socket::{LARGEST, MOST_SEGMENTS, PIECES, Patience, Piece, Socket, overhead};

/// One datagram to send.
#[derive(Clone, Debug)]
struct Datagram {
    to: SocketAddr,
    /// In the buffer of headers.
    head: Range<usize>,
    /// In the data.
    body: Range<usize>,
}

impl Datagram {
    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    fn refused(&self, error: io::Error) -> Refused {
        Refused {
            to: self.to,
            head: self.head.clone(),
            body: self.body.clone(),
            error,
        }
    }
}

/// What became of a piece that the kernel refused.
pub(crate) struct Refused {
    /// To whom it was.
    pub(crate) to: SocketAddr,
    /// Its headers.
    pub(crate) head: Range<usize>,
    /// The rest of it.
    pub(crate) body: Range<usize>,
    /// The kernel's reason.
    pub(crate) error: io::Error,
}

/// The datagrams of one batch.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    datagrams: Vec<Datagram>,
    parts: Vec<libc::iovec>,
    /// The kernel or the interface cannot send several datagrams in one piece.
    one_by_one: bool,
}

// SAFETY: `parts` holds pointers only while `flush` runs, which empties it.
unsafe impl Send for Outgoing {}

/// A run of datagrams that are sent in one piece.
struct Run {
    to: SocketAddr,
    datagrams: Range<usize>,
    parts: Range<usize>,
    segment: u16,
}

impl Outgoing {
    /// Adds a segment of a packet that begins at `base` in the data.
    pub(crate) fn push(&mut self, segment: &Segment, base: usize, to: SocketAddr) {
        self.datagrams.push(Datagram {
            to,
            head: segment.head.clone(),
            body: segment.body.start + base..segment.body.end + base,
        });
    }

    /// Adds a datagram that is all in the data.
    pub(crate) fn push_whole(&mut self, body: Range<usize>, to: SocketAddr) {
        self.datagrams.push(Datagram {
            to,
            head: 0..0,
            body,
        });
    }

    /// Returns the number of datagrams.
    pub(crate) fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Sends all of them, and passes what the kernel refuses to `refused`. A refusal of one does not hold up
    /// the others. Nothing is left afterwards.
    pub(crate) fn flush(
        &mut self,
        socket: &Socket,
        headers: &[u8],
        data: &[u8],
        patience: &mut Patience,
        mut refused: impl FnMut(Refused),
    ) {
        self.parts.clear();
        let mut runs = Vec::with_capacity(PIECES);
        let mut next = 0;
        while next < self.datagrams.len() {
            runs.clear();
            while next < self.datagrams.len() && runs.len() < PIECES {
                let run = self.run(next, headers, data);
                next = run.datagrams.end;
                runs.push(run);
            }
            self.send(socket, &runs, headers, data, patience, &mut refused);
            self.parts.clear();
        }
        self.datagrams.clear();
    }

    /// Puts together as many datagrams as fit in one piece, from `first` on.
    fn run(&mut self, first: usize, headers: &[u8], data: &[u8]) -> Run {
        let parts = self.parts.len();
        let (to, size) = (self.datagrams[first].to, self.datagrams[first].len());
        let most = if self.one_by_one || size == 0 {
            1
        } else {
            MOST_SEGMENTS
        };
        let room = LARGEST - overhead(to.ip());
        let (mut total, mut end) = (0, first);
        for datagram in self.datagrams[first..].iter().take(most) {
            let len = datagram.len();
            if datagram.to != to || len > size || (end > first && total + len > room) {
                break;
            }
            add(&mut self.parts, &headers[datagram.head.clone()]);
            add(&mut self.parts, &data[datagram.body.clone()]);
            total += len;
            end += 1;
            if len < size {
                break;
            }
        }
        let several = end - first > 1;
        Run {
            to,
            datagrams: first..end,
            parts: parts..self.parts.len(),
            segment: if several {
                u16::try_from(size).unwrap_or(0)
            } else {
                0
            },
        }
    }

    fn send(
        &mut self,
        socket: &Socket,
        runs: &[Run],
        headers: &[u8],
        data: &[u8],
        patience: &mut Patience,
        refused: &mut impl FnMut(Refused),
    ) {
        let pieces: Vec<Piece> = runs
            .iter()
            .map(|run| Piece {
                to: run.to,
                parts: &self.parts[run.parts.clone()],
                segment: run.segment,
            })
            .collect();
        let mut at = 0;
        while at < pieces.len() {
            // SAFETY: the parts are slices of `headers` and `data`, which are borrowed.
            match unsafe { socket.send(&pieces[at..], patience) } {
                Ok(0) => break,
                Ok(sent) => at += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // The batch has waited for its time: the rest is not tried.
                    let rest = runs[at].datagrams.start..runs[runs.len() - 1].datagrams.end;
                    for datagram in &self.datagrams[rest] {
                        refused(datagram.refused(io::Error::from_raw_os_error(libc::ENOBUFS)));
                    }
                    break;
                }
                Err(error) => {
                    let run = &runs[at];
                    let several = run.datagrams.len() > 1;
                    // EIO: the interface computes no checksums, which older kernels need for this.
                    if several && error.raw_os_error() == Some(libc::EIO) {
                        self.one_by_one = true;
                    }
                    let mut slow = Slow {
                        socket,
                        patience,
                        headers,
                        data,
                        datagrams: &self.datagrams,
                    };
                    slow.send(run.datagrams.clone(), error, several, refused);
                    at += 1;
                }
            }
        }
    }
}

/// Sends the datagrams of a refused piece one by one.
struct Slow<'a> {
    socket: &'a Socket,
    patience: &'a mut Patience,
    headers: &'a [u8],
    data: &'a [u8],
    datagrams: &'a [Datagram],
}

impl Slow<'_> {
    fn send(
        &mut self,
        which: Range<usize>,
        error: io::Error,
        several: bool,
        refused: &mut impl FnMut(Refused),
    ) {
        // They are too large for the path: sent one by one the kernel fragments them, and their sender is
        // asked for smaller ones.
        let cut = matches!(error.raw_os_error(), Some(libc::EMSGSIZE | libc::EINVAL));
        let retry = several
            && matches!(
                error.raw_os_error(),
                Some(libc::EMSGSIZE | libc::EINVAL | libc::EIO)
            );
        if !retry {
            for datagram in &self.datagrams[which] {
                let error = error.raw_os_error().map_or_else(
                    || io::Error::from(error.kind()),
                    io::Error::from_raw_os_error,
                );
                refused(datagram.refused(error));
            }
            return;
        }
        if cut && let Some(first) = self.datagrams.get(which.start) {
            refused(first.refused(io::Error::from_raw_os_error(libc::EMSGSIZE)));
        }
        for datagram in &self.datagrams[which] {
            let mut parts = Vec::with_capacity(2);
            add(&mut parts, &self.headers[datagram.head.clone()]);
            add(&mut parts, &self.data[datagram.body.clone()]);
            let piece = Piece {
                to: datagram.to,
                parts: &parts,
                segment: 0,
            };
            // SAFETY: the parts are slices that are borrowed.
            if let Err(error) = unsafe { self.socket.send(&[piece], self.patience) } {
                refused(datagram.refused(match error.kind() {
                    io::ErrorKind::WouldBlock => io::Error::from_raw_os_error(libc::ENOBUFS),
                    _ => error,
                }));
            }
        }
    }
}

fn add(parts: &mut Vec<libc::iovec>, bytes: &[u8]) {
    if !bytes.is_empty() {
        parts.push(libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        });
    }
}
