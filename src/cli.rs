//! The command line. Exit code 0: fine, 1: failed, 2: used wrongly.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "this is where Keyward talks to people")]

#[cfg(feature = "dev")]
mod dev;
#[cfg(feature = "dev")]
mod emulator;
mod health;
mod keys;
mod papers;
mod signals;

use std::fmt;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory as _, Parser, Subcommand};
use tokio::sync::Notify;

use crate::access_log;
use crate::config::{self, Config, Environment, Resources};
use crate::metrics::Metrics;
use crate::server::{Server, reload};

/// A validating reverse proxy: checks Scalekit API keys and forwards the caller's identity in headers.
#[derive(Parser)]
#[command(name = "keyward", version, max_term_width = 100, after_help = BEGIN_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy
    #[command(after_help = RUN_HELP)]
    Run(RouteFile),
    /// Try everything on this machine, without an account
    ///
    /// Starts a Scalekit emulator, an upstream that shows what it receives, and Keyward between them, makes sample keys,
    /// and prints curl lines to try. Ends with Ctrl-C.
    #[cfg(feature = "dev")]
    Dev(dev::DevArgs),
    /// Read a configuration as `run` would, report every problem, and show the routes
    #[command(after_help = "Example: keyward check keyward.toml")]
    Check(RouteFile),
    /// Show what happens to a request: its route, what that asks for, and the headers it sets
    #[command(after_help = "Example: keyward explain --config keyward.toml GET /v1/orders")]
    Explain {
        #[command(flatten)]
        file: ConfigFile,
        /// The method
        method: String,
        /// A path, or a whole URL where the host matters
        target: String,
    },
    /// Create, list, inspect, update, rotate and revoke keys
    Keys(keys::KeysArgs),
    /// Run the Scalekit emulator alone, for tests in any language
    #[cfg(feature = "dev")]
    Emulator(emulator::EmulatorArgs),
    /// Ask a running Keyward whether it is ready; for containers without a shell
    Healthcheck(health::Healthcheck),
    /// Print what a shell needs to complete commands
    #[command(after_help = "Example: keyward completions bash > /etc/bash_completion.d/keyward")]
    Completions {
        /// For which shell
        shell: clap_complete::Shell,
    },
    /// Write the man pages
    #[command(after_help = "Example: keyward man /usr/local/share/man/man1")]
    Man {
        /// The folder to write them into
        folder: PathBuf,
    },
}

const BEGIN_HELP: &str = if cfg!(feature = "dev") {
    "Begin with: keyward dev"
} else {
    "Begin with: keyward check FILE\n\nThe commands dev and emulator are not in this build: it was made without the Cargo feature `dev`."
};

const RUN_HELP: &str = "\
Environment:
  SCALEKIT_ENVIRONMENT_URL  the environment, as in https://acme.scalekit.com
  SCALEKIT_CLIENT_ID        the client
  SCALEKIT_CLIENT_SECRET    its secret
Each may be given as NAME_FILE instead: a file that holds the value, read again when needed.
  KEYWARD_CORE_DUMPS        allow: leaves core files and debuggers as the system has them; without
                            it there are none, as keys would be in them

Signals:
  SIGTERM, SIGINT  drain, then stop; a second one stops at once
  SIGHUP           read the route file again, as happens by itself when it changes";

#[derive(Args)]
struct ConfigFile {
    /// The route file
    #[arg(short, long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: PathBuf,
}

/// The route file of `run` and `check`, with or without `--config` before it.
#[derive(Args)]
struct RouteFile {
    /// The route file
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The route file, likewise
    #[arg(short, long, value_name = "FILE", env = "KEYWARD_CONFIG", required_unless_present = "file")]
    config: Option<PathBuf>,
}

impl RouteFile {
    /// The one on the command line goes before the one of the environment.
    fn path(self) -> ConfigFile {
        let from_environment = std::env::var_os("KEYWARD_CONFIG").map(PathBuf::from);
        if self.file.is_some() && self.config.is_some() && self.config != from_environment {
            let text = "the route file is given twice: as FILE and with --config";
            Cli::command().error(ErrorKind::ArgumentConflict, text).exit();
        }
        ConfigFile { config: self.file.or(self.config).unwrap_or_default() }
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| explain_missing_command(without_keys(error)).exit());
    let done = match cli.command {
        Command::Run(file) => run(file.path()),
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev::run(args),
        Command::Check(file) => check(&file.path()),
        Command::Explain { file, method, target } => explain(&file, &method, &target),
        Command::Keys(args) => {
            // Where it cannot be had the command is no worse than any other program of the user's.
            let _ = protect_memory();
            return finish(keys::run(args));
        }
        #[cfg(feature = "dev")]
        Command::Emulator(args) => emulator::run(args),
        Command::Healthcheck(args) => health::check(&args),
        Command::Completions { shell } => papers::completions(shell),
        Command::Man { folder } => papers::man(&folder),
    };
    finish(done.map(|()| ExitCode::SUCCESS))
}

fn finish(done: Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(error) => {
            tell(format_args!("keyward: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// SECURITY: a key that was pasted where none belongs is not repeated.
fn without_keys(mut error: clap::Error) -> clap::Error {
    for kind in [ContextKind::InvalidArg, ContextKind::InvalidSubcommand, ContextKind::InvalidValue] {
        let may_be_a_key =
            |text: &str| text.len() >= 20 && text.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if matches!(error.get(kind), Some(ContextValue::String(text)) if may_be_a_key(text)) {
            error.insert(kind, ContextValue::String("(not shown, as it may be a key)".to_owned()));
        }
    }
    error
}

/// Says why `dev` and `emulator` are unknown to a build without them.
fn explain_missing_command(error: clap::Error) -> clap::Error {
    match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(name)) if ["dev", "emulator"].contains(&name.as_str()) => {
            let text = format!(
                "`keyward {name}` is not in this build, which was made without the Cargo feature `dev`, as the container \
                 image is.\nIt is in the program that `cargo build --release` makes"
            );
            Cli::command().error(ErrorKind::InvalidSubcommand, text)
        }
        _ => error,
    }
}

impl ConfigFile {
    /// To look at, not to run.
    fn load(&self) -> Result<Config> {
        let mut config = config::load(&self.config, &Environment::process().without_scalekit())?;
        // Not to the memory of this machine, which need not be where it will run.
        config.fit(Resources::default());
        Ok(config)
    }
}

fn run(file: ConfigFile) -> Result<()> {
    let protected = protect_memory();
    let hup = Arc::new(Notify::new());
    let source = reload::Source::new(file.config, Environment::process(), Arc::clone(&hup));
    let config = source.load()?;
    let metrics = Arc::new(Metrics::default());
    let _log = access_log::start(config.log, Arc::clone(&metrics));
    if let Err(error) = protected {
        tracing::warn!("core files cannot be turned off: {error}; one would hold keys");
    }
    raise_file_limit();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    runtime(config.memory)?.block_on(async {
        let mut server = Server::bind(config, metrics)?;
        server.reload_from(source);
        let (stop, kill) = signals::watch(Some(hup))?;
        server.run(stop, kill).await;
        Ok(())
    })
}

fn check(file: &ConfigFile) -> Result<()> {
    let config = file.load()?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    print(&format!("{}\n{} is fine.\n", config::describe_routes(&config), file.config.display()))?;
    Ok(())
}

fn explain(file: &ConfigFile, method: &str, target: &str) -> Result<()> {
    let text = config::explain(&file.load()?, method, target).map_err(anyhow::Error::msg)?;
    print(&text)?;
    Ok(())
}

/// To standard error, where somebody may listen or not.
fn tell(text: impl fmt::Display) {
    let _ = write!(io::stderr(), "{text}");
}

/// To standard output. Whoever closed it has read enough: then it is false.
fn print(text: &str) -> Result<bool> {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write"),
    }
}

/// One thread where there is one core, which costs a request least; else a thread for each, but no more than memory is there
/// for, as each may be reading one connection's heads.
fn runtime(memory: Option<usize>) -> Result<tokio::runtime::Runtime> {
    const MEMORY: usize = 16 * 1024 * 1024;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = memory.map_or(cores, |memory| cores.min(memory / MEMORY).max(1));
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    builder.enable_all().build().context("cannot start the runtime")
}

/// Writes no core file and lets no other process of the same user read this one's memory (`ptrace`, `/proc/PID/mem`): keys and the
/// client secret are in it. `KEYWARD_CORE_DUMPS=allow` leaves the process as it was started, for whoever debugs it.
fn protect_memory() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    if std::env::var_os("KEYWARD_CORE_DUMPS").is_some_and(|value| value == "allow") {
        return Ok(());
    }
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // The limit alone does not stop a core that is piped to a program (core(5)).
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// As many connections as the system allows; the usual 1,024 descriptors are for programs of the last century.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).is_err() {
        tracing::warn!("cannot raise the limit of open files; it is {:?}", limit.current);
    }
}
