//! Arguments: sizes, durations, options.

use std::time::Duration;

use crate::error::ToolError;

/// A size in bytes: a whole number with an optional suffix, `k`/`Ki` (1024),
/// `M`/`Mi`, `G`/`Gi`; `None` if malformed or above 2^64 - 1.
#[must_use]
pub fn size(text: &str) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let shift = match suffix {
        "" | "B" => 0,
        "k" | "K" | "Ki" => 10,
        "M" | "Mi" => 20,
        "G" | "Gi" => 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A time in seconds with an optional fraction (`0.25`); `inf` is `Ok(None)`.
///
/// # Errors
/// [`ToolError::Usage`] for anything else, negative numbers included.
pub fn seconds(text: &str) -> Result<Option<Duration>, ToolError> {
    if text == "inf" || text == "infinity" {
        return Ok(None);
    }
    text.parse::<f64>()
        .ok()
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .map(Some)
        .ok_or_else(|| ToolError::Usage(format!("{text:?} is no number of seconds")))
}

/// A whole number.
///
/// # Errors
/// [`ToolError::Usage`] if it is none or does not fit `T`.
pub fn number<T: std::str::FromStr>(text: &str) -> Result<T, ToolError> {
    text.parse()
        .map_err(|_| ToolError::Usage(format!("{text:?} is no number in range")))
}

/// Arguments split into options with values, flags, and the rest.
#[derive(Debug)]
pub struct Options<'a> {
    values: Vec<(&'a str, &'a str)>,
    flags: Vec<&'a str>,
    /// What is neither an option nor an option's value.
    pub rest: Vec<&'a str>,
}

impl<'a> Options<'a> {
    /// Splits `args`; names in `with_value` take the next argument, names in
    /// `flags` stand alone; `--` and the first other argument end the options.
    ///
    /// # Errors
    /// [`ToolError::Usage`] for an unknown option or a missing value.
    pub fn new(args: &'a [String], with_value: &[&str], flags: &[&str]) -> Result<Self, ToolError> {
        let mut options = Self {
            values: Vec::new(),
            flags: Vec::new(),
            rest: Vec::new(),
        };
        let mut args = args.iter().map(String::as_str);
        while let Some(arg) = args.next() {
            if with_value.contains(&arg) {
                let value = args
                    .next()
                    .ok_or_else(|| ToolError::Usage(format!("{arg} needs a value")))?;
                options.values.push((arg, value));
            } else if flags.contains(&arg) {
                options.flags.push(arg);
            } else if arg == "--" {
                options.rest.extend(args.by_ref());
            } else if arg.starts_with("--") {
                return Err(ToolError::Usage(format!("unknown option {arg}")));
            } else {
                options.rest.push(arg);
            }
        }
        Ok(options)
    }

    /// The last value given for `name`.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&'a str> {
        let given = self.values.iter().rev().find(|(option, _)| *option == name);
        given.map(|(_, value)| *value)
    }

    /// The value of `name` as a number, or `default`.
    ///
    /// # Errors
    /// [`ToolError::Usage`] if the value is no number in range.
    pub fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, ToolError> {
        self.value(name).map_or(Ok(default), number)
    }

    /// The value of `name` in seconds, or `default`; `None` is "for ever".
    ///
    /// # Errors
    /// [`ToolError::Usage`] if the value is no time.
    pub fn seconds(
        &self,
        name: &str,
        default: Option<Duration>,
    ) -> Result<Option<Duration>, ToolError> {
        self.value(name).map_or(Ok(default), seconds)
    }

    /// Whether the flag `name` was given.
    #[must_use]
    pub fn flag(&self, name: &str) -> bool {
        self.flags.contains(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("64Mi"), Some(64 << 20));
        assert_eq!(size("1k"), Some(1024));
        assert_eq!(size("2G"), Some(2 << 30));
        for wrong in [
            "",
            "Mi",
            "-1",
            "1.5M",
            "1T",
            "1 M",
            "99999999999999999999",
            "17179869184Gi",
        ] {
            assert_eq!(size(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(seconds("0.25").unwrap(), Some(Duration::from_millis(250)));
        assert_eq!(seconds("inf").unwrap(), None);
        for wrong in ["", "-1", "NaN", "1s", "1e300"] {
            assert!(seconds(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn options_end_where_they_should() {
        let args: Vec<String> = ["-p", "80", "--all", "x", "--", "--all"]
            .map(str::to_owned)
            .to_vec();
        let options = Options::new(&args, &["-p"], &["--all"]).unwrap();
        assert_eq!(options.number::<u16>("-p", 1).unwrap(), 80);
        assert!(options.flag("--all"));
        assert_eq!(options.rest, ["x", "--all"]);
        assert!(Options::new(&args, &[], &["--all", "-p"]).is_ok());
        assert!(Options::new(&args, &["-p"], &[]).is_err());
        assert!(Options::new(&args[..1], &["-p"], &[]).is_err());
    }
}
