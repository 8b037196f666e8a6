//! The head of a request, read as it arrives. Of all that a client may send only the first line is kept.

/// Bytes of the first line that are kept: no page of ours has a longer name.
const LINE: usize = 256;

/// Bytes of the longest head.
const LONGEST: usize = 8192;

/// What was read of a request's head.
#[derive(Debug)]
pub(super) struct Head {
    line: [u8; LINE],
    len: usize,
    in_line: bool,
    /// Line ends in a row; two end the head.
    ends: u8,
    seen: usize,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) page: Page,
    /// HEAD: the answer has no body.
    pub(super) bodiless: bool,
}

/// The pages, and the refusals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Page {
    Health,
    Ready,
    Metrics,
    /// The page for people.
    Mesh,
    /// What it shows.
    MeshData,
    Unknown,
    /// Neither GET nor HEAD.
    Method,
    /// Not HTTP/1.
    Malformed,
    TooLong,
}

impl Head {
    pub(super) fn new() -> Head {
        Head {
            line: [0; LINE],
            len: 0,
            in_line: true,
            ends: 0,
            seen: 0,
        }
    }

    /// Takes what arrived. Returns the request once the head is complete; what follows does not matter.
    pub(super) fn take(&mut self, bytes: &[u8]) -> Option<Request> {
        for &byte in bytes {
            self.seen += 1;
            match byte {
                // Empty lines before a request are to be ignored.
                b'\r' | b'\n' if self.len == 0 => {}
                b'\r' => {}
                b'\n' => {
                    self.in_line = false;
                    self.ends += 1;
                }
                byte => {
                    self.ends = 0;
                    if self.in_line && self.len < LINE {
                        self.line[self.len] = byte;
                        self.len += 1;
                    }
                }
            }
            if self.ends == 2 {
                return Some(self.request());
            }
            if self.seen > LONGEST {
                return Some(Request {
                    page: Page::TooLong,
                    bodiless: false,
                });
            }
        }
        None
    }

    fn request(&self) -> Request {
        let line = self.line.get(..self.len).unwrap_or_default();
        let line = std::str::from_utf8(line).unwrap_or_default();
        let mut words = line.split(' ');
        let (method, target) = (words.next(), words.next().unwrap_or_default());
        let is_http = words.next().is_some_and(|v| v.starts_with("HTTP/1."));
        let page = match (is_http || self.len == LINE, method) {
            (false, _) => Page::Malformed,
            (true, Some("GET" | "HEAD")) => page(target),
            (true, _) => Page::Method,
        };
        Request {
            page,
            bodiless: method == Some("HEAD"),
        }
    }
}

fn page(target: &str) -> Page {
    // A proxy may be asked for the whole address.
    let path = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
        None => target,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    match path {
        "/healthz" => Page::Health,
        "/readyz" => Page::Ready,
        "/metrics" => Page::Metrics,
        "/mesh" => Page::Mesh,
        "/mesh.json" => Page::MeshData,
        _ => Page::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> Option<Page> {
        let whole = Head::new().take(text.as_bytes());
        // Byte by byte it is the same.
        let mut head = Head::new();
        let slow = text.bytes().find_map(|byte| head.take(&[byte]));
        assert_eq!(whole, slow, "{text:?}");
        whole.map(|request| request.page)
    }

    #[test]
    fn every_request_has_its_answer() {
        let long = "x".repeat(10_000);
        for (text, page) in [
            (
                "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
                Some(Page::Health),
            ),
            ("GET /readyz HTTP/1.0\n\n", Some(Page::Ready)),
            (
                "\r\nGET /metrics?a=b HTTP/1.1\r\n\r\nGET /x",
                Some(Page::Metrics),
            ),
            (
                "HEAD http://a:1/healthz HTTP/1.1\r\n\r\n",
                Some(Page::Health),
            ),
            ("GET /mesh HTTP/1.1\r\n\r\n", Some(Page::Mesh)),
            ("GET /mesh.json?1 HTTP/1.1\r\n\r\n", Some(Page::MeshData)),
            ("GET http://a HTTP/1.1\r\n\r\n", Some(Page::Unknown)),
            ("GET / HTTP/1.1\r\n\r\n", Some(Page::Unknown)),
            ("POST /healthz HTTP/1.1\r\n\r\nbody", Some(Page::Method)),
            ("PRI * HTTP/2.0\r\n\r\nSM", Some(Page::Malformed)),
            ("GET /healthz\r\n\r\n", Some(Page::Malformed)),
            ("\u{16}\u{3}\u{1}\n\n", Some(Page::Malformed)),
            (
                &format!("GET /{} HTTP/1.1\r\n\r\n", &long[..300]),
                Some(Page::Unknown),
            ),
            (
                &format!("GET /healthz HTTP/1.1\r\nA: {long}"),
                Some(Page::TooLong),
            ),
            (&"\n".repeat(9_000), Some(Page::TooLong)),
            ("GET /healthz HTTP/1.1\r\nHost: x\r\n", None),
            ("", None),
        ] {
            assert_eq!(asked(text), page, "{text:?}");
        }
        assert!(
            Head::new()
                .take(b"HEAD /healthz HTTP/1.1\n\n")
                .is_some_and(|r| r.bodiless)
        );
    }
}
