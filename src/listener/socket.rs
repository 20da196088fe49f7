//! The listening socket, TCP or unix.

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixSocket, UnixStream};

use super::Listen;

pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

pub(super) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

/// Connections that the kernel completes before they are accepted; `net.core.somaxconn` may allow fewer.
const BACKLOG: u32 = 4096;

impl Socket {
    /// Binds and listens; `mode` is that of a unix socket's file.
    pub(super) fn bind(listen: &Listen, mode: Option<u32>) -> io::Result<Self> {
        match listen {
            Listen::Tcp(address) => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                Ok(Self::Tcp(socket.listen(BACKLOG)?))
            }
            Listen::Unix(path) => {
                remove_stale_socket(path);
                let socket = UnixSocket::new_stream()?;
                socket.bind(path)?;
                // SECURITY: before it listens, so that nobody else can have connected.
                if let Some(mode) = mode {
                    std::fs::set_permissions(path, Permissions::from_mode(mode))?;
                }
                Ok(Self::Unix(socket.listen(BACKLOG)?, path.clone()))
            }
        }
    }

    /// The address in use, which has the port that the kernel chose for port 0.
    pub(super) fn local_address(&self) -> io::Result<Listen> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Listen::Tcp),
            Self::Unix(_, path) => Ok(Listen::Unix(path.clone())),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Tcp(stream, address))
            }
            Self::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }

    /// Stops listening. Returns the connections that the kernel had completed by then: their clients may have sent requests,
    /// which a closed socket would answer with a reset.
    pub(super) fn close(self) -> Vec<Accepted> {
        let mut queued = Vec::new();
        let limit = BACKLOG as usize;
        match self {
            Self::Tcp(listener) => {
                let Ok(listener) = listener.into_std() else { return queued };
                queued.extend((0..limit).map_while(|_| accept_queued_tcp(&listener).ok()));
            }
            Self::Unix(listener, path) => {
                // If it is gone already, that is as good: no client can find it.
                let _ = std::fs::remove_file(path);
                let Ok(listener) = listener.into_std() else { return queued };
                queued.extend((0..limit).map_while(|_| accept_queued_unix(&listener).ok()));
            }
        }
        queued
    }
}

fn accept_queued_tcp(listener: &std::net::TcpListener) -> io::Result<Accepted> {
    let (stream, address) = listener.accept()?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    Ok(Accepted::Tcp(TcpStream::from_std(stream)?, address))
}

fn accept_queued_unix(listener: &std::os::unix::net::UnixListener) -> io::Result<Accepted> {
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(true)?;
    Ok(Accepted::Unix(UnixStream::from_std(stream)?))
}

/// Removes the file of a socket on which no process listens any more, as after SIGKILL. Any other file stays.
fn remove_stale_socket(path: &Path) {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err_and(refused) {
        // If it cannot be removed, `bind` reports why.
        let _ = std::fs::remove_file(path);
    }
}
