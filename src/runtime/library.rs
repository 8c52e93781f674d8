//! Finds and loads the ONNX Runtime library, so that a user need not know where it lies.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use ort::environment::Environment;

use crate::error::Error;

/// A path to the library, or to the folder that it lies in; looked at before all other places.
const VARIABLES: [&str; 2] = ["SUPERBATCH_ONNXRUNTIME", "ORT_DYLIB_PATH"];

/// The link in the [data folder](data_folder) to the packages that `superbatch setup` has installed.
pub const INSTALLED: &str = "runtime";

/// Where `superbatch setup` installs: `superbatch` in the user's data folder by the XDG rules.
pub fn data_folder() -> Option<PathBuf> {
    let absolute = |variable| env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    Some(data.join("superbatch"))
}

/// Loads the library once a process and gives its environment, in which sessions are made.
///
/// It is searched where [`VARIABLES`] say, beside the executable and in its `../lib`, in `.tools/onnxruntime`
/// of any folder above the executable or the current folder, where `superbatch setup` puts it, in an active Python
/// environment, and where the linker looks.
///
/// # Errors
///
/// [`Error::RuntimeMissing`] with all places searched, [`Error::RuntimeLoad`] if what was found cannot be
/// loaded or is too old.
pub fn load() -> Result<Environment, Error> {
    Ok(loaded()?.1)
}

/// Where the library lies that [`load`] loads, or has loaded.
pub fn library() -> Result<PathBuf, Error> {
    Ok(loaded()?.0)
}

fn loaded() -> Result<(PathBuf, Environment), Error> {
    static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);
    let mut slot = LOADED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(loaded) = &*slot {
        return Ok(loaded.clone());
    }
    let path = find_library()?;
    tracing::debug!(path = %path.display(), "loading ONNX Runtime");
    let environment = open(&path).map_err(|source| Error::RuntimeLoad { path: path.clone(), source })?;
    Ok(slot.insert((path, environment)).clone())
}

/// The error is boxed, since an [`ort::Error`] cannot be made before the library is there.
fn open(path: &Path) -> Result<Environment, Box<dyn std::error::Error + Send + Sync>> {
    let builder = ort::init_from(path)?;
    let environment = builder.with_name("superbatch").with_telemetry(false).build()?;
    environment.set_log_level(ort::logging::LogLevel::Error);
    Ok(environment)
}

/// What the loaded library says of its build; [`load`] must have succeeded.
pub fn build_info() -> &'static str {
    ort::info()
}

fn find_library() -> Result<PathBuf, Error> {
    let mut searched = Vec::new();
    for place in places() {
        if let Some(library) = library_in(&place) {
            return Ok(library);
        }
        searched.push(place);
    }
    Err(Error::RuntimeMissing { searched })
}

/// Every place to look at, in order, each once.
fn places() -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = VARIABLES.iter().filter_map(env::var_os).map(PathBuf::from).collect();
    let executable = env::current_exe().and_then(fs::canonicalize).ok();
    let beside = executable.as_deref().and_then(Path::parent);
    if let Some(folder) = beside {
        places.push(folder.to_owned());
        places.extend(folder.parent().map(|above| above.join("lib")));
    }
    let current = env::current_dir().ok();
    for folder in beside.into_iter().chain(current.as_deref()).flat_map(Path::ancestors) {
        places.push(folder.join(".tools/onnxruntime"));
    }
    places.extend(data_folder().map(|data| data.join(INSTALLED).join("onnxruntime/capi")));
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(env::var_os) {
        places.extend(python_packages(Path::new(&root)));
    }
    if let Some(paths) = env::var_os("LD_LIBRARY_PATH") {
        places.extend(env::split_paths(&paths).filter(|path| path.is_absolute()));
    }
    let usual = [
        "/usr/local/lib",
        "/usr/lib",
        "/usr/lib64",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
    ];
    places.extend(usual.map(PathBuf::from));
    let mut seen = BTreeSet::new();
    places.retain(|place| seen.insert(place.clone()));
    places
}

/// Where the wheels `onnxruntime` and `onnxruntime-gpu` put the library.
fn python_packages(root: &Path) -> Vec<PathBuf> {
    site_packages(root).into_iter().map(|packages| packages.join("onnxruntime/capi")).collect()
}

/// Folders of packages of a Python environment.
pub(super) fn site_packages(root: &Path) -> Vec<PathBuf> {
    let versions =
        fs::read_dir(root.join("lib")).into_iter().flatten().flatten().map(|version| version.path());
    let mut folders: Vec<PathBuf> = versions
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python")))
        .map(|path| path.join("site-packages"))
        .collect();
    folders.sort();
    folders
}

/// The library itself, or the newest in a folder: wheels carry `libonnxruntime.so.1.32.0`, or
/// `libonnxruntime.1.32.0.dylib`, without a shorter name.
pub fn library_in(place: &Path) -> Option<PathBuf> {
    if place.is_file() {
        return Some(place.to_owned());
    }
    let files = fs::read_dir(place).ok()?.flatten().map(|file| file.path());
    let libraries = files.filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let middle = name.strip_prefix("libonnxruntime.");
        let is_named = middle.is_some_and(|rest| {
            rest == "so" || rest.starts_with("so.") || rest == "dylib" || rest.ends_with(".dylib")
        });
        is_named && path.is_file()
    });
    libraries.max_by_key(|path| version(path))
}

/// The numbers in its name, so that 1.32 counts as newer than 1.9.
fn version(path: &Path) -> Vec<u32> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.split('.').filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["libonnxruntime.so.1.9.0", "libonnxruntime.so.1.32.0", "libonnxruntime_providers_shared.so"]
        {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let library = library_in(folder.path()).unwrap();
        assert!(library.ends_with("libonnxruntime.so.1.32.0"));
        assert_eq!(library_in(&library), Some(library.clone()));
        let macos = tempfile::tempdir().unwrap();
        for name in
            ["libonnxruntime.1.9.0.dylib", "libonnxruntime.1.32.0.dylib", "libonnxruntime_providers.dylib"]
        {
            fs::write(macos.path().join(name), "").unwrap();
        }
        assert!(library_in(macos.path()).unwrap().ends_with("libonnxruntime.1.32.0.dylib"));
        assert_eq!(library_in(&folder.path().join("missing")), None);
    }
}
