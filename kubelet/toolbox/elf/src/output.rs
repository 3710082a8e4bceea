//! Standard output, whose write errors are failures and not panics.

use std::io::{self, Write};

use crate::error::{During, ToolError};

/// Writes `text` to standard output at once.
pub(crate) fn print(text: &str) -> Result<(), ToolError> {
    bytes(text.as_bytes())
}

/// Writes `text` and a newline to standard output with one write.
pub(crate) fn line(text: &str) -> Result<(), ToolError> {
    let mut owned = String::with_capacity(text.len() + 1);
    owned.push_str(text);
    owned.push('\n');
    print(&owned)
}

/// Writes `data` to standard output at once.
pub(crate) fn bytes(data: &[u8]) -> Result<(), ToolError> {
    let mut out = io::stdout().lock();
    out.write_all(data)
        .and_then(|()| out.flush())
        .during(|| "write to standard output".to_owned())
}
