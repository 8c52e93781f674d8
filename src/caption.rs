//! When two captions are the same: what near-duplicates are told by.

/// A 128-bit hash of the caption in lower case, trimmed, with every run of white space as one space.
pub fn normalised_hash(caption: &str) -> u128 {
    let words: Vec<String> = caption.split_whitespace().map(str::to_lowercase).collect();
    let hash = blake3::hash(words.join(" ").as_bytes());
    u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("a hash has 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_white_space_do_not_count() {
        assert_eq!(normalised_hash("  A red\n Ball"), normalised_hash("a red ball"));
        assert_ne!(normalised_hash("a redball"), normalised_hash("a red ball"));
    }
}
