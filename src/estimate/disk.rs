//! What an estimate says of disks, and what the system says is free of them.

use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::plan::Plan;
use crate::storage::Storage;

use super::Estimate;
use super::work::embedded;

impl Estimate {
    /// Fails where the disk has less room than a new run needs.
    pub fn check_disk(&self, plan: &Plan, run: &Storage) -> Result<(), Error> {
        let Some(store) = &plan.store else { return check_free(run, self.disk_bytes()) };
        let store = Storage::new(store);
        // what the store has already needs no room
        let mut store_bytes = 0;
        for model in embedded(plan) {
            let n_done = store.list(&format!("_done/embeddings/{}", model.planned.digest))?.len();
            let undone = (model.n_tasks.saturating_sub(n_done)) as f64 / model.n_tasks as f64;
            store_bytes += (undone * model.size_bytes(plan, self.n_samples) as f64) as u64;
        }
        let run_bytes = self.disk_bytes() - self.embedding_bytes;
        if is_same_disk(&store, run) {
            return check_free(run, store_bytes + run_bytes);
        }
        check_free(&store, store_bytes)?;
        check_free(run, run_bytes)
    }
}

/// The folder, or its nearest ancestor that is there.
fn present(storage: &Storage) -> Option<PathBuf> {
    let absolute = std::path::absolute(storage.root()).ok()?;
    absolute.ancestors().find(|folder| folder.exists()).map(Path::to_owned)
}

fn is_same_disk(left: &Storage, right: &Storage) -> bool {
    let disk = |storage| Some(present(storage)?.metadata().ok()?.dev());
    disk(left).is_some_and(|left| Some(left) == disk(right))
}

fn check_free(storage: &Storage, needed_bytes: u64) -> Result<(), Error> {
    let path = storage.root();
    let Some(present) = present(storage) else { return Ok(()) };
    match free_bytes(&present) {
        Some(free_bytes) if free_bytes < needed_bytes => {
            Err(Error::DiskSpace { path: path.to_owned(), needed_bytes, free_bytes })
        }
        _ => Ok(()),
    }
}

/// Bytes that an ordinary user may still write; none where the system does not say.
pub fn free_bytes(path: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stats = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends in NUL and the struct is written before it is read, if the call succeeds
    let stats = unsafe {
        if libc::statvfs(path.as_ptr(), stats.as_mut_ptr()) != 0 {
            return None;
        }
        stats.assume_init()
    };
    Some(stats.f_bavail as u64 * stats.f_frsize as u64)
}
