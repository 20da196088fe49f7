//! Reads TOML key by key and collects every problem with its place, instead of stopping at the first. A key that nobody
//! asked for is a problem too.

use std::cell::RefCell;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::values::{expected, shown, text};

/// Something wrong, and where.
#[derive(Debug)]
pub(super) struct Problem {
    /// The place in the text, in bytes; none for what is not in it.
    pub(super) at: Option<usize>,
    /// The dotted key.
    pub(super) key: String,
    pub(super) text: String,
}

/// A text, and where each of its lines begins.
pub(super) struct Lines<'t> {
    pub(super) text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// The line and the column of a place, from 1, the column in characters.
    pub(super) fn place(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at);
        let start = line.checked_sub(1).map_or(0, |before| self.starts[before]);
        (line, self.text.get(start..at).map_or(1, |before| before.chars().count() + 1))
    }
}

/// The problems found so far.
#[derive(Default)]
pub(super) struct Found(RefCell<Vec<Problem>>);

impl Found {
    pub(super) fn add(&self, at: Option<usize>, key: impl Into<String>, text: impl Into<String>) {
        self.0.borrow_mut().push(Problem { at, key: key.into(), text: text.into() });
    }

    pub(super) fn count(&self) -> usize {
        self.0.borrow().len()
    }

    pub(super) fn into_inner(self) -> Vec<Problem> {
        self.0.into_inner()
    }
}

/// A table, of which keys are taken one by one.
pub(super) struct Section<'a, 'd> {
    found: &'a Found,
    path: String,
    /// Where it is, or else what it would be in.
    at: usize,
    table: DeTable<'d>,
    /// The keys that were asked for, and where the values of those are that were there.
    known: Vec<(&'static str, Option<usize>)>,
}

/// A value as it stands in the file.
pub(super) type Value<'d> = DeValue<'d>;

impl<'a, 'd> Section<'a, 'd> {
    /// A whole file.
    pub(super) fn root(found: &'a Found, table: DeTable<'d>) -> Self {
        Self::new(found, String::new(), 0, table)
    }

    fn new(found: &'a Found, path: String, at: usize, table: DeTable<'d>) -> Self {
        Self { found, path, at, table, known: Vec::new() }
    }

    /// The value of a key, read by `read`, whose error becomes a problem; `None` also when there is none.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Value<'d>) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.raw(key)?;
        self.found.read(&value, || self.key(key), read)
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

    /// The values of a list of strings, each read by `read`, whose errors become problems of their own. An empty list is one
    /// too, if `empty` says what is wrong with it.
    pub(super) fn list<T>(
        &mut self,
        key: &'static str,
        empty: Option<&str>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let value = self.raw(key)?;
        let path = self.key(key);
        let Some(items) = value.get_ref().as_array() else {
            self.found.add(Some(start(&value)), path, expected("a list of strings", value.get_ref()));
            return None;
        };
        if let (true, Some(problem)) = (items.is_empty(), empty) {
            self.found.add(Some(start(&value)), path, problem);
            return None;
        }
        let item =
            |(index, item)| self.found.read(item, || format!("{path}[{index}]"), |value| read(&text(value)?));
        // All of them, so that every problem is found, before any is missed.
        items.iter().enumerate().map(item).collect::<Vec<_>>().into_iter().collect()
    }

    /// A table within; `None` where it is not there, or is something else, which is a problem.
    pub(super) fn optional_section(&mut self, key: &'static str) -> Option<Section<'a, 'd>> {
        let path = self.key(key);
        let value = self.raw(key)?;
        let at = start(&value);
        match value.into_inner() {
            DeValue::Table(table) => Some(Section::new(self.found, path, at, table)),
            other => {
                let hint = if other.is_array() { format!("; write [{path}] once") } else { String::new() };
                self.found.add(Some(at), path, expected("a table", &other) + &hint);
                None
            }
        }
    }

    /// A table within, empty when there is none.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'a, 'd> {
        let section = self.optional_section(key);
        section.unwrap_or_else(|| Section::new(self.found, self.key(key), self.at, DeTable::new()))
    }

    /// The tables of an array of tables, and a problem when there are none. `None` where the array could not be read.
    pub(super) fn sections(&mut self, key: &'static str) -> Option<Vec<Section<'a, 'd>>> {
        let (found, path) = (self.found, self.key(key));
        let none = || format!("there are none, so nothing would be forwarded; write [[{path}]]");
        let Some(value) = self.raw(key) else {
            found.add(None, path.clone(), none());
            return None;
        };
        let at = Some(start(&value));
        let items = match value.into_inner() {
            DeValue::Array(items) => items,
            DeValue::Table(_) => {
                let text = format!("there can be several; write [[{path}]], in double brackets, for each");
                found.add(at, path, text);
                return None;
            }
            other => {
                found.add(
                    at,
                    path.clone(),
                    expected("a list of tables", &other) + &format!("; write [[{path}]] for each"),
                );
                return None;
            }
        };
        if items.is_empty() {
            found.add(at, path.clone(), none());
            return None;
        }
        let mut sections = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let (path, at) = (format!("{path}[{index}]"), start(&item));
            match item.into_inner() {
                DeValue::Table(table) => sections.push(Section::new(found, path, at, table)),
                other => found.add(Some(at), path, expected("a table", &other)),
            }
        }
        Some(sections)
    }

    /// What is within, whatever the names, in the order of the file; `None` for what is no table. `example` is one.
    pub(super) fn named_sections(self, example: &str) -> Vec<(String, Option<Section<'a, 'd>>)> {
        let mut sections = Vec::new();
        for (name, value) in in_order(self.table) {
            let (path, at) = (dotted(&self.path, &name), start(&value));
            let section = match value.into_inner() {
                DeValue::Table(table) => Some(Section::new(self.found, path, at, table)),
                other => {
                    let problem = expected("a table", &other);
                    self.found.add(Some(at), path, format!("{problem}; for example {example}"));
                    None
                }
            };
            sections.push((name, section));
        }
        sections
    }

    /// The strings within, whatever their names, in the order of the file; each read by `read`, with its name.
    pub(super) fn texts<T>(self, mut read: impl FnMut(&str, &str) -> Result<T, String>) -> Vec<(String, T)> {
        let mut pairs = Vec::new();
        for (name, value) in in_order(self.table) {
            let key = || dotted(&self.path, &name);
            if let Some(value) = self.found.read(&value, key, |value| read(&name, &text(value)?)) {
                pairs.push((name, value));
            }
        }
        pairs
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.table.keys().any(|name| name.get_ref() == key)
    }

    /// Whether the value of a key is a list.
    pub(super) fn has_list(&self, key: &str) -> bool {
        self.table.iter().any(|(name, value)| name.get_ref() == key && value.get_ref().is_array())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Where the section is.
    pub(super) fn place(&self) -> usize {
        self.at
    }

    /// A problem with the section as a whole.
    pub(super) fn problem_with_all(&self, text: impl Into<String>) {
        self.found.add(Some(self.at), self.path.clone(), text);
    }

    /// A problem with a key of this section, at its value if it has one.
    pub(super) fn problem(&self, key: &str, text: impl Into<String>) {
        self.found.add(Some(self.value_place(key).unwrap_or(self.at)), self.key(key), text);
    }

    /// Whether a key that was taken is in the file.
    pub(super) fn had(&self, key: &str) -> bool {
        self.value_place(key).is_some()
    }

    /// Complains about what nobody took.
    pub(super) fn finish(self) {
        let known = || self.known.iter().map(|(key, _)| *key);
        for name in self.table.keys() {
            let key = name.get_ref().as_ref();
            let hint = match did_you_mean(key, known()) {
                _ if looks_secret(&self.path, key) => format!("; {NO_SECRETS}"),
                hint if hint.is_empty() => format!("; known are {}", known().collect::<Vec<_>>().join(", ")),
                hint => hint,
            };
            self.found.add(Some(name.span().start), self.key(key), format!("is not known here{hint}"));
        }
    }

    fn value_place(&self, key: &str) -> Option<usize> {
        self.known.iter().rev().find(|(known, _)| *known == key).and_then(|(_, place)| *place)
    }

    fn key(&self, key: &str) -> String {
        dotted(&self.path, key)
    }

    fn raw(&mut self, key: &'static str) -> Option<Spanned<DeValue<'d>>> {
        let name = self.table.keys().find(|name| name.get_ref() == key).cloned();
        let value = name.and_then(|name| self.table.remove(&name));
        self.known.push((key, value.as_ref().map(start)));
        value
    }
}

impl Found {
    fn read<'d, T>(
        &self,
        value: &Spanned<DeValue<'d>>,
        key: impl FnOnce() -> String,
        read: impl FnOnce(&Value<'d>) -> Result<T, String>,
    ) -> Option<T> {
        read(value.get_ref()).map_err(|text| self.add(Some(start(value)), key(), text)).ok()
    }
}

fn start(value: &Spanned<DeValue<'_>>) -> usize {
    value.span().start
}

/// `toml` sorts by name; people read from top to bottom.
fn in_order<'d>(table: DeTable<'d>) -> Vec<(String, Spanned<DeValue<'d>>)> {
    let mut pairs: Vec<_> = table.into_iter().collect();
    pairs.sort_by_key(|(name, _)| name.span().start);
    pairs.into_iter().map(|(name, value)| (name.into_inner().into_owned(), value)).collect()
}

/// A key as it would be written, in quotes where TOML asks for them.
pub(super) fn dotted(path: &str, key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let key = if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { shown(key) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// The file is in version control, in a ConfigMap, in a backup.
pub(super) const NO_SECRETS: &str =
    "a secret does not belong in this file; set SCALEKIT_CLIENT_SECRET, or client_secret_file";

/// Whether somebody wrote a secret into the file, under whatever name. The name of a file with one is none.
fn looks_secret(path: &str, key: &str) -> bool {
    let key: String = key.chars().filter(char::is_ascii_alphanumeric).collect();
    let key = key.to_ascii_lowercase();
    let names = |words: &[&str]| words.iter().any(|word| key.contains(word));
    let near_scalekit = matches!(path, "" | "scalekit");
    !key.ends_with("file")
        && (names(&["secret", "password", "apikey"]) || near_scalekit && names(&["token", "passwd"]))
}

/// `; did you mean "x"?` where one of the candidates is near: one slip away, or alike from the beginning.
pub(super) fn did_you_mean<'c>(given: &str, candidates: impl Iterator<Item = &'c str>) -> String {
    let given = given.to_lowercase();
    let likeness = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let slip = candidate.len() > 2 && strsim::damerau_levenshtein(&given, &candidate) == 1;
        if slip { 1.0 } else { strsim::jaro_winkler(&given, &candidate) }
    };
    let near = candidates
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|one, two| one.0.total_cmp(&two.0));
    near.map_or_else(String::new, |(_, candidate)| format!("; did you mean {candidate:?}?"))
}
