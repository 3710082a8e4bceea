//! Reading what a log holds now.

use std::path::Path;

use super::files::{self, Reader};
use super::line::{self, Entry, Joiner};
use super::{LogError, Options};

/// Gives the wanted messages of a container to `each`, in order, until it
/// answers `false`. `dir` is the container's log directory.
///
/// # Errors
/// There is no such log, or it cannot be read.
pub fn read(
    dir: &Path,
    options: &Options,
    mut each: impl FnMut(Entry) -> bool,
) -> Result<(), LogError> {
    let attempt = choose(dir, options.previous)?;
    read_attempt(dir, attempt, options, &mut each)
}

/// As [`read`], of one attempt by its number.
///
/// # Errors
/// The log cannot be read.
pub fn read_attempt(
    dir: &Path,
    attempt: u32,
    options: &Options,
    mut each: impl FnMut(Entry) -> bool,
) -> Result<(), LogError> {
    let mut joiner = Joiner::default();
    for mut reader in open(dir, attempt, options.tail)? {
        if !drain(&mut reader, &mut joiner, options, &mut each)? {
            return Ok(());
        }
    }
    while let Some(entry) = joiner.rest() {
        if !each(entry) {
            break;
        }
    }
    Ok(())
}

/// The latest attempt, or the one before it.
pub(super) fn choose(dir: &Path, previous: bool) -> Result<u32, LogError> {
    let attempts = files::attempts(dir)?;
    let missing = |which| LogError::Missing {
        which,
        path: dir.to_path_buf(),
    };
    if previous {
        let at = attempts
            .len()
            .checked_sub(2)
            .ok_or_else(|| missing("an earlier attempt"))?;
        return attempts
            .get(at)
            .copied()
            .ok_or_else(|| missing("an earlier attempt"));
    }
    attempts
        .last()
        .copied()
        .ok_or_else(|| missing("any attempt"))
}

/// The attempt's files, opened where the wanted lines begin.
pub(super) fn open(dir: &Path, attempt: u32, tail: Option<u64>) -> Result<Vec<Reader>, LogError> {
    for _ in 0..files::MAX_LOOKS {
        let opened = open_all(&files::stand(dir, attempt)?, tail)?;
        if let Some(readers) = opened {
            return Ok(readers);
        }
    }
    Err(files::moving(dir))
}

/// `None` where one is not what it was.
fn open_all(all: &[files::Found], tail: Option<u64>) -> Result<Option<Vec<Reader>>, LogError> {
    let mut readers = Vec::new();
    let mut left = tail;
    let mut whole = true;
    for found in all.iter().rev() {
        // A message may have begun in the file before.
        if left == Some(0) && !whole {
            break;
        }
        let Some(mut reader) = found.open()? else {
            return Ok(None);
        };
        if let Some(lines) = left {
            let (found, begin) = reader.seek_to_tail(lines)?;
            left = Some(lines - found);
            whole = begin == 0;
        }
        readers.push(reader);
    }
    readers.reverse();
    Ok(Some(readers))
}

/// Gives all messages that `reader` has now; whether more are wanted.
pub(super) fn drain(
    reader: &mut Reader,
    joiner: &mut Joiner,
    options: &Options,
    each: &mut impl FnMut(Entry) -> bool,
) -> Result<bool, LogError> {
    while let Some(text) = reader.next_line()? {
        if let Some(entry) = take(text, joiner, options)
            && !each(entry)
        {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A wanted message that a line completes. Lines that are none are left out.
pub(super) fn take(text: &[u8], joiner: &mut Joiner, options: &Options) -> Option<Entry> {
    let line = line::parse(text)?;
    let wanted = options.since.is_none_or(|since| line.time >= since)
        && options.stream.is_none_or(|stream| line.stream == stream);
    if wanted { joiner.push(line) } else { None }
}
