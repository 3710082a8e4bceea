//! `regex-lite` under the name `regex`.
//!
//! Purpose: `oci-spec` checks `execCPUAffinity` with one regular expression,
//! and brings the whole of `regex` for it, 0.6 MB of tables and automata in
//! the release program. Its authors' small engine reads the same syntax.
//!
//! Boundary: nothing of ours uses this; `[patch.crates-io]` in the workspace
//! puts it in the original's place.

pub use regex_lite::{
    CaptureLocations, CaptureMatches, CaptureNames, Captures, Error, Match, Matches, NoExpand,
    Regex, RegexBuilder, Replacer, Split, SplitN, SubCaptureMatches, escape,
};

#[cfg(test)]
mod tests {
    use super::Regex;

    /// The expression of `oci-spec` 0.10 (`runtime/process.rs`).
    #[test]
    fn lists_of_processors_are_told_from_others() {
        let list = Regex::new(r"^(\d+(-\d+)?)(,\d+(-\d+)?)*$").unwrap();
        for good in ["0", "0-3", "1,3-5,7"] {
            assert!(list.is_match(good), "{good}");
        }
        for bad in ["", "a", "0-", "0,,1", "0-1-2", "0\n"] {
            assert!(!list.is_match(bad), "{bad:?}");
        }
    }
}
