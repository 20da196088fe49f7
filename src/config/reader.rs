//! Reads TOML key by key and collects every problem with its place, instead of stopping at the first. A key that nobody
//! asked for is a problem too.

use std::cell::RefCell;
use std::fmt;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Something wrong, and where.
#[derive(Debug)]
pub(super) struct Problem {
    /// The place in the text, in bytes; none for what is not in it.
    pub(super) at: Option<usize>,
    /// The dotted key.
    pub(super) key: String,
    pub(super) text: String,
}

/// The problems found so far.
#[derive(Default)]
pub(super) struct Found(RefCell<Vec<Problem>>);

impl Found {
    pub(super) fn add(&self, at: Option<usize>, key: impl Into<String>, text: impl Into<String>) {
        self.0.borrow_mut().push(Problem { at, key: key.into(), text: text.into() });
    }

    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// A table, of which keys are taken one by one.
pub(super) struct Section<'a, 'd> {
    found: &'a Found,
    path: String,
    at: usize,
    missing: bool,
    table: DeTable<'d>,
    /// The keys that were asked for, and where those are that were there.
    known: Vec<(&'static str, Option<usize>)>,
}

/// A value as it stands in the file.
pub(super) type Value<'d> = DeValue<'d>;

impl<'a, 'd> Section<'a, 'd> {
    pub(super) fn new(found: &'a Found, path: impl Into<String>, at: usize, table: DeTable<'d>) -> Self {
        Self { found, path: path.into(), at, missing: false, table, known: Vec::new() }
    }

    /// The value of a key, read by `read`, whose error becomes a problem; `None` also when there is none.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value<'d>) -> Result<T, String>,
    ) -> Option<T> {
        let (at, value) = self.raw(key)?;
        match read(&value) {
            Ok(value) => Some(value),
            Err(text) => {
                self.found.add(Some(at), self.key(key), text);
                None
            }
        }
    }

    /// As `take`, and a problem when there is none.
    pub(super) fn require<T>(
        &mut self,
        key: &'static str,
        example: &str,
        read: impl FnOnce(&Value<'d>) -> Result<T, String>,
    ) -> Option<T> {
        if !self.has(key) {
            self.known.push((key, None));
            self.problem(key, format!("is missing; for example {key} = {example}"));
            return None;
        }
        self.take(key, read)
    }

    /// A table within, empty when it is not there.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a, 'd> {
        let path = self.key(key);
        match self.raw(key) {
            None => Section { missing: true, ..Section::new(self.found, path, self.at, DeTable::new()) },
            Some((at, DeValue::Table(table))) => Section::new(self.found, path, at, table),
            Some((at, other)) => {
                self.found.add(Some(at), path.clone(), expected("a table", &other));
                Section::new(self.found, path, at, DeTable::new())
            }
        }
    }

    /// The tables of an array of tables, and a problem when there are none.
    pub(super) fn sections(&mut self, key: &'static str) -> Vec<Section<'a, 'd>> {
        let path = self.key(key);
        let Some((at, value)) = self.raw(key) else {
            self.found.add(
                None,
                path.clone(),
                format!("there are none, so nothing would be forwarded; write [[{path}]]"),
            );
            return Vec::new();
        };
        let DeValue::Array(array) = value else {
            self.found.add(Some(at), path.clone(), format!("write [[{path}]] for each"));
            return Vec::new();
        };
        let mut sections = Vec::new();
        for (index, item) in array.into_iter().enumerate() {
            let (path, at) = (format!("{path}[{index}]"), item.span().start);
            match item.into_inner() {
                DeValue::Table(table) => sections.push(Section::new(self.found, path, at, table)),
                other => self.found.add(Some(at), path, expected("a table", &other)),
            }
        }
        sections
    }

    /// The tables within, whatever their names, in the order of the file.
    pub(super) fn named_sections(self) -> Vec<(String, Section<'a, 'd>)> {
        let (found, path) = (self.found, self.path);
        let mut sections = Vec::new();
        for (name, value) in self.table {
            let (path, at) = (format!("{path}.{}", name.get_ref()), name.span().start);
            match value.into_inner() {
                DeValue::Table(table) => {
                    sections.push((at, name.into_inner().into_owned(), Section::new(found, path, at, table)));
                }
                other => found.add(Some(at), path, expected("a table", &other)),
            }
        }
        sections.sort_by_key(|(at, ..)| *at);
        sections.into_iter().map(|(_, name, section)| (name, section)).collect()
    }

    /// Names and texts, whatever the names.
    pub(super) fn texts(self) -> Vec<(String, String)> {
        let mut pairs = Vec::new();
        for (name, value) in self.table {
            let at = value.span().start;
            match text(value.get_ref()) {
                Ok(value) => pairs.push((name.into_inner().into_owned(), value)),
                Err(problem) => {
                    self.found.add(Some(at), format!("{}.{}", self.path, name.get_ref()), problem)
                }
            }
        }
        pairs
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.keys().any(|name| name.get_ref() == key)
    }

    /// Whether the section is not in the file.
    pub(super) fn is_missing(&self) -> bool {
        self.missing
    }

    pub(super) fn place(&self) -> usize {
        self.at
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// A problem with a key of this section, at its value if it has one.
    pub(super) fn problem(&self, key: &str, text: impl Into<String>) {
        let place = self.known.iter().rev().find(|(known, _)| *known == key).and_then(|(_, place)| *place);
        self.found.add(Some(place.unwrap_or(self.at)), self.key(key), text);
    }

    /// Complains about what nobody took.
    pub(super) fn finish(self) {
        for name in self.table.keys() {
            let key = name.get_ref().as_ref();
            let hint = did_you_mean(key, self.known.iter().map(|(key, _)| *key));
            let known: Vec<&str> = self.known.iter().map(|(key, _)| *key).collect();
            let text = match hint.is_empty() {
                true => format!("is not known here; known are {}", known.join(", ")),
                false => format!("is not known here{hint}"),
            };
            self.found.add(Some(name.span().start), self.key(key), text);
        }
    }

    fn key(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            ("", key) => key.to_owned(),
            (path, "") => path.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    fn raw(&mut self, key: &'static str) -> Option<(usize, DeValue<'d>)> {
        let name = self.table.keys().find(|name| name.get_ref() == key).cloned();
        let value: Option<Spanned<DeValue<'d>>> = name.and_then(|name| self.table.remove(&name));
        self.known.push((key, value.as_ref().map(|value| value.span().start)));
        value.map(|value| (value.span().start, value.into_inner()))
    }
}

/// `; did you mean "x"?` where one of the candidates is near.
pub(super) fn did_you_mean<'c>(given: &str, candidates: impl Iterator<Item = &'c str>) -> String {
    let near = candidates
        .map(|candidate| (strsim::jaro_winkler(given, candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|one, two| one.0.total_cmp(&two.0));
    near.map_or_else(String::new, |(_, candidate)| format!("; did you mean \"{candidate}\"?"))
}

fn expected(what: impl fmt::Display, found: &DeValue<'_>) -> String {
    format!("should be {what}, not {}", article(found.type_str()))
}

fn article(kind: &str) -> String {
    let article = if kind.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
    format!("{article} {kind}")
}

pub(super) fn text(value: &Value<'_>) -> Result<String, String> {
    value.as_str().map(str::to_owned).ok_or_else(|| expected("a string in quotes", value))
}

pub(super) fn boolean(value: &Value<'_>) -> Result<bool, String> {
    value.as_bool().ok_or_else(|| expected("true or false", value))
}

pub(super) fn list(value: &Value<'_>) -> Result<Vec<String>, String> {
    let array = value.as_array().ok_or_else(|| expected("a list of strings", value))?;
    array.iter().map(|item| text(item.get_ref())).collect()
}

pub(super) fn integer(least: u64, most: u64) -> impl FnOnce(&Value<'_>) -> Result<u64, String> {
    move |value| {
        let number = value.as_integer().ok_or_else(|| expected("a whole number", value))?;
        let number = u64::from_str_radix(number.as_str(), number.radix()).ok();
        number
            .filter(|number| (least..=most).contains(number))
            .ok_or_else(|| format!("should be from {least} to {most}"))
    }
}

/// A duration of at least `least` and at most a day.
pub(super) fn duration(least: Duration) -> impl FnOnce(&Value<'_>) -> Result<Duration, String> {
    move |value| {
        let example = "a duration in quotes, such as \"2s\", \"250ms\" or \"1m 30s\"";
        let given = value.as_str().ok_or_else(|| expected(example, value))?;
        let given = humantime::parse_duration(given).map_err(|_| format!("should be {example}"))?;
        let range = least..=Duration::from_secs(86_400);
        let shown = |limit| humantime::format_duration(limit);
        range.contains(&given).then_some(given).ok_or_else(|| {
            format!("should be from \"{}\" to \"{}\"", shown(*range.start()), shown(*range.end()))
        })
    }
}

/// A size in bytes, as a number or with a unit of 1,024.
pub(super) fn size(least: u64, most: u64) -> impl FnOnce(&Value<'_>) -> Result<usize, String> {
    move |value| {
        let example = "a size in quotes, such as \"64KiB\" or \"1MiB\"";
        let bytes = match (value.as_integer(), value.as_str()) {
            (Some(number), _) => u64::from_str_radix(number.as_str(), number.radix()).ok(),
            (None, Some(text)) => {
                let digits = text.trim_end_matches(|char: char| char.is_ascii_alphabetic()).trim_end();
                let factor = match text[digits.len()..].trim() {
                    "B" | "" => 1,
                    "KiB" => 1 << 10,
                    "MiB" => 1 << 20,
                    "GiB" => 1 << 30,
                    unit => {
                        return Err(format!("has an unknown unit {unit:?}; known are B, KiB, MiB and GiB"));
                    }
                };
                digits.parse().ok().and_then(|number: u64| number.checked_mul(factor))
            }
            (None, None) => return Err(expected(example, value)),
        };
        let bytes = bytes.ok_or_else(|| format!("should be {example}"))?;
        let in_range = (least..=most).contains(&bytes);
        let bytes = usize::try_from(bytes).ok().filter(|_| in_range);
        bytes.ok_or_else(|| format!("should be from {least} to {most} bytes"))
    }
}

/// One of a few words.
pub(super) fn choice<T: Copy>(choices: &[(&str, T)]) -> impl FnOnce(&Value<'_>) -> Result<T, String> {
    move |value| {
        let given = text(value)?;
        let known = || choices.iter().map(|(word, _)| *word);
        let chosen = choices.iter().find(|(word, _)| *word == given).map(|(_, choice)| *choice);
        chosen.ok_or_else(|| {
            let words: Vec<String> = known().map(|word| format!("\"{word}\"")).collect();
            format!("should be {}{}", words.join(" or "), did_you_mean(&given, known()))
        })
    }
}
