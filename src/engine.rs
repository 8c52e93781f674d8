//! A stage's `device` in, what does its algebra there out: this program's own kernels, or graphs on a GPU.

use std::collections::BTreeMap;

use crate::algebra::{Algebra, PairSum};
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

    /// Where it is and what nearest centroids from it depend on, for markers: see [`Algebra::numerics_of_nearest`].
    pub fn numerics_of_nearest(
        &self,
        rows_at_once: Option<usize>,
    ) -> Result<BTreeMap<String, String>, Error> {
        self.numerics_by(|algebra| algebra.numerics_of_nearest(rows_at_once))
    }

    /// Where it is and what sums over pairs from it depend on, for markers.
    pub fn numerics_of_pair_sums(&self, sum: PairSum) -> Result<BTreeMap<String, String>, Error> {
        self.numerics_by(|algebra| algebra.numerics_of_pair_sums(sum))
    }

    fn numerics_by(
        &self,
        of_device: impl FnOnce(&Algebra) -> Result<BTreeMap<String, String>, Error>,
    ) -> Result<BTreeMap<String, String>, Error> {
        let (device, mut numerics) = match self {
            Engine::Kernels => (Device::Cpu.to_string(), BTreeMap::new()),
            Engine::Device(algebra) => (algebra.place().to_string(), of_device(algebra)?),
        };
        numerics.insert("device".to_owned(), device);
        Ok(numerics)
    }
}

/// What may differ between two attempts at a task on one machine, one of which ran short of memory.
const OF_AN_ATTEMPT: [&str; 2] = ["nodes", "rows_at_once"];

/// What of a task's numerics its files say: what two attempts on one machine share, since both must write the same bytes.
pub fn numerics_for_files(numerics: &BTreeMap<String, String>) -> BTreeMap<&str, &str> {
    let pairs = numerics.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    pairs.filter(|(key, _)| !OF_AN_ATTEMPT.contains(key)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::Place;

    #[test]
    fn files_do_not_say_what_an_attempt_had_room_for() {
        let engine = Engine::Device(Box::new(Algebra::open(Place::CPU, Products::Exact).unwrap()));
        let [many, few] = [4096, 512].map(|rows| engine.numerics_of_nearest(Some(rows)).unwrap());
        assert_ne!(many, few);
        assert_eq!(numerics_for_files(&many), numerics_for_files(&few));
        let keys: Vec<&str> = numerics_for_files(&many).into_keys().collect();
        assert_eq!(keys, ["device", "instruction_set", "products", "provider", "runtime"]);
    }
}
