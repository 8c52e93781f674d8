//! Kept samples in, DataComp's subset file out: the uids by which its resharder finds them in its own shards.
//!
//! A uid is 128 bits, written as 32 hexadecimal digits; `subset.npy` holds `[n]` pairs of u64 (`u8,u8` in NumPy's words), the
//! first 16 digits and the last, sorted. A sample that was kept more than once stands in it as often.

use std::io::Write;

use crate::error::Error;
use crate::npy;
use crate::storage::Storage;
use crate::table::Rows;

use super::kept::Kept;
use super::{ExportError, Exported};

const NAME: &str = "subset.npy";

pub fn export(kept: &Kept, storage: &Storage) -> Result<Exported, Error> {
    let mut uids: Vec<(u64, u64)> = Vec::new();
    let mut n_missing = 0;
    kept.visit(
        |column| ["uid", "n_repeats"].contains(&column),
        |batch| {
            let (texts, n_repeats) = (Rows(batch).text("uid"), Rows(batch).u32("n_repeats"));
            for (uid, &n) in texts.iter().zip(n_repeats.values()) {
                match uid.and_then(parse) {
                    Some(uid) => uids.extend(std::iter::repeat_n(uid, n as usize)),
                    None => n_missing += 1,
                }
            }
            Ok(())
        },
    )?;
    if n_missing > 0 {
        return Err(ExportError::UidsMissing { n_missing, n_kept: kept.n_kept }.into());
    }
    uids.sort_unstable();
    let mut file = storage.create(NAME)?;
    let mut write = || {
        npy::write_header(&mut file, "[('f0', '<u8'), ('f1', '<u8')]", &[uids.len() as u64])?;
        for (high, low) in &uids {
            file.write_all(&high.to_le_bytes())?;
            file.write_all(&low.to_le_bytes())?;
        }
        Ok(())
    };
    write().map_err(|source| Error::Write { path: storage.path(NAME), source })?;
    file.commit()?;
    Ok(Exported { n_samples: kept.n_kept, n_rows: uids.len() as u64, n_files: 1 })
}

/// Both halves of a uid of 32 hexadecimal digits.
fn parse(uid: &str) -> Option<(u64, u64)> {
    if uid.len() != 32 || !uid.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let half = |digits| u64::from_str_radix(digits, 16).ok();
    Some((half(&uid[..16])?, half(&uid[16..])?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uids_are_two_halves() {
        assert_eq!(parse("0000000000000001fffffffffffffffE"), Some((1, u64::MAX - 1)));
        for other in
            ["", "1", "+000000000000001ffffffffffffffff", "0000000000000001fffffffffffffffg", &"ü".repeat(16)]
        {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
