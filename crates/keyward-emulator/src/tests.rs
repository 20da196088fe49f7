//! Tests of the emulator over sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::faults::{Answer, Target};
use super::*;

mod faults;
mod grpc;
mod rest;
mod tls;

const SOON: Duration = Duration::from_secs(5);

/// A running emulator and an access token for it.
struct Api {
    emulator: Emulator,
    address: SocketAddr,
    stop: CancellationToken,
    served: JoinHandle<()>,
    access_token: String,
}

#[derive(Debug)]
struct Answered {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Api {
    async fn start(settings: Settings) -> Self {
        let emulator = Emulator::new(settings);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let served = tokio::spawn({
            let (emulator, stop) = (emulator.clone(), stop.clone());
            async move { emulator.serve(listener, stop).await }
        });
        let mut api = Self { emulator, address, stop, served, access_token: String::new() };
        api.access_token = api.fetch_token().await;
        api
    }

    async fn fetch_token(&self) -> String {
        let form = "grant_type=client_credentials&client_id=dev&client_secret=dev";
        let answer = self.send("POST", "/oauth/token", None, form).await.unwrap();
        assert_eq!(answer.status, 200);
        answer.body["access_token"].as_str().unwrap().to_owned()
    }

    /// Sends a request on a connection of its own.
    async fn send(
        &self,
        method: &str,
        path: &str,
        bearer: Option<&str>,
        body: &str,
    ) -> Result<Answered, hyper::Error> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        if let Some(bearer) = bearer {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
        let answer = read(client.send_request(request).await?).await;
        connection.abort();
        answer
    }

    async fn post(&self, path: &str, body: Value) -> Answered {
        self.send("POST", path, Some(&self.access_token), &body.to_string()).await.unwrap()
    }

    async fn list(&self, query: &str) -> Answered {
        self.send("GET", &format!("/api/v1/tokens?{query}"), Some(&self.access_token), "").await.unwrap()
    }

    async fn validate(&self, token: &str) -> Answered {
        self.post("/api/v1/tokens:validate", json!({"token": token})).await
    }

    fn key(&self) -> String {
        self.emulator.issue(Issue { organization_id: "org_1".to_owned(), ..Issue::default() }).key
    }

    fn fault(&self, spec: &str) {
        self.emulator.set_fault(spec.parse().unwrap());
    }
}

async fn read(response: Response<hyper::body::Incoming>) -> Result<Answered, hyper::Error> {
    let (head, body) = response.into_parts();
    let bytes = body.collect().await?.to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Ok(Answered { status: head.status.as_u16(), headers: head.headers, body })
}
