//! Where memory comes from: a small arena that is never given back, then the system's allocator.
//!
//! A run of the plugin takes some ten KiB in hundreds of small pieces and ends within a millisecond. With musl's
//! allocator those pieces, and the mappings behind them, were a tenth of the plugin's own time.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Pages of it that are never touched cost nothing.
const SIZE: usize = 64 << 10;
/// The arena's own alignment; what needs more comes from the system.
const ALIGN: usize = 64;

#[repr(align(64))]
struct Bytes(UnsafeCell<[u8; SIZE]>);

/// The first [`SIZE`] bytes that are asked for, handed out once each; the system's allocator after that.
pub struct Arena {
    bytes: Bytes,
    used: AtomicUsize,
}

// SAFETY: no two allocations overlap, since `used` only grows and each takes what is between its old and its new
// value; apart from them nothing reads or writes the bytes.
unsafe impl Sync for Arena {}

impl Arena {
    /// An arena of which nothing is used.
    pub const fn new() -> Arena {
        Arena {
            bytes: Bytes(UnsafeCell::new([0; SIZE])),
            used: AtomicUsize::new(0),
        }
    }

    fn base(&self) -> *mut u8 {
        self.bytes.0.get().cast()
    }

    /// Where in the arena `place` is; `None` for what is the system's.
    fn offset(&self, place: *mut u8) -> Option<usize> {
        let offset = (place as usize).wrapping_sub(self.base() as usize);
        (offset < SIZE).then_some(offset)
    }

    /// Takes `layout` from the arena, if there is room.
    fn take(&self, layout: Layout) -> Option<*mut u8> {
        if layout.align() > ALIGN {
            return None;
        }
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let start = used.next_multiple_of(layout.align());
            let end = start
                .checked_add(layout.size())
                .filter(|end| *end <= SIZE)?;
            match self
                .used
                .compare_exchange_weak(used, end, Ordering::Relaxed, Ordering::Relaxed)
            {
                // SAFETY: `start` is within the arena.
                Ok(_) => return Some(unsafe { self.base().add(start) }),
                Err(now) => used = now,
            }
        }
    }

    /// Makes the piece at `offset` larger where it is: possible for the last one that was taken.
    fn grow(&self, offset: usize, old: usize, new: usize) -> bool {
        let (end, wanted) = (offset + old, offset.saturating_add(new));
        let in_order = Ordering::Relaxed;
        wanted <= SIZE
            && self
                .used
                .compare_exchange(end, wanted, in_order, in_order)
                .is_ok()
    }
}

// SAFETY: every piece is from `take`, which hands out each byte once, or from `System`; which of the two it was is
// told by its address, and only the latter are given back.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            Some(place) => place,
            // SAFETY: as the caller promised.
            None => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        match self.take(layout) {
            // No byte of the arena is handed out twice, so that it is still zero.
            Some(place) => place,
            // SAFETY: as the caller promised.
            None => unsafe { System.alloc_zeroed(layout) },
        }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        if self.offset(place).is_none() {
            // SAFETY: it is not the arena's, so it is the system's; the rest as the caller promised.
            unsafe { System.dealloc(place, layout) }
        }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Some(offset) = self.offset(place) else {
            // SAFETY: as for `dealloc`.
            return unsafe { System.realloc(place, layout, size) };
        };
        if size <= layout.size() || self.grow(offset, layout.size(), size) {
            return place;
        }
        // SAFETY: the caller promises that `size` makes a layout; the two pieces do not overlap, and each holds the
        // smaller of the sizes.
        unsafe {
            let new = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !new.is_null() {
                ptr::copy_nonoverlapping(place, new, layout.size());
            }
            new
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).unwrap()
    }

    #[test]
    fn pieces_are_apart_aligned_and_in_the_arena_until_it_is_full() {
        let arena = Box::new(Arena::new());
        let mut end = 0;
        for (size, align) in [(1, 1), (8, 8), (3, 2), (100, 64), (0, 1), (16, 16)] {
            // SAFETY: sound layouts; nothing is read.
            let place = unsafe { arena.alloc(layout(size, align)) };
            let offset = arena.offset(place).unwrap();
            assert!(offset >= end && (place as usize).is_multiple_of(align));
            end = offset + size;
        }
        for layout in [layout(SIZE, 1), layout(8, 4096)] {
            // SAFETY: given back with the layout that it was taken with.
            unsafe {
                let place = arena.alloc(layout);
                assert!(!place.is_null() && arena.offset(place).is_none());
                arena.dealloc(place, layout);
            }
        }
    }

    #[test]
    fn what_grows_keeps_its_bytes() {
        let arena = Box::new(Arena::new());
        let small = layout(4, 1);
        // SAFETY: only bytes are touched that were taken.
        unsafe {
            let first = arena.alloc(small);
            ptr::copy_nonoverlapping(b"abcd".as_ptr(), first, 4);
            // The last one grows where it is.
            assert_eq!(arena.realloc(first, small, 8), first);
            let second = arena.alloc_zeroed(small);
            assert_eq!(*second, 0);
            // Not the last: it moves. Too large: to the system, and from there on.
            let moved = arena.realloc(first, layout(8, 1), 16);
            assert!(moved != first && arena.offset(moved).is_some());
            let out = arena.realloc(moved, layout(16, 1), SIZE);
            assert!(arena.offset(out).is_none());
            let out = arena.realloc(out, layout(SIZE, 1), 2 * SIZE);
            assert_eq!(std::slice::from_raw_parts(out, 4), b"abcd");
            arena.dealloc(out, layout(2 * SIZE, 1));
            // Smaller: it stays.
            assert_eq!(arena.realloc(second, small, 1), second);
        }
    }
}
