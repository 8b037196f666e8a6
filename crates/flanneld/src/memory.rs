//! How the C library keeps memory for this program. Only glibc has to be told.

#![allow(
    unsafe_code,
    reason = "a setting of the C library that no library here wraps"
)]

/// What is at least so large is a mapping of its own, in bytes: a table that grows moves without a copy and leaves no
/// hole behind. glibc begins with this size, but raises it with every mapping that is given back.
#[cfg(target_env = "gnu")]
const OWN_MAPPING: libc::c_int = 128 << 10;

/// Keeps the peak of memory low: at 5,000 leases it is a tenth lower. To be called before there are threads.
pub(crate) fn keep_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: these set two numbers. There is no other thread that could allocate meanwhile.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING);
        // Threads are few, and rarely allocate at the same time: they share one heap.
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Gives the pages back that hold nothing any more: after much that was made of small pieces, glibc keeps them.
pub(crate) fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes a number, and takes the heap's locks itself.
    unsafe {
        libc::malloc_trim(0);
    }
}
