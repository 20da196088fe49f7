//! gRPC through a gateway: a tonic client, and a tonic service that takes HTTP/2 in cleartext.

use keyward_emulator::faults::{Answer, Effect, Fault, Target};
use tonic::Code;
use tonic::transport::Endpoint;

use super::{GATEWAYS, Plan, Running, SECTIONS};
use crate::support::{Setup, Stage};
use crate::tonic::service::{Client, Desk, next, note};

const ROUTES: &str = "[[routes]]\npath = \"/public/*\"\nauth = \"none\"\n[[routes]]\npath = \"/desk.v1.Desk/*\"\n\
                      [[routes]]\npath = \"/desk.v1.Admin/*\"\nrequire = { roles = [\"admin\"] }";

#[tokio::test]
async fn grpc_calls_are_permitted_and_denied() {
    for name in GATEWAYS {
        let stage = Stage::with(Setup { sections: SECTIONS, routes: ROUTES, ..Setup::default() }).await;
        let desk = Desk::default();
        let service = Some(format!("h2c://127.0.0.1:{}", desk.serve(None).await));
        let plan = Plan { service, ..Plan::for_stage(name, &stage) };
        let Some(gateway) = Running::start_as(plan).await else { continue };
        let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address)).unwrap();
        let key = stage.issue_key();
        let mut client = Client::connect(endpoint, &key).await;

        let answer = client.get("a").await.unwrap_or_else(|status| panic!("{name}: {status:?}"));
        assert_eq!(answer.get_ref().text, "got a", "{name}");
        let metadata = desk.last();
        assert_eq!(metadata.get("x-org-id").unwrap(), "org_1", "{name}");
        assert!(metadata.get("authorization").is_none(), "{name}");
        let status = client.get("fail").await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{name}: the service's own status: {status:?}");
        let (pen, mut notes) = client.chat().await.unwrap_or_else(|status| panic!("{name}: {status:?}"));
        for text in ["b", "c"] {
            pen.send(note(text)).await.unwrap();
            assert_eq!(next(&mut notes).await.unwrap().unwrap().text, format!("re: {text}"), "{name}");
        }
        drop(pen);
        assert!(next(&mut notes).await.unwrap().is_none(), "{name}");

        let calls = desk.calls();
        for key in ["", &"0".repeat(30)] {
            let mut other = client.with_key(key);
            let status = other.get("a").await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{name}: {status:?}");
            let status = other.chat().await.unwrap_err();
            assert_eq!(status.code(), Code::Unauthenticated, "{name}: {status:?}");
        }
        let status = client.call("/desk.v1.Admin/Close", client.request(note("a"))).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{name}: {status:?}");
        assert!(stage.emulator.revoke(&key));
        let status = client.get("a").await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{name}: {status:?}");
        let mut other = client.with_key(&stage.issue_key());
        stage.emulator.set_fault(Fault::new(Target::Validate, Effect::Answer(Answer::status(503))));
        let status = other.get("a").await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{name}: {status:?}");
        assert_eq!(desk.calls(), calls, "{name}");
    }
}
