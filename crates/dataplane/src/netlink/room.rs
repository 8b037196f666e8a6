//! Room for what a netlink socket returns.

use std::cell::Cell;
use std::ops::{Deref, DerefMut};

/// Dump messages come in parts of at most 32 KiB, and no notification is longer.
const SIZE: usize = 64 << 10;

thread_local! {
    static SPARE: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// A buffer that all sockets of a thread share: ten with one each would take a third of what a daemon with few peers
/// takes. It is lent for one answer, and returned when it is dropped.
pub struct Room(Box<[u8]>);

impl Room {
    /// Lends it, or another one where it is lent already.
    pub fn take() -> Room {
        let spare = SPARE.try_with(Cell::take).ok().flatten();
        Room(spare.unwrap_or_else(|| vec![0; SIZE].into_boxed_slice()))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let buffer = std::mem::take(&mut self.0);
        // Fails only while the thread ends.
        let _ = SPARE.try_with(|spare| spare.set(Some(buffer)));
    }
}

impl Deref for Room {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl DerefMut for Room {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_used_again_and_two_differ() {
        let (mut a, b) = (Room::take(), Room::take());
        a[0] = 7;
        assert_eq!((a.len(), b.len(), b[0]), (SIZE, SIZE, 0));
        let at = a.as_ptr();
        drop(b);
        drop(a);
        assert_eq!(Room::take().as_ptr(), at);
        assert_eq!(Room::take().as_ptr(), at);
    }
}
