//! `superbatch setup` with the real pip and wheels that the test makes, so that no network is needed.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{BINARY, error_of, names, root, superbatch, text};

/// The pinned version of the runtime.
fn version() -> String {
    let pins = fs::read_to_string(root().join("tools/pins")).unwrap();
    let line = pins.lines().find(|line| line.starts_with("onnxruntime==")).unwrap();
    line["onnxruntime==".len()..].split(' ').next().unwrap().to_owned()
}

/// A wheel of the runtime as the index has it, with these bytes as its library.
fn make_wheel(folder: &Path, library: &Path) {
    let program = r#"
import sys, zipfile
folder, library, version, arch = sys.argv[1:]
name = f"onnxruntime-{version}"
with zipfile.ZipFile(f"{folder}/{name}-cp312-cp312-manylinux_2_28_{arch}.whl", "w") as wheel:
    wheel.write(library, f"onnxruntime/capi/libonnxruntime.so.{version}")
    info = f"{name}.dist-info"
    wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: onnxruntime\nVersion: {version}\n")
    tag = f"cp312-cp312-manylinux_2_28_{arch}"
    wheel.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: false\nTag: {tag}\n")
    wheel.writestr(f"{info}/RECORD", "")
"#;
    fs::create_dir_all(folder).unwrap();
    let status = Command::new("python3")
        .args(["-c", program])
        .args([folder, library])
        .args([&version(), std::env::consts::ARCH])
        .status()
        .unwrap();
    assert!(status.success());
}

/// `superbatch setup` with pip looking in a folder of wheels alone.
fn setup(data: &Path, wheels: &Path) -> Command {
    let mut command = superbatch(["setup"]);
    command.env("XDG_DATA_HOME", data).env("PIP_NO_INDEX", "1").env("PIP_FIND_LINKS", wheels);
    command
}

/// The library that the tests themselves run with, which is the pinned one.
fn library() -> PathBuf {
    let doctor = superbatch(["doctor"]).output().unwrap();
    let text = text(&doctor.stdout);
    let line = text.lines().find(|line| line.starts_with("runtime")).unwrap();
    PathBuf::from(line.split_whitespace().last().unwrap()).canonicalize().unwrap()
}

#[test]
fn the_runtime_is_installed_once_and_then_found() {
    let folder = tempfile::tempdir().unwrap();
    let (data, wheels) = (folder.path().join("data"), folder.path().join("wheels"));
    make_wheel(&wheels, &library());
    let output = setup(&data, &wheels).output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let installed = text(&output.stdout);
    let expected =
        format!("data/superbatch/onnxruntime-{0}/onnxruntime/capi/libonnxruntime.so.{0}", version());
    assert!(installed.trim().ends_with(&expected), "{installed}");
    // nothing is left to fetch
    let again = setup(&data, Path::new("/no/such/folder")).output().unwrap();
    assert_eq!((again.status.code(), text(&again.stdout)), (Some(0), installed.clone()));

    // but for what was damaged
    fs::write(installed.trim(), "damaged").unwrap();
    let repaired = setup(&data, &wheels).output().unwrap();
    assert_eq!((repaired.status.code(), text(&repaired.stdout)), (Some(0), installed));

    // an installed binary, away from any checkout
    let binary = folder.path().join("superbatch");
    fs::hard_link(BINARY, &binary).or_else(|_| fs::copy(BINARY, &binary).map(drop)).unwrap();
    let doctor = Command::new(&binary)
        .arg("doctor")
        .env_clear()
        .env("XDG_DATA_HOME", &data)
        .current_dir(folder.path())
        .output()
        .unwrap();
    let said = text(&doctor.stdout);
    assert!(doctor.status.success(), "{said}");
    assert!(said.contains("data/superbatch/runtime/onnxruntime/capi/libonnxruntime.so."), "{said}");
}

#[test]
fn another_library_than_the_pinned_one_is_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let (data, wheels) = (folder.path().join("data"), folder.path().join("wheels"));
    let other = folder.path().join("other");
    fs::write(&other, "no library").unwrap();
    make_wheel(&wheels, &other);
    let error = error_of(&mut setup(&data, &wheels), 1);
    assert!(error.contains("has SHA-256 ") && error.contains("\nhint: "), "{error}");
    assert!(names(&data).is_empty(), "{:?}", names(&data));
}

#[test]
fn without_pip_or_package_the_error_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let error = error_of(&mut setup(folder.path(), Path::new("/no/such/folder")), 1);
    assert!(error.contains("pip cannot install onnxruntime==") && error.contains("\nhint: "), "{error}");
    let mut without_python = setup(folder.path(), folder.path());
    let error = error_of(without_python.args(["--python", "/no/such/python"]), 1);
    assert!(error.contains("cannot run `/no/such/python`") && error.contains("`--python`"), "{error}");
    let mut without_pip = setup(folder.path(), folder.path());
    let error = error_of(without_pip.args(["--python", "false"]), 1);
    assert!(error.contains("pip cannot install"), "{error}");
    assert!(names(folder.path()).is_empty());
}
