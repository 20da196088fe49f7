//! `keyward check`: reads a configuration as `run` does and prints its routes.

use std::fmt::Write as _;

use anyhow::Result;

use super::ConfigFile;
use super::explain::{describe_requirement, list_methods};
use crate::config::Config;
use crate::route::Route;

pub(super) fn run_check(file: &ConfigFile) -> Result<()> {
    let config = file.load_config()?;
    for warning in &config.warnings {
        eprintln!("warning: {warning}");
    }
    super::write_stdout(&format!("{}\n{} is fine.\n", format_routes(&config), file.config.display()))?;
    Ok(())
}

/// The routes as a table, the most specific first.
pub(super) fn format_routes(config: &Config) -> String {
    let header = ["HOST", "PATH", "METHODS", "ASKS FOR", "UPSTREAM"].map(str::to_owned);
    let row = |route: &Route| {
        let host = route.host.as_deref().unwrap_or("any").to_owned();
        [
            host,
            route.pattern.to_string(),
            list_methods(route),
            describe_requirement(route),
            route.upstream.to_string(),
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
