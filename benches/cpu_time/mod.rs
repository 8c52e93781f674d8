//! CPU time of the process in place of wall time, so that benchmarks mean something on a busy machine.

use criterion::Throughput;
use criterion::measurement::{Measurement, ValueFormatter, WallTime};

pub struct CpuTime;

impl Measurement for CpuTime {
    /// Nanoseconds.
    type Intermediate = u64;
    type Value = u64;

    fn start(&self) -> u64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the struct is written, and the clock is there on every Unix
        let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
        assert_eq!(status, 0, "a clock of CPU time");
        time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
    }

    fn end(&self, start: u64) -> u64 {
        self.start() - start
    }

    fn add(&self, left: &u64, right: &u64) -> u64 {
        left + right
    }

    fn zero(&self) -> u64 {
        0
    }

    fn to_f64(&self, value: &u64) -> f64 {
        *value as f64
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        &Formatter
    }
}

/// How many times the first's CPU time the second takes, run in turns, so that a machine with other work slows both sides
/// down: the median of the turns' ratios with its quartiles, as a cell of a table.
#[allow(dead_code, reason = "each bench takes what it needs")]
pub fn ratio_of_turns(n_turns: usize, first: &dyn Fn(), second: &dyn Fn()) -> String {
    let time = |run: &dyn Fn()| {
        let start = CpuTime.start();
        run();
        CpuTime.end(start) as f64
    };
    let mut ratios: Vec<f64> = (0..n_turns)
        .map(|_| {
            let first = time(first);
            time(second) / first
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    let [low, median, high] = [1, 2, 3].map(|quarter| ratios[quarter * (n_turns - 1) / 4]);
    format!("{median:.2} ({low:.2}–{high:.2})")
}

/// Wall time's, whose values are nanoseconds too.
struct Formatter;

impl ValueFormatter for Formatter {
    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    fn scale_throughputs(&self, typical: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_throughputs(typical, throughput, values)
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}
