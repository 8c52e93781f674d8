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
use crate::runtime::{
    CudaLibrary, Pin, Provider, library, library_names, missing_libraries, needed_libraries, pin,
    requirements,
};

/// Where the runtime's packages have its library.
const LIBRARY_FOLDER: &str = "onnxruntime/capi";

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

    /// Every package that is to be in a folder, those of CUDA unless all its libraries are found elsewhere.
    fn requirements(self, packages: &Path) -> Vec<&'static str> {
        let mut requirements = vec![self.pin().requirement];
        // what is there already is replaced, and may have had some of them
        let lacks_cuda = || {
            let runtime = packages.join(LIBRARY_FOLDER).join("libonnxruntime.so");
            packages.exists() || !missing_libraries(Provider::Cuda, &runtime).is_empty()
        };
        if self == Build::Cuda && lacks_cuda() {
            requirements.extend(needed_libraries(Provider::Cuda).iter().map(CudaLibrary::requirement));
            requirements.dedup();
        }
        requirements
    }

    /// The runtime's library among some packages, if it is the pinned one and has what it needs beside it.
    fn checked(self, packages: &Path, runtime: Pin, expected: &'static str) -> Result<PathBuf, SetupError> {
        let library = checked_library(packages, runtime, expected)?;
        let libraries = match self {
            Build::Cpu => Vec::new(),
            Build::Cuda => missing_libraries(Provider::Cuda, &library),
        };
        if libraries.is_empty() { Ok(library) } else { Err(SetupError::LibrariesMissing { libraries }) }
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
    #[error("pip cannot install {requirements}: {said}")]
    Pip { requirements: String, said: String },
    #[error("{requirement} has no library of the runtime")]
    NoLibrary { requirement: &'static str },
    #[error("`{path}` has SHA-256 {found}, and not {expected} as pinned")]
    OtherHash { path: PathBuf, found: String, expected: &'static str },
    #[error("the packages are there, but {} cannot be loaded", library_names(libraries))]
    LibrariesMissing { libraries: Vec<CudaLibrary> },
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
            SetupError::LibrariesMissing { libraries } => format!(
                "install them by another way, where the linker looks or in an active Python environment: pip install {}",
                requirements(libraries)
            ),
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
    let check = |packages: &Path| build.checked(packages, runtime, expected);
    // absent, or damaged since
    if check(&packages).is_err() {
        replace(python, &build.requirements(&packages), &packages, |packages| check(packages).map(drop))?;
    }
    let library = check(&packages)?;
    take_into_use(&data, &packages)?;
    Ok(library)
}

/// Installs packages into a folder in place of what is in it, which stays until the new ones have passed the check.
fn replace(
    python: &str,
    requirements: &[&str],
    packages: &Path,
    check: impl FnOnce(&Path) -> Result<(), SetupError>,
) -> Result<(), SetupError> {
    let name = packages.file_name().expect("packages lie in a folder of their own").to_string_lossy();
    let beside = |what| packages.with_file_name(format!(".{what}-{}-{name}", std::process::id()));
    let (unfinished, old) = (beside("unfinished"), beside("old"));
    let installed = pip_install(python, requirements, &unfinished).and_then(|()| check(&unfinished));
    let in_place = installed.and_then(|()| {
        if packages.exists() {
            fs::rename(packages, &old).map_err(write_error(packages))?;
        }
        fs::rename(&unfinished, packages).map_err(|fault| {
            // the old ones are better than none
            let _ = fs::rename(&old, packages);
            write_error(packages)(fault)
        })
    });
    let unneeded = if in_place.is_ok() { old } else { unfinished };
    let _ = fs::remove_dir_all(unneeded);
    in_place
}

/// Unpacks packages, and nothing that they depend on, into a new folder: all by one call, since pip takes away a folder that
/// is there already, and the packages of CUDA share one. Wheels are chosen by platform and not by the interpreter's version,
/// since only libraries are wanted.
fn pip_install(python: &str, requirements: &[&str], folder: &Path) -> Result<(), SetupError> {
    let mut command = Command::new(python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]);
    command.args(["--only-binary", ":all:", "--implementation", "cp", "--python-version", "3.12"]);
    for platform in wheel_platforms(std::env::consts::OS, std::env::consts::ARCH) {
        command.args(["--platform", &platform]);
    }
    command.arg("--target").arg(folder).args(requirements).stdin(Stdio::null());
    let requirements = requirements.join(" ");
    tracing::info!(requirements, folder = %folder.display(), "fetching with pip");
    let output =
        command.output().map_err(|source| SetupError::Python { python: python.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<&str> =
        stderr.lines().filter(|line| !line.starts_with("WARNING")).map(str::trim).collect();
    let said = errors.last().map_or_else(|| output.status.to_string(), |line| (*line).to_owned());
    Err(SetupError::Pip { requirements, said })
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
    let library = library::library_in(&packages.join(LIBRARY_FOLDER));
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

    /// Python whose pip takes wheels from a folder and from nowhere else.
    fn python_with_wheels(folder: &Path, wheels: &[(&str, &str)]) -> String {
        let program = r#"
import sys, zipfile
folder, name, file, arch = sys.argv[1:]
tag, info = f"py3-none-manylinux_2_28_{arch}", f"{name}-1.0.dist-info"
with zipfile.ZipFile(f"{folder}/{name}-1.0-{tag}.whl", "w") as wheel:
    wheel.writestr(file, name)
    wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {tag}\n")
    wheel.writestr(f"{info}/RECORD", "")
"#;
        for (name, file) in wheels {
            let mut python = Command::new("python3");
            python.args(["-c", program]).arg(folder).args([name, file, std::env::consts::ARCH]);
            assert!(python.status().unwrap().success());
        }
        let python = folder.join("python");
        let links = folder.display();
        fs::write(
            &python,
            format!("#!/bin/sh\nPIP_NO_INDEX=1 PIP_FIND_LINKS='{links}' exec python3 \"$@\"\n"),
        )
        .unwrap();
        fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        python.to_str().unwrap().to_owned()
    }

    #[test]
    fn packages_that_share_a_folder_are_all_there_or_the_old_ones_are() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["nvidia/cu13/lib/libcublas.so", "nvidia/cudnn/lib/libcudnn.so"];
        let python = python_with_wheels(folder.path(), &[("cublas", files[0]), ("cudnn", files[1])]);
        let packages = folder.path().join("data/packages");
        let has_all = |packages: &Path| files.iter().all(|file| packages.join(file).is_file());
        let check = |packages: &Path| match has_all(packages) {
            true => Ok(()),
            false => Err(SetupError::NoLibrary { requirement: "both" }),
        };
        // what was installed once, in part and in another version
        fs::create_dir_all(packages.join("nvidia/cudnn/lib")).unwrap();
        fs::write(packages.join("old"), "").unwrap();
        let of_one = replace(&python, &["cudnn==1.0"], &packages, check);
        assert!(matches!(of_one, Err(SetupError::NoLibrary { .. })));
        assert!(packages.join("old").is_file());
        replace(&python, &["cublas==1.0", "cudnn==1.0"], &packages, check).unwrap();
        assert!(has_all(&packages) && !packages.join("old").exists());
        assert_eq!(fs::read_dir(folder.path().join("data")).unwrap().count(), 1);
    }

    #[test]
    fn cuda_comes_whole() {
        let folder = tempfile::tempdir().unwrap();
        let packages = folder.path().join("packages");
        fs::create_dir_all(packages.join(LIBRARY_FOLDER)).unwrap();
        let library = packages.join(LIBRARY_FOLDER).join("libonnxruntime.so.1.2.3");
        fs::write(&library, "abc").unwrap();
        // even if some of it is there, which is replaced
        let all = Build::Cuda.requirements(&packages);
        for library in needed_libraries(Provider::Cuda) {
            let n_times = all.iter().filter(|requirement| **requirement == library.requirement()).count();
            assert_eq!(n_times, 1, "{}", library.name);
        }
        assert_eq!(Build::Cpu.requirements(&packages), [pin("onnxruntime").requirement]);
        // a runtime that lacks some is not taken
        let runtime = pin("onnxruntime-gpu");
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let is_missing = !missing_libraries(Provider::Cuda, &library).is_empty();
        match Build::Cuda.checked(&packages, runtime, expected) {
            Err(SetupError::LibrariesMissing { .. }) => assert!(is_missing),
            checked => assert!(!is_missing && checked.is_ok()),
        }
        assert!(Build::Cpu.checked(&packages, runtime, expected).is_ok());
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
