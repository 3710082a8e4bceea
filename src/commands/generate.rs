//! Completions and man pages, from the definitions of the command line.

use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::Cli;
use crate::output;

pub(super) fn completions(shell: clap_complete::Shell) -> anyhow::Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "rkube", &mut text);
    output::print(&String::from_utf8(text).context("encode completions")?)?;
    Ok(0)
}

pub(super) fn man_pages(dir: &Path) -> anyhow::Result<u8> {
    std::fs::create_dir_all(dir).with_context(|| format!("create directory {}", dir.display()))?;
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, "rkube", dir)?;
    Ok(0)
}

fn pages(command: &clap::Command, name: &str, dir: &Path) -> anyhow::Result<()> {
    let mut page = Vec::new();
    let shown = command.clone().name(name.to_owned());
    clap_mangen::Man::new(shown)
        .render(&mut page)
        .with_context(|| format!("render {name}.1"))?;
    let path = dir.join(format!("{name}.1"));
    std::fs::write(&path, page).with_context(|| format!("write {}", path.display()))?;
    for sub in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        pages(sub, &format!("{name}-{}", sub.get_name()), dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        man_pages(dir.path()).unwrap();
        for name in ["rkube", "rkube-run", "rkube-image-import", "rkube-oci"] {
            let page = std::fs::read_to_string(dir.path().join(format!("{name}.1"))).unwrap();
            assert!(page.contains(".SH NAME"), "{name}");
        }
        assert!(!dir.path().join("rkube-supervisor.1").exists());
        let run = std::fs::read_to_string(dir.path().join("rkube-run.1")).unwrap();
        assert!(run.contains("dry\\-run"));
    }
}
