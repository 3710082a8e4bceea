//! Small files of the configuration.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// Reads a file of bounded size; `None` if there is none.
pub(crate) fn read(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>> {
    let on = |op, source| Error::File {
        op,
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(on("open", e)),
    };
    let mut out = Vec::new();
    let mut bounded = file.take(limit_bytes.saturating_add(1));
    bounded.read_to_end(&mut out).map_err(|e| on("read", e))?;
    if out.len() as u64 > limit_bytes {
        return Err(Error::Config {
            path: path.to_owned(),
            reason: format!("it has more than {limit_bytes} bytes"),
        });
    }
    Ok(Some(out))
}
