//! The dep-info files (`*.d`) that cargo writes beside a final artefact: make
//! syntax, one rule, spaces in paths escaped by a backslash.

use std::path::PathBuf;

/// The inputs of the first rule in `text`.
pub(crate) fn inputs(text: &str) -> Vec<PathBuf> {
    let Some((_, list)) = text.lines().next().and_then(|line| line.split_once(": ")) else {
        return Vec::new();
    };
    let mut paths = Vec::new();
    let mut path = String::new();
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => path.extend(chars.next()),
            ' ' if path.is_empty() => {}
            ' ' => paths.push(PathBuf::from(std::mem::take(&mut path))),
            c => path.push(c),
        }
    }
    if !path.is_empty() {
        paths.push(PathBuf::from(path));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::inputs;
    use std::path::PathBuf;

    #[test]
    fn splits_at_unescaped_spaces() {
        let text = "/t/bin: /src/a.rs /my\\ src/b.rs\n\n/src/a.rs:\n";
        let expected = [PathBuf::from("/src/a.rs"), PathBuf::from("/my src/b.rs")];
        assert_eq!(inputs(text), expected);
    }

    #[test]
    fn text_without_a_rule_names_nothing() {
        assert!(inputs("").is_empty());
        assert!(inputs("/t/bin:").is_empty());
    }
}
