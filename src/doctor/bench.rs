//! A model in; how many samples a second it embeds here with so many sessions, threads and rows at once, and what to
//! set, out.

use crate::embed::{CPU_ROWS_MAX, DEFAULT_INFERENCE_BATCH_SIZE, Model, Sessions, Sharing, rows_at_once};
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

/// Timings of a way, of which the fastest counts.
const N_TURNS: usize = 3;

/// Times every way on the first of the device's places, or on all of them together.
pub fn examine(findings: &mut Findings, model: &Model, device: Device) -> Result<(), Error> {
    let places = device.places()?;
    let n_processors = std::thread::available_parallelism().map_or(1, usize::from);
    findings.say("speed", "sessions  threads each  rows at once  samples/s");
    let mut all = Vec::new();
    let rows = rows(places[0]);
    for sharing in sharings(places[0], n_processors) {
        let mut sessions = Sessions::open_on(model, &places, sharing, rows[0])?;
        let rates = sessions.samples_per_sec_by_rows(rows, N_TURNS)?;
        for (&rows_at_once, samples_per_sec) in rows.iter().zip(rates) {
            let Sharing { n_sessions, n_threads } = sharing;
            let way = format!("{n_sessions:8}  {n_threads:12}  {rows_at_once:12}  {samples_per_sec:9.1}");
            findings.say("", way);
            all.push(Timed { sharing, rows_at_once, samples_per_sec });
        }
    }
    findings.say("suggestion", suggestion(&all, places[0]));
    if !places[0].is_gpu() {
        findings.say(
            "",
            format!("(a processor takes {CPU_ROWS_MAX} rows of a batch at once, whatever its size)"),
        );
    }
    findings.say("", "(under another batch size, what is embedded already is embedded anew)");
    Ok(())
}

/// Rows at once that are tried.
fn rows(place: Place) -> &'static [usize] {
    if place.is_gpu() { &[16, 64, 256] } else { &[1, 4, 8, 16, 64] }
}

/// Sessions that are tried: on the processor from one with all threads to one a thread, on a GPU a few.
fn sharings(place: Place, n_processors: usize) -> Vec<Sharing> {
    if place.is_gpu() {
        return [1, 2, 3].map(|n_sessions| Sharing { n_sessions, n_threads: 1 }).to_vec();
    }
    let mut sessions = vec![1, n_processors.div_ceil(2), n_processors];
    sessions.dedup();
    let sharing = |n_sessions| Sharing { n_sessions, n_threads: (n_processors / n_sessions).max(1) };
    sessions.into_iter().map(sharing).collect()
}

/// The settings of the fastest way; among those within a few per cent of it, that with the fewest sessions, which take
/// the least memory, and then the rows of the default batch, under which other runs may have embedded, or the fewest.
fn suggestion(all: &[Timed], place: Place) -> String {
    const AS_GOOD_AS: f64 = 0.97;
    let fastest = all.iter().map(|timed| timed.samples_per_sec).fold(0.0, f64::max);
    let as_good = all.iter().filter(|timed| timed.samples_per_sec >= AS_GOOD_AS * fastest);
    let default_rows = rows_at_once(place.provider, DEFAULT_INFERENCE_BATCH_SIZE);
    let best = as_good.min_by_key(|timed| {
        let is_other = timed.rows_at_once != default_rows;
        (timed.sharing.n_sessions, is_other, timed.rows_at_once)
    });
    let best = best.expect("some way was timed");
    // on the processor the rows of a batch go through a few at a time whatever its size
    let batch_size = match place.is_gpu() {
        true => best.rows_at_once,
        false if best.rows_at_once < CPU_ROWS_MAX => best.rows_at_once,
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
    fn rows_that_are_as_good_as_the_default_are_not_suggested() {
        let batch_of = |rates: [f64; 3]| {
            let all: Vec<Timed> =
                [1, 8, 64].into_iter().zip(rates).map(|(rows, rate)| timed(1, rows, rate)).collect();
            suggestion(&all, Place::CPU).rsplit(' ').next().unwrap().to_owned()
        };
        assert_eq!(batch_of([1000.0, 980.0, 990.0]), "64");
        assert_eq!(batch_of([1000.0, 960.0, 990.0]), "1");
        assert_eq!(batch_of([960.0, 960.0, 1000.0]), "64");
    }

    #[test]
    fn threads_are_shared_out_over_the_sessions() {
        let all = sharings(Place::CPU, 8);
        assert!(all.iter().all(|sharing| sharing.n_sessions * sharing.n_threads == 8));
        assert_eq!(all.len(), 3);
        assert_eq!(sharings(Place::CPU, 1).len(), 1);
    }
}
