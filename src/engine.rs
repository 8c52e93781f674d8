//! A stage's `device` in, what does its algebra there out: this program's own kernels, or graphs on a GPU.

use std::collections::BTreeMap;

use crate::algebra::Algebra;
use crate::error::Error;
use crate::runtime::{Device, Products};

/// Where pairs are added up and the nearest centroids found. The results differ in their last digits, so which one it
/// is belongs to a plan, and no machine chooses it.
pub enum Engine {
    /// The processor's own kernels, which need no runtime.
    Kernels,
    Device(Box<Algebra>),
}

impl Engine {
    /// What the settings ask for, after a trivial session on a GPU. The graphs are opened when they are needed.
    ///
    /// # Errors
    ///
    /// [`Error::Device`] for a GPU that cannot be used.
    pub fn of(device: Device, products: Products) -> Result<Engine, Error> {
        match device {
            Device::Cpu => Ok(Engine::Kernels),
            _ => Ok(Engine::Device(Box::new(Algebra::open(device.places()?[0], products)?))),
        }
    }

    /// Where it is and what its results depend on, for markers.
    pub fn numerics(&self) -> BTreeMap<String, String> {
        let (device, mut numerics) = match self {
            Engine::Kernels => (Device::Cpu.to_string(), BTreeMap::new()),
            Engine::Device(algebra) => (algebra.place().to_string(), algebra.numerics()),
        };
        numerics.insert("device".to_owned(), device);
        numerics
    }
}
