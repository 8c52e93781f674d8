//! A place and the nodes that ran on it in, what numbers from there depend on out.

use std::collections::BTreeMap;

use super::assignment::NodeCounts;
use super::device::Place;
use super::driver::Driver;
use super::library;

/// What the results of graphs depend on beside the graphs and their inputs: runtime, provider, how many nodes each
/// provider took, instruction set, GPU. The runtime's library must have been [loaded](library::load).
pub fn numerics(place: Place, nodes: &NodeCounts) -> BTreeMap<String, String> {
    let entries = [
        ("runtime", library::build_info()),
        ("provider", place.provider.name()),
        ("nodes", &nodes.to_string()),
        ("instruction_set", instruction_set()),
    ];
    let mut numerics: BTreeMap<String, String> =
        entries.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
    if let (true, Ok(driver)) = (place.is_gpu(), Driver::find())
        && let Some(gpu) = driver.gpus.get(place.number as usize)
    {
        numerics.insert("gpu".to_owned(), gpu.name.clone());
    }
    numerics
}

fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return "avx512";
        }
        if is_x86_feature_detected!("avx2") {
            return "avx2";
        }
    }
    std::env::consts::ARCH
}
