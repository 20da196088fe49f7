//! `keyward completions` and `keyward man`: generated from the same description as `--help`.

use std::path::Path;

use anyhow::{Context as _, Result};
use clap::CommandFactory as _;

use super::Cli;

pub(super) fn print_completions(shell: clap_complete::Shell) -> Result<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "keyward", &mut text);
    super::write_stdout(&String::from_utf8_lossy(&text))?;
    Ok(())
}

/// Creates the folder but not its parents, so that a mistyped path is an error.
pub(super) fn write_man_pages(folder: &Path) -> Result<()> {
    let context = || format!("cannot write man pages into {}", folder.display());
    if !folder.is_dir() {
        std::fs::create_dir(folder).with_context(context)?;
    }
    let mut root = Cli::command().disable_help_subcommand(true);
    root.build();
    write_pages(&root, folder).with_context(context)
}

fn write_pages(command: &clap::Command, folder: &Path) -> std::io::Result<()> {
    let page = clap_mangen::Man::new(command.clone());
    let mut text = Vec::new();
    page.render(&mut text)?;
    let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let text = replace_extra_section(&String::from_utf8_lossy(&text), &help);
    std::fs::write(folder.join(page.get_filename()), text)?;
    command.get_subcommands().try_for_each(|below| write_pages(below, folder))
}

/// Replaces the EXTRA section, into which clap_mangen puts the text below the options as one paragraph.
fn replace_extra_section(page: &str, help: &str) -> String {
    let Some(start) = page.find(".SH EXTRA\n") else { return page.to_owned() };
    let end = page[start + 1..].find("\n.SH ").map_or(page.len(), |at| start + 1 + at + 1);
    format!("{}{}{}", &page[..start], format_sections(help), &page[end..])
}

/// A line such as `Examples:` becomes a heading and the lines below it stay as they are; text without a heading becomes NOTES.
fn format_sections(help: &str) -> String {
    let mut out = String::new();
    let mut open: Option<&str> = None;
    for line in help.lines() {
        let (heading, rest) = match line.split_once(':') {
            Some((word, rest)) if word.bytes().all(|byte| byte.is_ascii_alphabetic()) && !word.is_empty() => {
                (Some(word), rest.trim())
            }
            _ => (None, line.strip_prefix("  ").unwrap_or(line)),
        };
        if let Some(word) = heading {
            out.push_str(open.take().unwrap_or_default());
            let word = if word == "Example" { "EXAMPLES".to_owned() } else { word.to_uppercase() };
            out.push_str(&format!(".SH {word}\n.nf\n"));
            open = Some(".fi\n");
        } else if open.is_none() {
            out.push_str(".SH NOTES\n");
            open = Some("");
        }
        if !rest.is_empty() {
            out.push_str(&escape_roff(rest));
            out.push('\n');
        }
    }
    out.push_str(open.unwrap_or_default());
    out
}

fn escape_roff(line: &str) -> String {
    let text = line.replace('\\', "\\e").replace('-', "\\-").replace('\'', "\\(aq");
    if text.starts_with('.') { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds a command and all its subcommands, by their full names.
    fn collect_commands(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
        let name = format!("{name}{}", command.get_name());
        found.push((name.clone(), command.clone()));
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            collect_commands(below, &format!("{name}-"), found);
        }
    }

    fn commands() -> Vec<(String, clap::Command)> {
        let mut found = Vec::new();
        collect_commands(&Cli::command(), "", &mut found);
        found
    }

    /// Splits a line as a shell does, without a pipe, a second command or the explanation after the command.
    fn split_words(line: &str) -> Vec<String> {
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
        let end = words.iter().position(|word| ["|", "<", ">", "&&"].contains(&word.as_str()));
        words.truncate(end.unwrap_or(words.len()));
        words
    }

    #[test]
    fn help_examples_parse_as_commands() {
        let mut seen = 0;
        for (name, command) in commands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let of_keys = name.strip_prefix("keyward-keys-");
            assert!(of_keys.is_none() || help.contains("Example"), "{name} has no examples");
            let lines = help.lines().flat_map(|line| line.split(" | "));
            let examples = lines.filter_map(|line| Some(&line[line.find("keyward ")?..]));
            for example in examples {
                let words = split_words(example);
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
    fn completions_and_man_pages_cover_every_command() {
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
        write_man_pages(&folder).unwrap();
        for (name, _) in commands() {
            let page = std::fs::read_to_string(folder.join(format!("{name}.1"))).expect(&name);
            assert!(page.contains(".SH NAME") && page.contains(".SH SYNOPSIS"), "{name}");
            assert!(!page.contains(".SH EXTRA"), "{name}");
        }
        let page = std::fs::read_to_string(folder.join("keyward-keys-revoke.1")).unwrap();
        let (_, notes) = page.split_once(".SH NOTES\nThe exit code is").unwrap();
        let (_, examples) = notes.split_once(".SH EXAMPLES\n.nf\n").unwrap();
        let (examples, _) = examples.split_once("\n.fi\n").unwrap();
        assert!(examples.lines().all(|line| line.starts_with("keyward keys ")), "{examples}");
        assert!(examples.ends_with("| jq \\-r .token_id | keyward keys revoke \\-"), "{examples}");
        std::fs::remove_dir_all(&folder).unwrap();
        let error = write_man_pages(&folder.join("man1")).unwrap_err();
        assert!(format!("{error:#}").contains("No such file"), "{error:#}");
        assert!(!folder.exists(), "no folder is created");
    }
}
