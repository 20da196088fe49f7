//! gRPC as the official SDKs use it: over HTTP/2, on the same port as REST.

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine};
use hyper::client::conn::http2::SendRequest;
use scalekit::call::{Call, Reply};
use scalekit::error::Error;
use scalekit::response::HttpResponse;
use scalekit::token::{NewToken, PageRequest, TokenUpdate};
use scalekit::{ExposeSecret, grpc};

use super::*;

/// The reply of a call, and its status from headers or trailers.
struct CallResult {
    reply: Result<Reply, Error>,
    status: String,
    headers: HeaderMap,
}

impl CallResult {
    fn token(self) -> scalekit::token::Token {
        match self.reply {
            Ok(Reply::Token(token)) => token,
            other => panic!("{other:?}"),
        }
    }
}

struct Client(SendRequest<Full<Bytes>>, SocketAddr);

impl Client {
    async fn connect(api: &Api) -> Self {
        let stream = TcpStream::connect(api.address).await.unwrap();
        let (client, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(client, api.address)
    }

    async fn call(&mut self, bearers: &[&str], call: &Call) -> CallResult {
        let (head, body) = grpc::encode_request(call).into_parts();
        let method = head.uri.path().rsplit('/').next().unwrap();
        let response = self.send(method, bearers, body.to_vec()).await.unwrap();
        let response = HttpResponse::read(response, 1 << 20).await.unwrap();
        assert_eq!(
            (response.status.as_u16(), &response.headers["content-type"]),
            (200, &"application/grpc".parse().unwrap())
        );
        let status =
            response.headers.get("grpc-status").or_else(|| response.trailers.get("grpc-status")).unwrap();
        let status = status.to_str().unwrap().to_owned();
        if status != "0" {
            assert!(response.body.is_empty());
        }
        let reply = grpc::decode_response(call.operation(), &response);
        CallResult { reply, status, headers: response.headers }
    }

    async fn send(
        &mut self,
        method: &str,
        bearers: &[&str],
        body: Vec<u8>,
    ) -> Result<Response<hyper::body::Incoming>, hyper::Error> {
        let uri = format!("http://{}/scalekit.v1.tokens.ApiTokenService/{method}", self.1);
        let mut request =
            Request::post(uri).header("content-type", "application/grpc").header("te", "trailers");
        for bearer in bearers {
            request = request.header("authorization", format!("Bearer {bearer}"));
        }
        self.0.send_request(request.body(Full::new(Bytes::from(body))).unwrap()).await
    }
}

fn validate(token: &str) -> Call {
    Call::Validate(token.into())
}

#[tokio::test]
async fn key_lifecycle_over_grpc() {
    let api = Api::start(Settings::default()).await;
    let mut client = Client::connect(&api).await;
    let bearer = [api.access_token.as_str()];
    let expiry = jiff::Timestamp::new(4_000_000_000, 5).unwrap();
    let new = NewToken {
        organization_id: "org_1".to_owned(),
        user_id: Some("usr_1".to_owned()),
        custom_claims: BTreeMap::from([("team".to_owned(), "engineering".to_owned())]),
        expiry: Some(expiry),
        description: None,
    };
    let made = match client.call(&bearer, &Call::Create(new)).await.reply {
        Ok(Reply::Created(created)) => created,
        other => panic!("{other:?}"),
    };
    let (key, info) = (made.token.expose_secret(), &made.info);
    assert!(info.token_id.starts_with("apit_"));
    assert_eq!((info.user_id.as_deref(), &info.email, &info.description), (Some("usr_1"), &None, &None));
    assert_eq!(info.expiry, Some(expiry));

    assert_eq!(client.call(&bearer, &validate(key)).await.token(), made.info);
    assert_eq!(api.validate(key).await.status, 200);

    let list = PageRequest { organization_id: "org_1".to_owned(), ..PageRequest::default() };
    match client.call(&bearer, &Call::List(list)).await.reply {
        Ok(Reply::Page(page)) => assert_eq!((page.total_count, page.tokens.len()), (1, 1)),
        other => panic!("{other:?}"),
    }

    let update = TokenUpdate { custom_claims: None, description: Some("CI".to_owned()) };
    let changed = client.call(&bearer, &Call::Update(key.into(), update)).await.token();
    assert_eq!((changed.description.as_deref(), changed.custom_claims.len()), (Some("CI"), 1));

    for _ in 0..2 {
        let gone = client.call(&bearer, &Call::Invalidate(key.into())).await;
        assert!(matches!(gone.reply, Ok(Reply::Invalidated)), "{:?}", gone.reply);
    }
    let refused = client.call(&bearer, &validate(key)).await;
    assert_eq!(refused.status, "5");
    let details = BASE64_STANDARD_NO_PAD.decode(&refused.headers["grpc-status-details-bin"]).unwrap();
    let details = String::from_utf8_lossy(&details);
    assert!(details.contains("type.googleapis.com/scalekit.v1.errdetails.ErrorInfo"), "{details}");
}

#[tokio::test]
async fn first_of_two_authorizations_decides() {
    let api = Api::start(Settings::default()).await;
    let mut client = Client::connect(&api).await;
    let (key, good) = (api.key(), api.access_token.as_str());
    for (bearers, expected) in [
        (&[][..], "16"),
        (&["stale"], "16"),
        (&["stale", good], "16"),
        (&[good, "stale"], "0"),
        (&[good], "0"),
    ] {
        assert_eq!(client.call(bearers, &validate(&key)).await.status, expected, "{bearers:?}");
    }
}

#[tokio::test]
async fn invalid_calls_get_grpc_codes() {
    let api = Api::start(Settings::default()).await;
    let mut client = Client::connect(&api).await;
    let bearer = [api.access_token.as_str()];
    for (presented, expected) in [("unknown", "5"), ("", "3"), ("a b", "3")] {
        assert_eq!(client.call(&bearer, &validate(presented)).await.status, expected, "{presented:?}");
    }
    // A frame with an empty message.
    for (method, expected) in [("FetchToken", "12"), ("CreateToken", "3")] {
        let response = client.send(method, &bearer, vec![0; 5]).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], expected, "{method}");
    }
    for body in [vec![], vec![0, 0, 0, 0, 9], vec![1; 40]] {
        let response = client.send("ValidateToken", &bearer, body).await.unwrap();
        assert!(["12", "13"].contains(&response.headers()["grpc-status"].to_str().unwrap()));
    }
    let large = client.send("ValidateToken", &bearer, vec![0; 1024 * 1024 + 1]).await.unwrap();
    assert_eq!(large.headers()["grpc-status"], "8");
}

#[tokio::test]
async fn faults_apply_to_grpc_calls() {
    let api = Api::start(Settings::default()).await;
    let mut client = Client::connect(&api).await;
    let (key, bearer) = (api.key(), [api.access_token.as_str()]);
    for (spec, expected) in [
        ("validate:status=429", "8"),
        ("validate:status=503", "14"),
        ("validate:status=401", "16"),
        ("validate:status=200", "0"),
        ("validate:expire-access-tokens", "16"),
    ] {
        api.fault(spec);
        assert_eq!(client.call(&bearer, &validate(&key)).await.status, expected, "{spec}");
        api.emulator.clear_faults();
    }
    api.fault("validate:status=502,content-type=text/html,body=<p>");
    let page = client.send("ValidateToken", &bearer, vec![0; 5]).await.unwrap();
    assert_eq!(
        (page.status().as_u16(), &page.headers()["content-type"]),
        (502, &"text/html".parse().unwrap())
    );
    api.emulator.clear_faults();
    let fresh = api.fetch_token().await;
    for spec in ["validate:truncated", "validate:reset"] {
        api.fault(spec);
        let frame = [&[0, 0, 0, 0, 79, 0x0a, 77], key.as_bytes()].concat();
        let broken = match client.send("ValidateToken", &[&fresh], frame).await {
            Ok(response) => response.into_body().collect().await.is_err(),
            Err(_) => true,
        };
        assert!(broken, "{spec}");
        api.emulator.clear_faults();
        // The stream was reset, the connection was not.
        assert_eq!(client.call(&[&fresh], &validate(&key)).await.status, "0", "{spec}");
    }
}
