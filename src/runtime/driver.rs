//! NVIDIA's driver: which GPUs it shows to this process. Asked through its own library, so that
//! `CUDA_VISIBLE_DEVICES` and containers count as they do for the runtime.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::path::Path;

/// The driver's library, as the linker finds it.
const LIBRARY: &str = "libcuda.so.1";

/// What the driver offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The newest CUDA that it can run, such as (13, 0).
    pub cuda_version: (u32, u32),
    pub gpus: Vec<Gpu>,
}

/// One GPU; its number is its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpu {
    pub name: String,
    pub memory_bytes: u64,
}

/// Why the driver shows no GPU.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    #[error("there is no NVIDIA driver: {0}")]
    Missing(String),
    #[error("the NVIDIA driver's library has no `{0}`")]
    Symbol(&'static str),
    #[error("the NVIDIA driver's `{call}` failed with CUDA error {code}")]
    Call { call: &'static str, code: i32 },
}

impl Driver {
    /// Asks the driver of this machine.
    pub fn find() -> Result<Driver, DriverError> {
        Driver::of(Path::new(LIBRARY))
    }

    fn of(library: &Path) -> Result<Driver, DriverError> {
        let library = Library::open(library)?;
        // SAFETY: the types are those of cuda.h for these names, which have not changed since CUDA 4
        let (init, version, count, device, name, memory) = unsafe {
            (
                library.symbol::<unsafe extern "C" fn(c_uint) -> c_int>(c"cuInit", "cuInit")?,
                library.symbol::<unsafe extern "C" fn(*mut c_int) -> c_int>(
                    c"cuDriverGetVersion",
                    "cuDriverGetVersion",
                )?,
                library.symbol::<unsafe extern "C" fn(*mut c_int) -> c_int>(
                    c"cuDeviceGetCount",
                    "cuDeviceGetCount",
                )?,
                library.symbol::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>(
                    c"cuDeviceGet",
                    "cuDeviceGet",
                )?,
                library.symbol::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>(
                    c"cuDeviceGetName",
                    "cuDeviceGetName",
                )?,
                library.symbol::<unsafe extern "C" fn(*mut usize, c_int) -> c_int>(
                    c"cuDeviceTotalMem_v2",
                    "cuDeviceTotalMem_v2",
                )?,
            )
        };
        // SAFETY: cuInit comes first; every pointer is to a variable of the type written, the name's with its length
        unsafe {
            check("cuInit", init(0))?;
            let (mut newest, mut n_gpus) = (0, 0);
            check("cuDriverGetVersion", version(&mut newest))?;
            check("cuDeviceGetCount", count(&mut n_gpus))?;
            let mut gpus = Vec::new();
            for number in 0..n_gpus {
                let (mut handle, mut memory_bytes, mut text) = (0, 0usize, [0 as c_char; 256]);
                check("cuDeviceGet", device(&mut handle, number))?;
                check("cuDeviceGetName", name(text.as_mut_ptr(), text.len() as c_int - 1, handle))?;
                check("cuDeviceTotalMem_v2", memory(&mut memory_bytes, handle))?;
                let name = CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned();
                gpus.push(Gpu { name, memory_bytes: memory_bytes as u64 });
            }
            // 1000·major + 10·minor
            Ok(Driver { cuda_version: ((newest / 1000) as u32, (newest % 1000 / 10) as u32), gpus })
        }
    }
}

fn check(call: &'static str, code: c_int) -> Result<(), DriverError> {
    if code == 0 { Ok(()) } else { Err(DriverError::Call { call, code }) }
}

/// A shared library that stays loaded: the runtime uses the same one.
struct Library(*mut c_void);

impl Library {
    fn open(path: &Path) -> Result<Library, DriverError> {
        load(path).map(Library).map_err(DriverError::Missing)
    }

    /// # Safety
    ///
    /// `F` must be the type of the function with this name.
    unsafe fn symbol<F: Copy>(&self, symbol: &CStr, name: &'static str) -> Result<F, DriverError> {
        assert_eq!(size_of::<F>(), size_of::<*mut c_void>());
        // SAFETY: the handle is live and the name ends in NUL
        let address = unsafe { libc::dlsym(self.0, symbol.as_ptr()) };
        if address.is_null() {
            return Err(DriverError::Symbol(name));
        }
        // SAFETY: a function pointer has the size of the address, and the caller answers for its type
        Ok(unsafe { std::mem::transmute_copy(&address) })
    }
}

/// Loads a shared library for the whole process, by path or, without a folder, where the linker looks. It is never
/// unloaded.
pub(super) fn load(path: &Path) -> Result<*mut c_void, String> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // SAFETY: the path ends in NUL; the libraries are the driver's and CUDA's own
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_GLOBAL) };
    if !handle.is_null() {
        return Ok(handle);
    }
    // SAFETY: after a failure the message is a text that ends in NUL, or null
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return Err("no reason given".to_owned());
    }
    // SAFETY: not null, and copied before any other call of this thread
    Err(unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A driver with two GPUs, or one whose `cuInit` fails.
    const STUB: &str = r#"
        #include <stddef.h>
        #include <stdio.h>
        int cuInit(unsigned flags) { return INIT; }
        int cuDriverGetVersion(int *version) { *version = 13010; return 0; }
        int cuDeviceGetCount(int *count) { *count = 2; return 0; }
        int cuDeviceGet(int *device, int number) { *device = 70 + number; return 0; }
        int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "GPU %d", device); return 0; }
        int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1000000000000ull + device; return 0; }
    "#;

    fn stub(folder: &Path, init: &str) -> std::path::PathBuf {
        let (source, library) = (folder.join("cuda.c"), folder.join(format!("libcuda-{init}.so")));
        std::fs::write(&source, STUB.replace("INIT", init)).unwrap();
        // the linker that Rust itself needs
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&library)
            .arg(&source)
            .status()
            .expect("a C compiler");
        assert!(status.success());
        library
    }

    #[test]
    fn the_driver_names_its_gpus() {
        let folder = tempfile::tempdir().unwrap();
        let driver = Driver::of(&stub(folder.path(), "0")).unwrap();
        assert_eq!(driver.cuda_version, (13, 1));
        let gpu =
            |device: u64| Gpu { name: format!("GPU {device}"), memory_bytes: 1_000_000_000_000 + device };
        assert_eq!(driver.gpus, [gpu(70), gpu(71)]);
        // CUDA_ERROR_NO_DEVICE
        let failed = Driver::of(&stub(folder.path(), "100"));
        assert_eq!(failed, Err(DriverError::Call { call: "cuInit", code: 100 }));
    }

    #[test]
    fn no_driver_is_said() {
        let error = Driver::of(Path::new("/no/such/libcuda.so.1")).unwrap_err();
        assert!(error.to_string().contains("/no/such/libcuda.so.1"), "{error}");
    }
}
