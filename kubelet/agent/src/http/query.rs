//! The query of a request, read as options.
//!
//! The API server's names (`stdin`, `stdout`, `stderr`) and the kubelet's
//! (`input`, `output`, `error`) mean the same.

use percent_encoding::percent_decode_str;
use rkube_stream::node::{AttachRequest, ExecRequest, LogRequest, PodRef, Refused, Streams};

/// Most arguments of a command; the kernel's limit is one of bytes.
const MAX_ARGUMENTS: usize = 4096;

/// Decoded pairs, in order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=b&c=d`; `+` is a space (application/x-www-form-urlencoded).
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let decode = |part: &str| {
            let spaced = part.replace('+', " ");
            percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// All values of a name.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let of = move |(n, v): &'a (String, String)| (n == name).then_some(v.as_str());
        self.0.iter().filter_map(of)
    }

    /// The first value of a name, if it is not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(n, v)| n == name && !v.is_empty())
            .map(|(_, v)| v.as_str())
    }

    /// A switch: given, and neither `false` nor `0`.
    #[must_use]
    pub fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some_and(|v| !matches!(v, "false" | "0"))
    }

    fn number(&self, name: &str, least: i64) -> Result<Option<i64>, Refused> {
        let Some(text) = self.get(name) else {
            return Ok(None);
        };
        match text.parse::<i64>() {
            Ok(number) if number >= least => Ok(Some(number)),
            _ => Err(Refused {
                code: 422,
                reason: "Invalid",
                message: format!("{name}: Invalid value: {text:?}: must be at least {least}"),
            }),
        }
    }

    fn streams(&self) -> Result<Streams, Refused> {
        let tty = self.is_set("tty");
        let streams = Streams {
            stdin: self.is_set("stdin") || self.is_set("input"),
            stdout: self.is_set("stdout") || self.is_set("output"),
            stderr: (self.is_set("stderr") || self.is_set("error")) && !tty,
            tty,
        };
        if !(streams.stdin || streams.stdout || streams.stderr) {
            return Err(Refused::bad_request(
                "you must specify at least 1 of stdin, stdout, stderr",
            ));
        }
        Ok(streams)
    }

    /// An exec.
    ///
    /// # Errors
    /// No command, or no stream.
    pub fn exec(&self, pod: PodRef, container: &str) -> Result<ExecRequest, Refused> {
        let command: Vec<String> = self.all("command").map(str::to_owned).collect();
        if command.is_empty() || command.len() > MAX_ARGUMENTS {
            return Err(Refused::bad_request(format!(
                "a command of 1 to {MAX_ARGUMENTS} arguments must be given, not of {}",
                command.len()
            )));
        }
        Ok(ExecRequest {
            pod,
            container: container.to_owned(),
            command,
            streams: self.streams()?,
        })
    }

    /// An attach.
    ///
    /// # Errors
    /// No stream.
    pub fn attach(&self, pod: PodRef, container: &str) -> Result<AttachRequest, Refused> {
        Ok(AttachRequest {
            pod,
            container: container.to_owned(),
            streams: self.streams()?,
        })
    }

    /// A log.
    ///
    /// # Errors
    /// A number that is none, or both times.
    pub fn logs(&self, pod: PodRef, container: &str) -> Result<LogRequest, Refused> {
        let since_time = self.get("sinceTime").map(str::to_owned);
        let since_seconds = self.number("sinceSeconds", 1)?;
        if since_time.is_some() && since_seconds.is_some() {
            return Err(Refused {
                code: 422,
                reason: "Invalid",
                message: "at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned(),
            });
        }
        Ok(LogRequest {
            pod,
            container: container.to_owned(),
            follow: self.is_set("follow"),
            previous: self.is_set("previous"),
            since_seconds,
            since_time,
            timestamps: self.is_set("timestamps"),
            tail_lines: self.number("tailLines", 0)?,
            limit_bytes: self.number("limitBytes", 1)?,
            stream: self.get("stream").map(str::to_owned),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodRef {
        super::super::pod_ref("n", "p", None)
    }

    #[test]
    fn commands_and_streams() {
        let query =
            Query::parse("command=sh&command=-c&command=echo+a%26b&stdin=true&stdout=1&tty=false");
        let exec = query.exec(pod(), "c").unwrap();
        assert_eq!(exec.command, ["sh", "-c", "echo a&b"]);
        assert_eq!(
            exec.streams,
            Streams {
                stdin: true,
                stdout: true,
                ..Streams::default()
            }
        );
        let kubelet = Query::parse("command=a&output=1&error=1&tty=1");
        let streams = kubelet.exec(pod(), "c").unwrap().streams;
        assert!(streams.tty && streams.stdout && !streams.stderr);
        assert!(Query::parse("stdin=1").exec(pod(), "c").is_err());
        assert!(Query::parse("command=a").exec(pod(), "c").is_err());
    }

    #[test]
    fn log_options() {
        let query = Query::parse("follow=true&tailLines=0&limitBytes=5&timestamps=true");
        let logs = query.logs(pod(), "c").unwrap();
        assert!(logs.follow && logs.timestamps && !logs.previous);
        assert_eq!((logs.tail_lines, logs.limit_bytes), (Some(0), Some(5)));
        for wrong in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=x",
            "sinceSeconds=1&sinceTime=y",
        ] {
            assert_eq!(
                Query::parse(wrong).logs(pod(), "c").unwrap_err().code,
                422,
                "{wrong}"
            );
        }
    }
}
