//! The pinned packages in, the ONNX Runtime library in the user's data folder out, where
//! [`library::load`](crate::runtime::library::load) finds it. For binaries that were installed without it.
//!
//! Packages come through the user's own pip; the library is checked by its SHA-256 before it is taken into use.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::error::Error;
use crate::runtime::{Pin, Provider, library, missing_libraries, pin};

/// Which build of the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Build {
    Cpu,
    /// With the CUDA provider, and the libraries of CUDA that the linker does not find.
    Cuda,
}

impl Build {
    fn pin(self) -> Pin {
        pin(match self {
            Build::Cpu => "onnxruntime",
            Build::Cuda => "onnxruntime-gpu",
        })
    }
}

/// Why the runtime could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("neither `XDG_DATA_HOME` nor `HOME` says where to put it")]
    NoDataFolder,
    #[error("no {package} library is pinned for {arch} on {os}", os = std::env::consts::OS)]
    Platform { package: &'static str, arch: &'static str },
    #[error("cannot run `{python}`")]
    Python { python: String, source: io::Error },
    #[error("pip cannot install {requirement}: {said}")]
    Pip { requirement: String, said: String },
    #[error("{requirement} has no library of the runtime")]
    NoLibrary { requirement: &'static str },
    #[error("`{path}` has SHA-256 {found}, and not {expected} as pinned")]
    OtherHash { path: PathBuf, found: String, expected: &'static str },
    #[error("cannot write `{path}`")]
    Write { path: PathBuf, source: io::Error },
}

impl SetupError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            SetupError::NoDataFolder => "set `XDG_DATA_HOME` to a folder".to_owned(),
            SetupError::Platform { package, .. } => format!(
                "install it by another way (pip install {}) and set `SUPERBATCH_ONNXRUNTIME` to its library",
                pin(package).requirement
            ),
            SetupError::Python { .. } => {
                "install Python 3 with pip, or name an interpreter with `--python`".to_owned()
            }
            SetupError::Pip { .. } => {
                "check the network and pip's settings (proxy, index); or fetch the package elsewhere and set \
                 `SUPERBATCH_ONNXRUNTIME` to its library"
                    .to_owned()
            }
            SetupError::NoLibrary { .. } | SetupError::OtherHash { .. } => {
                "the index gave another package than the pinned one: ask whoever keeps it".to_owned()
            }
            SetupError::Write { .. } => "set `XDG_DATA_HOME` to a folder that can be written".to_owned(),
        }
    }
}

/// Installs the runtime unless it is there already, undamaged, and returns its library.
///
/// # Errors
///
/// [`Error::Setup`]; then what was in use before still is.
pub fn setup(build: Build, python: &str) -> Result<PathBuf, Error> {
    install(build, python).map_err(|source| Error::Setup { source: Box::new(source) })
}

fn install(build: Build, python: &str) -> Result<PathBuf, SetupError> {
    let data = library::data_folder().ok_or(SetupError::NoDataFolder)?;
    let runtime = build.pin();
    let package = runtime.requirement.split("==").next().expect("a name comes first");
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let expected = runtime.sha256(os, arch).ok_or(SetupError::Platform { package, arch })?;
    let packages = data.join(format!("{package}-{}", runtime.version()));
    // absent, or damaged since
    if checked_library(&packages, runtime, expected).is_err() {
        let unfinished = data.join(format!(".unfinished-{}-{package}", std::process::id()));
        let installed = pip_install(python, runtime.requirement, &unfinished)
            .and_then(|()| checked_library(&unfinished, runtime, expected))
            .and_then(|_| {
                let _ = fs::remove_dir_all(&packages);
                fs::rename(&unfinished, &packages).map_err(write_error(&packages))
            });
        if installed.is_err() {
            let _ = fs::remove_dir_all(&unfinished);
        }
        installed?;
    }
    let library = checked_library(&packages, runtime, expected)?;
    if build == Build::Cuda {
        let mut missing: Vec<&str> =
            missing_libraries(Provider::Cuda, &library).iter().map(|library| library.requirement()).collect();
        missing.dedup();
        for requirement in missing {
            pip_install(python, requirement, &packages)?;
        }
    }
    take_into_use(&data, &packages)?;
    Ok(library)
}

/// Unpacks a package, and nothing that it depends on, into a folder. The wheel is chosen by platform and not by the
/// interpreter's version, since only libraries are wanted.
fn pip_install(python: &str, requirement: &str, folder: &Path) -> Result<(), SetupError> {
    let mut command = Command::new(python);
    command.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
        "--upgrade",
    ]);
    command.args(["--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.12"]);
    for platform in wheel_platforms(std::env::consts::OS, std::env::consts::ARCH) {
        command.args(["--platform", &platform]);
    }
    command.arg("--target").arg(folder).arg(requirement).stdin(Stdio::null());
    tracing::info!(requirement, folder = %folder.display(), "fetching with pip");
    let output =
        command.output().map_err(|source| SetupError::Python { python: python.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> =
        stderr.lines().filter(|line| !line.starts_with("WARNING")).map(str::trim).collect();
    let said = errors.last().map_or_else(|| output.status.to_string(), |line| (*line).to_owned());
    Err(SetupError::Pip { requirement: requirement.to_owned(), said })
}

/// What wheels call a system and a processor, as Rust names them.
fn wheel_platforms(os: &str, arch: &str) -> Vec<String> {
    match (os, arch) {
        ("macos", "aarch64") => vec!["macosx_14_0_arm64".to_owned()],
        _ => ["2_27", "2_28"].map(|glibc| format!("manylinux_{glibc}_{arch}")).to_vec(),
    }
}

/// The runtime's library among some packages, if it is the pinned one.
fn checked_library(packages: &Path, runtime: Pin, expected: &'static str) -> Result<PathBuf, SetupError> {
    let library = library::library_in(&packages.join("onnxruntime/capi"));
    let library = library.ok_or(SetupError::NoLibrary { requirement: runtime.requirement })?;
    let found = sha256(&library).map_err(write_error(&library))?;
    if found == expected {
        Ok(library)
    } else {
        Err(SetupError::OtherHash { path: library, found, expected })
    }
}

/// In hex.
fn sha256(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut HashWriter(&mut hasher))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Points the link that the search follows to these packages, in one step.
fn take_into_use(data: &Path, packages: &Path) -> Result<(), SetupError> {
    let link = data.join(library::INSTALLED);
    let unfinished = data.join(format!(".unfinished-{}-link", std::process::id()));
    let name = packages.file_name().expect("the packages lie in the data folder");
    std::os::unix::fs::symlink(name, &unfinished)
        .and_then(|()| fs::rename(&unfinished, &link))
        .map_err(write_error(&link))
}

fn write_error(path: &Path) -> impl FnOnce(io::Error) -> SetupError {
    let path = path.to_owned();
    move |source| SetupError::Write { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_are_asked_for_by_their_platforms() {
        assert_eq!(wheel_platforms("macos", "aarch64"), ["macosx_14_0_arm64"]);
        let linux = ["manylinux_2_27_aarch64", "manylinux_2_28_aarch64"];
        assert_eq!(wheel_platforms("linux", "aarch64"), linux);
    }

    #[test]
    fn a_file_is_known_by_its_sha256() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("abc");
        fs::write(&path, "abc").unwrap();
        // FIPS 180-4, appendix B.1
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&path).unwrap(), expected);
        let packages = folder.path().join("packages");
        fs::create_dir_all(packages.join("onnxruntime/capi")).unwrap();
        let missing = checked_library(&packages, pin("onnxruntime"), expected);
        assert!(matches!(missing, Err(SetupError::NoLibrary { .. })));
        let library = packages.join("onnxruntime/capi/libonnxruntime.so.1.2.3");
        fs::copy(&path, &library).unwrap();
        assert_eq!(checked_library(&packages, pin("onnxruntime"), expected).unwrap(), library);
        fs::write(&library, "abd").unwrap();
        let other = checked_library(&packages, pin("onnxruntime"), expected).unwrap_err();
        assert!(matches!(other, SetupError::OtherHash { .. }), "{other}");
    }
}
