//! Errors of the environment or Scalekit: one line, exit code 1, no partial result.

use std::time::{Duration, Instant};

use keyward_emulator::access::Permission;

use super::{Kit, command, done, fed};
use crate::process::{Folder, keyward};
use crate::support::bind_loopback;

#[tokio::test]
async fn missing_scalekit_permission_is_named() {
    let kit = Kit::start().await;
    let (key, id) = kit.create(&["--org", "org_1", "--claim", "a=1"]).await;
    kit.emulator.set_permissions(&[Permission::Write, Permission::Rotate]);
    for arguments in [&["list", "--org", "org_1"][..], &["inspect", &id], &["rotate", &id]] {
        kit.run(arguments).await.refused("grant it api_credentials:read");
    }
    kit.run_with(&["inspect"], &key).await.refused("grant it api_credentials:read");
    kit.emulator.set_permissions(&[Permission::Read, Permission::Rotate]);
    kit.run(&["create", "--org", "org_1"]).await.refused("grant it api_credentials:write");
    kit.run(&["rotate", &id]).await.refused("grant it api_credentials:write");
    let update = kit.run(&["update", &id, "--claim", "a=2"]).await;
    assert!(update.code == 1 && update.err.contains("grant it api_credentials:write"), "{update:?}");
    kit.emulator.set_permissions(&[Permission::Read]);
    kit.run(&["revoke", &id]).await.refused("grant it api_credentials:rotate");
    assert_eq!(kit.live("org_1").await, [id]);
}

#[tokio::test]
async fn bad_credentials_stop_before_any_call() {
    let kit = Kit::start().await;
    let none = done(keyward(&["keys", "list", "--org", "org_1"])).await;
    none.refused("SCALEKIT_ENVIRONMENT_URL is not set");
    none.refused("SCALEKIT_CLIENT_SECRET is not set");
    let with = |name: &str, value: &str| {
        let mut command = kit.command(&["create", "--org", "org_1"]);
        command.env(name, value);
        done(command)
    };
    with("SCALEKIT_CLIENT_SECRET", "no").await.refused("check SCALEKIT_CLIENT_ID and SCALEKIT_CLIENT_SECRET");
    with("SCALEKIT_CLIENT_SECRET", "de v").await.refused("SCALEKIT_CLIENT_SECRET");
    with("SCALEKIT_ENVIRONMENT_URL", "http://scalekit.test").await.refused("only allowed for loopback hosts");
    with("SCALEKIT_ENVIRONMENT_URL", "acme scalekit").await.refused("SCALEKIT_ENVIRONMENT_URL");
    assert_eq!(kit.emulator.counts().creations, 0);

    let folder = Folder::new("keys-secret");
    let mut command = kit.command(&["create", "--org", "org_1"]);
    command.env_remove("SCALEKIT_CLIENT_SECRET");
    command.env("SCALEKIT_CLIENT_SECRET_FILE", folder.write("secret", "dev\n"));
    assert_eq!(done(command).await.code, 0, "a secret may come from a file");
}

#[tokio::test]
async fn unreachable_scalekit_is_reported_at_once() {
    let (listener, address) = bind_loopback().await;
    drop(listener);
    let url = format!("http://{address}");
    let began = Instant::now();
    for arguments in [
        &["create", "--org", "org_1"][..],
        &["list", "--org", "org_1"],
        &["inspect", "apit_1"],
        &["update", "apit_1", "--claim", "a=b"],
        &["rotate", "apit_1"],
        &["revoke", "apit_1"],
    ] {
        done(command(&url, arguments)).await.refused("Scalekit cannot be reached");
    }
    fed(command(&url, &["inspect"]), "ThisKeyIsMadeUp000000aB3d").await.refused("Scalekit cannot be reached");
    // Errors of the arguments are reported before any call.
    for (arguments, expected) in [
        (&["revoke", "notanid"][..], "not the id of a key"),
        (&["create", "--org", "org_1", "--expires", "2020-01-01"], "has passed"),
        (&["list", "--org", "acme"], "should begin with org_"),
    ] {
        done(command(&url, arguments)).await.refused(expected);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn slow_access_token_is_waited_for() {
    let kit = Kit::start().await;
    kit.fault("token:latency=1500ms,times=1");
    kit.fine(&["create", "--org", "org_1"]).await;
    kit.fault("any:expire-access-tokens,times=1");
    kit.fine(&["list", "--org", "org_1"]).await;
}

#[tokio::test]
async fn throttling_and_outages_are_reported() {
    let kit = Kit::start().await;
    let (_, id) = kit.create(&["--org", "org_1"]).await;
    for (fault, expected) in [
        ("any:status=429,retry-after=7", "Scalekit throttles this client"),
        ("list:status=503", "Scalekit answered 503"),
        ("list:garbage", "violates the API contract"),
        ("list:status=404,content-type=text/html,body=<h1>nginx</h1>", "no Scalekit token API at this URL"),
    ] {
        kit.emulator.clear_faults();
        kit.fault(fault);
        kit.run(&["list", "--org", "org_1"]).await.refused(expected);
    }
    kit.emulator.clear_faults();
    kit.fault("validate:status=404,content-type=text/html,body=<h1>nginx</h1>");
    kit.run(&["inspect", &id]).await.refused("no Scalekit token API at this URL");
}

#[tokio::test]
async fn closed_or_empty_stdin_is_reported() {
    let kit = Kit::start().await;
    for (line, expected) in [
        ("exec \"$0\" keys inspect <&-", "there is no key on standard input"),
        ("exec \"$0\" keys inspect </dev/null", "there is no key on standard input"),
        ("exec \"$0\" keys revoke - <&-", "there are no ids on standard input"),
    ] {
        let mut command = tokio::process::Command::new("sh");
        command.args(["-c", line, env!("CARGO_BIN_EXE_keyward")]).env("SCALEKIT_ENVIRONMENT_URL", &kit.url);
        command.env("SCALEKIT_CLIENT_ID", "dev").env("SCALEKIT_CLIENT_SECRET", "dev");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        done(command).await.refused(expected);
    }
}

#[tokio::test]
async fn non_utf8_arguments_are_usage_errors() {
    use std::os::unix::ffi::OsStrExt as _;
    let kit = Kit::start().await;
    let mut command = kit.command(&["inspect"]);
    command.arg(std::ffi::OsStr::from_bytes(b"\xff\xfe"));
    assert_eq!(done(command).await.code, 2);
}
