//! The versions of other people's packages that this one works with: one file for builds and for messages.

/// A package of the Python index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pin {
    /// `name==version`, as pip takes it.
    pub requirement: &'static str,
    /// `system-processor=SHA-256` of the library in it, separated by spaces.
    hashes: &'static str,
}

impl Pin {
    /// SHA-256, in hex, of the package's library for a system and a processor, as Rust names them.
    pub fn sha256(&self, os: &str, arch: &str) -> Option<&'static str> {
        let mut hashes = self.hashes.split_ascii_whitespace().filter_map(|hash| hash.split_once('='));
        hashes.find(|(of, _)| *of == format!("{os}-{arch}")).map(|(_, hash)| hash)
    }

    pub fn version(&self) -> &'static str {
        self.requirement.split_once("==").expect("a requirement states a version").1
    }
}

/// The package with this name.
///
/// # Panics
///
/// If `tools/pins` does not have it.
pub fn pin(name: &str) -> Pin {
    let lines = include_str!("../../tools/pins").lines();
    let mut pins = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let (requirement, hashes) = line.split_once(' ').unwrap_or((line, ""));
        Pin { requirement, hashes }
    });
    pins.find(|pin| pin.requirement.split("==").next() == Some(name))
        .unwrap_or_else(|| panic!("tools/pins has no `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_a_version_and_its_library_a_hash() {
        let runtime = pin("onnxruntime");
        assert_eq!(runtime.requirement, format!("onnxruntime=={}", runtime.version()));
        let platforms = [("linux", "x86_64"), ("linux", "aarch64"), ("macos", "aarch64")];
        let hashes = platforms.map(|(os, arch)| runtime.sha256(os, arch));
        assert!(hashes.iter().all(|hash| hash.map(str::len) == Some(64)), "{hashes:?}");
        assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2], "{hashes:?}");
        // the release has none
        assert_eq!((runtime.sha256("macos", "x86_64"), runtime.sha256("linux", "riscv64")), (None, None));
        assert_eq!(pin("cmake").sha256("linux", "x86_64"), None);
        // a name that begins another
        assert!(pin("onnxruntime-gpu").requirement.starts_with("onnxruntime-gpu=="));
    }
}
