//! Reading shards, and decoding, resizing and normalising their images, in CPU time on one thread:
//!
//! ```text
//! python3 benches/peers/make_shards.py target/bench-data
//! cargo bench --bench read
//! python3 benches/peers/read_webdataset.py target/bench-data
//! python3 benches/peers/decode_pil.py target/bench-data
//! ```

mod cpu_time;

use std::fs::File;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use cpu_time::CpuTime;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use superbatch::embed::image::{Preprocessing, Resample, Resize, decode, preprocess};
use superbatch::read::{Limits, ReadSample, Sample, Samples};

fn shard(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/bench-data/{name}.tar"));
    if path.is_file() {
        return Some(path);
    }
    eprintln!("skipped: there is no {}; benches/peers/make_shards.py makes it", path.display());
    None
}

fn samples(path: &Path) -> impl Iterator<Item = Sample> {
    let samples = Samples::new(File::open(path).unwrap(), Limits::default(), true);
    samples.map(|sample| match sample.unwrap() {
        ReadSample::Sample(sample) => sample,
        ReadSample::Rejected(rejected) => panic!("{}: {:?}", rejected.key, rejected.rejection),
    })
}

fn read(criterion: &mut Criterion<CpuTime>) {
    for name in ["small", "large"] {
        let Some(path) = shard(name) else { continue };
        let mut group = criterion.benchmark_group("read");
        group.sample_size(20).throughput(Throughput::Elements(samples(&path).count() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| samples(&path).map(|sample| black_box(sample).image.len()).sum::<usize>())
        });
    }
}

/// CLIP's at 224 pixels.
fn clip() -> Preprocessing {
    Preprocessing {
        resize: Resize::ShortestSide { side: 224, crop_width: 224, crop_height: 224 },
        resample: Resample::Bicubic,
        rescale_factor: 1.0 / 255.0,
        mean: [0.48145466, 0.4578275, 0.40821073],
        std: [0.26862954, 0.26130258, 0.27577711],
        crop_start: Default::default(),
        jpeg_decoding: Default::default(),
    }
}

fn decode_and_resize(criterion: &mut Criterion<CpuTime>) {
    let (limits, rule) = (Limits::default(), clip());
    let mut pixels = vec![0.0; rule.n_values()];
    for name in ["small", "large"] {
        let Some(path) = shard(name) else { continue };
        let images: Vec<Vec<u8>> = samples(&path).take(50).map(|sample| sample.image).collect();
        let decoded: Vec<_> = images.iter().map(|image| decode(image, &limits).unwrap()).collect();
        let mut group = criterion.benchmark_group("decode");
        group.sample_size(10).throughput(Throughput::Elements(images.len() as u64));
        group.bench_function(format!("{name}/whole"), |bencher| {
            bencher.iter(|| {
                for image in &images {
                    preprocess(&decode(image, &limits).unwrap(), &rule, &mut pixels);
                }
            })
        });
        group.bench_function(format!("{name}/jpeg alone"), |bencher| {
            bencher.iter(|| images.iter().map(|image| decode(image, &limits).unwrap().len()).sum::<usize>())
        });
        group.bench_function(format!("{name}/resize alone"), |bencher| {
            bencher.iter(|| decoded.iter().for_each(|image| preprocess(image, &rule, &mut pixels)))
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime);
    targets = read, decode_and_resize
}
criterion_main!(benches);
