//! `run`: applets in a row, without a shell.

use crate::applets::{self, DONE, End, Outcome};
use crate::error::ToolError;

/// Splits `text` at `;` into commands and those at blanks into words. Single
/// and double quotes keep blanks and semicolons; a backslash outside single
/// quotes keeps the next character. There is no expansion of any kind.
///
/// # Errors
/// [`ToolError::Usage`] for an open quote or a backslash at the end.
pub fn split(text: &str) -> Result<Vec<Vec<String>>, ToolError> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote: Option<char> = None;
    let mut chars = text.chars();
    let finish = |commands: &mut Vec<Vec<String>>, word: Option<String>| {
        if let (Some(word), Some(command)) = (word, commands.last_mut()) {
            command.push(word);
        }
    };
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some('\''), c) => word.get_or_insert_default().push(c),
            (_, '\\') => {
                let next = chars.next();
                let kept = next.ok_or_else(|| ToolError::Usage("backslash at the end".into()))?;
                word.get_or_insert_default().push(kept);
            }
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ';' | '\n') => {
                finish(&mut commands, word.take());
                commands.push(Vec::new());
            }
            (None, ' ' | '\t') => finish(&mut commands, word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err(ToolError::Usage("a quote is left open".into()));
    }
    finish(&mut commands, word);
    commands.retain(|command| !command.is_empty());
    Ok(commands)
}

/// The applet `run`: the status is that of the last applet, or `exit`'s.
pub(crate) fn run(args: &[String]) -> Outcome {
    let [script] = args else {
        return Err(ToolError::Usage("run \"APPLET ARGS; ...\"".into()));
    };
    let mut last = DONE;
    for command in split(script)? {
        let Some((name, args)) = command.split_first() else {
            continue;
        };
        let end = applets::run(name, args);
        if let End::Exit(_) = end {
            return Ok(end);
        }
        last = Ok(end);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn words_quotes_and_commands() {
        let commands = split(r#"write /a "x; y" ; echo 'a\b' c\ d "";; exit 3;"#).unwrap();
        let expected: [&[&str]; 3] = [
            &["write", "/a", "x; y"],
            &["echo", r"a\b", "c d", ""],
            &["exit", "3"],
        ];
        assert_eq!(commands, expected);
        assert!(split(" ; ;").unwrap().is_empty());
    }

    #[test]
    fn open_ends_are_errors() {
        assert!(split("echo 'a").is_err());
        assert!(split("echo a\\").is_err());
    }
}
