//! Progress of a transfer on standard error: a bar for each layer on a
//! terminal, a line for each finished layer elsewhere.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rkube_image::Digest;
use rkube_image::pull::{LayerEvent, Progress};

use crate::output;

/// Shortest time between two pictures.
const REDRAW: Duration = Duration::from_millis(100);
/// Cells of a bar.
const BAR_CELLS: u64 = 24;
/// Bars that are shown at a time; the others are counted.
const MAX_BARS: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct Bars {
    terminal: bool,
    verb: &'static str,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    layers: Vec<Layer>,
    /// Lines of the last picture.
    drawn: usize,
    last: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Layer {
    digest: Digest,
    size: u64,
    event: LayerEvent,
}

impl Bars {
    /// `verb` says what becomes of a layer: `pulled`, `pushed`.
    pub(super) fn new(verb: &'static str) -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            verb,
            state: Mutex::default(),
        }
    }

    /// The last picture stays.
    pub(super) fn finish(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.terminal {
            draw(&mut state, self.verb);
        }
        state.drawn = 0;
    }
}

impl Progress for Bars {
    fn begin(&self, layers: &[(Digest, u64)]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |(digest, size): &(Digest, u64)| Layer {
            digest: *digest,
            size: *size,
            event: LayerEvent::Waiting,
        };
        state.layers = layers.iter().map(fresh).collect();
    }

    fn layer(&self, index: usize, event: LayerEvent) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(layer) = state.layers.get_mut(index) else {
            return;
        };
        layer.event = event;
        let ended = matches!(event, LayerEvent::Exists | LayerEvent::Done);
        if self.terminal {
            let due = state.last.is_none_or(|at| at.elapsed() >= REDRAW);
            if due || ended {
                draw(&mut state, self.verb);
            }
        } else if ended {
            let line = line(layer, self.verb);
            // Nobody is left to tell when that is closed.
            let _ = writeln!(std::io::stderr(), "{line}");
        }
    }

    fn note(&self, text: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.drawn = 0;
        let _ = writeln!(std::io::stderr(), "{}", output::harmless(text));
    }
}

fn draw(state: &mut State, verb: &str) {
    state.last = Some(Instant::now());
    let text = picture(state, verb);
    // Nobody is left to tell when that is closed.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// What takes the place of the last picture.
fn picture(state: &mut State, verb: &str) -> String {
    let mut text = String::new();
    if state.drawn > 0 {
        text.push_str(&format!("\x1b[{}A", state.drawn));
    }
    let busy = |l: &&Layer| !matches!(l.event, LayerEvent::Exists | LayerEvent::Done);
    let shown: Vec<&Layer> = if state.layers.len() <= MAX_BARS {
        state.layers.iter().collect()
    } else {
        state
            .layers
            .iter()
            .filter(busy)
            .take(MAX_BARS - 1)
            .collect()
    };
    let mut lines: Vec<String> = shown.iter().map(|l| line(l, verb)).collect();
    if shown.len() < state.layers.len() {
        let done = state.layers.len() - state.layers.iter().filter(busy).count();
        lines.push(format!("{done} of {} layers {verb}", state.layers.len()));
    }
    // Fewer lines than before would leave old ones.
    while lines.len() < state.drawn {
        lines.push(String::new());
    }
    for line in &lines {
        text.push_str(&format!("\x1b[2K{line}\n"));
    }
    state.drawn = lines.len();
    text
}

fn line(layer: &Layer, verb: &str) -> String {
    let short: String = layer.digest.hex().chars().take(12).collect();
    let size = output::bytes(layer.size);
    match layer.event {
        LayerEvent::Waiting => format!("{short}: waits"),
        LayerEvent::Exists => format!("{short}: already there"),
        LayerEvent::Retrying => format!("{short}: was cut, goes on soon"),
        LayerEvent::Done => format!("{short}: {verb}, {size}"),
        LayerEvent::Bytes(at) if at >= layer.size => {
            format!("{short}: [{}] {size}, unpacking", bar(at, layer.size))
        }
        LayerEvent::Bytes(at) => format!(
            "{short}: [{}] {} of {size}",
            bar(at, layer.size),
            output::bytes(at)
        ),
    }
}

fn bar(at: u64, size: u64) -> String {
    let full = at
        .saturating_mul(BAR_CELLS)
        .checked_div(size)
        .unwrap_or(BAR_CELLS)
        .min(BAR_CELLS);
    let cell = |i| if i < full { '#' } else { '-' };
    (0..BAR_CELLS).map(cell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_tell_how_a_layer_stands() {
        let layer = |event| Layer {
            digest: Digest::of(b""),
            size: 2048,
            event,
        };
        let text = |event| line(&layer(event), "pulled");
        assert_eq!(text(LayerEvent::Done), "e3b0c44298fc: pulled, 2Ki");
        assert_eq!(
            text(LayerEvent::Bytes(1024)),
            "e3b0c44298fc: [############------------] 1Ki of 2Ki"
        );
        assert_eq!(bar(0, 0), "#".repeat(24));
        assert_eq!(bar(u64::MAX, 1), "#".repeat(24));
    }

    #[test]
    fn each_layer_has_a_bar_of_its_own_in_its_own_line() {
        let layer = |event| Layer {
            digest: Digest::of(b""),
            size: 2048,
            event,
        };
        let bytes = |n| layer(LayerEvent::Bytes(n));
        let mut state = State {
            layers: vec![bytes(512), layer(LayerEvent::Waiting), bytes(2048)],
            ..State::default()
        };
        let first = picture(&mut state, "pulled");
        let lines: Vec<&str> = first.lines().collect();
        assert_eq!(lines.len(), 3, "{first:?}");
        assert!(lines[0].contains("[######-") && lines[1].contains("waits"));
        assert!(lines[2].contains("unpacking"));
        // The next one is drawn over it.
        state.layers[0] = bytes(1024);
        let second = picture(&mut state, "pulled");
        assert!(second.starts_with("\x1b[3A\x1b[2K"), "{second:?}");
        assert!(second.contains("[############-"));
        // Many layers: those at work, and a count.
        state.layers = (0..40).map(|_| layer(LayerEvent::Done)).collect();
        state.layers[30] = bytes(1);
        let many = picture(&mut state, "pulled");
        assert!(many.contains("39 of 40 layers pulled"), "{many:?}");
        assert_eq!(many.matches("of 2Ki").count(), 1, "{many:?}");
    }
}
