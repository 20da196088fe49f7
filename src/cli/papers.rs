//! What goes with a program: shell completions and man pages, from the same description as `--help`.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use super::Cli;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "keyward", &mut text);
    super::print(&String::from_utf8_lossy(&text))?;
    Ok(())
}

pub(super) fn man(folder: &Path) -> Result<()> {
    let place = || format!("cannot write into {}", folder.display());
    std::fs::create_dir_all(folder).with_context(place)?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(place)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A command and all below it, with their full names.
    fn all(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
        let name = format!("{name}{}", command.get_name());
        found.push((name.clone(), command.clone()));
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            all(below, &format!("{name}-"), found);
        }
    }

    fn commands() -> Vec<(String, clap::Command)> {
        let mut found = Vec::new();
        all(&Cli::command(), "", &mut found);
        found
    }

    /// What a shell makes of a line, without what stands behind a pipe or is explained after the command.
    fn words(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        let (mut word, mut quoted) = (String::new(), false);
        for char in line.split("   ").next().unwrap().chars() {
            match char {
                '"' => quoted = !quoted,
                ' ' if !quoted => words.push(std::mem::take(&mut word)),
                char => word.push(char),
            }
        }
        words.push(word);
        words.retain(|word| !word.is_empty());
        let end = words.iter().position(|word| ["|", "<", ">"].contains(&word.as_str()));
        words.truncate(end.unwrap_or(words.len()));
        words
    }

    #[test]
    fn every_example_in_the_help_is_good_use() {
        let mut seen = 0;
        for (name, command) in commands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let of_keys = name.strip_prefix("keyward-keys-");
            assert!(of_keys.is_none() || help.contains("Example"), "{name} has no examples");
            let lines = help.lines().flat_map(|line| line.split(" | "));
            let examples = lines.filter_map(|line| Some(&line[line.find("keyward ")?..]));
            for example in examples {
                let words = words(example);
                let read = Cli::command().try_get_matches_from(&words);
                assert!(read.is_ok(), "{words:?}: {}", read.unwrap_err());
                seen += 1;
                if let Some(of_keys) =
                    of_keys.filter(|_| !example.contains("list") && !example.contains("revoke"))
                {
                    assert_eq!(words[2], of_keys);
                }
            }
        }
        assert!(seen > 17, "{seen}");
    }

    #[test]
    fn completions_and_man_pages_know_every_command() {
        use clap_complete::Shell;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "keyward", &mut text);
            let text = String::from_utf8(text).unwrap();
            for word in ["healthcheck", "rotate", "overlap", "remove-claim", "page-token"] {
                assert!(text.contains(word), "{word} for {shell}");
            }
        }
        let folder = std::env::temp_dir().join(format!("keyward-man-{}", std::process::id()));
        man(&folder).unwrap();
        for (name, _) in commands() {
            let page = std::fs::read_to_string(folder.join(format!("{name}.1"))).expect(&name);
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
