//! Kept samples in, a folder of WebDataset tars for each cluster out: what its expert is trained on, whose negatives are
//! then all of one cluster.

use serde::Serialize;

use crate::error::Error;
use crate::storage::Storage;

use super::kept::Kept;
use super::tars::{TarSample, TarWriter, put_json};
use super::{ExportError, Exported};

/// Tars that are written at once, with a buffer of 1 MiB each; more clusters take another pass over the curated shards.
const CLUSTERS_AT_ONCE: u32 = 256;

/// `clusters.json`: a cluster of which nothing was kept has a folder without tars.
#[derive(Serialize)]
struct ClusterSize {
    cluster: u32,
    folder: String,
    n_samples: u64,
    n_tars: u64,
}

pub fn export(kept: &Kept, storage: &Storage, shard_bytes: u64) -> Result<Exported, Error> {
    let divide = kept.run.plan().divide.as_ref().ok_or(ExportError::NoClusters)?;
    let n_clusters = divide.n_clusters as u32;
    let mut sizes = Vec::with_capacity(divide.n_clusters);
    for first in (0..n_clusters).step_by(CLUSTERS_AT_ONCE as usize) {
        let clusters = first..n_clusters.min(first + CLUSTERS_AT_ONCE);
        let writer = |cluster| TarWriter::new(storage, format!("{}/", folder(cluster)), shard_bytes);
        let mut writers: Vec<TarWriter> = clusters.clone().map(writer).collect();
        kept.visit_images(
            |rows, row| clusters.contains(&rows.u32("cluster").value(row)),
            |rows, row, image| {
                let cluster = rows.u32("cluster").value(row);
                writers[(cluster - first) as usize].push(&TarSample::of(rows, row, image))
            },
        )?;
        for (cluster, writer) in clusters.zip(writers) {
            let Exported { n_samples, n_files, .. } = writer.finish()?;
            sizes.push(ClusterSize { cluster, folder: folder(cluster), n_samples, n_tars: n_files });
        }
    }
    let n_samples: u64 = sizes.iter().map(|cluster| cluster.n_samples).sum();
    assert_eq!(n_samples, kept.n_kept, "every kept sample is of one cluster");
    put_json(storage, "clusters.json", &sizes)?;
    let n_files = sizes.iter().map(|cluster| cluster.n_tars).sum();
    Ok(Exported { n_samples, n_rows: n_samples, n_files })
}

fn folder(cluster: u32) -> String {
    format!("cluster_{cluster:05}")
}
