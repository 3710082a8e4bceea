//! The log file that callers of a runtime read: one line a message, the last
//! error is what they show.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use rkube_runtime::Error;
use rkube_runtime::lifecycle::time::rfc3339;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// `time=... level=... msg="..."`.
    Text,
    /// A JSON object.
    Json,
}

/// Where messages go.
#[derive(Debug)]
pub(crate) struct Log {
    file: Option<File>,
    format: Format,
}

impl Log {
    /// Opens the log file to append to; without one, warnings go to standard
    /// error.
    ///
    /// # Errors
    /// The file that could not be opened.
    pub(crate) fn open(path: Option<&Path>, format: Format) -> Result<Self, Error> {
        let file = path
            .filter(|p| !p.as_os_str().is_empty())
            .map(|path| {
                File::options()
                    .append(true)
                    .create(true)
                    .open(path)
                    .map_err(|source| Error::File {
                        operation: "open log",
                        path: path.to_owned(),
                        source,
                    })
            })
            .transpose()?;
        Ok(Self { file, format })
    }

    fn line(&mut self, level: &str, message: &str) {
        let time = rfc3339(SystemTime::now());
        let line = match self.format {
            Format::Json => {
                serde_json::json!({"level": level, "msg": message, "time": time}).to_string()
            }
            Format::Text => format!("time=\"{time}\" level={level} msg={message:?}"),
        };
        if let Some(file) = &mut self.file {
            // A full disk must not keep a container from being deleted.
            let _ = writeln!(file, "{line}");
        } else if level != "error" {
            eprintln!("{line}");
        }
    }

    /// What was asked for did not happen. On standard error the caller says
    /// so itself.
    pub(crate) fn error(&mut self, message: &str) {
        self.line("error", message);
    }

    /// Odd, and handled.
    pub(crate) fn warn(&mut self, message: &str) {
        self.line("warning", message);
    }
}
