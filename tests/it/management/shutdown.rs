//! Shutdown: operations that have begun are finished and audited.

use keyward_emulator::faults::{Effect, Fault, Target};
use tokio::time::timeout;

use super::{ApiRequest, KEYS, ManagementStage, ordinary_body};
use crate::support::{TEST_TIMEOUT, wait_until};

#[tokio::test]
async fn drain_waits_for_management_request() {
    let mut management = ManagementStage::start().await;
    management.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
    let mut client = management.connect().await;
    client.send(ApiRequest::create(&ordinary_body()).to_bytes()).await;
    wait_until(|| management.stage.emulator.counts().creations == 1).await;
    let mut idle = management.connect().await;
    idle.send(ApiRequest::new("GET", KEYS).to_bytes()).await;
    assert_eq!(idle.read_reply().await.status, 200);
    management.stage.stop.cancel();
    assert_eq!(idle.read_to_end().await, b"", "an idle connection ends");
    assert!(!management.stage.running.is_finished());
    management.stage.emulator.clear_faults();
    let reply = client.read_reply().await;
    assert_eq!((reply.status, reply.header("connection")), (201, Some("close")));
    timeout(TEST_TIMEOUT, &mut management.stage.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn drain_waits_for_creation_of_disconnected_client() {
    let mut management = ManagementStage::start().await;
    management.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
    let mut client = management.connect().await;
    client.send(ApiRequest::create(&ordinary_body()).to_bytes()).await;
    wait_until(|| management.stage.emulator.counts().creations == 1).await;
    drop(client);
    management.stage.stop.cancel();
    let early = timeout(std::time::Duration::from_millis(500), &mut management.stage.running).await;
    assert!(early.is_err(), "it waits");
    management.stage.emulator.clear_faults();
    timeout(TEST_TIMEOUT, &mut management.stage.running).await.unwrap().unwrap();
    assert_eq!(management.metric("create", "done"), 1);
}

#[tokio::test]
async fn second_signal_cuts_management_request() {
    let mut management = ManagementStage::start().await;
    management.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
    let mut client = management.connect().await;
    client.send(ApiRequest::create(&ordinary_body()).to_bytes()).await;
    wait_until(|| management.stage.emulator.counts().creations == 1).await;
    management.stage.stop.cancel();
    management.stage.kill.cancel();
    timeout(TEST_TIMEOUT, &mut management.stage.running).await.unwrap().unwrap();
    assert_eq!(client.read_to_end().await, b"");
}
