//! The file in which counts are kept over restarts: JSON lines, replaced as a whole. It begins with a header and ends with the number of
//! lines. A file that is damaged is set aside; one that is something else is never touched.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::organizations::{Day, SavedRow};
use super::report::KeyLine;
use super::{Usage, to_millis};

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read or written.
    #[error("usage.file: {} cannot be {what}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        what: &'static str,
        /// Why.
        error: io::Error,
    },
    /// Another process has it open.
    #[error("usage.file: {} is in use by another Keyward; each needs a file of its own", .0.display())]
    InUse(PathBuf),
    /// It has another content.
    #[error("usage.file: {} is not a file of Keyward's usage, and is left as it is; name another file, or remove it", .0.display())]
    Foreign(PathBuf),
    /// Another version of Keyward has written it.
    #[error("usage.file: {} has the format {found}, and this version of Keyward reads 1; name another file, or remove it", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// The format's number.
        found: u64,
    },
}

/// The format that is written, and the only one that is read.
const FORMAT: u64 = 1;
/// No line is longer, in bytes.
const MAX_LINE: u64 = 64 * 1024;

/// The file, which no other process uses.
pub(super) struct Store {
    path: PathBuf,
    /// Whether it was written for the last time. Held while it is written.
    is_closed: Mutex<bool>,
    /// Locked as long as it is open.
    _lock: File,
}

/// What a file holds.
pub(super) struct Saved {
    pub(super) instance: String,
    pub(super) counted_since: u64,
    pub(super) complete_since: u64,
    /// Whether nothing was counted after it was written.
    pub(super) is_complete: bool,
    pub(super) keys: Vec<KeyLine>,
    pub(super) rows: Vec<SavedRow>,
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    keyward_usage: u64,
    written: Timestamp,
    instance: String,
    counted_since: Timestamp,
    complete_since: Timestamp,
    is_complete: bool,
}

/// The beginning of the first line of every format.
#[derive(Deserialize)]
struct AnyHeader {
    keyward_usage: u64,
}

/// Each further line.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Key(KeyLine),
    Row(SavedRow),
    /// The last line: the number of lines between the header and this one.
    End(u64),
}

impl Store {
    pub(super) fn lock(path: &Path) -> Result<Self, FileError> {
        let unusable = |what, error| FileError::Io { path: path.to_owned(), what, error };
        let lock_path = with_suffix(path, "lock");
        let lock = open_for_writing(&lock_path, false).map_err(|error| unusable("written", error))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => FileError::InUse(path.to_owned()),
            error => unusable("written", error.into()),
        })?;
        Ok(Self { path: path.to_owned(), is_closed: Mutex::new(false), _lock: lock })
    }

    /// `None` if there is no file, or it was damaged and is set aside.
    pub(super) fn read(&mut self) -> Result<Option<Saved>, FileError> {
        let unreadable = |error| FileError::Io { path: self.path.clone(), what: "read", error };
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(unreadable(error)),
            Ok(metadata) if !metadata.is_file() => return Err(FileError::Foreign(self.path.clone())),
            Ok(metadata) if metadata.len() == 0 => return Ok(None),
            Ok(_) => {}
        }
        let mut reader = BufReader::new(File::open(&self.path).map_err(unreadable)?);
        let first = read_line(&mut reader).map_err(unreadable)?;
        let Ok(AnyHeader { keyward_usage }) = serde_json::from_str(&first) else {
            return Err(FileError::Foreign(self.path.clone()));
        };
        if keyward_usage != FORMAT {
            return Err(FileError::Version { path: self.path.clone(), found: keyward_usage });
        }
        match read_content(&first, &mut reader) {
            Ok(saved) => Ok(Some(saved)),
            Err(problem) => {
                let aside = with_suffix(&self.path, "damaged");
                fs::rename(&self.path, &aside).map_err(unreadable)?;
                tracing::error!(
                    "usage.file is damaged ({problem}); it is now {}, and usage is counted from 0",
                    aside.display()
                );
                Ok(None)
            }
        }
    }

    /// Replaces the file. `is_complete` tells that nothing is counted after this.
    pub(super) fn write(&self, usage: &Usage, is_complete: bool) -> Result<(), FileError> {
        let mut is_closed = self.is_closed.lock().unwrap_or_else(PoisonError::into_inner);
        // One that was begun before the last one must not replace it.
        if *is_closed {
            return Ok(());
        }
        let unwritable = |error| FileError::Io { path: self.path.clone(), what: "written", error };
        self.replace(usage, is_complete).map_err(unwritable)?;
        *is_closed = is_complete;
        Ok(())
    }

    fn replace(&self, usage: &Usage, is_complete: bool) -> io::Result<()> {
        let coverage = usage.coverage();
        let header = Header {
            keyward_usage: FORMAT,
            written: coverage.now,
            instance: coverage.instance,
            counted_since: coverage.counted_since,
            complete_since: coverage.complete_since,
            is_complete,
        };
        let temporary = with_suffix(&self.path, "new");
        let mut writer = BufWriter::new(open_for_writing(&temporary, true)?);
        write_line(&mut writer, &header)?;
        let rows = usage.organizations.list(0, Day::MAX).into_iter().map(|row| Line::Row(row.to_saved()));
        let mut count = 0;
        for line in usage.list_keys().map(Line::Key).chain(rows) {
            write_line(&mut writer, &line)?;
            count += 1;
        }
        write_line(&mut writer, &Line::End(count))?;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        // The rename itself outlasts a crash of the machine only if its folder is written, too.
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty());
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
    }
}

/// For the owner alone, as it tells who uses the service.
fn open_for_writing(path: &Path, truncate: bool) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(truncate).mode(0o600).open(path)
}

fn write_line(writer: &mut impl io::Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *writer, line)?;
    writer.write_all(b"\n")
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// A line without its end. What is not UTF-8 gives text that is no JSON.
fn read_line(reader: &mut impl io::BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    reader.take(MAX_LINE).read_until(b'\n', &mut line)?;
    Ok(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned())
}

fn read_content(first: &str, reader: &mut impl io::BufRead) -> Result<Saved, String> {
    let header: Header = serde_json::from_str(first).map_err(|error| format!("line 1: {error}"))?;
    let mut saved = Saved {
        instance: header.instance,
        counted_since: to_millis(header.counted_since),
        complete_since: to_millis(header.complete_since),
        is_complete: header.is_complete,
        keys: Vec::new(),
        rows: Vec::new(),
    };
    let mut count = 0;
    loop {
        let number = count + 2;
        let line = read_line(reader).map_err(|error| error.to_string())?;
        match serde_json::from_str(&line) {
            Ok(Line::Key(key)) => saved.keys.push(key),
            Ok(Line::Row(row)) => saved.rows.push(row),
            Ok(Line::End(expected)) if expected == count => return Ok(saved),
            Ok(Line::End(expected)) => {
                return Err(format!("it should have {expected} lines, and has {count}"));
            }
            Err(_) if line.is_empty() => return Err(format!("it ends before line {number}")),
            Err(error) => return Err(format!("line {number}: {error}")),
        }
        count += 1;
    }
}
