//! What the scanners of both encodings find in a list.

use std::ops::Range;

use crate::kube::wire::Malformed;

/// No Node is larger: etcd accepts objects of 1.5 MB unless it is configured otherwise.
pub(super) const LARGEST: usize = 16 << 20;

/// The error for a Node that is larger.
pub(super) const TOO_LARGE: Malformed = Malformed("a list with a Node of more than 16 MiB");

/// A part of a list that has arrived completely.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// The list's metadata.
    Meta(Range<usize>),
    /// A Node.
    Item(Range<usize>),
}
