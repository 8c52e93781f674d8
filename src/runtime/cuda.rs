//! The libraries that the runtime's GPU providers need beside the driver: found, loaded ahead, or named with the
//! package that has them.

use std::env;
use std::path::{Path, PathBuf};

use super::device::Provider;
use super::driver::load;
use super::pins::pin;

/// A shared library that a provider needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaLibrary {
    pub name: &'static str,
    package: &'static str,
    /// Where the package puts it, below the folder of Python packages.
    folder: &'static str,
}

impl CudaLibrary {
    /// The package that has it, `name==version`.
    pub fn requirement(&self) -> &'static str {
        pin(self.package).requirement
    }
}

const fn cuda13(name: &'static str, package: &'static str) -> CudaLibrary {
    CudaLibrary { name, package, folder: "nvidia/cu13/lib" }
}

/// What the CUDA provider of the pinned runtime is linked to, or opens for some operators; each after those that it
/// needs itself.
const CUDA: [CudaLibrary; 8] = [
    cuda13("libcudart.so.13", "nvidia-cuda-runtime"),
    cuda13("libcublasLt.so.13", "nvidia-cublas"),
    cuda13("libcublas.so.13", "nvidia-cublas"),
    cuda13("libnvJitLink.so.13", "nvidia-nvjitlink"),
    cuda13("libnvrtc.so.13", "nvidia-cuda-nvrtc"),
    cuda13("libcurand.so.10", "nvidia-curand"),
    cuda13("libcufft.so.12", "nvidia-cufft"),
    CudaLibrary { name: "libcudnn.so.9", package: "nvidia-cudnn-cu13", folder: "nvidia/cudnn/lib" },
];

/// What the TensorRT provider needs beside [`CUDA`].
const TENSORRT: [CudaLibrary; 2] = [
    CudaLibrary { name: "libnvinfer.so.10", package: "tensorrt-cu13-libs", folder: "tensorrt_libs" },
    CudaLibrary { name: "libnvonnxparser.so.10", package: "tensorrt-cu13-libs", folder: "tensorrt_libs" },
];

/// The libraries that a provider needs, each after those that it needs itself.
pub fn needed_libraries(provider: Provider) -> Vec<CudaLibrary> {
    match provider {
        Provider::Cpu => Vec::new(),
        Provider::Cuda => CUDA.to_vec(),
        Provider::TensorRt => [&CUDA[..], &TENSORRT[..]].concat(),
    }
}

/// Loads the libraries of a provider, from where the linker looks or from Python packages beside the runtime or in
/// an active environment, so that the runtime finds them loaded; returns those that are nowhere.
pub fn missing_libraries(provider: Provider, runtime: &Path) -> Vec<CudaLibrary> {
    let roots = package_folders(runtime);
    let is_missing = |library: &CudaLibrary| {
        let beside = roots.iter().map(|root| root.join(library.folder).join(library.name));
        let mut places = std::iter::once(PathBuf::from(library.name)).chain(beside);
        !places.any(|place| load(&place).is_ok())
    };
    needed_libraries(provider).into_iter().filter(is_missing).collect()
}

/// Folders of Python packages: that of the runtime's own wheel, and those of active environments.
fn package_folders(runtime: &Path) -> Vec<PathBuf> {
    let runtime = runtime.canonicalize().unwrap_or_else(|_| runtime.to_owned());
    // <packages>/onnxruntime/capi/libonnxruntime.so
    let mut folders: Vec<PathBuf> = runtime.ancestors().nth(3).map(Path::to_owned).into_iter().collect();
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"].iter().filter_map(env::var_os) {
        folders.extend(super::library::site_packages(Path::new(&root)));
    }
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_library_has_a_pinned_package() {
        for library in CUDA.iter().chain(&TENSORRT) {
            assert!(library.requirement().starts_with(library.package), "{}", library.name);
        }
        assert!(missing_libraries(Provider::Cpu, Path::new("libonnxruntime.so")).is_empty());
    }

    #[test]
    fn libraries_are_found_in_the_packages_beside_the_runtime() {
        let packages = tempfile::tempdir().unwrap();
        let runtime = packages.path().join("onnxruntime/capi/libonnxruntime.so.1.31.1");
        std::fs::create_dir_all(runtime.parent().unwrap()).unwrap();
        std::fs::write(&runtime, "").unwrap();
        // a name that no machine has a library of
        let folder = packages.path().join("tensorrt_libs");
        std::fs::create_dir_all(&folder).unwrap();
        let status = std::process::Command::new("cc")
            .args(["-shared", "-x", "c", "/dev/null", "-o"])
            .arg(folder.join("libnvonnxparser.so.10"))
            .status()
            .unwrap();
        assert!(status.success());
        let missing = missing_libraries(Provider::TensorRt, &runtime);
        assert!(missing.iter().any(|library| library.name == "libnvinfer.so.10"));
        assert!(missing.iter().all(|library| library.name != "libnvonnxparser.so.10"));
    }
}
