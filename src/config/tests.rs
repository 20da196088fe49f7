//! The files in `config/` and `tests/config/`, the README's, and what the environment adds.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn environment() -> Environment {
    Environment::of([
        ("SCALEKIT_ENVIRONMENT_URL", "https://acme.scalekit.com"),
        ("SCALEKIT_CLIENT_ID", "skc_1"),
        ("SCALEKIT_CLIENT_SECRET", "not-a-real-secret"),
    ])
}

fn read(path: &str) -> Config {
    load(&root().join(path), &environment()).unwrap_or_else(|problems| panic!("{problems}"))
}

fn problems(text: &str) -> String {
    parse(text, "f", &environment()).expect_err("there are problems").to_string()
}

fn files(folder: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root().join(folder)).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    assert!(!files.is_empty());
    files
}

const REST: &str =
    "[upstreams.api]\nurl = \"http://127.0.0.1:1\"\n[[routes]]\npath = \"/*\"\nupstream = \"api\"\n";

#[test]
fn the_reference_says_the_defaults() {
    assert_eq!(
        format!("{:#?}", read("config/reference.toml")),
        format!("{:#?}", read("config/keyward.toml"))
    );
}

#[test]
fn the_reference_has_every_key() {
    let reference = fs::read_to_string(root().join("config/reference.toml")).unwrap();
    let mut sources = fs::read_to_string(root().join("src/config/file.rs")).unwrap();
    for file in ["routes", "scalekit"] {
        sources += &fs::read_to_string(root().join(format!("src/config/{file}.rs"))).unwrap();
    }
    // Every key is a short string that the reader is given; none of these calls has another first argument.
    let calls = ["take(\"", "require(\"", "section(\"", "sections(\"", "&mut section, \"", "number(\""];
    let mut keys: Vec<&str> = calls
        .iter()
        .flat_map(|call| sources.split(call).skip(1))
        .filter_map(|rest| rest.split('"').next())
        .filter(|key| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
        .filter(|key| !["all", "http", "https", "h2c", "rest", "grpc"].contains(key))
        .collect();
    keys.sort_unstable();
    keys.dedup();
    assert!(keys.len() > 50, "{keys:?}");
    for key in keys {
        let forms = [
            format!("{key} = "),
            format!("[{key}]"),
            format!("[{key}."),
            format!(".{key}]"),
            format!("[[{key}]]"),
        ];
        assert!(forms.iter().any(|form| reference.contains(form)), "{key} is not in the reference");
    }
}

#[test]
fn valid_files_are_valid() {
    for file in files("tests/config/valid") {
        load(&file, &environment()).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

#[test]
fn invalid_files_say_what_is_wrong_where_and_what_would_be_right() {
    for file in files("tests/config/invalid") {
        let text = fs::read_to_string(&file).unwrap();
        let expected = fs::read_to_string(file.with_extension("txt")).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let found = parse(&text, name, &environment()).expect_err(name).to_string();
        assert_eq!(found.trim(), expected.trim(), "{name}");
    }
}

#[test]
fn the_readmes_files_are_valid() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks: Vec<&str> =
        readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        parse(block, "README.md", &environment()).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

#[test]
fn a_secret_in_the_file_is_refused_and_not_repeated() {
    let text = format!("version = 1\n[scalekit]\nclient_secret = \"hunter2hunter2\"\n{REST}");
    let found = problems(&text);
    assert!(
        found.contains("f:3:17: scalekit.client_secret: a secret does not belong in this file"),
        "{found}"
    );
    assert!(!found.contains("hunter2"));
}

#[test]
fn what_scalekit_needs_and_has_not_is_named() {
    let found = parse(&format!("version = 1\n{REST}"), "f", &Environment::default()).unwrap_err().to_string();
    for variable in ["SCALEKIT_ENVIRONMENT_URL", "SCALEKIT_CLIENT_ID", "SCALEKIT_CLIENT_SECRET"] {
        assert!(found.contains(&format!("f: {variable}: is not set, nor {variable}_FILE")), "{found}");
    }
}

#[test]
fn the_environment_comes_before_the_file_and_a_file_before_nothing() {
    let folder = std::env::temp_dir().join(format!("keyward-config-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let secret = folder.join("secret");
    fs::write(&secret, "from-a-file\n").unwrap();
    let secret = secret.to_str().unwrap();
    let text = format!(
        "version = 1\n[scalekit]\nenvironment_url = \"https://file.test\"\nclient_id = \"file\"\n\
         client_secret_file = \"{secret}\"\n{REST}"
    );
    let config = parse(&text, "f", &Environment::default()).unwrap();
    assert_eq!(config.scalekit.environment_url, "https://file.test");
    assert_eq!(config.scalekit.client_secret.read().unwrap().expose(), "from-a-file");
    let config = parse(&text, "f", &environment()).unwrap();
    assert_eq!(config.scalekit.environment_url, "https://acme.scalekit.com");
    assert_eq!(config.scalekit.client_secret.read().unwrap().expose(), "not-a-real-secret");
    let both = Environment::of([("SCALEKIT_CLIENT_SECRET", "a"), ("SCALEKIT_CLIENT_SECRET_FILE", secret)]);
    let found = parse(&text, "f", &both).unwrap_err().to_string();
    assert!(found.contains("SCALEKIT_CLIENT_SECRET and SCALEKIT_CLIENT_SECRET_FILE are both set"), "{found}");
    let missing =
        Environment::of([("SCALEKIT_CLIENT_SECRET", ""), ("SCALEKIT_CLIENT_SECRET_FILE", "/no/such")]);
    let found = parse(&text, "f", &missing).unwrap_err().to_string();
    assert!(found.contains("SCALEKIT_CLIENT_SECRET: cannot read the secret file /no/such"), "{found}");
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn only_a_loopback_environment_may_be_in_clear_text() {
    let url = |url| {
        let environment = Environment::of([
            ("SCALEKIT_ENVIRONMENT_URL", url),
            ("SCALEKIT_CLIENT_ID", "a"),
            ("SCALEKIT_CLIENT_SECRET", "b"),
        ]);
        parse(&format!("version = 1\n{REST}"), "f", &environment)
            .map(|_| ())
            .map_err(|problems| problems.to_string())
    };
    for good in
        ["https://a.test", "https://a.test/", "http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1"]
    {
        assert_eq!(url(good), Ok(()), "{good}");
    }
    for bad in [
        "http://a.test",
        "a.test",
        "ftp://a.test",
        "https://u:p@a.test",
        "https://a.test/x",
        "https://a.test?x",
        "",
    ] {
        assert!(url(bad).is_err(), "{bad}");
    }
}

#[test]
fn what_is_no_route_file_is_said_to_be_none() {
    let folder = std::env::temp_dir().join(format!("keyward-files-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let (binary, huge) = (folder.join("binary"), folder.join("huge"));
    fs::write(&binary, [0xff, 0xfe]).unwrap();
    fs::write(&huge, vec![b'#'; 1024 * 1024 + 1]).unwrap();
    for (path, expected) in [
        (folder.join("none"), "cannot be read: No such file"),
        (folder.clone(), "is not a file"),
        (binary, "is not UTF-8 text"),
        (huge, "is longer than 1 MiB"),
    ] {
        let found = load(&path, &environment()).unwrap_err().to_string();
        assert!(found.contains(expected) && found.contains(path.to_str().unwrap()), "{found}");
    }
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn no_text_makes_the_reader_panic() {
    let reference = fs::read(root().join("config/reference.toml")).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..2000 {
        let mut text = reference.clone();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..text.len());
            match random.u8(..3) {
                0 => drop(text.drain(at..(at + random.usize(..20)).min(text.len()))),
                1 => text[at] = random.u8(..),
                _ => text.insert(at, *random.choice(b"=[]{}\"',.#\n0-").unwrap()),
            }
        }
        // Whatever comes of it, it is an answer.
        let _ = parse(&String::from_utf8_lossy(&text), "f", &environment());
    }
}

#[test]
fn a_throttle_without_trusted_proxies_and_an_unused_upstream_are_warned_of() {
    let text = format!(
        "version = 1\n[throttle]\nbad_keys_per_minute = 60\n[upstreams.x]\nurl = \"unix:/x\"\n{REST}"
    );
    let warnings = parse(&text, "f", &environment()).unwrap().warnings;
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].contains("trusted_proxies") && warnings[1].contains("upstreams.x"));
}

#[test]
fn routes_are_described_and_explained() {
    let config = read("tests/config/valid/full.toml");
    let expected = "\
HOST             PATH         METHODS      ASKS FOR                                             UPSTREAM
api.example.com  /*           any          a key; CORS preflights pass                          grpc
any              /healthz     any          nothing                                              orders
any              /v1/admin/*  POST,DELETE  a user's key, roles admin, claim env = \"production\"  orders
any              /*           any          a key                                                orders
";
    assert_eq!(describe_routes(&config), expected);
    let explained = explain(&config, "POST", "/v1/admin/x").unwrap();
    for line in [
        "route       /v1/admin/*\n",
        "asks for    a user's key, roles admin, claim env = \"production\"\n",
        "upstream    orders (http://127.0.0.1:8080)\n",
        "x-org-id, x-token-id",
    ] {
        assert!(explained.contains(line), "{line} in {explained}");
    }
    for (method, target, line) in [
        (
            "GET",
            "/v1/admin/x",
            "answer      405 method_not_allowed\nallow       POST, DELETE\nforwarded   nothing",
        ),
        ("GET", "/v1/../x", "answer      400 ambiguous_path"),
        ("GET", "http://api.example.com/x", "upstream    grpc (h2c://127.0.0.1:9090)"),
        ("GET", "/healthz", "asks for    nothing"),
    ] {
        let explained = explain(&config, method, target).unwrap();
        assert!(explained.contains(line), "{line} in {explained}");
    }
    assert!(explain(&config, "G T", "/").is_err());
    assert!(explain(&config, "GET", "no path").is_err());
}
