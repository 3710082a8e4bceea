//! Lines of several containers on one output: `name | text`, each name in its
//! own colour on a terminal.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Write};

use rkube_kubelet::logs::{Entry, Stream};

/// Foreground colours of ECMA-48 that are readable on light and dark.
const COLOURS: [u8; 6] = [36, 33, 32, 35, 34, 31];

/// Writes entries of logs.
#[derive(Debug)]
pub(super) struct Painter {
    /// Names and their colours; none where no name is shown.
    names: Option<BTreeMap<String, u8>>,
    width: usize,
    colours: bool,
    timestamps: bool,
    /// Whether the last line that was written has no newline yet, and whose
    /// it is.
    open: Option<(String, Stream)>,
}

/// Whether standard output takes colours (<https://no-color.org>).
fn coloured() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

impl Painter {
    /// With `named`, every line begins with its container's name.
    pub(super) fn new(named: bool, timestamps: bool) -> Self {
        Self {
            names: named.then(BTreeMap::new),
            width: 0,
            colours: coloured(),
            timestamps,
            open: None,
        }
    }

    /// Gives a name its colour and its place in the width of all names.
    pub(super) fn learn(&mut self, name: &str) {
        self.width = self.width.max(name.chars().count());
        if let Some(names) = &mut self.names {
            let next = COLOURS[names.len() % COLOURS.len()];
            names.entry(name.to_owned()).or_insert(next);
        }
    }

    /// The bytes of one entry, after those that went before.
    pub(super) fn paint(&mut self, name: &str, entry: &Entry) -> Vec<u8> {
        let mut out = Vec::new();
        let same = self
            .open
            .as_ref()
            .is_some_and(|(n, s)| n == name && *s == entry.stream);
        if self.open.is_some() && !same && self.names.is_some() {
            out.push(b'\n');
        }
        if !same && let Some(names) = &self.names {
            let label = format!("{name:<width$} |", width = self.width);
            match names.get(name).filter(|_| self.colours) {
                Some(colour) => out.extend(format!("\x1b[{colour}m{label}\x1b[0m ").bytes()),
                None => out.extend(format!("{label} ").bytes()),
            }
        }
        // Writing to a vector cannot fail.
        let _ = entry.write_to(&mut out, self.timestamps && !same);
        self.open = (!entry.complete).then(|| (name.to_owned(), entry.stream));
        out
    }

    /// Writes one entry: unnamed lines go where the program wrote them.
    pub(super) fn write(&mut self, name: &str, entry: &Entry) -> std::io::Result<()> {
        let bytes = self.paint(name, entry);
        if entry.stream == Stream::Stderr && self.names.is_none() {
            return std::io::stderr().lock().write_all(&bytes);
        }
        let mut out = std::io::stdout().lock();
        out.write_all(&bytes)?;
        out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(text: &str, stream: Stream, complete: bool) -> Entry {
        let time_text = "2026-01-01T00:00:00Z".to_owned();
        Entry {
            time: std::time::UNIX_EPOCH,
            time_text,
            stream,
            message: text.into(),
            complete,
        }
    }

    fn painted(painter: &mut Painter, name: &str, entry: &Entry) -> String {
        String::from_utf8(painter.paint(name, entry)).unwrap()
    }

    #[test]
    fn names_stand_in_one_column_each_in_its_colour() {
        let mut painter = Painter::new(true, false);
        painter.colours = false;
        painter.learn("a");
        painter.learn("long");
        assert_eq!(
            painted(&mut painter, "a", &entry("x", Stream::Stdout, true)),
            "a    | x\n"
        );
        assert_eq!(
            painted(&mut painter, "long", &entry("y", Stream::Stderr, true)),
            "long | y\n"
        );
        painter.colours = true;
        let (a, b) = (
            entry("x", Stream::Stdout, true),
            entry("y", Stream::Stdout, true),
        );
        assert_eq!(painted(&mut painter, "a", &a), "\x1b[36ma    |\x1b[0m x\n");
        assert_eq!(
            painted(&mut painter, "long", &b),
            "\x1b[33mlong |\x1b[0m y\n"
        );
    }

    #[test]
    fn a_line_without_its_end_is_not_joined_with_another_containers() {
        let mut painter = Painter::new(true, false);
        painter.colours = false;
        assert_eq!(
            painted(&mut painter, "a", &entry("x", Stream::Stdout, false)),
            "a | x"
        );
        assert_eq!(
            painted(&mut painter, "a", &entry("y", Stream::Stdout, false)),
            "y"
        );
        assert_eq!(
            painted(&mut painter, "b", &entry("z", Stream::Stdout, true)),
            "\nb | z\n"
        );
    }

    #[test]
    fn without_names_the_text_is_the_programs_own() {
        let mut painter = Painter::new(false, true);
        assert_eq!(
            painted(&mut painter, "a", &entry("x", Stream::Stdout, true)),
            "2026-01-01T00:00:00Z x\n"
        );
    }
}
