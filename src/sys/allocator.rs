//! Where the daemon's memory comes from.

use std::alloc::{GlobalAlloc, Layout, System};

use libmimalloc_sys::{mi_option_get, mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

/// From this size on the system maps memory afresh: zeros that cost nothing until they are written to, and all of it
/// given back when it is freed. The FUSE library takes 16 MiB for each of its threads and mostly uses the first one;
/// out of recycled memory all of that would have to be zeroed, and so be resident.
const LARGE: usize = 8 << 20;

/// The allocator of the daemon: mimalloc, under which the network stack moves 1.4 times the bytes that it moves under
/// the system's, and the system's for what is large.
#[derive(Clone, Copy, Debug, Default)]
pub struct Allocator;

/// `mi_option_purge_delay`, which the binding has no name for.
const PURGE_DELAY: mi_option_t = 15;
/// What mimalloc does by itself, in milliseconds.
const DEFAULT_DELAY: libc::c_long = 10;
/// What a stream gives back it needs again well within this time. By default the
/// pages went to the system and came back zeroed, which cost a fifth of the rate at which a fast peer is read.
const DELAY: libc::c_long = 1_000;

/// Has freed memory kept for a second before it is given back to the system. What the environment says
/// (`MIMALLOC_PURGE_DELAY`) goes before.
pub fn keep_freed_memory() {
    // SAFETY: both touch nothing but mimalloc's table of options, which they check the number against.
    unsafe {
        // Under any other default it is another option, or the user's choice.
        if mi_option_get(PURGE_DELAY) == DEFAULT_DELAY {
            mi_option_set(PURGE_DELAY, DELAY);
        }
    }
}

fn is_large(size: usize) -> bool {
    size >= LARGE
}

// SAFETY: each block goes back to the allocator that it came from, which the size in its layout tells; everything else
// is passed on as it came to allocators that keep the contract.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe {
            if is_large(layout.size()) { System.alloc(layout) } else { MiMalloc.alloc(layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe {
            if is_large(layout.size()) {
                System.alloc_zeroed(layout)
            } else {
                MiMalloc.alloc_zeroed(layout)
            }
        }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller gives the layout that `ptr` was allocated with, so that its size names the allocator.
        unsafe {
            if is_large(layout.size()) {
                System.dealloc(ptr, layout);
            } else {
                MiMalloc.dealloc(ptr, layout);
            }
        }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        match (is_large(layout.size()), is_large(new_size)) {
            // SAFETY: the block stays with the allocator that the layout names.
            (false, false) => unsafe { MiMalloc.realloc(ptr, layout, new_size) },
            // SAFETY: as above.
            (true, true) => unsafe { System.realloc(ptr, layout, new_size) },
            // SAFETY: the caller vouches for `new_size` with this alignment; the new block does not overlap the old one,
            // and both hold the bytes that are copied.
            _ => unsafe {
                let moved = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
                if !moved.is_null() {
                    std::ptr::copy_nonoverlapping(ptr, moved, layout.size().min(new_size));
                    self.dealloc(ptr, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_one_that_is_meant() {
        keep_freed_memory();
        // SAFETY: it reads from mimalloc's table of options, which it checks the number against.
        let delay = unsafe { mi_option_get(PURGE_DELAY) };
        assert_eq!(delay, DELAY, "its default is not the documented one");
    }

    #[test]
    fn bytes_stay_when_a_block_moves_between_the_allocators() {
        let pattern: Vec<u8> = (0..=250).collect();
        let mut layout = Layout::new::<[u128; 64]>();
        // SAFETY: the layout is not empty, no size is below that of the pattern, the block is freed with the layout that
        // it has, and only its own bytes are touched.
        unsafe {
            let mut block = Allocator.alloc_zeroed(layout);
            assert!((0..layout.size()).all(|at| *block.add(at) == 0));
            block.copy_from_nonoverlapping(pattern.as_ptr(), pattern.len());
            for size in [1000, LARGE - 1, LARGE, 3 * LARGE, 2 * LARGE, 500] {
                block = Allocator.realloc(block, layout, size);
                layout = Layout::from_size_align_unchecked(size, layout.align());
                assert!(block.addr().is_multiple_of(layout.align()));
                assert_eq!(std::slice::from_raw_parts(block, pattern.len()), pattern);
                block.add(size - 1).write(7);
            }
            Allocator.dealloc(block, layout);
        }
    }
}
