//! Tells systemd what state the service is in (`sd_notify`, as documented in sd_notify(3)), if it started Keyward with `NOTIFY_SOCKET`.
//! A message that cannot be sent is logged and changes nothing else.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::timeout;

/// The environment variable that names the socket: a path, or `@` and a name in the abstract namespace.
const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";
/// For a message to be taken. It waits only while systemd does not read.
const TIME_LIMIT: Duration = Duration::from_secs(5);
/// Of a status, in characters; systemd ignores messages of more than 4096 bytes.
const MAX_STATUS: usize = 500;

/// The service manager, or none.
#[derive(Clone, Debug, Default)]
pub struct ServiceManager(Option<SocketAddr>);

impl ServiceManager {
    /// The one that started this process: none without `NOTIFY_SOCKET`.
    ///
    /// # Errors
    /// When the variable does not name a unix socket.
    pub fn from_environment() -> io::Result<Self> {
        Self::at(std::env::var_os(SOCKET_VARIABLE))
    }

    fn at(socket: Option<OsString>) -> io::Result<Self> {
        let socket = socket.filter(|socket| !socket.is_empty());
        socket.map(|socket| parse_address(&socket)).transpose().map(Self)
    }

    /// Whether there is one.
    pub fn is_present(&self) -> bool {
        self.0.is_some()
    }

    /// The service has started, or has finished a reload.
    pub async fn notify_ready(&self, status: &str) {
        self.send("READY=1\n", status).await;
    }

    /// A reload begins. [`Self::notify_ready`] must follow.
    pub async fn notify_reloading(&self) {
        // systemd compares it with the time of its signal (`Type=notify-reload`).
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let microseconds = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={microseconds}\n"), "reloading").await;
    }

    /// The service ends.
    pub async fn notify_stopping(&self, status: &str) {
        self.send("STOPPING=1\n", status).await;
    }

    /// The text that `systemctl status` shows.
    pub async fn notify_status(&self, status: &str) {
        self.send("", status).await;
    }

    async fn send(&self, state: &str, status: &str) {
        let Some(address) = &self.0 else { return };
        let message = format!("{state}STATUS={}\n", one_line(status));
        let sent = timeout(TIME_LIMIT, send_message(address, message.as_bytes())).await;
        if let Err(error) = sent.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            tracing::warn!("cannot tell systemd the state of the service ({SOCKET_VARIABLE}): {error}");
        }
    }
}

/// As sd_notify(3) does, it connects anew for each message.
async fn send_message(address: &SocketAddr, message: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(address)?;
    socket.set_nonblocking(true)?;
    tokio::net::UnixDatagram::from_std(socket)?.send(message).await.map(drop)
}

fn parse_address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes() {
        #[cfg(target_os = "linux")]
        [b'@', name @ ..] => <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name),
        [b'/', ..] => SocketAddr::from_pathname(socket),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{SOCKET_VARIABLE} should be an absolute path, or \"@\" and a name"),
        )),
    }
}

/// SECURITY: a line break would begin another message, such as `MAINPID=`.
fn one_line(status: &str) -> String {
    status.chars().take(MAX_STATUS).map(|char| if char.is_control() { ' ' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `expected` is a part of the address, or `None` if the variable is refused.
    #[track_caller]
    fn check(socket: Option<&str>, expected: Option<&str>) {
        let manager = ServiceManager::at(socket.map(OsString::from)).ok();
        let shown = manager.map(|ServiceManager(address)| format!("{address:?}"));
        match expected {
            Some(text) => assert!(shown.as_ref().is_some_and(|shown| shown.contains(text)), "{shown:?}"),
            None => assert_eq!(shown, None),
        }
    }

    #[test]
    fn notify_socket_is_path_or_abstract_name() {
        check(None, Some("None"));
        check(Some(""), Some("None"));
        check(Some("/run/systemd/notify"), Some("/run/systemd/notify"));
        #[cfg(target_os = "linux")]
        check(Some("@notify"), Some("notify"));
        check(Some("notify"), None);
        check(Some("vsock:2:1234"), None);
    }

    #[test]
    fn status_stays_within_its_line() {
        assert_eq!(one_line("not ready\nMAINPID=1\r"), "not ready MAINPID=1 ");
        assert_eq!(one_line(&"é".repeat(9999)).chars().count(), MAX_STATUS);
    }
}
