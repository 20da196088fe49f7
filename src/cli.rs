//! The command line. Exit codes: 0 success, 1 failure, 2 wrong usage.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "commands print for people")]

mod admin_client;
mod check;
#[cfg(feature = "dev")]
mod dev;
#[cfg(feature = "dev")]
mod emulator;
mod drain;
mod explain;
mod gateway_config;
mod generate;
mod healthcheck;
mod keys;
mod run;
mod shadow_report;
mod signals;

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::{self, Config, Diagnostics, Environment, Resources};
use anyhow::{Context as _, Result};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory as _, Parser, Subcommand};

/// A validating reverse proxy: checks Scalekit API keys and forwards the client's identity in headers.
#[derive(Parser)]
#[command(name = "keyward", version, max_term_width = 100, after_help = BEGIN_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy
    #[command(after_help = run::HELP)]
    Run(RouteFile),
    /// Try everything on this machine, without an account
    ///
    /// Starts a Scalekit emulator, an upstream that shows what it receives, and Keyward between them, creates sample keys,
    /// and prints curl commands to try. Ctrl-C stops it.
    #[cfg(feature = "dev")]
    Dev(dev::DevArgs),
    /// Read a configuration as `run` does, report every problem, and show the routes
    #[command(after_help = check::HELP)]
    Check(check::CheckArgs),
    /// Print the JSON Schema of the route file, for editors
    #[command(after_help = check::SCHEMA_HELP)]
    Schema,
    /// Show what happens to a request: its route, what the route requires, and the headers it sets
    #[command(after_help = "Example: keyward explain --config keyward.toml GET /v1/orders")]
    Explain(explain::ExplainArgs),
    /// Print the configuration of a gateway that asks Keyward for decisions
    #[command(after_help = gateway_config::HELP)]
    GatewayConfig(gateway_config::GatewayConfigArgs),
    /// Count what routes in shadow mode would have refused, from the log
    #[command(after_help = shadow_report::HELP)]
    ShadowReport(shadow_report::ShadowReportArgs),
    /// Create, list, inspect, update, rotate and revoke keys
    Keys(keys::KeysArgs),
    /// Run the Scalekit emulator alone, for tests in any language
    #[cfg(feature = "dev")]
    Emulator(emulator::EmulatorArgs),
    /// Ask a running Keyward whether it is ready; for containers without a shell
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Drain a running Keyward and wait for the end; for the preStop hook of a container
    #[command(after_help = drain::HELP)]
    Drain(drain::DrainArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example: keyward completions bash > /etc/bash_completion.d/keyward")]
    Completions {
        /// The shell
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

#[derive(Args)]
struct ConfigFile {
    /// The route file
    #[arg(short, long, value_name = "FILE", env = "KEYWARD_CONFIG")]
    config: PathBuf,
}

/// The route file of `run` and `check`, as FILE or with `--config`.
#[derive(Args)]
struct RouteFile {
    /// The route file
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// The route file, as an option
    #[arg(short, long, value_name = "FILE", env = "KEYWARD_CONFIG", required_unless_present = "file")]
    config: Option<PathBuf>,
}

impl RouteFile {
    /// The command line takes precedence over the environment.
    fn resolve_path(self) -> ConfigFile {
        let from_environment = std::env::var_os("KEYWARD_CONFIG").map(PathBuf::from);
        if self.file.is_some() && self.config.is_some() && self.config != from_environment {
            let text = "the route file is given twice: as FILE and with --config";
            Cli::command().error(ErrorKind::ArgumentConflict, text).exit();
        }
        ConfigFile { config: self.file.or(self.config).unwrap_or_default() }
    }
}

/// Parses the command line and runs the command.
pub fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| explain_missing_command(redact_keys(error)).exit());
    let result = match cli.command {
        Command::Run(file) => run::run_proxy(file.resolve_path()),
        #[cfg(feature = "dev")]
        Command::Dev(args) => dev::run_dev(args),
        Command::Check(args) => return report_result(check::run_check(args)),
        Command::Schema => check::run_schema(),
        Command::Explain(args) => explain::run_explain(&args),
        Command::GatewayConfig(args) => gateway_config::run_gateway_config(&args),
        Command::ShadowReport(args) => shadow_report::report_shadow(&args),
        Command::Keys(args) => {
            // Where the system refuses this, the command is no less safe than other programs of the same user.
            let _ = protect_memory();
            return report_result(keys::run_keys(args));
        }
        #[cfg(feature = "dev")]
        Command::Emulator(args) => emulator::run_emulator(args),
        Command::Healthcheck(args) => healthcheck::check_health(&args),
        Command::Drain(args) => drain::drain(&args),
        Command::Completions { shell } => generate::print_completions(shell),
        Command::Man { folder } => generate::write_man_pages(&folder),
    };
    report_result(result.map(|()| ExitCode::SUCCESS))
}

fn report_result(result: Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            write_stderr(format_args!("keyward: {error:#}\n"));
            ExitCode::FAILURE
        }
    }
}

/// SECURITY: clap repeats wrong arguments in its errors, and one of them may be a key that was pasted in the wrong place.
fn redact_keys(mut error: clap::Error) -> clap::Error {
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
    /// For a look at the configuration, without Scalekit's variables. A file of `-` is standard input.
    fn load_config(&self) -> Result<Config, Diagnostics> {
        let environment = Environment::from_process().without_scalekit();
        let mut config = match self.is_stdin() {
            true => config::load_from_stdin(&environment)?,
            false => config::load(&self.config, &environment)?,
        };
        // The machine that checks a file need not be the one that runs it, so its memory does not count.
        config.fit(Resources::default());
        Ok(config)
    }

    fn is_stdin(&self) -> bool {
        self.config == Path::new("-")
    }
}

/// Writes to standard error. Unlike `eprint!` this does not panic where standard error is closed.
fn write_stderr(text: impl fmt::Display) {
    let _ = write!(io::stderr(), "{text}");
}

/// Writes to standard output. `false` means that the reader has closed it, which is no error: it has read enough.
fn write_stdout(text: &str) -> Result<bool> {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write"),
    }
}

/// One thread on one core, which costs least per request; otherwise a thread per core, but no more than the memory allows, as each
/// thread may hold the head of one connection.
fn build_runtime(memory: Option<usize>) -> Result<tokio::runtime::Runtime> {
    const MEMORY_PER_THREAD: usize = 16 * 1024 * 1024;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = memory.map_or(cores, |memory| cores.min(memory / MEMORY_PER_THREAD).max(1));
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

/// SECURITY: turns off core dumps, and access to this process's memory by others of the same user (`ptrace`, `/proc/PID/mem`), as
/// keys and the client secret are in it. `KEYWARD_CORE_DUMPS=allow` turns both back on for debugging.
fn protect_memory() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    if std::env::var_os("KEYWARD_CORE_DUMPS").is_some_and(|value| value == "allow") {
        return Ok(());
    }
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    // The limit does not apply to cores that are piped to a program (core(5)).
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}
