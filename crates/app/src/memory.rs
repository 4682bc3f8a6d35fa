//! How much memory is to be had, and what this process took, where the system tells: on Linux.

use std::fs::read_to_string;

/// Bytes that the work can take: what the machine has free or can free, and no more than its container may have.
pub(crate) fn available() -> Option<u64> {
    let machine = of_machine(&read_to_string("/proc/meminfo").ok()?)?;
    let group = |name: &str| read_to_string(format!("/sys/fs/cgroup/memory.{name}")).ok();
    let container = group("max").zip(group("current")).zip(group("stat"));
    let container = container.and_then(|((max, current), stat)| of_container(&max, &current, &stat));
    Some(container.map_or(machine, |container| container.min(machine)))
}

/// From `/proc/meminfo`. Swap counts: slow is not impossible.
fn of_machine(meminfo: &str) -> Option<u64> {
    Some((field(meminfo, "MemAvailable:")? + field(meminfo, "SwapFree:").unwrap_or(0)) * 1024)
}

/// From a control group's `memory.max`, `memory.current` and `memory.stat`; pages of files can be dropped.
fn of_container(max: &str, current: &str, stat: &str) -> Option<u64> {
    let (max, current): (u64, u64) = (max.trim().parse().ok()?, current.trim().parse().ok()?);
    Some(max.saturating_sub(current.saturating_sub(field(stat, "file").unwrap_or(0))))
}

/// The most memory that this process had, in 10^6 bytes.
pub(crate) fn peak_mb() -> Option<f64> {
    Some(field(&read_to_string("/proc/self/status").ok()?, "VmHWM:")? as f64 * 1024.0 / 1e6)
}

/// Pages that all threads of this process have been given so far.
pub(crate) fn page_faults() -> Option<u64> {
    of_process(&read_to_string("/proc/self/stat").ok()?)
}

/// The tenth and twelfth fields of `/proc/PID/stat`, without the disk and with it; the second one is a name that may
/// hold anything but ends with the last bracket.
fn of_process(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(7);
    let minor: u64 = fields.next()?.parse().ok()?;
    Some(minor + fields.nth(1)?.parse::<u64>().ok()?)
}

fn field(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().map(str::split_whitespace);
    lines.find_map(|mut words| (words.next() == Some(name)).then(|| words.next()?.parse().ok())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read() {
        let meminfo = "MemTotal: 9 kB\nMemAvailable:  3000 kB\nSwapFree: 1 kB\n";
        assert_eq!(of_machine(meminfo), Some(3001 * 1024));
        assert_eq!(of_machine("MemTotal: 9 kB"), None);
        assert_eq!(of_container("1000\n", "700\n", "anon 400\nfile 300\n"), Some(600));
        assert_eq!(of_container("1000", "2000", "anon 2000"), Some(0));
        assert_eq!(of_process("7 (a ) b) S 1 2 3 4 5 6 100 8 20 10 11"), Some(120));
        assert_eq!(of_process("7 (a) S 1"), None);
        assert_eq!(of_container("max\n", "700\n", "file 300\n"), None);
    }
}
