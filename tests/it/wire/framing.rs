//! One reading of where a request begins and ends: what has two is refused, and what is forwarded is framed anew.

use super::{SMUGGLED, Wire, chunked, statuses};

#[tokio::test]
async fn two_framings_become_one_or_none() {
    let wire = Wire::start().await;
    for head in [
        "content-length: 3\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked\r\ncontent-length: 3\r\n",
        "transfer-encoding: chunked\r\ncontent-length: x\r\n",
        "content-length: 3\r\ntransfer-encoding: chunked\r\nconnection: content-length, keep-alive\r\n",
        "content-length: 3\r\ntransfer-encoding: chunked\r\nconnection: transfer-encoding, keep-alive\r\n",
    ] {
        let before = wire.upstream.received().len();
        let all = wire.all(wire.head("POST /v1", head) + &chunked("abc") + SMUGGLED).await;
        println!("{head:?}: {:?} {:?}", statuses(&all), wire.upstream.received().len() - before);
    }
}
