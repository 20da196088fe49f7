//! Problems and warnings of a route file. None of them repeats a value that could be a secret.

use std::cell::{Ref, RefCell};
use std::fmt;

use serde::Serialize;

/// One problem of a configuration.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnostic {
    /// The file name as given.
    pub file: String,
    /// From 1; `None` for a problem that is not in the file, such as one with an environment variable.
    pub line: Option<usize>,
    /// From 1, in characters.
    pub column: Option<usize>,
    /// The join_key key, or an environment variable; empty where the text is not TOML.
    pub key: String,
    /// What is wrong, and how to correct it.
    pub message: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, ":{line}:{column}")?;
        }
        f.write_str(": ")?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// All problems of a configuration, in the order of the file.
#[derive(Debug)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, s) = (self.0.len(), if self.0.len() == 1 { "" } else { "s" });
        write!(f, "the configuration has {count} problem{s}:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Diagnostics {}

/// A problem whose line is not known yet.
pub(super) struct Problem {
    /// The byte offset in the text.
    pub(super) at: Option<usize>,
    pub(super) key: String,
    pub(super) message: String,
}

/// The problems and warnings found so far.
#[derive(Default)]
pub(super) struct Report {
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
}

impl Report {
    pub(super) fn add_problem(&self, at: Option<usize>, key: impl Into<String>, message: impl Into<String>) {
        self.problems.borrow_mut().push(Problem { at, key: key.into(), message: message.into() });
    }

    pub(super) fn add_warning(&self, text: impl Into<String>) {
        self.warnings.borrow_mut().push(text.into());
    }

    pub(super) fn problems(&self) -> Ref<'_, Vec<Problem>> {
        self.problems.borrow()
    }

    pub(super) fn take_warnings(&self) -> Vec<String> {
        self.warnings.take()
    }

    /// Adds lines and columns. `file` names the text.
    pub(super) fn into_diagnostics(self, file: &str, lines: &Lines<'_>) -> Diagnostics {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.at.unwrap_or(usize::MAX));
        let diagnostic = |Problem { at, key, message }| {
            let (line, column) = at.map(|at| lines.find_position(at)).unzip();
            Diagnostic { file: file.to_owned(), line, column, key, message }
        };
        Diagnostics(problems.into_iter().map(diagnostic).collect())
    }
}

/// A text and the byte offsets of its lines.
pub(super) struct Lines<'t> {
    text: &'t str,
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { text, starts }
    }

    /// Line and column of a byte offset, from 1; the column is in characters.
    pub(super) fn find_position(&self, at: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= at);
        let start = line.checked_sub(1).map_or(0, |before| self.starts[before]);
        (line, self.text.get(start..at).map_or(1, |before| before.chars().count() + 1))
    }
}

/// Quotes a text for a message: escaped onto one line, and cut to 60 characters.
pub(super) fn quote_text(text: &str) -> String {
    const MOST: usize = 60;
    match text.char_indices().nth(MOST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}", format!("{}…", &text[..end])),
    }
}

/// `; did you mean "x"?` if a candidate is similar: one typing error away, or with a similar beginning.
pub(super) fn did_you_mean<'c>(given: &str, candidates: impl IntoIterator<Item = &'c str>) -> String {
    let given = given.to_lowercase();
    let likeness = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let slip = candidate.len() > 2 && strsim::damerau_levenshtein(&given, &candidate) == 1;
        if slip { 1.0 } else { strsim::jaro_winkler(&given, &candidate) }
    };
    let near = candidates
        .into_iter()
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|one, two| one.0.total_cmp(&two.0));
    near.map_or_else(String::new, |(_, candidate)| format!("; did you mean {candidate:?}?"))
}
