//! A tonic service and its client: a unary call, a client stream and a bidirectional stream. The text of a note selects the
//! service's behaviour.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tonic::body::Body;
use tonic::client;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::server;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Identity, Server, ServerTlsConfig};
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::support::{TEST_TIMEOUT, bind_loopback};

const LARGE: usize = 16 * 1024 * 1024;

#[derive(Clone, PartialEq, prost::Message)]
pub struct Note {
    #[prost(string, tag = "1")]
    pub text: String,
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

pub fn note(text: &str) -> Note {
    Note { text: text.into(), payload: Vec::new() }
}

type Notes = Pin<Box<dyn Stream<Item = Result<Note, Status>> + Send>>;
type Answer = Pin<Box<dyn Future<Output = Result<hyper::Response<Body>, Infallible>> + Send>>;
type Answered<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// The service. Clones share its state.
#[derive(Clone, Default)]
pub struct Desk {
    /// The metadata of each call.
    seen: Arc<Mutex<Vec<MetadataMap>>>,
    open: Arc<AtomicUsize>,
}

/// A call in progress.
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Desk {
    /// Serves with tonic's transport, over TLS if there is an identity; returns the port.
    pub async fn serve(&self, identity: Option<Identity>) -> u16 {
        let (listener, address) = bind_loopback().await;
        let mut server = Server::builder();
        if let Some(identity) = identity {
            server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
        }
        tokio::spawn(server.serve_with_incoming(self.clone(), TcpIncoming::from(listener)));
        address.port()
    }

    /// Calls that have neither ended nor been cancelled.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// The metadata of the last call.
    pub fn last(&self) -> MetadataMap {
        self.seen.lock().unwrap().last().cloned().expect("a call reached the service")
    }

    pub fn calls(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    fn begin(&self, metadata: &MetadataMap) -> Open {
        self.seen.lock().unwrap().push(metadata.clone());
        self.open.fetch_add(1, Ordering::SeqCst);
        Open(Arc::clone(&self.open))
    }

    async fn get(self, request: Request<Note>) -> Result<Response<Note>, Status> {
        let _open = self.begin(request.metadata());
        let Note { text, payload } = request.into_inner();
        match &*text {
            "wait" => std::future::pending().await,
            "fail" => Err(failure()),
            "give up" => {
                sleep(Duration::from_millis(50)).await;
                Err(Status::deadline_exceeded("not in time"))
            }
            _ => {
                let mut response = Response::new(Note { text: format!("got {text}"), payload });
                response.metadata_mut().insert("x-desk", MetadataValue::from_static("7"));
                Ok(response)
            }
        }
    }

    /// Responds when the stream has ended.
    async fn put(self, request: Request<Streaming<Note>>) -> Result<Response<Note>, Status> {
        let _open = self.begin(request.metadata());
        let (mut notes, mut all) = (request.into_inner(), Vec::new());
        while let Some(note) = notes.message().await? {
            all.push(note.text);
        }
        Ok(Response::new(note(&all.join(" "))))
    }

    /// Responds to each note as it arrives.
    async fn chat(self, request: Request<Streaming<Note>>) -> Result<Response<Notes>, Status> {
        let open = self.begin(request.metadata());
        let answers = request.into_inner().then(move |note| {
            let wait = note.as_ref().is_ok_and(|note| note.text == "wait");
            let answer = answer(note);
            async move {
                if wait {
                    std::future::pending::<()>().await;
                }
                answer
            }
        });
        let answers = answers.inspect(move |_| _ = &open);
        Ok(Response::new(Box::pin(answers)))
    }
}

fn answer(note: Result<Note, Status>) -> Result<Note, Status> {
    let Note { text, payload } = note?;
    match &*text {
        "fail" => Err(failure()),
        "bye" => {
            let mut metadata = MetadataMap::new();
            metadata.insert("x-sum", MetadataValue::from_static("42"));
            Err(Status::with_metadata(Code::Ok, "", metadata))
        }
        _ => Ok(Note { text: format!("re: {text}"), payload }),
    }
}

/// A status with message, details and metadata.
pub fn failure() -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("x-reason", MetadataValue::from_static("closed"));
    metadata.insert_bin("x-trace-bin", MetadataValue::from_bytes(&[0, 159, 146, 150]));
    let details = bytes::Bytes::from_static(b"\x08\x09 details \xff");
    Status::with_details_and_metadata(
        Code::FailedPrecondition,
        "the desk is closed – 100%",
        details,
        metadata,
    )
}

impl tower_service::Service<hyper::Request<Body>> for Desk {
    type Response = hyper::Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: hyper::Request<Body>) -> Answer {
        let desk = self.clone();
        Box::pin(async move {
            let mut grpc = server::Grpc::new(ProstCodec::default())
                .max_decoding_message_size(LARGE)
                .max_encoding_message_size(LARGE);
            Ok(match request.uri().path() {
                "/desk.v1.Desk/Get" => grpc.unary(Get(desk), request).await,
                "/desk.v1.Desk/Put" => grpc.client_streaming(Put(desk), request).await,
                "/desk.v1.Desk/Chat" => grpc.streaming(Chat(desk), request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

struct Get(Desk);
struct Put(Desk);
struct Chat(Desk);

impl server::UnaryService<Note> for Get {
    type Response = Note;
    type Future = Answered<Note>;

    fn call(&mut self, request: Request<Note>) -> Self::Future {
        Box::pin(self.0.clone().get(request))
    }
}

impl server::ClientStreamingService<Note> for Put {
    type Response = Note;
    type Future = Answered<Note>;

    fn call(&mut self, request: Request<Streaming<Note>>) -> Self::Future {
        Box::pin(self.0.clone().put(request))
    }
}

impl server::StreamingService<Note> for Chat {
    type Response = Note;
    type ResponseStream = Notes;
    type Future = Answered<Notes>;

    fn call(&mut self, request: Request<Streaming<Note>>) -> Self::Future {
        Box::pin(self.0.clone().chat(request))
    }
}

/// A client of the service.
#[derive(Clone)]
pub struct Client {
    grpc: client::Grpc<Channel>,
    /// Empty for no key.
    pub key: String,
}

/// Sends notes of a stream. The stream ends when this is dropped.
pub type Pen = mpsc::Sender<Note>;

impl Client {
    pub async fn connect(endpoint: Endpoint, key: &str) -> Self {
        let channel = timeout(TEST_TIMEOUT, endpoint.connect()).await.expect("a connection in time").unwrap();
        let grpc =
            client::Grpc::new(channel).max_decoding_message_size(LARGE).max_encoding_message_size(LARGE);
        Self { grpc, key: key.into() }
    }

    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.into(), ..self.clone() }
    }

    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if !self.key.is_empty() {
            let value = format!("Bearer {}", self.key).parse().unwrap();
            request.metadata_mut().insert("authorization", value);
        }
        request
    }

    pub async fn get(&mut self, text: &str) -> Result<Response<Note>, Status> {
        self.call("/desk.v1.Desk/Get", self.request(note(text))).await
    }

    pub async fn call(
        &mut self,
        path: &'static str,
        request: Request<Note>,
    ) -> Result<Response<Note>, Status> {
        let called = async {
            self.grpc.ready().await.unwrap();
            self.grpc.unary(request, path.parse().unwrap(), ProstCodec::default()).await
        };
        timeout(TEST_TIMEOUT, called).await.expect("an answer in time")
    }

    /// A client stream, and its pending response.
    pub fn put(&self) -> (Pen, impl Future<Output = Result<Response<Note>, Status>> + use<>) {
        let (pen, notes) = pen();
        let (request, mut grpc) = (self.request(notes), self.grpc.clone());
        let called = async move {
            grpc.ready().await.unwrap();
            let path = "/desk.v1.Desk/Put".parse().unwrap();
            grpc.client_streaming(request, path, ProstCodec::default()).await
        };
        (pen, async { timeout(TEST_TIMEOUT, called).await.expect("an answer in time") })
    }

    pub async fn chat(&mut self) -> Result<(Pen, Streaming<Note>), Status> {
        let (pen, notes) = pen();
        let request = self.request(notes);
        let called = async {
            self.grpc.ready().await.unwrap();
            let path = "/desk.v1.Desk/Chat".parse().unwrap();
            self.grpc.streaming(request, path, ProstCodec::default()).await
        };
        Ok((pen, timeout(TEST_TIMEOUT, called).await.expect("an answer in time")?.into_inner()))
    }
}

fn pen() -> (Pen, impl Stream<Item = Note> + Send + use<>) {
    let (pen, notes) = mpsc::channel(1);
    let notes = stream::unfold(notes, |mut notes: mpsc::Receiver<_>| async {
        notes.recv().await.map(|note| (note, notes))
    });
    (pen, notes)
}

/// The next note of a stream.
pub async fn next(notes: &mut Streaming<Note>) -> Result<Option<Note>, Status> {
    timeout(TEST_TIMEOUT, notes.message()).await.expect("a note or the end in time")
}
