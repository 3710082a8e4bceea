//! Sets of completion indexes, written as `0,2-4`.

use std::collections::BTreeSet;

/// Most numbers of a set that are read (`maxParallelismForIndexedJob` and
/// completions may be more; beyond this a set is not kept in memory).
const INDEXES_MAX_COUNT: u32 = 1_000_000;

/// Reads a set. What is no number or range is left out.
pub(super) fn parse(text: &str) -> BTreeSet<u32> {
    let mut set = BTreeSet::new();
    for part in text.split(',').filter(|p| !p.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<u32>(), last.parse::<u32>()) {
            set.extend(first..=last.min(INDEXES_MAX_COUNT));
        }
    }
    set
}

/// Writes a set; three and more neighbours, or two, become a range.
pub(super) fn format(set: &BTreeSet<u32>) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for index in set {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *index => *last = *index,
            _ => ranges.push((*index, *index)),
        }
    }
    let parts: Vec<String> = ranges
        .into_iter()
        .map(|(first, last)| match last - first {
            0 => first.to_string(),
            1 => format!("{first},{last}"),
            _ => format!("{first}-{last}"),
        })
        .collect();
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_read_back_as_they_were_written() {
        for text in ["", "0", "0,1", "0-2", "1,3-5,7", "0,1,3-9,11,12"] {
            assert_eq!(format(&parse(text)), text);
        }
        assert_eq!(parse("x,2,5-y,3").into_iter().collect::<Vec<_>>(), [2, 3]);
    }
}
