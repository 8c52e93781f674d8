//! The driver, the runtime and the libraries of CUDA in; which GPUs there are, and what is in their way, out.

use std::fs;

use crate::error::Error;
use crate::numbers::bytes;
use crate::runtime::{Driver, Provider, library, library_names, missing_libraries, pin, requirements};

use super::Findings;

/// Says which GPUs the driver shows and whether the runtime can use them; the runtime must have been loaded.
pub fn examine(findings: &mut Findings) -> Result<(), Error> {
    let driver = match Driver::find() {
        Ok(driver) => driver,
        Err(error) => {
            findings.say("GPUs", error.to_string());
            return Ok(());
        }
    };
    let version = fs::read_to_string("/proc/driver/nvidia/version").ok();
    let version = version.as_deref().and_then(driver_version).unwrap_or("of unknown version");
    let (major, minor) = driver.cuda_version;
    findings.say("GPUs", format!("NVIDIA driver {version}, for CUDA up to {major}.{minor}"));
    for (number, gpu) in driver.gpus.iter().enumerate() {
        findings.say("", format!("cuda:{number}  {}, {}", gpu.name, bytes(gpu.memory_bytes)));
    }
    if driver.gpus.is_empty() {
        findings.say("", "it shows none");
        return Ok(());
    }
    if !Provider::Cuda.is_compiled_in() {
        findings.say(
            "",
            format!("the runtime was built without CUDA\n{}", advice(pin("onnxruntime-gpu").requirement)),
        );
        return Ok(());
    }
    let runtime = library::library()?;
    for provider in [Provider::Cuda, Provider::TensorRt] {
        let missing = missing_libraries(provider, &runtime);
        let said = match missing.is_empty() {
            true => "has all its libraries".to_owned(),
            false => format!("lacks {}\n{}", library_names(&missing), advice(&requirements(&missing))),
        };
        findings.say("", format!("{} {said}", provider.name()));
    }
    Ok(())
}

fn advice(requirements: &str) -> String {
    format!("`superbatch setup --cuda`, or: pip install {requirements}")
}

/// The first number with dots in the first line of what the kernel says of the driver.
fn driver_version(text: &str) -> Option<&str> {
    let first = text.lines().next()?;
    first.split_whitespace().find(|word| {
        word.contains('.')
            && word.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_names_the_driver() {
        let text = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs@builder)\n\
                    GCC version:  gcc version 12.2.0\n";
        assert_eq!(driver_version(text), Some("580.95.05"));
        assert_eq!(driver_version("nothing known"), None);
    }
}
