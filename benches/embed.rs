//! Inference as `embed` does it against the runtime alone, in CPU time on one session with one thread:
//!
//! ```text
//! cargo bench --bench embed
//! python3 benches/peers/embed_onnxruntime.py fixtures/models/learner
//! ```
//!
//! `bare` runs the graphs over and over on the same tensors; `sessions` goes from decoded samples to unit embeddings.
//! Their ratio is what all around the runtime costs. Models whose captions need no padding are measured without it too.
//! `SUPERBATCH_BENCH_MODEL` names a folder with two towers to measure in place of the fixtures:
//!
//! ```text
//! python3 benches/peers/make_clip.py target/bench-data/clip
//! SUPERBATCH_BENCH_MODEL=target/bench-data/clip cargo bench --bench embed
//! ```

mod cpu_time;

use std::hint::black_box;
use std::path::{Path, PathBuf};

use cpu_time::CpuTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ort::value::{Tensor, TensorRef};
use superbatch::embed::{
    CPU_ROWS_MAX, Encoders, Model, ModelChoice, ModelInputs, ModelParts, Padding, Sessions, Sharing,
    open_shard,
};
use superbatch::plan::Pool;
use superbatch::runtime::{Place, SessionOptions, library, open};
use superbatch::settings::ReadSettings;

/// Samples of one call.
const N_SAMPLES: usize = 64;

fn folders() -> Vec<PathBuf> {
    match std::env::var_os("SUPERBATCH_BENCH_MODEL") {
        Some(folder) => vec![folder.into()],
        None => ["learner", "reference"].map(|name| Path::new("fixtures/models").join(name)).into(),
    }
}

fn sides(model: &Model) -> (PathBuf, PathBuf, (usize, usize), usize) {
    let ModelParts::Pair { image, text } = &model.parts else {
        panic!("a model with both towers, each in its graph")
    };
    let (width, height) = image.preprocessing.size();
    let size = (width as usize, height as usize);
    (image.graph.clone(), text.graph.clone(), size, text.preparation.context_length)
}

/// Samples of the fixtures, and what tells how far their captions must be padded.
fn decoded(model: &Model) -> (Vec<ModelInputs>, [ModelInputs; 2]) {
    let shard = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/pool/shard-00003.tar");
    let read = ReadSettings::of_shards(&[shard.display().to_string()]);
    let pool = Pool::find(&read).unwrap();
    let encoders = Encoders::new([model], read.limits.clone()).unwrap();
    let samples = open_shard(&pool, &pool.shards[0], &read).unwrap();
    let inputs = samples.filter_map(|sample| encoders.decode(sample.unwrap()).unwrap().inputs);
    (inputs.take(N_SAMPLES).collect(), encoders.probe().unwrap())
}

fn embed(criterion: &mut Criterion<CpuTime>) {
    library::load().unwrap();
    for folder in folders() {
        let model = Model::open(&folder, ModelChoice::default()).unwrap();
        let (image, text, (width, height), context_length) = sides(&model);
        let options = SessionOptions::on(Place::CPU);
        let (mut image, mut text) = (open(&image, &options).unwrap(), open(&text, &options).unwrap());
        let pixels = vec![0.1f32; CPU_ROWS_MAX * 3 * width * height];
        let ids =
            Tensor::from_array(([CPU_ROWS_MAX, context_length], vec![1i64; CPU_ROWS_MAX * context_length]));
        let ids = ids.unwrap();
        let mut group = criterion.benchmark_group(folder.display().to_string());
        group.sample_size(20).throughput(Throughput::Elements(N_SAMPLES as u64));
        group.bench_function("bare", |bencher| {
            bencher.iter(|| {
                for _ in 0..N_SAMPLES / CPU_ROWS_MAX {
                    let shape = [CPU_ROWS_MAX, 3, height, width];
                    let pixels = TensorRef::from_array_view((shape, &pixels[..])).unwrap();
                    black_box(image.session.run(ort::inputs![pixels]).unwrap());
                    black_box(text.session.run(ort::inputs![ids.view()]).unwrap());
                }
            })
        });
        let sharing = Sharing { n_sessions: 1, n_threads: 1 };
        let mut sessions = Sessions::open_on(&model, &[Place::CPU], sharing, CPU_ROWS_MAX).unwrap();
        let (inputs, probe) = decoded(&model);
        assert_eq!(inputs.len(), N_SAMPLES);
        group.bench_function("sessions", |bencher| {
            bencher.iter(|| black_box(sessions.embed(0, &inputs).unwrap()))
        });
        sessions.find_padding(0, &probe).unwrap();
        if sessions.model().padding == Padding::Longest {
            group.bench_function("sessions, captions padded to the longest of a batch", |bencher| {
                bencher.iter(|| black_box(sessions.embed(0, &inputs).unwrap()))
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = embed
}
criterion_main!(benches);
