//! `keyward check` and `keyward schema`: whether a route file is right, and what editors need to say so while it is written.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::RouteFile;
use crate::admin::route_as_json;
use crate::config::{self, Config, Diagnostics, Environment, Resources};

#[derive(Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    file: RouteFile,
    /// How to report
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Format {
    /// For people
    Text,
    /// One JSON object, for programs
    Json,
}

pub(super) fn check(args: CheckArgs) -> Result<ExitCode> {
    let path = args.file.path().config;
    let config = load(&path);
    if args.format == Format::Json {
        let code = if config.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        super::print(&format!("{:#}\n", report_as_json(config.as_ref())))?;
        return Ok(code);
    }
    let config = config?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    let name = if is_stdin(&path) { "the configuration".to_owned() } else { path.display().to_string() };
    super::print(&format!("{}\n{name} is fine.\n", config::describe_routes(&config)))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn schema() -> Result<()> {
    super::print(&config::json_schema()?)?;
    Ok(())
}

/// To look at, not to run. `-` is standard input.
pub(super) fn load(path: &Path) -> Result<Config, Diagnostics> {
    let environment = Environment::process().without_scalekit();
    let config =
        if is_stdin(path) { config::load_from_stdin(&environment) } else { config::load(path, &environment) };
    config.map(|mut config| {
        // Not to the memory of this machine, which need not be where it will run.
        config.fit(Resources::default());
        config
    })
}

fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}

fn report_as_json(config: Result<&Config, &Diagnostics>) -> serde_json::Value {
    let (problems, warnings, routes) = match config {
        Ok(config) => {
            let routes = config.routes.routes().iter().map(route_as_json).collect();
            (&[][..], &config.warnings[..], routes)
        }
        Err(Diagnostics(problems)) => (&problems[..], &[][..], Vec::new()),
    };
    serde_json::json!({
        "ok": config.is_ok(),
        "problems": problems,
        "warnings": warnings,
        "routes": routes,
    })
}
