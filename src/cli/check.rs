//! `keyward check` and `keyward schema`: whether a route file is right, and what editors need to say so while it is written.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::RouteFile;
use super::explain::{describe_requirement, list_methods};
use crate::admin::route_as_json;
use crate::config::{self, Config, Diagnostics};
use crate::route::Route;

pub(super) const HELP: &str = include_str!("help/check.txt").trim_ascii_end();
pub(super) const SCHEMA_HELP: &str = include_str!("help/schema.txt").trim_ascii_end();

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

pub(super) fn run_check(args: CheckArgs) -> Result<ExitCode> {
    let file = args.file.resolve_path();
    let config = file.load_config();
    if args.format == Format::Json {
        let code = if config.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
        super::write_stdout(&format!("{:#}\n", report_as_json(config.as_ref())))?;
        return Ok(code);
    }
    let config = config?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    let name =
        if file.is_stdin() { "the configuration".to_owned() } else { file.config.display().to_string() };
    let note = match config.proxy_listens {
        true => "",
        false => "The proxy does not listen: no route has an upstream, and server.listen is not set.\n",
    };
    let traces = config
        .traces
        .as_ref()
        .map_or_else(String::new, |traces| format!("Traces are exported to {}.\n", traces.endpoint));
    super::write_stdout(&format!("{}\n{note}{traces}{name} is fine.\n", format_routes(&config)))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn run_schema() -> Result<()> {
    super::write_stdout(&config::json_schema()?)?;
    Ok(())
}

/// The routes as a table, the most specific first.
pub(super) fn format_routes(config: &Config) -> String {
    let header = ["HOST", "PATH", "METHODS", "REQUIRES", "UPSTREAM"].map(str::to_owned);
    let row = |route: &Route| {
        let host = route.host.as_deref().unwrap_or("any").to_owned();
        [
            host,
            route.pattern.to_string(),
            list_methods(route),
            describe_requirement(route),
            if route.upstream.is_empty() { "- (decisions)".to_owned() } else { route.upstream.to_string() },
        ]
    };
    let rows: Vec<[String; 5]> =
        std::iter::once(header).chain(config.routes.routes().iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        let line: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
    out
}

fn report_as_json(config: Result<&Config, &Diagnostics>) -> serde_json::Value {
    let (problems, warnings, routes) = match config {
        Ok(config) => {
            let routes = config.routes.routes().iter().map(route_as_json).collect();
            (&[][..], &config.warnings[..], routes)
        }
        Err(Diagnostics(problems)) => (&problems[..], &[][..], Vec::new()),
    };
    let traces = config.ok().and_then(|config| Some(&config.traces.as_ref()?.endpoint));
    serde_json::json!({
        "ok": config.is_ok(),
        "traces": traces,
        "problems": problems,
        "warnings": warnings,
        "routes": routes,
    })
}
