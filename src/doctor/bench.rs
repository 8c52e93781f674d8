//! A model in; how many samples a second it embeds here with so many sessions, threads and rows at once, and what to
//! set, out.

use crate::embed::{DEFAULT_INFERENCE_BATCH_SIZE, Model, Sessions, Sharing};
use crate::error::Error;
use crate::runtime::{Device, Place};

use super::Findings;

/// One way to run a model, and how fast it was.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Timed {
    sharing: Sharing,
    rows_at_once: usize,
    samples_per_sec: f64,
}

/// Times every way on the first of the device's places, or on all of them together.
pub fn examine(findings: &mut Findings, model: &Model, device: Device) -> Result<(), Error> {
    let places = device.places()?;
    let n_processors = std::thread::available_parallelism().map_or(1, usize::from);
    findings.say("speed", "sessions  threads each  rows at once  samples/s");
    let mut all = Vec::new();
    for (sharing, rows_at_once) in ways(places[0], n_processors) {
        let mut sessions = Sessions::open_on(model, &places, sharing, rows_at_once)?;
        let timed = Timed { sharing, rows_at_once, samples_per_sec: sessions.samples_per_sec()? };
        let Sharing { n_sessions, n_threads } = sharing;
        let rate = timed.samples_per_sec;
        findings.say("", format!("{n_sessions:8}  {n_threads:12}  {rows_at_once:12}  {rate:9.1}"));
        all.push(timed);
    }
    findings.say("suggestion", suggestion(&all, places[0]));
    Ok(())
}

/// What is tried: on the processor from one session with all threads to one a thread, on a GPU a few sessions.
fn ways(place: Place, n_processors: usize) -> Vec<(Sharing, usize)> {
    let (sessions, rows): (Vec<usize>, &[usize]) = match place.is_gpu() {
        true => (vec![1, 2, 3], &[16, 64, 256]),
        false => {
            let mut sessions = vec![1, n_processors.div_ceil(2), n_processors];
            sessions.dedup();
            (sessions, &[1, 4, 8, 16, 64])
        }
    };
    let n_threads = |n_sessions: usize| if place.is_gpu() { 1 } else { (n_processors / n_sessions).max(1) };
    let ways = sessions.into_iter().flat_map(|n_sessions| {
        let sharing = Sharing { n_sessions, n_threads: n_threads(n_sessions) };
        rows.iter().map(move |&rows| (sharing, rows))
    });
    ways.collect()
}

/// The settings of the fastest way; among those within a few per cent of it, that with the fewest sessions, which take
/// the least memory.
fn suggestion(all: &[Timed], place: Place) -> String {
    const AS_GOOD_AS: f64 = 0.97;
    let fastest = all.iter().map(|timed| timed.samples_per_sec).fold(0.0, f64::max);
    let as_good = all.iter().filter(|timed| timed.samples_per_sec >= AS_GOOD_AS * fastest);
    let best = as_good.min_by_key(|timed| (timed.sharing.n_sessions, timed.rows_at_once));
    let best = best.expect("some way was timed");
    // on the processor the rows of a batch go through a few at a time whatever its size
    let batch_size = match place.is_gpu() {
        true => best.rows_at_once,
        false if best.rows_at_once < crate::embed::CPU_ROWS_MAX => best.rows_at_once,
        false => DEFAULT_INFERENCE_BATCH_SIZE,
    };
    format!("sessions = {}\nembed.inference_batch_size = {batch_size}", best.sharing.n_sessions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Provider;

    fn timed(n_sessions: usize, rows_at_once: usize, samples_per_sec: f64) -> Timed {
        Timed { sharing: Sharing { n_sessions, n_threads: 1 }, rows_at_once, samples_per_sec }
    }

    #[test]
    fn the_fastest_way_with_the_fewest_sessions_is_suggested() {
        let all = [timed(1, 64, 500.0), timed(2, 8, 990.0), timed(4, 8, 1000.0), timed(4, 64, 700.0)];
        let gpu = Place { provider: Provider::Cuda, number: 0 };
        assert_eq!(suggestion(&all, gpu), "sessions = 2\nembed.inference_batch_size = 8");
        assert_eq!(suggestion(&all, Place::CPU), "sessions = 2\nembed.inference_batch_size = 64");
        let small = [timed(1, 1, 500.0), timed(1, 8, 400.0)];
        assert_eq!(suggestion(&small, Place::CPU), "sessions = 1\nembed.inference_batch_size = 1");
    }

    #[test]
    fn threads_are_shared_out_over_the_sessions() {
        let all = ways(Place::CPU, 8);
        assert!(all.iter().all(|(sharing, _)| sharing.n_sessions * sharing.n_threads == 8));
        assert_eq!(all.len(), 15);
        assert_eq!(ways(Place::CPU, 1).len(), 5);
    }
}
