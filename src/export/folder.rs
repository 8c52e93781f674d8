//! The folder of an export: files are written below a hidden folder in it, and get their places when all are there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::storage::{Storage, UNFINISHED_PREFIX};

use super::ExportError;

/// A folder that is being filled; dropped before it is finished, it leaves nothing in it.
pub struct ExportFolder {
    folder: PathBuf,
    unfinished: Storage,
}

impl ExportFolder {
    /// Opens a folder that is empty, absent, or left by an export that was stopped.
    pub fn open(folder: &Path) -> Result<ExportFolder, Error> {
        let unfinished = folder.join(format!("{UNFINISHED_PREFIX}export"));
        let write_error = |source| Error::Write { path: folder.to_owned(), source };
        fs::create_dir_all(folder).map_err(write_error)?;
        for member in fs::read_dir(folder).map_err(write_error)? {
            if member.map_err(write_error)?.path() != unfinished {
                return Err(ExportError::NotEmpty { folder: folder.to_owned() }.into());
            }
        }
        remove_folder(&unfinished).map_err(write_error)?;
        fs::create_dir(&unfinished).map_err(write_error)?;
        Ok(ExportFolder { folder: folder.to_owned(), unfinished: Storage::new(unfinished) })
    }

    /// Where its files are written.
    pub fn storage(&self) -> &Storage {
        &self.unfinished
    }

    /// Gives every file its place.
    pub fn finish(self) -> Result<(), Error> {
        let place = || -> io::Result<()> {
            let mut names = Vec::new();
            for member in fs::read_dir(self.unfinished.root())? {
                names.push(member?.file_name());
            }
            names.sort();
            for name in names {
                fs::rename(self.unfinished.root().join(&name), self.folder.join(&name))?;
            }
            File::open(&self.folder)?.sync_all()
        };
        place().map_err(|source| Error::Write { path: self.folder.clone(), source })
    }
}

impl Drop for ExportFolder {
    fn drop(&mut self) {
        // empty after it is finished; after a failure what is in it is of no use
        let _ = remove_folder(self.unfinished.root());
    }
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(source),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_appear_when_all_are_written() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("new/export");
        // one that was stopped
        fs::create_dir_all(folder.join(".unfinished-export/left")).unwrap();
        let export = ExportFolder::open(&folder).unwrap();
        export.storage().put("a.txt", b"a").unwrap();
        export.storage().put("b/c.txt", b"c").unwrap();
        assert!(!folder.join("a.txt").exists());
        export.finish().unwrap();
        let names: Vec<_> = Storage::new(&folder).list_all("").unwrap();
        assert_eq!(names, ["a.txt", "b/c.txt"]);
        assert!(!folder.join(".unfinished-export").exists());
        assert!(matches!(
            ExportFolder::open(&folder),
            Err(Error::Export { source: ExportError::NotEmpty { .. } })
        ));
    }

    #[test]
    fn a_failed_export_leaves_an_empty_folder() {
        let root = tempfile::tempdir().unwrap();
        let export = ExportFolder::open(root.path()).unwrap();
        export.storage().put("a.txt", b"a").unwrap();
        drop(export);
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
    }
}
