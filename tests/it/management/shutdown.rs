//! The end of the process: what was begun is finished and recorded.

use keyward_emulator::faults::{Effect, Fault, Target};
use tokio::time::timeout;

use super::{Ask, Desk, KEYS, ordinary};
use crate::support::{TEST_TIMEOUT, wait_until};

#[tokio::test]
async fn drain_waits_for_management_request() {
    let mut desk = Desk::open().await;
    desk.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
    let mut client = desk.connect().await;
    client.send(Ask::create(&ordinary()).bytes()).await;
    wait_until(|| desk.stage.emulator.counts().creations == 1).await;
    let mut idle = desk.connect().await;
    idle.send(Ask::new("GET", KEYS).bytes()).await;
    assert_eq!(idle.read_reply().await.status, 200);
    desk.stage.stop.cancel();
    assert_eq!(idle.read_to_end().await, b"", "an idle connection ends");
    assert!(!desk.stage.running.is_finished());
    desk.stage.emulator.clear_faults();
    let reply = client.read_reply().await;
    assert_eq!((reply.status, reply.header("connection")), (201, Some("close")));
    timeout(TEST_TIMEOUT, &mut desk.stage.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn drain_waits_for_creation_of_disconnected_client() {
    let mut desk = Desk::open().await;
    desk.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
    let mut client = desk.connect().await;
    client.send(Ask::create(&ordinary()).bytes()).await;
    wait_until(|| desk.stage.emulator.counts().creations == 1).await;
    drop(client);
    desk.stage.stop.cancel();
    let early = timeout(std::time::Duration::from_millis(500), &mut desk.stage.running).await;
    assert!(early.is_err(), "it waits");
    desk.stage.emulator.clear_faults();
    timeout(TEST_TIMEOUT, &mut desk.stage.running).await.unwrap().unwrap();
    assert_eq!(desk.counted("create", "done"), 1);
}

#[tokio::test]
async fn second_signal_cuts_management_request() {
    let mut desk = Desk::open().await;
    desk.stage.emulator.set_fault(Fault::new(Target::Create, Effect::Hang));
    let mut client = desk.connect().await;
    client.send(Ask::create(&ordinary()).bytes()).await;
    wait_until(|| desk.stage.emulator.counts().creations == 1).await;
    desk.stage.stop.cancel();
    desk.stage.kill.cancel();
    timeout(TEST_TIMEOUT, &mut desk.stage.running).await.unwrap().unwrap();
    assert_eq!(client.read_to_end().await, b"");
}
