//! The processor, the memory and the disk of this machine in; a line on each out.

use std::fs;
use std::path::Path;
use std::thread::available_parallelism;

use crate::estimate::free_bytes;
use crate::numbers::bytes;

use super::Findings;

pub fn examine(findings: &mut Findings) {
    let n_threads = available_parallelism().map_or(1, usize::from);
    let name = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| processor_name(&text));
    let name = name.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    findings.say("processor", format!("{name}, {n_threads} threads to use"));
    findings.say("", format!("instruction sets: {}", instruction_sets().join(", ")));
    // where there is none, the system keeps it elsewhere
    if let Ok(text) = fs::read_to_string("/proc/meminfo")
        && let (Some(total), Some(available)) =
            (memory_bytes(&text, "MemTotal"), memory_bytes(&text, "MemAvailable"))
    {
        findings.say("memory", format!("{}, {} available", bytes(total), bytes(available)));
    }
    if let Some(free) = free_bytes(Path::new(".")) {
        findings.say("disk", format!("{} free in the current folder", bytes(free)));
    }
}

/// The first processor's name in `/proc/cpuinfo`.
fn processor_name(cpuinfo: &str) -> Option<String> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    let mut names = fields.filter(|(field, _)| field.trim() == "model name");
    names.next().map(|(_, name)| name.trim().to_owned())
}

/// A field of `/proc/meminfo`, which counts in KiB.
fn memory_bytes(meminfo: &str, field: &str) -> Option<u64> {
    let mut fields = meminfo.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = fields.find(|(name, _)| *name == field)?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|n| n * 1024)
}

/// Those that the kernels and the runtime make use of.
fn instruction_sets() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    let found = [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
    ];
    #[cfg(target_arch = "aarch64")]
    let found = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
    ];
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let found = [("none that is known", true)];
    found.into_iter().filter(|(_, is_there)| *is_there).map(|(name, _)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_says_is_read() {
        let meminfo = "MemTotal:       24689764 kB\nMemFree:         101 kB\nMemAvailable:   21400000 kB\n";
        assert_eq!(memory_bytes(meminfo, "MemTotal"), Some(24_689_764 * 1024));
        assert_eq!(memory_bytes(meminfo, "MemAvailable"), Some(21_400_000 * 1024));
        assert_eq!(memory_bytes(meminfo, "SwapTotal"), None);
        let cpuinfo = "processor\t: 0\nmodel name\t: A Processor: 3 GHz\nmodel name\t: Another\n";
        assert_eq!(processor_name(cpuinfo).as_deref(), Some("A Processor: 3 GHz"));
        assert_eq!(processor_name(""), None);
    }
}
