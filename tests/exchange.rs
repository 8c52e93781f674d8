//! The exchange: merged in levels or not, a target gets the same rows in the same order.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{RecordBatch, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use superbatch::embed::Device;
use superbatch::error::Error;
use superbatch::exchange::{ExchangeWriter, Index, Source, read_target, sources};
use superbatch::executor::{Executor, Part};
use superbatch::plan::Plan;
use superbatch::run_folder::{Done, OtherPlan, RunFolder, Stage};
use superbatch::settings::Settings;
use superbatch::storage::Storage;
use superbatch::verify;

const N_SOURCES: usize = 5;
const N_TARGETS: usize = 4;
const EXECUTOR: Executor =
    Executor { part: Part::WHOLE, n_threads: 2, memory_limit_bytes: 1 << 30, wait: Duration::ZERO };

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("source", DataType::UInt64, true),
        Field::new("text", DataType::Utf8, true),
    ]))
}

/// Rows that say where they come from, in which piece and where they go.
fn rows_of(source: usize, piece: usize, target: usize, n: usize) -> RecordBatch {
    let text = (0..n).map(|row| Some(format!("{source}/{piece} → {target}: {row}")));
    let columns: Vec<arrow::array::ArrayRef> =
        vec![Arc::new(UInt64Array::from(vec![source as u64; n])), Arc::new(text.collect::<StringArray>())];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// How many rows a source has for a target, in each of two pieces: source 2 has none at all, target 3 only few.
fn n_rows(source: usize, target: usize) -> usize {
    match (source, target) {
        (2, _) => 0,
        (4, 3) => 1,
        (_, 3) => 0,
        _ => 1 + (source + 2 * target) % 4,
    }
}

fn run_folder(folder: &Path) -> RunFolder {
    let settings = Settings::load(Path::new("pipelines/quickstart.toml"), &["threads=2".to_owned()]).unwrap();
    RunFolder::create(Storage::new(folder), Plan::new(&settings, Device::Cpu).unwrap(), OtherPlan::Refuse)
        .unwrap()
}

fn write_sources(run: &RunFolder, stage: &Stage) {
    for source in 0..N_SOURCES {
        let mut writer = ExchangeWriter::new(run, stage, source, schema()).unwrap();
        for piece in 0..2 {
            for target in (0..N_TARGETS).rev() {
                writer.push(target, rows_of(source, piece, target, n_rows(source, target))).unwrap();
            }
        }
        let written = writer.finish().unwrap();
        assert!(run.commit(stage, source, Done::new(vec![written.file], Vec::new(), written.index)).unwrap());
    }
}

/// Every target's rows as text, in order.
fn read_all(run: &RunFolder, sources: &[Source]) -> BTreeMap<usize, Vec<String>> {
    use arrow::array::AsArray;
    let targets = (0..N_TARGETS + 1).map(|target| {
        let rows = read_target(run.run(), sources, target).unwrap();
        let of_sources: usize = sources.iter().map(|source| source.index.n_rows(target)).sum();
        assert_eq!(rows.as_ref().map_or(0, RecordBatch::num_rows), of_sources);
        let texts = rows.iter().flat_map(|rows| rows.column(1).as_string::<i32>().iter());
        (target, texts.map(|text| text.unwrap().to_owned()).collect())
    });
    targets.collect()
}

#[test]
fn merging_in_levels_changes_no_row_and_no_order() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_folder(folder.path());
    let stage = run.select("select.draw");
    write_sources(&run, &stage);
    let tasks: Vec<usize> = (0..N_SOURCES).collect();
    let merged_to =
        |files_max| sources(&run, &EXECUTOR, &stage, &tasks, |index: Index| index, files_max).unwrap();

    let unmerged = merged_to(N_SOURCES);
    assert_eq!(unmerged.len(), N_SOURCES);
    let expected = read_all(&run, &unmerged);
    let by_hand = (0..N_TARGETS + 1).map(|target| {
        let pieces = (0..N_SOURCES).flat_map(|source| [0, 1].map(|piece| (source, piece)));
        let rows = pieces.filter(|_| target < N_TARGETS).flat_map(|(source, piece)| {
            (0..n_rows(source, target)).map(move |row| format!("{source}/{piece} → {target}: {row}"))
        });
        (target, rows.collect::<Vec<_>>())
    });
    assert_eq!(expected, by_hand.collect());

    // five files, then three, then two
    let merged = merged_to(2);
    assert_eq!(merged.len(), 2);
    assert_eq!(read_all(&run, &merged), expected);
    let level = |level| run.markers_in(&stage.merge(level)).unwrap().len();
    assert_eq!([1, 2, 3].map(level), [3, 2, 0]);

    // done once, they are found again
    let before = support::files(folder.path());
    assert_eq!(merged_to(2).len(), 2);
    assert_eq!(support::files(folder.path()), before);
    let merges = run.stages().unwrap().into_iter().filter(|stage| stage.name.contains(".merge"));
    assert_eq!(
        merges.map(|stage| stage.name).collect::<Vec<_>>(),
        ["select.draw.merge1", "select.draw.merge2"]
    );
}

/// What two machines make of one task may differ in the last digits: the second to come leaves what the first has committed.
#[test]
fn what_a_marker_names_is_not_overwritten_by_another_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let run = run_folder(folder.path());
    let stage = run.select("select.draw");
    write_sources(&run, &stage);
    let before = support::files(folder.path());
    let written_again = |n_rows| {
        let mut writer = ExchangeWriter::new(&run, &stage, 2, schema()).unwrap();
        writer.push(1, rows_of(2, 0, 1, n_rows)).unwrap();
        writer.finish()
    };
    let is_diverged = |error: Error| matches!(error, Error::Diverged { task: 2, .. });
    assert!(is_diverged(written_again(1).unwrap_err()));
    // source 2 has no rows
    assert!(written_again(0).is_ok(), "the same bytes");

    let (report, text) = (run.report(), b"{}");
    let file = run.put_bytes(&report, 0, "report.json", text).unwrap();
    let file_before_commit = run.put_bytes(&report, 0, "report.json", b"[]").unwrap();
    assert_ne!(file, file_before_commit, "without a marker it is what a killed attempt left");
    let file = run.put_bytes(&report, 0, "report.json", text).unwrap();
    assert!(run.commit(&report, 0, Done::new(vec![file], Vec::new(), 0u64)).unwrap());
    let error = run.put_bytes(&report, 0, "report.json", b"[]").unwrap_err();
    assert!(matches!(error, Error::Diverged { task: 0, .. }), "{error}");

    assert!(verify::verify(&run).unwrap().damaged.is_empty());
    let after = support::files(folder.path());
    assert!(before.iter().all(|(name, bytes)| after[name] == *bytes));
}
