//! What the settings ask for in, the processors and GPUs that sessions are opened on out.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Mutex;

use ort::ep::{self, ExecutionProvider};
use serde::{Deserialize, Serialize};

use super::cuda::{CudaLibrary, missing_libraries};
use super::driver::{Driver, DriverError};
use super::pins::pin;
use super::{library, session};
use crate::error::Error;

/// Where graphs run. A GPU that is asked for and not there is an error, never a silent run on the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// Every CUDA GPU if they can be used, else the processor.
    #[default]
    Auto,
    Cpu,
    /// The processor as so many devices with a share of its threads each: a rehearsal of several GPUs.
    Cpus(u8),
    Cuda(Gpus),
    TensorRt(Gpus),
}

/// Which GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gpus {
    All,
    Numbered(GpuSet),
}

/// A set of GPU numbers from 0 to 63.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GpuSet(u64);

impl GpuSet {
    pub fn one(number: u32) -> GpuSet {
        assert!(number < 64, "GPU numbers go to 63");
        GpuSet(1 << number)
    }

    /// Ascending.
    pub fn numbers(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |number| self.0 >> number & 1 == 1)
    }
}

/// What runs the nodes of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provider {
    Cpu,
    Cuda,
    TensorRt,
}

impl Provider {
    pub const ALL: [Provider; 3] = [Provider::Cpu, Provider::Cuda, Provider::TensorRt];

    /// The runtime's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Provider::Cpu => "CPUExecutionProvider",
            Provider::Cuda => "CUDAExecutionProvider",
            Provider::TensorRt => "TensorrtExecutionProvider",
        }
    }

    /// Whether the loaded runtime was built with it.
    pub fn is_compiled_in(self) -> bool {
        match self {
            Provider::Cpu => true,
            Provider::Cuda => ep::CUDA::is_available().unwrap_or(false),
            Provider::TensorRt => ep::TensorRT::is_available().unwrap_or(false),
        }
    }
}

/// One processor or GPU that sessions are opened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub provider: Provider,
    /// Of the GPU, or of the share of the processor.
    pub number: u32,
}

impl Place {
    pub const CPU: Place = Place { provider: Provider::Cpu, number: 0 };

    pub fn is_gpu(self) -> bool {
        self.provider != Provider::Cpu
    }
}

/// Why a device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error("the ONNX Runtime library `{library}` was built without {}", provider.name())]
    ProviderMissing { provider: Provider, library: PathBuf },
    #[error(transparent)]
    Driver(#[from] DriverError),
    #[error("the NVIDIA driver shows no GPU")]
    NoGpu,
    #[error("there is no GPU {number}; the driver shows {n_gpus}, numbered from 0")]
    NoSuchGpu { number: u32, n_gpus: u32 },
    #[error("{} needs {}, which cannot be loaded", provider.name(), library_names(libraries))]
    LibrariesMissing { provider: Provider, libraries: Vec<CudaLibrary> },
    #[error("no session can be opened on it")]
    Session(#[source] ort::Error),
    #[error("a graph failed on it")]
    Run(#[source] ort::Error),
}

/// For a message.
pub fn library_names(libraries: &[CudaLibrary]) -> String {
    libraries.iter().map(|library| library.name).collect::<Vec<_>>().join(", ")
}

impl DeviceError {
    /// What the user can do about it.
    pub fn hint(&self) -> String {
        match self {
            DeviceError::ProviderMissing { .. } => format!(
                "`superbatch setup --cuda` fetches the build with CUDA, or: pip install {}",
                pin("onnxruntime-gpu").requirement
            ),
            DeviceError::Driver(_) | DeviceError::NoGpu => {
                "install NVIDIA's driver, 580 or later, and check it with `nvidia-smi`; or set `device = \"cpu\"`"
                    .to_owned()
            }
            DeviceError::NoSuchGpu { .. } => "`superbatch doctor` lists the GPUs".to_owned(),
            DeviceError::LibrariesMissing { libraries, .. } => {
                format!("`superbatch setup --cuda` fetches them, or: pip install {}", requirements(libraries))
            }
            DeviceError::Run(source) if session::is_out_of_memory(source) => {
                "free the device's memory, put less on it (`divide.fit_samples_per_cluster`, `super_batch_size`), or leave \
                 the step to the processor (its `device = \"cpu\"`)"
                    .to_owned()
            }
            DeviceError::Session(_) | DeviceError::Run(_) => {
                "`superbatch doctor` shows driver and libraries".to_owned()
            }
        }
    }
}

/// The packages that have these libraries, each once.
pub fn requirements(libraries: &[CudaLibrary]) -> String {
    let mut requirements: Vec<&str> = libraries.iter().map(CudaLibrary::requirement).collect();
    requirements.dedup();
    requirements.join(" ")
}

impl Device {
    /// The processors and GPUs that this stands for on this machine, after a trivial session on each GPU.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for a GPU that is asked for and cannot be used; those of [`library::load`].
    pub fn places(self) -> Result<Vec<Place>, Error> {
        library::load()?;
        let fault = |source| Error::Device { device: self.to_string(), source: Box::new(source) };
        let usable = |places: Vec<Place>| match places.iter().find_map(|&place| probe_once(place).err()) {
            Some(error) => Err(DeviceError::Session(error)),
            None => Ok(places),
        };
        if self == Device::Auto {
            let offer = Offer::of_machine(Provider::Cuda)?;
            return Ok(match offer.places(Gpus::All).and_then(usable) {
                Ok(places) => places,
                Err(error) => {
                    // a GPU that lies idle is worth a warning, a machine without one is not
                    if offer.driver.as_ref().is_ok_and(|driver| !driver.gpus.is_empty()) {
                        tracing::warn!(%error, hint = error.hint(), "no GPU can be used: running on the processor");
                    }
                    vec![Place::CPU]
                }
            });
        }
        let (provider, gpus) = match self {
            Device::Cpus(n) => {
                let place = |number| Place { provider: Provider::Cpu, number };
                return Ok((0..u32::from(n)).map(place).collect());
            }
            Device::Auto | Device::Cpu => return Ok(vec![Place::CPU]),
            Device::Cuda(gpus) => (Provider::Cuda, gpus),
            Device::TensorRt(gpus) => (Provider::TensorRt, gpus),
        };
        Offer::of_machine(provider)?.places(gpus).and_then(usable).map_err(fault)
    }
}

/// Opens a trivial session, unless one could be opened there before.
fn probe_once(place: Place) -> ort::Result<()> {
    static PROBED: Mutex<BTreeSet<Place>> = Mutex::new(BTreeSet::new());
    let mut probed = PROBED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !probed.contains(&place) {
        session::probe(place)?;
        probed.insert(place);
    }
    Ok(())
}

/// What of a machine decides whether a GPU provider can be used.
struct Offer {
    provider: Provider,
    is_compiled_in: bool,
    library: PathBuf,
    driver: Result<Driver, DriverError>,
    missing: Vec<CudaLibrary>,
}

impl Offer {
    fn of_machine(provider: Provider) -> Result<Offer, Error> {
        let library = library::library()?;
        let (is_compiled_in, driver) = (provider.is_compiled_in(), Driver::find());
        let can_load = is_compiled_in && driver.is_ok();
        let missing = if can_load { missing_libraries(provider, &library) } else { Vec::new() };
        Ok(Offer { provider, is_compiled_in, library, driver, missing })
    }

    /// Where sessions can be opened, or the first thing that is in the way.
    fn places(&self, gpus: Gpus) -> Result<Vec<Place>, DeviceError> {
        let provider = self.provider;
        if !self.is_compiled_in {
            return Err(DeviceError::ProviderMissing { provider, library: self.library.clone() });
        }
        let n_gpus = self.driver.as_ref().map_err(|error| error.clone())?.gpus.len() as u32;
        if n_gpus == 0 {
            return Err(DeviceError::NoGpu);
        }
        let numbers: Vec<u32> = match gpus {
            Gpus::All => (0..n_gpus).collect(),
            Gpus::Numbered(set) => set.numbers().collect(),
        };
        if let Some(&number) = numbers.iter().find(|&&number| number >= n_gpus) {
            return Err(DeviceError::NoSuchGpu { number, n_gpus });
        }
        if !self.missing.is_empty() {
            return Err(DeviceError::LibrariesMissing { provider, libraries: self.missing.clone() });
        }
        Ok(numbers.into_iter().map(|number| Place { provider, number }).collect())
    }
}

/// A text that names no device.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a device is `auto`, `cpu`, `cpu:2`, `cuda`, `cuda:0`, `cuda:0,3`, `tensorrt` or `tensorrt:0`, not `{0}`"
)]
pub struct UnknownDevice(String);

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Device, UnknownDevice> {
        let unknown = || UnknownDevice(text.to_owned());
        let gpus = |numbers: Option<&str>| match numbers {
            None => Ok(Gpus::All),
            Some(numbers) => gpu_set(numbers).map(Gpus::Numbered).ok_or_else(unknown),
        };
        match text.split_once(':').map_or((text, None), |(name, numbers)| (name, Some(numbers))) {
            ("auto", None) => Ok(Device::Auto),
            ("cpu", None | Some("1")) => Ok(Device::Cpu),
            ("cpu", Some(n)) => match n.parse() {
                Ok(n) if n > 0 => Ok(Device::Cpus(n)),
                _ => Err(unknown()),
            },
            ("cuda", numbers) => gpus(numbers).map(Device::Cuda),
            ("tensorrt", numbers) => gpus(numbers).map(Device::TensorRt),
            _ => Err(unknown()),
        }
    }
}

/// `0,3`; a number that comes twice is a slip.
fn gpu_set(text: &str) -> Option<GpuSet> {
    let mut set = 0;
    for number in text.split(',') {
        let bit = 1u64.checked_shl(number.parse().ok()?)?;
        if set & bit != 0 {
            return None;
        }
        set |= bit;
    }
    Some(GpuSet(set))
}

impl fmt::Display for Gpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gpus::Numbered(set) = self else { return Ok(()) };
        for (position, number) in set.numbers().enumerate() {
            write!(f, "{}{number}", if position == 0 { ":" } else { "," })?;
        }
        Ok(())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cpus(n) => write!(f, "cpu:{n}"),
            Device::Cuda(gpus) => write!(f, "cuda{gpus}"),
            Device::TensorRt(gpus) => write!(f, "tensorrt{gpus}"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.provider {
            Provider::Cpu => f.write_str("cpu"),
            Provider::Cuda => write!(f, "cuda:{}", self.number),
            Provider::TensorRt => write!(f, "tensorrt:{}", self.number),
        }
    }
}

impl TryFrom<String> for Device {
    type Error = UnknownDevice;

    fn try_from(text: String) -> Result<Device, UnknownDevice> {
        text.parse()
    }
}

impl From<Device> for String {
    fn from(device: Device) -> String {
        device.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::driver::Gpu;

    #[test]
    fn devices_are_named() {
        for text in ["auto", "cpu", "cpu:2", "cuda", "cuda:3", "cuda:0,3", "tensorrt", "tensorrt:0,63"] {
            assert_eq!(text.parse::<Device>().unwrap().to_string(), text);
        }
        assert_eq!("cuda:3,0".parse::<Device>().unwrap().to_string(), "cuda:0,3");
        assert_eq!("cpu:1".parse(), Ok(Device::Cpu));
        for bad in
            ["gpu", "auto:1", "cpu:0", "cpu:256", "cuda:", "cuda:-1", "cuda:64", "cuda:1,1", "tensorrt:x", ""]
        {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }

    #[test]
    fn two_processor_devices_are_two_places() {
        assert_eq!(Device::Cpus(2).places().unwrap().len(), 2);
        assert_eq!(Device::Cpu.places().unwrap(), [Place::CPU]);
    }

    fn offer(n_gpus: usize) -> Offer {
        let gpu = |number| Gpu { name: format!("GPU {number}"), memory_bytes: 80 << 30 };
        Offer {
            provider: Provider::Cuda,
            is_compiled_in: true,
            library: PathBuf::from("libonnxruntime.so"),
            driver: Ok(Driver { cuda_version: (13, 0), gpus: (0..n_gpus).map(gpu).collect() }),
            missing: Vec::new(),
        }
    }

    #[test]
    fn every_gpu_or_those_that_are_named() {
        let place = |number| Place { provider: Provider::Cuda, number };
        assert_eq!(offer(3).places(Gpus::All).unwrap(), [place(0), place(1), place(2)]);
        let named = Gpus::Numbered(gpu_set("2,0").unwrap());
        assert_eq!(offer(3).places(named).unwrap(), [place(0), place(2)]);
        assert_eq!(place(2).to_string(), "cuda:2");
    }

    #[test]
    fn what_is_in_the_way_is_said_with_what_to_install() {
        let all = |offer: Offer| offer.places(Gpus::All).unwrap_err();
        let built_without = all(Offer { is_compiled_in: false, ..offer(1) });
        assert!(built_without.to_string().contains("without CUDAExecutionProvider"));
        assert!(built_without.hint().contains(pin("onnxruntime-gpu").requirement));
        let no_driver = all(Offer { driver: Err(DriverError::Missing("libcuda".to_owned())), ..offer(1) });
        assert!(no_driver.to_string().contains("no NVIDIA driver"));
        assert!(no_driver.hint().contains("nvidia-smi"));
        assert!(matches!(all(offer(0)), DeviceError::NoGpu));
        let third = offer(2).places(Gpus::Numbered(GpuSet::one(2))).unwrap_err();
        assert_eq!(third.to_string(), "there is no GPU 2; the driver shows 2, numbered from 0");
        let missing = missing_libraries(Provider::TensorRt, std::path::Path::new("/no/runtime.so"));
        let without: Vec<_> =
            missing.into_iter().filter(|library| library.name.contains("nvinfer")).collect();
        let error = all(Offer { provider: Provider::TensorRt, missing: without, ..offer(1) });
        assert!(error.hint().contains(pin("tensorrt-cu13-libs").requirement), "{}", error.hint());
    }
}
