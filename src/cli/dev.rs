//! `keyward dev`: Keyward between a Scalekit emulator and an echo upstream, on one machine and without an account.

use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use keyward_emulator::echo::Echo;
use keyward_emulator::store::{Issue, Issued};
use keyward_emulator::{Emulator, Settings};
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::emulator::bind_listener;
use super::{build_runtime, signals, write_stdout};
use crate::config::{self, Environment};
use crate::logging::{self, Format};
use crate::metrics::Metrics;
use crate::pool::Address;
use crate::server::Server;

#[derive(Args)]
pub(super) struct DevArgs {
    /// A real service to put behind Keyward, instead of the one that shows what it receives; host:port is taken for http://
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Address of Keyward
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4480")]
    listen: SocketAddr,
    /// Address of its admin port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4481")]
    admin: SocketAddr,
    /// Address of the Scalekit emulator
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:4490")]
    emulator: SocketAddr,
}

/// The emulator's client id and client secret.
const CLIENT: &str = "dev";

pub(super) fn run_dev(mut args: DevArgs) -> Result<()> {
    if let Some(url) = &mut args.upstream {
        *url = config::parse_upstream_url(url).map_err(|problem| anyhow::anyhow!("--upstream {problem}"))?;
    }
    let metrics = Arc::new(Metrics::default());
    // Text also when piped: the reader is a person.
    let log = logging::Settings { format: Format::Text, access: true };
    let _log = logging::start(log, &metrics);
    build_runtime(None)?.block_on(async {
        let stop_all = CancellationToken::new();
        let tasks = TaskTracker::new();
        let emulator = Emulator::new(Settings::default());
        let listener = bind_listener(args.emulator).await?;
        let environment_url = format!("http://{}", listener.local_addr()?);
        tasks.spawn({
            let (emulator, stop) = (emulator.clone(), stop_all.clone());
            async move { emulator.serve(listener, stop).await }
        });
        let upstream = match &args.upstream {
            Some(url) => url.clone(),
            None => {
                let listener = bind_listener(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
                let url = format!("http://{}", listener.local_addr()?);
                let stop = stop_all.clone();
                tasks.spawn(async move { Echo::new().serve(listener, stop).await });
                url
            }
        };
        let environment = Environment::from_pairs([
            ("SCALEKIT_ENVIRONMENT_URL", &*environment_url),
            ("SCALEKIT_CLIENT_ID", CLIENT),
            ("SCALEKIT_CLIENT_SECRET", CLIENT),
        ]);
        let config = config::parse(&route_file(&args, &upstream), "dev", &environment)?;
        let upstream_address = config.upstreams.first().map(|upstream| upstream.origin.address.clone());
        let server = Server::bind(config, metrics)?;
        let (stop, kill) = signals::watch_signals(None)?;
        let readiness = server.readiness();
        let address = server.address().map_or_else(String::new, |address| address.to_string());
        let serving = tokio::spawn(server.run(stop.clone(), kill));
        tokio::select! {
            () = readiness.wait_until_ready() => {}
            () = stop.cancelled() => {}
        }
        write_stdout(&welcome_text(&emulator, &environment_url, &address, &upstream))?;
        if let (Some(url), Some(address)) = (&args.upstream, upstream_address)
            && let Err(error) = try_connect(&address).await
        {
            write_stdout(&format!(
                "Nothing answers at {url} ({error}): requests get 502 until something does.\n\n"
            ))?;
        }
        serving.await?;
        stop_all.cancel();
        tasks.close();
        tasks.wait().await;
        Ok(())
    })
}

async fn try_connect(address: &Address) -> io::Result<()> {
    let connect = async {
        match address {
            Address::Tcp(host, port) => TcpStream::connect((&**host, *port)).await.map(drop),
            Address::Unix(path) => UnixStream::connect(path).await.map(drop),
        }
    };
    tokio::time::timeout(Duration::from_secs(1), connect).await?
}

fn route_file(args: &DevArgs, upstream: &str) -> String {
    fill_placeholders(
        include_str!("dev_keyward.toml"),
        &[
            ("listen", &args.listen.to_string()),
            ("admin", &args.admin.to_string()),
            ("upstream", &format!("{upstream:?}")),
        ],
    )
}

/// Creates two sample keys and describes what to try with them.
fn welcome_text(emulator: &Emulator, emulator_url: &str, address: &str, upstream: &str) -> String {
    let is_colored = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (bold, dim, off) = if is_colored { ("\x1b[1m", "\x1b[2m", "\x1b[0m") } else { ("", "", "") };
    let (organization, user) = issue_sample_keys(emulator);
    fill_placeholders(
        include_str!("dev_welcome.txt"),
        &[
            ("bold", bold),
            ("dim", dim),
            ("off", off),
            ("address", address),
            ("emulator", emulator_url),
            ("client", CLIENT),
            ("upstream", upstream),
            ("access_token", &emulator.access_token()),
            ("user_id", &user.token_id),
            ("user_key", &user.key),
            ("organization_id", &organization.token_id),
            ("organization_key", &organization.key),
        ],
    )
}

/// Creates a key of an organization and one of a user in it.
fn issue_sample_keys(emulator: &Emulator) -> (Issued, Issued) {
    let organization = Issue {
        organization_id: "org_1001".to_owned(),
        organization_external_id: "acme".to_owned(),
        custom_claims: [("plan".to_owned(), "pro".to_owned())].into(),
        description: "sample of an organization's key".to_owned(),
        ..Issue::default()
    };
    let user = Issue {
        user_id: "usr_2001".to_owned(),
        user_external_id: "jane".to_owned(),
        email: "jane@example.com".to_owned(),
        roles: vec!["admin".to_owned(), "reader".to_owned()],
        // Not ASCII, to show how a header carries it.
        custom_claims: [("team".to_owned(), "payments".to_owned()), ("city".to_owned(), "Zürich".to_owned())]
            .into(),
        description: "sample of a user's key".to_owned(),
        ..organization.clone()
    };
    (emulator.issue(organization), emulator.issue(user))
}

/// Replaces `{name}` by its value. Other braces stay as they are, and so do those in a value.
fn fill_placeholders(template: &str, values: &[(&str, &str)]) -> String {
    let mut text = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let placeholder = after.split_once('}').and_then(|(name, after)| {
            let (_, value) = values.iter().find(|(known, _)| *known == name)?;
            Some((value, after))
        });
        rest = match placeholder {
            Some((value, after)) => {
                text.push_str(value);
                after
            }
            None => {
                text.push('{');
                after
            }
        };
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placeholders_are_filled_other_braces_kept() {
        let values = [("a", "1"), ("b", "{a}")];
        assert_eq!(fill_placeholders(r#"{a} {"t":"{b}"} {c} { {a"#, &values), r#"1 {"t":"{a}"} {c} { {a"#);
    }
}
