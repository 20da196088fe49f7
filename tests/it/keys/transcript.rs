//! The README's transcript matches the program: each line after a `$` is run, and the output compared. `UPDATE_README=1`
//! rewrites it.

use std::process::Stdio;

use jiff::{SignedDuration, Timestamp, Unit};
use tokio::process::Command;

use super::{Kit, done};
use crate::process::Folder;

const FENCE: &str = "```console\n";
/// The time of the transcript.
const THEN: &str = "2026-11-24T12:00:00Z";

/// Replaces values that differ between runs by those in the README. All keys in it are fictitious.
struct Stand {
    ids: Vec<String>,
    keys: Vec<String>,
    /// Maps the values of this run to those of the README.
    shift: SignedDuration,
}

impl Stand {
    fn id(number: usize) -> String {
        format!("apit_1{:017}", number + 1)
    }

    /// A fictitious key with the length of a real one.
    fn key(number: usize) -> String {
        format!("{:0<73}{}", "ThisKeyIsMadeUpAndOpensNothing", ["aB3d", "xY9z"][number])
    }

    /// A word of the output, as the README has it.
    fn word(&mut self, word: &str) -> String {
        let place = |all: &mut Vec<String>| {
            all.iter().position(|known| known == word).unwrap_or_else(|| {
                all.push(word.to_owned());
                all.len() - 1
            })
        };
        if word.starts_with("apit_") {
            return Self::id(place(&mut self.ids));
        }
        if word.len() > 60 && word.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Self::key(place(&mut self.keys));
        }
        if let Some(number) = self.keys.iter().position(|key| word.len() == 4 && key.ends_with(word)) {
            return Self::key(number)[73..].to_owned();
        }
        if let Ok(moment) = word.parse::<Timestamp>() {
            return (moment + self.shift).round(Unit::Minute).unwrap().to_string();
        }
        if word.len() == 10 && word.parse::<jiff::civil::Date>().is_ok() {
            return THEN[..10].to_owned();
        }
        word.to_owned()
    }

    fn text(&mut self, printed: &str) -> String {
        let mut text = String::new();
        for part in
            printed.split_inclusive(|char: char| !char.is_ascii_alphanumeric() && !"_-:.".contains(char))
        {
            let word = part.trim_end_matches(|char: char| !char.is_ascii_alphanumeric());
            text.push_str(&self.word(word));
            text.push_str(&part[word.len()..]);
        }
        text
    }

    /// A line of the README with the ids of this run.
    fn real(&self, line: &str) -> String {
        let ids = self.ids.iter().enumerate();
        ids.fold(line.to_owned(), |line, (number, id)| line.replace(&Self::id(number), id))
    }
}

#[tokio::test]
async fn readme_transcript_matches_program_output() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path).unwrap();
    let begin = readme.find(FENCE).expect("a transcript") + FENCE.len();
    let end = begin + readme[begin..].find("```").unwrap();
    let lines: Vec<&str> = readme[begin..end].lines().filter_map(|line| line.strip_prefix("$ ")).collect();
    for command in ["create", "list", "inspect", "update", "rotate", "revoke"] {
        assert!(lines.iter().any(|line| line.starts_with(&format!("keyward keys {command} "))), "{command}");
    }

    let (kit, folder) = (Kit::start().await, Folder::new("transcript"));
    let shift = THEN.parse::<Timestamp>().unwrap().duration_since(Timestamp::now());
    let mut stand = Stand { ids: Vec::new(), keys: Vec::new(), shift };
    let mut text = String::new();
    for line in lines {
        if let Some(key) = stand.keys.first() {
            folder.write("key.txt", key);
        }
        let place = folder.write("line.sh", &format!("exec 2>&1\n{}\n", stand.real(line)));
        let program = std::path::Path::new(env!("CARGO_BIN_EXE_keyward")).parent().unwrap().display();
        let mut command = Command::new("/bin/sh");
        command.arg(&place).current_dir(std::path::Path::new(&place).parent().unwrap());
        command.env_clear().env("PATH", format!("{program}:/usr/bin:/bin"));
        command.env("SCALEKIT_ENVIRONMENT_URL", &kit.url).env("SCALEKIT_CLIENT_ID", "dev");
        command.env("SCALEKIT_CLIENT_SECRET", "dev").stdout(Stdio::piped()).stderr(Stdio::piped());
        let done = done(command).await;
        assert_eq!(done.code, 0, "{line}: {done:?}");
        if !text.is_empty() {
            text.push('\n');
        }
        text += &format!("$ {line}\n{}", stand.text(&done.out));
    }
    assert!(kit.live("org_1001").await.len() == 1, "the life of one key, and its successor");
    if std::env::var_os("UPDATE_README").is_some() {
        std::fs::write(path, format!("{}{text}{}", &readme[..begin], &readme[end..])).unwrap();
        return;
    }
    assert_eq!(&readme[begin..end], text, "UPDATE_README=1 writes it anew");
}
