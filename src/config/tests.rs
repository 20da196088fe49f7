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

/// A folder that is gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("keyward-config-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.0.join(name), text).unwrap();
        format!("{}/{name}", self.path())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
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

/// Every key that the reader knows below a table whose header is `header`, as the reader itself says them.
fn known_keys(header: &str, path: &str, keys: &mut Vec<String>) {
    let text = if header.is_empty() { "zzz = 1\n".to_owned() } else { format!("{header}\nzzz = 1\n") };
    let found = parse(&text, "f", &environment()).unwrap_err().to_string();
    let marker = format!("{path}zzz: is not known here; known are ");
    // What is no table has no keys.
    let Some((_, rest)) = found.split_once(&marker) else { return };
    for key in rest.lines().next().unwrap().split(", ") {
        keys.push(format!("{path}{key}"));
        let table = path.replace("[0]", "") + key;
        match key {
            "upstreams" => known_keys("[upstreams.api]", "upstreams.api.", keys),
            "routes" => known_keys("[[routes]]", "routes[0].", keys),
            _ if path.starts_with("routes") => {
                known_keys(&format!("[[routes]]\n[{table}]"), &format!("{path}{key}."), keys)
            }
            _ => known_keys(&format!("[{table}]"), &format!("{path}{key}."), keys),
        }
    }
}

#[test]
fn the_reference_has_every_key_that_the_reader_knows() {
    let mut keys = Vec::new();
    known_keys("", "", &mut keys);
    assert!(keys.len() > 60 && keys.contains(&"routes[0].require.scope".to_owned()), "{keys:?}");
    let reference = fs::read_to_string(root().join("config/reference.toml")).unwrap();
    for key in keys {
        let name = key.rsplit('.').next().unwrap();
        let section = key.strip_suffix(name).unwrap().trim_end_matches('.').replace("[0]", "");
        let section = section.split_inclusive('.').take(2).collect::<String>();
        // A table within a line belongs to the section that the line is in.
        let section = section.trim_end_matches('.').trim_end_matches(".tls").trim_end_matches(".require");
        let body = match section {
            "" => reference.as_str(),
            "routes" => reference.split("\n[[routes]]\n").nth(1).unwrap(),
            _ => reference
                .split(&format!("\n[{section}]\n"))
                .nth(1)
                .unwrap_or_else(|| panic!("no [{section}]")),
        };
        let body = if section.is_empty() { body } else { body.split("\n[").next().unwrap() };
        let forms = [format!("{name} = "), format!("[{name}]"), format!("[{name}.")];
        assert!(forms.iter().any(|form| body.contains(form)), "{key} is not in the reference");
    }
}

#[test]
fn what_the_reference_shows_behind_a_hash_is_right_too() {
    let reference = fs::read_to_string(root().join("config/reference.toml")).unwrap();
    let mut examples = 0;
    for line in reference.lines() {
        let Some((key, _)) = line.strip_prefix("# ").and_then(|line| line.split_once(" = ")) else {
            continue;
        };
        if !key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_') {
            continue;
        }
        examples += 1;
        let text = reference.replace(line, &line[2..]);
        let found =
            parse(&text, "f", &environment()).map_or_else(|problems| problems.to_string(), |_| String::new());
        // The files are not there, and the reference's own upstream has no TLS.
        let wrong = found.lines().skip(1).find(|problem| {
            !["cannot be read: No such file", "is for https:// alone", "does nothing without"]
                .iter()
                .any(|excuse| problem.contains(excuse))
        });
        assert_eq!(wrong, None, "{line}");
    }
    assert!(examples > 10, "{examples}");
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
        let name = file.file_name().unwrap().to_str().unwrap();
        let found = parse(&text, name, &environment()).expect_err(name).to_string();
        let beside = file.with_extension("txt");
        if std::env::var_os("UPDATE_FIXTURES").is_some() {
            fs::write(&beside, format!("{found}\n")).unwrap();
        }
        let expected = fs::read_to_string(beside).unwrap();
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
    for line in [
        "client_secret = \"hunter2hunter2\"",
        "client_secret = [\"hunter2hunter2\"]",
        "client_secret = hunter2hunter2",
        "client_secret = \"hunter2hunter2",
        "client_secret = 'hunter2hunter2' 'hunter2hunter2'",
        "access_token = \"hunter2hunter2\"",
        "client_secret_file = \"hunter2hunter2\"",
        "clientSecret = \"hunter2hunter2\"",
        "client_id = \"hunter2 hunter2\"",
    ] {
        let found = problems(&format!("version = 1\n[scalekit]\n{line}\n{REST}"));
        assert!(found.contains("f:3:") && !found.contains("hunter2"), "{line}: {found}");
    }
    let secret = [("SCALEKIT_CLIENT_SECRET", "hunter2 hunter2"), ("SCALEKIT_CLIENT_ID", "hunter2\n")];
    let found =
        parse(&format!("version = 1\n{REST}"), "f", &Environment::of(secret)).unwrap_err().to_string();
    assert!(
        found.contains("f: SCALEKIT_CLIENT_SECRET: has white space") && !found.contains("hunter2"),
        "{found}"
    );
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
    let folder = Folder::new("environment");
    let secret = folder.write("secret", "from-a-file\n");
    let text = format!(
        "version = 1\n[scalekit]\nenvironment_url = \"https://file.test/\"\nclient_id_file = \"{secret}\"\n\
         client_secret_file = \"{secret}\"\n{REST}"
    );
    let read = |environment: &Environment| parse(&text, "f", environment).unwrap().scalekit;
    let from_file = read(&Environment::default());
    assert_eq!(from_file.environment_url, "https://file.test");
    assert_eq!(from_file.client_id.read().unwrap().expose(), "from-a-file");
    assert_eq!(from_file.client_secret.read().unwrap().expose(), "from-a-file");
    let from_environment = read(&environment());
    assert_eq!(from_environment.environment_url, "https://acme.scalekit.com");
    assert_eq!(from_environment.client_id.read().unwrap().expose(), "skc_1");
    assert_eq!(from_environment.client_secret.read().unwrap().expose(), "not-a-real-secret");
    // An empty variable is as good as none.
    let other = folder.write("other", " another ");
    let empty = [
        ("SCALEKIT_CLIENT_ID", ""),
        ("SCALEKIT_CLIENT_SECRET", ""),
        ("SCALEKIT_CLIENT_SECRET_FILE", &*other),
    ];
    let with_file = read(&Environment::of(empty));
    assert_eq!(with_file.client_id.read().unwrap().expose(), "from-a-file");
    assert_eq!(with_file.client_secret.read().unwrap().expose(), "another");
}

#[test]
fn a_secret_file_that_cannot_be_used_is_named() {
    let folder = Folder::new("secrets");
    let empty = folder.write("empty", " \n");
    let lines = folder.write("lines", "one\ntwo");
    let good = folder.write("good", "good");
    for (name, value, expected) in [
        ("SCALEKIT_CLIENT_SECRET_FILE", "/no/such", "cannot read the secret file /no/such: No such file"),
        ("SCALEKIT_CLIENT_SECRET_FILE", folder.path(), "cannot read the secret file"),
        ("SCALEKIT_CLIENT_ID_FILE", &empty, "is empty"),
        ("SCALEKIT_ENVIRONMENT_URL_FILE", &lines, "holds more than one line"),
        ("SCALEKIT_ENVIRONMENT_URL_FILE", &good, "should be a URL, as in"),
    ] {
        let mut environment = environment();
        environment.variables.remove(name.strip_suffix("_FILE").unwrap());
        environment.variables.insert(name.to_owned(), value.to_owned());
        let found = parse(&format!("version = 1\n{REST}"), "f", &environment).unwrap_err().to_string();
        assert!(found.contains(&format!("f: {name}: ")) && found.contains(expected), "{found}");
    }
    let text = format!("version = 1\n[scalekit]\nclient_secret_file = \"{empty}\"\n{REST}");
    let mut without = environment();
    without.variables.remove("SCALEKIT_CLIENT_SECRET");
    let found = parse(&text, "f", &without).unwrap_err().to_string();
    assert!(found.contains("f:3:22: scalekit.client_secret_file: the secret file"), "{found}");
    let mut both = environment();
    both.variables.insert("SCALEKIT_CLIENT_SECRET_FILE".to_owned(), good);
    let found = parse(&text, "f", &both).unwrap_err().to_string();
    assert!(found.contains("SCALEKIT_CLIENT_SECRET and SCALEKIT_CLIENT_SECRET_FILE are both set"), "{found}");
}

#[test]
fn a_file_can_be_looked_at_where_nothing_is_known_of_scalekit() {
    let config =
        parse(&format!("version = 1\n{REST}"), "f", &Environment::default().without_scalekit()).unwrap();
    assert_eq!(config.warnings.len(), 3);
    assert!(config.warnings[0].starts_with("SCALEKIT_ENVIRONMENT_URL is not set"), "{:?}", config.warnings);
    let wrong = format!("version = 1\n[scalekit]\nenvironment_url = 3\n{REST}");
    let found = parse(&wrong, "f", &Environment::default().without_scalekit()).unwrap_err().to_string();
    assert!(found.contains("1 problem:\n  f:3:19: scalekit.environment_url: should be a string"), "{found}");
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
    let folder = Folder::new("files");
    fs::write(folder.0.join("binary"), [0xff, 0xfe]).unwrap();
    folder.write("huge", &"#".repeat(1024 * 1024 + 1));
    for (name, expected) in [
        ("none", "cannot be read: No such file"),
        ("", "is not a file"),
        ("binary", "is not UTF-8 text"),
        ("huge", "is longer than 1 MiB"),
    ] {
        let path = folder.0.join(name);
        let found = load(&path, &environment()).unwrap_err().to_string();
        assert!(found.contains(expected) && found.contains(path.to_str().unwrap()), "{found}");
    }
}

#[test]
fn a_certificate_that_can_be_used_is() {
    let folder = Folder::new("certificates");
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate = folder.write("tls.crt", &made.cert.pem());
    let key = folder.write("tls.key", &made.signing_key.serialize_pem());
    let stranger = folder.write("other.key", &other.signing_key.serialize_pem());
    let text = |key: &str| {
        format!(
            "version = 1\n[server]\ntls = {{ certificate = \"{certificate}\", key = \"{key}\" }}\n[upstreams.tls]\n\
             url = \"https://[::1]\"\nca_file = \"{certificate}\"\nserver_name = \"localhost\"\n\
             client_certificate = \"{certificate}\"\nclient_key = \"{key}\"\n{REST}"
        )
    };
    let config = parse(&text(&key), "f", &environment()).unwrap();
    assert!(config.listener.tls.is_some() && config.upstreams[0].origin.reads_files());
    let found = problems(&text(&stranger));
    assert!(found.contains("f:3:23: server.tls.certificate: the certificate"), "{found}");
    assert!(found.contains("f:8:22: upstreams.tls.client_certificate: the certificate"), "{found}");
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
    assert!(warnings[0].contains("upstreams.x") && warnings[1].contains("trusted_proxies"), "{warnings:?}");
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
