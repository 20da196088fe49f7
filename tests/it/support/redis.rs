//! A Redis or Valkey server for one test, on a unix socket.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::Stdio;

use redis::FromRedisValue;
use redis::aio::MultiplexedConnection;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::TEST_TIMEOUT;
use super::tls::Folder;

/// The server, which ends when this is dropped.
pub struct RedisServer {
    program: &'static str,
    arguments: Vec<String>,
    process: Child,
    pub folder: Folder,
}

impl RedisServer {
    /// `None`, with a line that says so, where neither program is installed.
    pub async fn start(arguments: &[&str]) -> Option<Self> {
        let folder = Folder::new();
        let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        for program in ["valkey-server", "redis-server"] {
            match spawn(program, &folder, &arguments) {
                Ok(process) => {
                    let server = Self { program, arguments, process, folder };
                    server.wait_until_listening().await;
                    return Some(server);
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => panic!("{program}: {error}"),
            }
        }
        eprintln!("skipped: neither valkey-server nor redis-server is installed");
        None
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.file("redis.sock")
    }

    /// A `[shared]` section that names this server. `more` are further lines.
    pub fn section(&self, more: &str) -> String {
        format!("[shared]\nurl = \"unix:{}\"\nreplicas = 2\n{more}\n", self.socket().display())
    }

    pub async fn connect(&self) -> MultiplexedConnection {
        let client = redis::Client::open(format!("unix:{}", self.socket().display())).unwrap();
        client.get_multiplexed_async_connection().await.unwrap()
    }

    /// The answer to a command of words.
    pub async fn ask<T: FromRedisValue>(&self, command: &str) -> T {
        let mut words = command.split(' ');
        let mut command = redis::cmd(words.next().unwrap());
        for word in words {
            command.arg(word);
        }
        command.query_async(&mut self.connect().await).await.unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.process.id().unwrap()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Kills the server, with all that it stored.
    pub async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    /// Starts it again after `kill`.
    pub async fn restart(&mut self) {
        self.process = spawn(self.program, &self.folder, &self.arguments).unwrap();
        self.wait_until_listening().await;
    }

    async fn wait_until_listening(&self) {
        let socket = self.socket();
        let listening = async {
            while tokio::net::UnixStream::connect(&socket).await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        timeout(TEST_TIMEOUT, listening).await.expect("the server listens in time");
    }
}

fn spawn(program: &str, folder: &Folder, arguments: &[String]) -> std::io::Result<Child> {
    let mut command = Command::new(program);
    command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
    command.arg(folder.file("redis.sock")).arg("--dir").arg(folder.file("")).args(arguments);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true).spawn()
}
