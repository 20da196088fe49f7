//! Reads TOML into the types of `file` and reports every problem. serde stops at the first one; the entry with that problem is
//! then removed from a copy of the document, and the copy is read again.

use std::collections::HashMap;
use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue, Error, ValueDeserializer};

use super::diagnostics::{Report, did_you_mean, quote_text};

pub(super) type Document<'t> = Spanned<DeValue<'t>>;

/// Maximum number of problems that are reported, as each requires reading the whole document again.
const MAX_PROBLEMS: usize = 200;

/// Parses TOML. `None` if there are syntax errors, all of which are reported.
pub(super) fn parse_toml<'t>(text: &'t str, report: &Report) -> Option<Document<'t>> {
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or_default();
        report.add_problem(Some(span.start), "", describe_syntax_error(text, span, error.message()));
    }
    let span = document.span();
    errors.is_empty().then(|| Spanned::new(span, DeValue::Table(document.into_inner())))
}

/// Adds hints to the parser's message. Values are not repeated, as one could be a secret.
fn describe_syntax_error(text: &str, span: Range<usize>, message: &str) -> String {
    let (before, after) = text.split_at_checked(span.start).unwrap_or((text, ""));
    let line = before.rsplit('\n').next().unwrap_or_default();
    // The part of a value before the error, if it does not look like a string, list or table.
    let value = line.split_once('=').map(|(_, value)| value.trim_start());
    let bare = value.is_some_and(|value| !value.contains(['"', '\'', '[', '{', '#', ' ', '\t']));
    match (text.get(span), after.chars().next()) {
        (Some(key), _) if message == "duplicate key" => {
            format!("{} is set twice, and TOML allows a key only once", quote_text(key))
        }
        (_, Some('\r' | '\n' | '#') | None) if bare => "this is not TOML: a value is missing".to_owned(),
        (_, Some(next)) if bare && !"\"'[{".contains(next) => {
            "this is not TOML: strings, durations and sizes need quotes".to_owned()
        }
        _ => format!("this is not TOML: {message}"),
    }
}

/// Reads a document without the entries that have problems, which are reported.
pub(super) fn read_document<T: DeserializeOwned>(document: &Document<'_>, report: &Report) -> Option<T> {
    let root = Place::root(document, report);
    let mut rest = document.clone();
    for _ in 0..MAX_PROBLEMS {
        let error = match T::deserialize(ValueDeserializer::from(rest.clone())) {
            Ok(read) => return Some(read),
            Err(error) => error,
        };
        let wanted = Wanted::from_error(&error);
        let Some(found) = root.find_entry(&wanted) else {
            // SECURITY: the error's own message may repeat a value.
            report.add_problem(None, "", "cannot be read, for an unknown reason");
            return None;
        };
        report.add_problem(
            Some(wanted.span.start),
            found.path.as_str(),
            found.describe_error(error.message()),
        );
        if !remove_entry(&mut rest, &wanted) {
            return None;
        }
    }
    report.add_problem(None, "", "there may be more problems; correct these first");
    None
}

/// The entry that an error is about.
struct Wanted {
    span: Range<usize>,
    /// Whether `span` is that of the key, not of the value.
    is_key: bool,
    /// An array of tables and its first table have the same span.
    is_array: bool,
}

impl Wanted {
    fn from_error(error: &Error) -> Self {
        let message = error.message();
        Self {
            span: error.span().unwrap_or_default(),
            is_key: message.starts_with("unknown field"),
            is_array: message.starts_with("invalid type: sequence"),
        }
    }

    fn is_entry(&self, key: Option<&Range<usize>>, value: &Document<'_>) -> bool {
        let is_key = self.is_key && key == Some(&self.span);
        // serde reads a datetime as a table with an internal key.
        let is_value = (!self.is_key || value.get_ref().is_datetime()) && value.span() == self.span;
        is_key || is_value && value.get_ref().is_array() == self.is_array
    }
}

fn remove_entry(value: &mut Document<'_>, wanted: &Wanted) -> bool {
    match value.get_mut() {
        DeValue::Table(table) => {
            let entry = table.iter().find(|(key, value)| wanted.is_entry(Some(&key.span()), value));
            match entry.map(|(key, _)| key.clone()) {
                Some(key) => table.remove(&key).is_some(),
                None => table.iter_mut().any(|(_, value)| remove_entry(value, wanted)),
            }
        }
        DeValue::Array(items) if items.iter().any(|item| wanted.is_entry(None, item)) => {
            let kept = std::mem::replace(items, DeArray::new())
                .into_iter()
                .filter(|item| !wanted.is_entry(None, item));
            *items = kept.collect();
            true
        }
        DeValue::Array(items) => items.iter_mut().any(|item| remove_entry(item, wanted)),
        _ => false,
    }
}

/// A step into a table or an array.
enum Step<'f> {
    Key(&'f str),
    Item(usize, &'f Document<'f>),
}

/// Finds the steps from a value to an entry within it. The path is built afterwards, and only for what is found, as keys can be
/// long.
fn find_steps<'f>(value: &'f Document<'f>, wanted: &Wanted, steps: &mut Vec<Step<'f>>) -> bool {
    let mut enter = |step, is_it: bool, value| {
        steps.push(step);
        let is_found = is_it || find_steps(value, wanted, steps);
        if !is_found {
            steps.pop();
        }
        is_found
    };
    match value.get_ref() {
        DeValue::Table(table) => table.iter().any(|(key, value)| {
            enter(Step::Key(key.get_ref()), wanted.is_entry(Some(&key.span()), value), value)
        }),
        DeValue::Array(items) => items
            .iter()
            .enumerate()
            .any(|(index, item)| enter(Step::Item(index, item), wanted.is_entry(None, item), item)),
        _ => false,
    }
}

/// A place in the document, for problems that concern more than one value.
#[derive(Clone)]
pub(super) struct Place<'f> {
    report: &'f Report,
    /// The join_key key.
    pub(super) path: String,
    /// `None` if the document has no such entry.
    value: Option<&'f Document<'f>>,
    /// The byte offset of the entry, or else of the table that it would be in.
    pub(super) at: usize,
}

impl<'f> Place<'f> {
    pub(super) fn root(document: &'f Document<'_>, report: &'f Report) -> Self {
        Self { report, path: String::new(), value: Some(document), at: 0 }
    }

    fn make_place(&self, path: String, value: Option<&'f Document<'f>>) -> Self {
        let at = value.map_or(self.at, |value| value.span().start);
        Self { report: self.report, path, value, at }
    }

    /// The entry of a key in this table.
    pub(super) fn child(&self, key: &str) -> Self {
        self.make_place(join_key(&self.path, key), self.as_table().and_then(|table| table.get(key)))
    }

    /// The items of this array and their indices, by byte offset.
    pub(super) fn items_by_position(&self) -> HashMap<usize, (usize, Self)> {
        let items = self.value.and_then(|value| value.get_ref().as_array());
        let items = items.into_iter().flat_map(|items| items.iter()).enumerate();
        let place = |(index, item)| self.make_place(format!("{}[{index}]", self.path), Some(item));
        items.map(|(index, item)| (item.span().start, (index, place((index, item))))).collect()
    }

    /// The keys of this table, in the order of the file.
    pub(super) fn key_names(&self) -> Vec<&'f str> {
        let mut keys: Vec<_> = self.as_table().into_iter().flat_map(DeTable::keys).collect();
        // The `toml` crate sorts keys by name.
        keys.sort_by_key(|key| key.span().start);
        keys.into_iter().map(|key| key.get_ref().as_ref()).collect()
    }

    pub(super) fn has_key(&self, key: &str) -> bool {
        self.child(key).exists()
    }

    pub(super) fn exists(&self) -> bool {
        self.value.is_some()
    }

    /// Whether it is an empty table or array.
    pub(super) fn is_empty(&self) -> bool {
        match self.value.map(Spanned::get_ref) {
            Some(DeValue::Table(table)) => table.is_empty(),
            Some(DeValue::Array(items)) => items.is_empty(),
            _ => false,
        }
    }

    /// Whether reading the document found a problem with it or with something in it.
    pub(super) fn is_faulty(&self) -> bool {
        let is_within = |key: &str| {
            key.strip_prefix(&self.path).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        // Problems with single values are found first; later ones do not count here.
        self.report.problems().iter().take(MAX_PROBLEMS).any(|problem| is_within(&problem.key))
    }

    /// The number of problems found so far.
    pub(super) fn problem_count(&self) -> usize {
        self.report.problems().len()
    }

    pub(super) fn add_problem(&self, message: impl Into<String>) {
        self.report.add_problem(Some(self.at), self.path.as_str(), message);
    }

    pub(super) fn add_warning(&self, text: impl Into<String>) {
        self.report.add_warning(text);
    }

    /// Reports a problem if the document does not have the key.
    pub(super) fn require_key<T>(&self, key: &str, value: Option<T>, example: &str) -> Option<T> {
        let place = self.child(key);
        if !place.exists() {
            place.add_problem(format!("is missing; for example {key} = {example}"));
        }
        value
    }

    /// Converts the value of a key, and reports an error as a problem.
    pub(super) fn convert_value<T, U>(
        &self,
        key: &str,
        value: Option<T>,
        convert: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<U> {
        convert(value?).map_err(|problem| self.child(key).add_problem(problem)).ok()
    }

    fn as_table(&self) -> Option<&'f DeTable<'f>> {
        self.value.and_then(|value| value.get_ref().as_table())
    }

    fn find_entry(&self, wanted: &Wanted) -> Option<Self> {
        let mut steps = Vec::new();
        let is_found = self.value.is_some_and(|value| find_steps(value, wanted, &mut steps));
        is_found.then(|| {
            steps.into_iter().fold(self.clone(), |place, step| match step {
                Step::Key(key) => place.child(key),
                Step::Item(index, item) => place.make_place(format!("{}[{index}]", place.path), Some(item)),
            })
        })
    }

    /// Rewords serde's message for this entry. The messages of the types in `values` are kept as they are.
    /// SECURITY: serde's messages repeat values, so only the expected type is taken from them.
    fn describe_error(&self, message: &str) -> String {
        let is_datetime = self.value.is_some_and(|value| value.get_ref().is_datetime());
        let Some((found, expected)) = message.rsplit_once(", expected ") else {
            let is_overflow = message.ends_with("number overflowed");
            return if is_overflow { "is too large a number".to_owned() } else { message.to_owned() };
        };
        match found.strip_prefix("unknown field `").and_then(|rest| rest.strip_suffix('`')) {
            Some(_) if is_datetime => self.describe_wrong_type("a table"),
            // `a`, `b` or `c`, with or without "one of" before them.
            Some(key) => {
                self.describe_unknown_key(key, &expected.split('`').skip(1).step_by(2).collect::<Vec<_>>())
            }
            None if found.starts_with("invalid ") => self.describe_wrong_type(expected),
            None => message.to_owned(),
        }
    }

    fn describe_wrong_type(&self, expected: &str) -> String {
        let value = self.value.map(Spanned::get_ref);
        let is_text =
            |words: &[&str]| value.and_then(DeValue::as_str).is_some_and(|text| words.contains(&text));
        let (expected, hint) = match expected {
            "a boolean" if is_text(&["true", "false"]) => {
                return "should be true or false, without quotes".to_owned();
            }
            "a boolean" => ("true or false", String::new()),
            "a string" => ("a string in quotes", String::new()),
            "a sequence" if self.path == "routes" && value.is_some_and(DeValue::is_table) => {
                return "should be a list of tables; write [[routes]], in double brackets, for each route"
                    .to_owned();
            }
            "a sequence" if self.path == "routes" => {
                ("a list of tables", "; write [[routes]] for each".to_owned())
            }
            "a sequence" => ("a list of strings", String::new()),
            "a table" => {
                let hint = match self.path.strip_prefix("upstreams.") {
                    Some(_) => format!("; for example {}", super::upstreams::EXAMPLE),
                    None if value.is_some_and(DeValue::is_array) && !self.path.contains('[') => {
                        format!("; write [{}] once", self.path)
                    }
                    None => String::new(),
                };
                ("a table", hint)
            }
            other => (other, String::new()),
        };
        let kind = value.map_or("value", DeValue::type_str);
        let article = if kind.starts_with(['a', 'i', 'o']) { "an" } else { "a" };
        format!("should be {expected}, not {article} {kind}{hint}")
    }

    fn describe_unknown_key(&self, key: &str, known: &[&str]) -> String {
        let section = self.path.strip_suffix(&join_key("", key)).unwrap_or_default().trim_end_matches('.');
        match (section, key) {
            ("scalekit", "client_secret" | "access_token") => return NO_SECRETS.to_owned(),
            ("management", "secret") => {
                return "a secret does not belong in this file; set secret_file".to_owned();
            }
            ("shared", "password" | "salt") => {
                return format!("a secret does not belong in this file; set {key}_file");
            }
            _ => {}
        }
        let hint = match did_you_mean(key, known.iter().copied()) {
            _ if looks_secret(section, key) => format!("; {NO_SECRETS}"),
            hint if hint.is_empty() => format!("; known keys are {}", known.join(", ")),
            hint => hint,
        };
        format!("is not a known key{hint}")
    }
}

/// Appends a key to a dotted path, in quotes where TOML requires them.
pub(super) fn join_key(path: &str, key: &str) -> String {
    let bare = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    let key = if !key.is_empty() && key.bytes().all(bare) { key.to_owned() } else { quote_text(key) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// Files are kept in version control, ConfigMaps and backups.
const NO_SECRETS: &str =
    "a secret does not belong in this file; set SCALEKIT_CLIENT_SECRET, or client_secret_file";

/// Whether an unknown key looks like the name of a secret. The path of a file with a secret is allowed.
fn looks_secret(section: &str, key: &str) -> bool {
    let key: String = key.chars().filter(char::is_ascii_alphanumeric).collect();
    let key = key.to_ascii_lowercase();
    let names = |words: &[&str]| words.iter().any(|word| key.contains(word));
    let near_scalekit = matches!(section, "" | "scalekit");
    !key.ends_with("file")
        && (names(&["secret", "password", "apikey"]) || near_scalekit && names(&["token", "passwd"]))
}
