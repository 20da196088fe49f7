//! A WebSocket through Keyward: bytes both ways, after the upstream's 101 and the caller's.

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;

/// Carries bytes until both sides have ended, one breaks, or `cut` completes, whose outcome it gives then.
pub async fn run<T>(caller: OnUpgrade, upstream: OnUpgrade, cut: impl Future<Output = T>) -> Option<T> {
    let carried = async {
        let (Ok(caller), Ok(upstream)) = tokio::join!(caller, upstream) else {
            return;
        };
        let (mut caller, mut upstream) = (TokioIo::new(caller), TokioIo::new(upstream));
        // Either end may break at any time; that is how tunnels end.
        let _ = copy_bidirectional(&mut caller, &mut upstream).await;
    };
    tokio::select! {
        () = carried => None,
        outcome = cut => Some(outcome),
    }
}
