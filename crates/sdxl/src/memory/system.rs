//! Memory as the operating system counts it.

/// Bytes that can be used without swapping: what the system calls available, within
/// the limit of the control group. `None` where the system does not say.
pub fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib: u64 = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()?;
    let number =
        |path: &str| -> Option<u64> { std::fs::read_to_string(path).ok()?.trim().parse().ok() };
    let limit = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(max, current)| max.saturating_sub(current));
    Some(limit.map_or(kib * 1024, |l| l.min(kib * 1024)))
}

/// The most memory that this process has had at once. `None` where the system does not say.
pub fn peak() -> Option<u64> {
    of_process("VmHWM:")
}

/// The memory that this process has now. `None` where the system does not say.
pub fn resident() -> Option<u64> {
    of_process("VmRSS:")
}

fn of_process(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(name))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}
