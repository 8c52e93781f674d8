//! A graph file in, an inference session on a device out.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use ort::ep::{self, ExecutionProvider};
use ort::logging::LogLevel;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use serde::{Deserialize, Serialize};

use super::model::{Model, ModelError};
use super::runtime;
use crate::error::Error;

/// Where graphs run. A GPU that is asked for and not there is an error, never a silent run on the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Device {
    /// The first CUDA GPU if it can be used, else the processor.
    #[default]
    Auto,
    Cpu,
    /// The GPU with this number.
    Cuda(u32),
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// A device that is not `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a device is `auto`, `cpu`, `cuda` or `cuda:0`, not `{0}`")]
pub struct UnknownDevice(String);

impl FromStr for Device {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Device, UnknownDevice> {
        match text {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            _ => match text.strip_prefix("cuda:").map(str::parse) {
                Some(Ok(number)) if number <= i32::MAX as u32 => Ok(Device::Cuda(number)),
                _ => Err(UnknownDevice(text.to_owned())),
            },
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

/// How a graph is run; nothing of this changes what an embedding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionSettings {
    pub device: Device,
    /// Threads inside one operator.
    pub n_threads: usize,
}

/// Loads a graph; says which device it was loaded on.
pub(super) fn open(
    model: &Model,
    graph: &Path,
    settings: &SessionSettings,
) -> Result<(Session, Device), Error> {
    runtime::load()?;
    let on_cpu = || match session(graph, settings.n_threads, None) {
        Ok(session) => Ok((session, Device::Cpu)),
        Err(source) => Err(Error::Model {
            folder: model.folder.clone(),
            source: ModelError::Graph { graph: graph.to_owned(), source },
        }),
    };
    let on_cuda = |number| session(graph, settings.n_threads, Some(number));
    match settings.device {
        Device::Cpu => on_cpu(),
        Device::Cuda(number) => match on_cuda(number) {
            Ok(session) => Ok((session, settings.device)),
            Err(source) => {
                // A graph that no device can load is not the GPU's fault.
                on_cpu()?;
                Err(Error::Device { device: settings.device.to_string(), source })
            }
        },
        Device::Auto if !ep::CUDA::is_available().unwrap_or(false) => on_cpu(),
        Device::Auto => match on_cuda(0) {
            Ok(session) => Ok((session, Device::Cuda(0))),
            Err(error) => {
                tracing::info!(%error, "no GPU can be used, embedding on the processor");
                on_cpu()
            }
        },
    }
}

fn session(graph: &Path, n_threads: usize, cuda: Option<u32>) -> ort::Result<Session> {
    let environment = runtime::load().expect("the library was loaded before");
    // threads beyond the processors must not spin while others work
    let n_processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder: SessionBuilder = Session::builder(&environment)?
        .with_intra_op_spinning(n_threads <= n_processors)?
        .with_log_level(LogLevel::Error)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(n_threads)?
        .with_inter_threads(1)?
        .with_memory_pattern(true)?;
    if let Some(number) = cuda {
        let provider = ep::CUDA::default().with_device_id(number as i32).build().error_on_failure();
        builder = builder.with_execution_providers([provider])?;
    }
    builder.commit_from_file(graph)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        for (text, device) in [("auto", Device::Auto), ("cpu", Device::Cpu), ("cuda:3", Device::Cuda(3))] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for bad in ["gpu", "cuda:", "cuda:-1", "cuda:4294967295", ""] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
    }
}
