//! What the stages take in, a table for people out.

use super::work::{StageTime, StageWork};
use crate::numbers::{bytes, whole};

/// A line a stage and one for all; seconds only where they are known. Rows end without white space.
pub fn text(stages: &[StageWork]) -> String {
    let mut rows = vec![["stage", "reads", "writes", "files", "operations"].map(str::to_owned).to_vec()];
    let times: Option<Vec<StageTime>> = stages.iter().map(|stage| stage.time).collect();
    if times.is_some() {
        rows[0].extend(["GPU s", "core s", "s on a node"].map(str::to_owned));
    }
    for stage in stages {
        rows.push(row(stage));
    }
    rows.push(row(&total(stages, times)));
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).skip(1).map(|(cell, width)| format!("  {cell:>width$}"));
        format!("{:width$}{}", row[0], cells.collect::<String>(), width = widths[0])
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn total(stages: &[StageWork], times: Option<Vec<StageTime>>) -> StageWork {
    StageWork {
        stage: "all",
        read_bytes: stages.iter().map(|stage| stage.read_bytes).sum(),
        written_bytes: stages.iter().map(|stage| stage.written_bytes).sum(),
        n_files: stages.iter().map(|stage| stage.n_files).sum(),
        flops: stages.iter().map(|stage| stage.flops).sum(),
        time: times.map(|times| StageTime {
            gpu_secs: times.iter().map(|time| time.gpu_secs).sum(),
            core_secs: times.iter().map(|time| time.core_secs).sum(),
            node_secs: times.iter().map(|time| time.node_secs).sum(),
        }),
    }
}

fn row(stage: &StageWork) -> Vec<String> {
    let mut cells = vec![
        stage.stage.to_owned(),
        bytes(stage.read_bytes),
        bytes(stage.written_bytes),
        whole(stage.n_files),
        match stage.flops {
            None => "unknown".to_owned(),
            Some(0.0) => "0".to_owned(),
            Some(flops) => format!("{flops:.2e}"),
        },
    ];
    if let Some(StageTime { gpu_secs, core_secs, node_secs }) = stage.time {
        cells.extend([gpu_secs, core_secs, node_secs].map(seconds));
    }
    cells
}

/// Three digits where there are fewer before the point.
fn seconds(secs: f64) -> String {
    match secs {
        0.0 => "0".to_owned(),
        _ if secs < 10.0 => format!("{secs:.2}"),
        _ if secs < 100.0 => format!("{secs:.1}"),
        _ => format!("{secs:.0}"),
    }
}
