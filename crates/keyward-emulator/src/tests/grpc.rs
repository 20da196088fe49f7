//! gRPC as the official SDKs use it: over HTTP/2, on the same port as REST.

use base64::prelude::{BASE64_STANDARD_NO_PAD, Engine};
use hyper::client::conn::http2::SendRequest;
use prost::Message;

use super::*;
use crate::proto;

/// The message of the frame and the status, from headers or trailers.
struct CallResult {
    message: Vec<u8>,
    status: String,
    headers: HeaderMap,
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

    async fn call(&mut self, method: &str, bearers: &[&str], message: &impl Message) -> CallResult {
        let mut frame = vec![0];
        frame.extend(u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
        frame.extend(message.encode_to_vec());
        let response = self.send(method, bearers, frame).await.unwrap();
        let (head, body) = response.into_parts();
        assert_eq!(
            (head.status.as_u16(), &head.headers["content-type"]),
            (200, &"application/grpc".parse().unwrap())
        );
        let body = body.collect().await.unwrap();
        let status = head.headers.get("grpc-status").or_else(|| body.trailers()?.get("grpc-status"));
        let status = status.unwrap().to_str().unwrap().to_owned();
        let frame = body.to_bytes();
        if status != "0" {
            assert!(frame.is_empty());
            return CallResult { message: Vec::new(), status, headers: head.headers };
        }
        assert_eq!(
            (frame[0], usize::try_from(u32::from_be_bytes(frame[1..5].try_into().unwrap())).unwrap()),
            (0, frame.len() - 5)
        );
        CallResult { message: frame[5..].to_vec(), status, headers: head.headers }
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

fn token(token: &str) -> proto::TokenRequest {
    proto::TokenRequest { token: token.to_owned() }
}

#[tokio::test]
async fn key_lifecycle_over_grpc() {
    let api = Api::start(Settings::default()).await;
    let mut client = Client::connect(&api).await;
    let bearer = [api.access_token.as_str()];
    let create = proto::CreateToken {
        organization_id: "org_1".to_owned(),
        user_id: "usr_1".to_owned(),
        custom_claims: BTreeMap::from([("team".to_owned(), "engineering".to_owned())]),
        expiry: Some(proto::Timestamp { seconds: 4_000_000_000, nanos: 5 }),
        description: String::new(),
    };
    let made = client.call("CreateToken", &bearer, &proto::CreateTokenRequest { token: Some(create) }).await;
    let made = proto::CreateTokenResponse::decode(&made.message[..]).unwrap();
    let info = made.token_info.clone().unwrap();
    assert_eq!((info.token_id.as_str(), info.user_id.as_deref()), (made.token_id.as_str(), Some("usr_1")));
    assert_eq!((info.email, info.description), (None, None));
    assert_eq!(info.expiry, Some(proto::Timestamp { seconds: 4_000_000_000, nanos: 5 }));
    assert!(!format!("{made:?}").contains(&made.token));

    let valid = client.call("ValidateToken", &bearer, &token(&made.token)).await;
    let valid = proto::TokenResponse::decode(&valid.message[..]).unwrap();
    assert_eq!(valid.token_info, made.token_info);
    assert_eq!(api.validate(&made.token).await.status, 200);

    let list = proto::ListTokensRequest { organization_id: "org_1".to_owned(), ..Default::default() };
    let page = client.call("ListTokens", &bearer, &list).await;
    let page = proto::ListTokensResponse::decode(&page.message[..]).unwrap();
    assert_eq!((page.total_count, page.tokens.len()), (1, 1));

    let update = proto::UpdateTokenRequest {
        token: made.token.clone(),
        description: Some("CI".to_owned()),
        custom_claims: BTreeMap::new(),
    };
    let changed = client.call("UpdateToken", &bearer, &update).await;
    let changed = proto::TokenResponse::decode(&changed.message[..]).unwrap().token_info.unwrap();
    assert_eq!((changed.description.as_deref(), changed.custom_claims.len()), (Some("CI"), 1));

    for _ in 0..2 {
        let gone = client.call("InvalidateToken", &bearer, &token(&made.token)).await;
        assert_eq!((gone.status.as_str(), gone.message.len()), ("0", 0));
    }
    let refused = client.call("ValidateToken", &bearer, &token(&made.token)).await;
    assert_eq!(refused.status, "5");
    let details = BASE64_STANDARD_NO_PAD.decode(&refused.headers["grpc-status-details-bin"]).unwrap();
    let status = proto::RpcStatus::decode(&details[..]).unwrap();
    assert_eq!(status.details[0].type_url, "type.googleapis.com/scalekit.v1.errdetails.ErrorInfo");
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
        assert_eq!(client.call("ValidateToken", bearers, &token(&key)).await.status, expected, "{bearers:?}");
    }
}

#[tokio::test]
async fn invalid_calls_get_grpc_codes() {
    let api = Api::start(Settings::default()).await;
    let mut client = Client::connect(&api).await;
    let bearer = [api.access_token.as_str()];
    for (method, presented, expected) in [
        ("ValidateToken", "unknown", "5"),
        ("ValidateToken", "", "3"),
        ("ValidateToken", "a b", "3"),
        ("FetchToken", "unknown", "12"),
        ("CreateToken", "", "3"),
    ] {
        let given = client.call(method, &bearer, &token(presented)).await;
        assert_eq!(given.status, expected, "{method} {presented:?}");
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
        assert_eq!(client.call("ValidateToken", &bearer, &token(&key)).await.status, expected, "{spec}");
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
        assert_eq!(client.call("ValidateToken", &[&fresh], &token(&key)).await.status, "0", "{spec}");
    }
}
