//! The sizes beyond which a sample is rejected, checked before anything is allocated.

use serde::{Deserialize, Serialize};

/// Limits of the `read` table. They are part of what a rejection is a function of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of one member; default 64 MiB.
    pub member_bytes_max: u64,
    /// Width times height of an image; default 89,478,485, where Pillow begins to warn of a decompression
    /// bomb. It is 256 MiB of RGB; Pillow's own error comes at twice that, which would be half a GiB for each
    /// decoding thread.
    pub image_pixels_max: u64,
    /// Bytes of a JSON member; default 1 MiB.
    pub json_bytes_max: u64,
    /// Bytes of a caption; default 64 KiB.
    pub caption_bytes_max: u64,
    /// Members under one key; default 64.
    pub members_per_sample_max: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            member_bytes_max: 64 << 20,
            image_pixels_max: 89_478_485,
            json_bytes_max: 1 << 20,
            caption_bytes_max: 64 << 10,
            members_per_sample_max: 64,
        }
    }
}
