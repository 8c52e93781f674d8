//! One joint draw from embeddings in a folder, for `joint.py`: prints its seconds, its peak memory and what it drew.
//!
//! `joint FOLDER N_SAMPLES SUB_BATCH_SIZE N_CHUNKS OBJECTIVE PRECISION DRAW` reads `learner_images.f32` and so on, rows of
//! little-endian f32; `RAYON_NUM_THREADS` says how many threads.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use serde::de::DeserializeOwned;
use superbatch::fold::Precision;
use superbatch::matrix::Matrix;
use superbatch::noise::SampleId;
use superbatch::select::{
    Chance, DrawPlan, Learner, Objective, PairLoss, PairModel, PassKey, Reference, Scoring, draw,
};

fn read(folder: &Path, name: &str, n_samples: usize) -> Matrix {
    let mut file = File::open(folder.join(name)).expect("embeddings of the peer");
    let n_values = file.metadata().expect("a file").len() as usize / 4;
    let mut embeddings = Matrix::zeros(n_samples, n_values / n_samples);
    let mut row_bytes = vec![0; n_values / n_samples * 4];
    for row in 0..n_samples {
        file.read_exact(&mut row_bytes).expect("rows of f32");
        let values = row_bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        embeddings.row_mut(row).iter_mut().zip(values).for_each(|(to, value)| *to = value);
    }
    embeddings
}

fn setting<T: DeserializeOwned>(text: &str) -> T {
    serde_json::from_value(serde_json::Value::String(text.to_owned())).expect("a setting by its name")
}

/// Peak resident memory of this process, in bytes.
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("Linux");
    line.split_whitespace().nth(1).expect("Linux").parse::<u64>().expect("Linux") * 1024
}

/// CPU time of this process so far, all threads, in seconds.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is written, and the clock is there on every Unix
    let status = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(status, 0, "a clock of CPU time");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, n_samples, sub_batch_size, n_chunks, objective, precision, chance] = &arguments[..] else {
        panic!("joint FOLDER N_SAMPLES SUB_BATCH_SIZE N_CHUNKS OBJECTIVE PRECISION DRAW");
    };
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let (n_samples, sub_batch_size, n_chunks) = (number(n_samples), number(sub_batch_size), number(n_chunks));
    let (objective, precision): (Objective, Precision) = (setting(objective), setting(precision));
    let chance: Chance = setting(chance);
    precision.check().expect("a processor with its instructions");
    let embeddings = ["learner_images", "learner_captions", "reference_images", "reference_captions"]
        .map(|name| read(Path::new(folder), &format!("{name}.f32"), n_samples));
    let [x, y, x_reference, y_reference] = &embeddings;
    let before_bytes = peak_bytes();

    let (start, start_cpu_seconds) = (Instant::now(), cpu_seconds());
    let ids: Vec<SampleId> =
        (0..n_samples as u64).map(|sample_idx| SampleId { shard: "00000.tar", sample_idx }).collect();
    let learner = PairLoss { logit_scale: 10.0, logit_bias: -10.0, objective };
    let reference = PairLoss { logit_scale: 20.0, logit_bias: -12.0, objective };
    let scoring = Scoring::Learnability {
        learner: Learner(PairModel::new(x, y, learner).with_precision(precision)),
        reference: Reference(PairModel::new(x_reference, y_reference, reference).with_precision(precision)),
    };
    let key = PassKey { seed: 0, round: 0, pass: 0 };
    let drawn = draw(&ids, &scoring, &DrawPlan { sub_batch_size, n_chunks, gain: 1.0, chance, key }).drawn;
    let (seconds, cpu_seconds) = (start.elapsed().as_secs_f64(), cpu_seconds() - start_cpu_seconds);

    let rows: Vec<usize> = drawn.iter().map(|drawn| drawn.row).collect();
    let report = serde_json::json!({
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "embeddings_bytes": before_bytes,
        "peak_bytes": peak_bytes(),
        "rows": rows,
    });
    println!("{report}");
}
