//! Memory from the system. Large blocks ask for huge pages where the system has them: gigabytes of weights are then
//! given in thousands of pages instead of millions, which is most of the time that loading takes.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

/// Size of a huge page on x86-64 and on most Arm machines; elsewhere it only decides what counts as large.
pub(crate) const HUGE: usize = 2 << 20;

/// Zeroed memory of `bytes` bytes, none being refused as no memory; for at least 2 MiB a multiple of 4 KiB.
pub(crate) fn take(bytes: usize, align: usize) -> Option<NonNull<u8>> {
    #[cfg(target_os = "linux")]
    if is_mapped(bytes) {
        return mapped::take(bytes);
    }
    let layout = Layout::from_size_align(bytes, align).ok().filter(|layout| layout.size() > 0)?;
    // SAFETY: the layout has a size.
    NonNull::new(unsafe { alloc_zeroed(layout) })
}

/// Gives memory back.
///
/// # Safety
/// `ptr` is what [`take`] gave for this size and alignment, and is not used any more.
pub(crate) unsafe fn give_back(ptr: NonNull<u8>, bytes: usize, align: usize) {
    #[cfg(target_os = "linux")]
    if is_mapped(bytes) {
        // SAFETY: as the caller promised.
        return unsafe { mapped::give_back(ptr, bytes) };
    }
    // SAFETY: as the caller promised; this layout was valid when the memory was taken.
    unsafe { dealloc(ptr.as_ptr(), Layout::from_size_align_unchecked(bytes, align)) };
}

/// Whether the pages of a block of so many bytes can become another block's ([`gather`]).
pub(crate) fn movable(bytes: usize) -> bool {
    cfg!(target_os = "linux") && bytes >= HUGE && bytes.is_multiple_of(HUGE)
}

/// As [`take`]; memory of a [movable] size is made of what lies in `donors`, as far as that goes, so that the system need not
/// clear other pages. What they still have of their pages is left in `donors`.
///
/// # Safety
/// Each is what [`take`] gave for its movable size, or a part of it that begins and ends at a multiple of the smallest such
/// size from its beginning; nobody uses it any more.
pub(crate) unsafe fn gather(bytes: usize, align: usize, donors: &mut Vec<(NonNull<u8>, usize)>) -> Option<NonNull<u8>> {
    #[cfg(target_os = "linux")]
    if movable(bytes) {
        // SAFETY: as the caller promised.
        return unsafe { mapped::gather(bytes, donors) };
    }
    debug_assert!(donors.is_empty());
    take(bytes, align)
}

#[cfg(target_os = "linux")]
fn is_mapped(bytes: usize) -> bool {
    bytes >= HUGE && bytes.is_multiple_of(4096)
}

#[cfg(target_os = "linux")]
mod mapped {
    use super::HUGE;
    use std::ptr::NonNull;

    pub(super) fn take(bytes: usize) -> Option<NonNull<u8>> {
        // Room to begin at a huge page; what is too much is given back at once.
        let all = bytes.checked_add(HUGE)?;
        let (read_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping of our own, cut at page boundaries inside it.
        unsafe {
            let base = libc::mmap(std::ptr::null_mut(), all, read_write, private, -1, 0);
            if base == libc::MAP_FAILED {
                return None;
            }
            let base = base.cast::<u8>();
            let before = base.align_offset(HUGE).min(HUGE);
            let start = base.add(before);
            if before > 0 {
                libc::munmap(base.cast(), before);
            }
            if before < HUGE {
                libc::munmap(start.add(bytes).cast(), HUGE - before);
            }
            // Whole huge pages only: a part of one would take the whole. A refusal changes nothing but time.
            libc::madvise(start.cast(), bytes / HUGE * HUGE, libc::MADV_HUGEPAGE);
            NonNull::new(start)
        }
    }

    /// # Safety
    /// As [`super::gather`].
    pub(super) unsafe fn gather(bytes: usize, donors: &mut Vec<(NonNull<u8>, usize)>) -> Option<NonNull<u8>> {
        let all = take(bytes)?;
        for at in (0..bytes).step_by(HUGE) {
            let Some((from, left)) = donors.last_mut() else { break };
            // One by one: a block that was gathered itself is many mappings, and the system moves no two at once.
            // SAFETY: both are pages of our own, which nobody uses.
            unsafe {
                let to = all.as_ptr().add(at).cast();
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                if libc::mremap(from.as_ptr().cast(), HUGE, HUGE, flags, to) == libc::MAP_FAILED {
                    // What lay there before may be gone.
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                    if libc::mmap(to, HUGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) == libc::MAP_FAILED {
                        libc::munmap(all.as_ptr().cast(), bytes);
                        return None;
                    }
                    break;
                }
                *from = from.add(HUGE);
            }
            *left -= HUGE;
            if *left == 0 {
                donors.pop();
            }
        }
        Some(all)
    }

    /// # Safety
    /// As [`super::give_back`].
    pub(super) unsafe fn give_back(ptr: NonNull<u8>, bytes: usize) {
        // SAFETY: mappings of ours are exactly this range.
        unsafe { libc::munmap(ptr.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn memory_is_zero_and_writable_at_every_size() {
        for bytes in [64, 4096, (2 << 20) - 64, 2 << 20, (2 << 20) + 4096, 5 << 20, (9 << 20) + 64] {
            let ptr = super::take(bytes, 64).unwrap();
            assert_eq!(ptr.as_ptr().align_offset(64), 0);
            // SAFETY: the memory is ours and zeroed.
            let all = unsafe { std::slice::from_raw_parts_mut(ptr.as_ptr(), bytes) };
            assert!(all.iter().all(|byte| *byte == 0));
            all.fill(1);
            // SAFETY: not used any more.
            unsafe { super::give_back(ptr, bytes, 64) };
        }
        assert!(super::take(isize::MAX as usize, 64).is_none());
    }

    /// Of two blocks: what lay in them comes first, then fresh memory; what is too much stays.
    #[test]
    #[cfg(target_os = "linux")]
    fn gathered_memory_is_what_its_donors_had() {
        const HUGE: usize = super::HUGE;
        let block = |units: usize, value: u8| {
            let ptr = super::take(units * HUGE, 64).unwrap();
            // SAFETY: the memory is ours.
            unsafe { ptr.write_bytes(value, units * HUGE) };
            (ptr, units * HUGE)
        };
        let mut donors = vec![block(3, 1), block(2, 2)];
        // SAFETY: all blocks were taken here, and nobody uses a donor.
        unsafe {
            let first = super::gather(4 * HUGE, 64, &mut donors).unwrap();
            assert_eq!(donors.len(), 1);
            assert_eq!(donors[0].1, HUGE);
            let mut again = vec![(first, 4 * HUGE), donors[0]];
            let all = super::gather(7 * HUGE, 64, &mut again).unwrap();
            assert!(again.is_empty());
            let all = std::slice::from_raw_parts_mut(all.as_ptr(), 7 * HUGE);
            let values: Vec<u8> = all.chunks(HUGE).map(|unit| unit[0]).collect();
            assert_eq!(values, [1, 2, 2, 1, 1, 0, 0]);
            assert!(all.chunks(HUGE).all(|unit| unit.iter().all(|byte| *byte == unit[0])));
            all.fill(3);
            super::give_back(std::ptr::NonNull::new(all.as_mut_ptr()).unwrap(), 7 * HUGE, 64);
        }
    }
}
