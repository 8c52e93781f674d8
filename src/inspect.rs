//! A tar, a Parquet file or a run folder in, what it holds out.
use crate::error::Error;
use std::path::Path;
/// What was found.
pub struct Shown(String);
impl Shown {
    pub fn json(&self) -> String {
        self.0.clone()
    }
    pub fn text(&self) -> String {
        self.0.clone()
    }
}
pub fn inspect(path: &Path, _key: Option<&str>) -> Result<Shown, Error> {
    Err(Error::NothingToShow { path: path.to_owned() })
}
