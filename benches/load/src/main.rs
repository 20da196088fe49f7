//! The other side of `benches/compare`: stand-ins for everything that a proxy speaks to, and the load. Each is one thread.
//!
//! `keyward-load serve …` is the upstream, Scalekit, and the adapter that other proxies ask; `keyward-load run …` sends
//! requests and prints one JSON object; `keyward-load hold …` opens connections and keeps them.

mod http1;
mod load;
mod record;
mod serve;

use std::collections::HashMap;
use std::process::ExitCode;
use std::str::FromStr;

/// `--name value` pairs.
struct Options(HashMap<String, String>);

impl Options {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = HashMap::new();
        let mut arguments = arguments;
        while let Some(name) = arguments.next() {
            let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
            options.insert(name.trim_start_matches('-').to_owned(), value);
        }
        Ok(Self(options))
    }

    fn get<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        self.0.get(name).map_or(Ok(default), |value| {
            value.parse().map_err(|_| format!("--{name} {value}: not understood"))
        })
    }
}

fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let options = Options::parse(arguments)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    match command.as_str() {
        "serve" => runtime.block_on(serve::serve(&options)),
        "run" => runtime.block_on(load::run(&options)),
        "hold" => runtime.block_on(load::hold(&options)),
        _ => Err("serve, run or hold".to_owned()),
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("keyward-load: {error}");
            ExitCode::FAILURE
        }
    }
}
