//! One change to the kernel. Its text is the `ip` or `bridge` command that would make the same
//! change: the log line, the golden file and the dry run.

use std::fmt;

use crate::Object;

/// One change to the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create the object or change it to this, whatever is there now.
    Put(Object),
    /// Delete the object. Holds what was observed, which the kernel may want named.
    Del(Object),
}

impl Op {
    /// Returns the object concerned.
    pub fn object(&self) -> &Object {
        match self {
            Op::Put(object) | Op::Del(object) => object,
        }
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Op::Put(object) => object.put(f),
            Op::Del(object) => object.del(f),
        }
    }
}
