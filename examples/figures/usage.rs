//! What it costs to count the use of keys: memory, the file, and CPU for each request.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use keyward::identity::Identity;
use keyward::metrics::Metrics;
use keyward::usage::{End, Settings, Start, Usage};

const REQUESTS: u32 = 2_000_000;

pub(crate) async fn run() -> Result<()> {
    let file = std::env::temp_dir().join(format!("keyward-figures-{}.jsonl", std::process::id()));
    println!("keys       bytes each   ns per request   file          written in");
    for keys in [10_000u32, 100_000, 1_000_000] {
        let settings = Settings {
            max_keys: keys.into(),
            max_organizations: 1000,
            days: 3,
            metrics_organizations: None,
            file: Some(file.clone()),
        };
        let before = resident()?;
        let usage = Arc::new(Usage::open(&settings, Arc::new(Metrics::default()))?);
        let route: Arc<str> = "/v1/*".into();
        let request = |number: u32| {
            let identity = identity(number)?;
            let start = Start { route: &route, client: Some([192, 0, 2, 1].into()) };
            usage.begin(&identity, &start).finish(&identity, End { status: 200, outcome: "allow" });
            anyhow::Ok(())
        };
        (0..keys).try_for_each(request)?;
        usage.update_gauge();
        let each = (resident()?.saturating_sub(before)) / keys as usize;
        let identities =
            (0..1000).map(|number| identity(number * (keys / 1000))).collect::<Result<Vec<_>>>()?;
        let began = Instant::now();
        for number in 0..REQUESTS {
            let identity = &identities[number as usize % identities.len()];
            let start = Start { route: &route, client: Some([192, 0, 2, 1].into()) };
            usage.begin(identity, &start).finish(identity, End { status: 200, outcome: "allow" });
        }
        let spent = began.elapsed().as_nanos() / u128::from(REQUESTS);
        let began = Instant::now();
        Arc::clone(&usage).save_at_end().await;
        let (written, size) = (began.elapsed(), std::fs::metadata(&file)?.len());
        println!("{keys:<10} {each:<12} {spent:<16} {:>7.1} MB    {written:.2?}", size as f64 / 1e6);
        drop(usage);
        std::fs::remove_file(&file)?;
    }
    let mut lock = file.into_os_string();
    lock.push(".lock");
    Ok(std::fs::remove_file(lock)?)
}

fn identity(number: u32) -> Result<Identity> {
    Ok(Identity {
        org_id: format!("org_{:018}", number % 1000).parse()?,
        org_external_id: None,
        user_id: None,
        user_external_id: None,
        roles: Vec::new(),
        token_id: Some(format!("apit_{number:018}").parse()?),
        claims: Default::default(),
        expiry: None,
    })
}

/// In bytes.
fn resident() -> Result<usize> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: usize = statm.split(' ').nth(1).unwrap_or_default().parse()?;
    Ok(pages * 4096)
}
