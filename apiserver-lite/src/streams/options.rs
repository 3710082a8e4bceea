//! The queries of streaming requests (`PodExecOptions`, `PodLogOptions` and
//! the like).

use rkube_stream::node::{LogRequest, PodRef, Refused, Streams};

/// Most words of a command; Linux' own limit is on their bytes (execve(2)).
const COMMAND_WORDS_MAX: usize = 4096;

/// A decoded query.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

fn decode(text: &str) -> String {
    let spaced = text.replace('+', " ");
    percent_encoding::percent_decode_str(&spaced)
        .decode_utf8_lossy()
        .into_owned()
}

impl Query {
    pub(super) fn parse(query: &str) -> Self {
        let pairs = query.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    pub(super) fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        let pairs = self.0.iter().filter(move |(name, _)| name == key);
        pairs.map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self, key: &str) -> &str {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.map_or("", |(_, value)| value.as_str())
    }

    /// As upstream's query decoding: anything but "false" and "0" is true,
    /// also the bare name.
    fn flag(&self, key: &str) -> bool {
        let found = self.0.iter().find(|(name, _)| name == key);
        found.is_some_and(|(_, value)| value != "false" && value != "0")
    }

    pub(super) fn streams(&self) -> Result<Streams, Refused> {
        let tty = self.flag("tty");
        let streams = Streams {
            stdin: self.flag("stdin"),
            stdout: self.flag("stdout"),
            // A terminal has one stream of output.
            stderr: self.flag("stderr") && !tty,
            tty,
        };
        if streams.stdin || streams.stdout || streams.stderr {
            return Ok(streams);
        }
        Err(Refused::bad_request(
            "you must specify at least 1 of stdin, stdout, stderr",
        ))
    }

    pub(super) fn command(&self) -> Result<Vec<String>, Refused> {
        let words: Vec<String> = self.all("command").map(str::to_owned).collect();
        match words.len() {
            0 => Err(Refused::bad_request(
                "you must specify at least 1 command for the container",
            )),
            1..=COMMAND_WORDS_MAX => Ok(words),
            count => Err(Refused::bad_request(format!(
                "a command of {count} words, at most {COMMAND_WORDS_MAX} are taken"
            ))),
        }
    }

    pub(super) fn log(&self, pod: PodRef, container: String) -> Result<LogRequest, Refused> {
        let number = |key: &str, least: i64| -> Result<Option<i64>, Refused> {
            let text = self.text(key);
            if text.is_empty() {
                return Ok(None);
            }
            match text.parse::<i64>() {
                Ok(value) if value >= least => Ok(Some(value)),
                _ => Err(Refused {
                    code: 422,
                    reason: "Invalid",
                    message: format!(
                        "PodLogOptions \"{}\" is invalid: {key}: Invalid value: {text:?}: must be greater than or equal to {least}",
                        pod.name
                    ),
                }),
            }
        };
        let (since_seconds, tail_lines) = (number("sinceSeconds", 1)?, number("tailLines", 0)?);
        let limit_bytes = number("limitBytes", 1)?;
        let optional = |key: &str| {
            let text = self.text(key);
            (!text.is_empty()).then(|| text.to_owned())
        };
        let since_time = optional("sinceTime");
        if since_time.is_some() && since_seconds.is_some() {
            return Err(Refused::bad_request(
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        }
        Ok(LogRequest {
            container,
            follow: self.flag("follow"),
            previous: self.flag("previous"),
            since_seconds,
            since_time,
            timestamps: self.flag("timestamps"),
            tail_lines,
            limit_bytes,
            stream: optional("stream"),
            pod,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let query = Query::parse(
            "command=sh&command=-c&command=echo+a%26b&stdin=true&stdout=1&stderr=true&tty=false&container=c",
        );
        assert_eq!(query.command().unwrap(), ["sh", "-c", "echo a&b"]);
        assert_eq!(query.text("container"), "c");
        let streams = query.streams().unwrap();
        assert!(streams.stdin && streams.stdout && streams.stderr && !streams.tty);
        let terminal = Query::parse("stdout=true&stderr=true&tty=true")
            .streams()
            .unwrap();
        assert!(terminal.tty && !terminal.stderr);
        assert!(Query::parse("").streams().is_err() && Query::parse("").command().is_err());

        let pod = PodRef {
            namespace: "ns".into(),
            name: "p".into(),
            uid: None,
        };
        let log = |query: &str| Query::parse(query).log(pod.clone(), "c".into());
        let wanted =
            log("follow=true&tailLines=0&limitBytes=5&sinceTime=2020-01-01T00:00:00Z").unwrap();
        assert!(wanted.follow && !wanted.previous);
        assert_eq!((wanted.tail_lines, wanted.limit_bytes), (Some(0), Some(5)));
        for bad in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=x",
            "sinceSeconds=1&sinceTime=x",
        ] {
            assert!(log(bad).is_err(), "{bad}");
        }
    }
}
