//! The files in `tests/config/`: what is read, and the exact words for what is not. `UPDATE_FIXTURES=1 cargo test --lib config`
//! writes the words anew, for the eye to judge.

mod configuration_page;
mod environment;
mod reference;
mod schema;

use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn environment() -> Environment {
    Environment::from_pairs([
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
fn valid_fixtures_are_accepted() {
    for file in files("tests/config/valid") {
        load(&file, &environment()).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

#[test]
fn invalid_fixtures_give_expected_messages() {
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
        // In the order of the file, what has no place in it last.
        let place = |line: &str| -> (usize, usize) {
            let mut numbers = line.trim().split(':').skip(1).map(|part| part.parse().unwrap_or(usize::MAX));
            (numbers.next().unwrap(), numbers.next().unwrap())
        };
        assert!(found.lines().skip(1).is_sorted_by_key(place), "{found}");
    }
}

#[test]
fn readme_toml_is_valid() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let blocks: Vec<&str> =
        readme.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(!blocks.is_empty());
    for block in blocks {
        parse(block, "README.md", &environment()).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

#[test]
fn non_route_files_are_reported() {
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
fn usable_certificate_is_accepted() {
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
fn arbitrary_text_never_panics_reader() {
    let mut texts: Vec<Vec<u8>> = vec![fs::read(root().join("config/reference.toml")).unwrap()];
    for folder in ["tests/config/valid", "tests/config/invalid"] {
        texts.extend(files(folder).iter().map(|file| fs::read(file).unwrap()));
    }
    texts.retain(|text| !text.is_empty());
    let mut random = fastrand::Rng::with_seed(1);
    for round in 0..2000 {
        let mut text = texts[round % texts.len()].clone();
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..text.len());
            let end = (at + random.usize(..40)).min(text.len());
            match random.u8(..5) {
                0 if end - at < text.len() => drop(text.drain(at..end)),
                1 => drop(text.splice(at..at, text[at..end].to_vec())),
                2 => text[at] = random.u8(..),
                3 => text.insert(at, *random.choice(b"=[]{}\"',.#\n0-").unwrap()),
                _ => drop(text.splice(at..at, "\u{1f511}".bytes())),
            }
        }
        // Whatever comes of it, it is an answer.
        let _ = parse(&String::from_utf8_lossy(&text), "f", &environment());
    }
}

#[test]
fn reported_problems_are_limited() {
    let unknown: String = (0..300).map(|number| format!("key{number} = \"hunter2\"\n")).collect();
    let found = problems(&format!("version = 1\n{unknown}{REST}"));
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(lines.len(), 1 + 200 + 1, "{found}");
    assert_eq!(lines[201], "  f: there may be more problems; correct these first");
    assert!(!found.contains("hunter2"), "{found}");
}

#[test]
fn overflowing_duration_does_not_panic() {
    for duration in
        ["18446744073709551615s 1000ms", "1 8446744073709551615s 1s", "999999999999999y", "5\u{b5}s", "."]
    {
        let found = problems(&format!("version = 1\n[server]\nidle_timeout = \"{duration}\"\n{REST}"));
        assert!(found.contains("f:3:16: server.idle_timeout: should be "), "{found}");
    }
}

#[test]
fn column_is_counted_in_characters() {
    let text =
        format!("version = 1\n[server] # größer 🔑\nrealm = \"é\" # 鍵\n{REST}\"ключ\" = {{ 'é' = 1 }}\n");
    let found = problems(&text);
    assert!(found.contains("f:3:9: server.realm: "), "{found}");
    assert!(found.contains("f:9:1: routes[0].\"ключ\": is not a known key"), "{found}");
    let found = problems(&text.replace("realm = \"é\"", "'é' = \"é\" ; realm"));
    assert!(found.contains("f:3:11: this is not TOML"), "{found}");
}

#[test]
fn claims_never_set_standard_headers() {
    let prefix = |prefix: &str| {
        let text = format!(
            "version = 1\n[identity]\nclaim_prefix = \"{prefix}\"\norg_id = \"A-1\"\norg_external_id = \"A-2\"\n\
             user_id = \"A-3\"\nuser_external_id = \"A-4\"\nroles = \"A-5\"\ntoken_id = \"A-6\"\n{REST}"
        );
        parse(&text, "f", &environment()).map(|_| ()).map_err(|problems| problems.to_string())
    };
    for good in ["X-Claim-", "Claim-", "X-Acme-Claim-"] {
        assert_eq!(prefix(good), Ok(()), "{good}");
    }
    let bad = "X- X-User- X-Org- X-Token- X-Forwarded- X-Request- Content- Proxy- Keyward- Set- If- Keep- Last- Www- A- \
               X-Claim X_Claim_ - -- -X-";
    for bad in bad.split(' ') {
        assert!(prefix(bad).is_err(), "{bad}");
    }
    for name in ["WWW-Authenticate", "Last-Event-ID", "From", "X-Forwarded", "Proxy-Connection", "-", "-X"] {
        let found = problems(&format!("version = 1\n[identity]\norg_id = \"{name}\"\n{REST}"));
        assert!(found.contains("f:3:10: identity.org_id: should be "), "{found}");
    }
}

#[test]
fn route_labels_are_distinct() {
    let text = "version = 1\nupstreams.a.url = \"http://a\"\nroutes = [\
        { path = \"/x\", upstream = \"a\", methods = [\"GET\", \"HEAD\"] },\
        { path = \"/x\", upstream = \"a\", methods = [\"POST\"] },\
        { path = \"/x\", upstream = \"a\", methods = [\"PUT\"], name = \"put x\" },\
        { path = \"/x\", upstream = \"a\", host = \"B.test.\" }]";
    let config = parse(text, "f", &environment()).unwrap();
    let labels: Vec<&str> = config.routes.routes().iter().map(|route| &*route.label).collect();
    assert_eq!(labels, ["b.test/x", "GET,HEAD /x", "POST /x", "put x"]);
}

#[test]
fn probable_mistakes_are_warned_of() {
    let text = format!(
        "version = 1\n[throttle]\nbad_keys_per_minute = 60\n[upstreams.x]\nurl = \"unix:/x\"\n{REST}\
         methods = [\"GET\", \"DELTE\", \"PURGE\"]\n\
         [[routes]]\npath = \"/v1/:id\"\nupstream = \"api\"\nauth = \"none\"\npreflight = true\n"
    );
    let warnings = parse(&text, "f", &environment()).unwrap().warnings;
    let unbounded = "nothing limits how many invalid keys are sent to Scalekit, which may use up the rate limit that your logins \
         share: set server.trusted_proxies or server.proxy_protocol_from if proxies are in front, otherwise \
         throttle.bad_keys_per_minute or scalekit.validations_per_minute";
    let expected = [
        "routes[0].methods has \"DELTE\"; did you mean \"DELETE\"?",
        "routes[1].path is matched literally, as there are no parameters: /v1/:id",
        "routes[1].preflight has no effect with auth = \"none\"",
        "upstreams.x is not used by any route",
        "throttle.bad_keys_per_minute is set without server.trusted_proxies: behind an ingress, all clients share one \
         address and so one limit",
    ];
    assert_eq!(warnings, expected);
    let shared = format!("version = 1\n[identity]\nclaims = [\"a b\", \"plan\", \"a-b\"]\n{REST}");
    let warnings = parse(&shared, "f", &environment()).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "identity.claims has \"a b\" and \"a-b\", which share the header x-claim-a-b: requests with a \
          key that has both get 502; set a header for one of them in identity.claim_headers",
            unbounded,
        ]
    );
    let passed = REST.replacen("[up", "[server]\npass_headers = [\"X-Real-IP\", \"X-Api-Version\"]\n[up", 1);
    let warnings = parse(&format!("version = 1\n{passed}"), "f", &environment()).unwrap().warnings;
    assert_eq!(
        warnings,
        [
            "server.pass_headers has no effect without server.trusted_proxies, as headers are only kept from trusted \
             proxies",
            "server.pass_headers has x-api-version, which Keyward forwards from every client anyway",
            unbounded,
        ]
    );
    let nobody =
        format!("version = 1\n{REST}require = {{ scope = \"organization\", roles = [\"admin\"] }}\n");
    let warnings = parse(&nobody, "f", &environment()).unwrap().warnings;
    assert_eq!(warnings, ["routes[0].require admits no key: an organization's key has no roles", unbounded]);
    let everybody = format!("version = 1\n[server]\ntrusted_proxies = [\"::/0\"]\n{REST}");
    for key in ["trusted_proxies", "proxy_protocol_from"] {
        let text = everybody.replace("trusted_proxies", key);
        let warning = format!(
            "server.{key} includes all addresses, so every client can choose the address that it seems to have"
        );
        assert_eq!(parse(&text, "f", &environment()).unwrap().warnings, [warning]);
    }
}

#[test]
fn loose_host_route_around_stricter_is_warned_of() {
    let warnings = |host: &str, strict: &str| {
        let text = format!(
            "version = 1\n[throttle]\nbad_keys_per_minute = 60\n[server]\ntrusted_proxies = [\"192.0.2.1\"]\n[upstreams.api]\nurl = \"http://127.0.0.1:8080\"\n[[routes]]\nhost = \"docs.test\"\nupstream = \"api\"\n\
             {host}\n[[routes]]\nupstream = \"api\"\n{strict}\n"
        );
        parse(&text, "f", &environment()).unwrap().warnings
    };
    let public = "path = \"/*\"\nauth = \"none\"";
    let admin = "path = \"/v1/admin/*\"\nrequire = { roles = [\"admin\"] }";
    assert_eq!(
        warnings(public, admin),
        [
            "routes[0] lets clients that send the host docs.test reach /v1/admin/* without the requirements of routes[1]; \
             set the same host in routes[1], or no host in either"
        ]
    );
    assert_eq!(warnings("path = \"/*\"", admin).len(), 1);
    assert_eq!(warnings(public, "path = \"/v1/*\"").len(), 1);
    for (host, strict) in [
        ("path = \"/docs/*\"\nauth = \"none\"", admin),
        (public, "path = \"/*\"\nauth = \"none\""),
        ("path = \"/*\"", "path = \"/v1/*\""),
        ("path = \"/*\"\nrequire = { roles = [\"admin\"] }", admin),
    ] {
        assert_eq!(warnings(host, strict), [""; 0], "{host} {strict}");
    }
}

/// The warnings about `[upstreams]` with a loopback service under two names and another one, and these routes.
fn warnings_of(routes: &str) -> Vec<String> {
    let text = format!(
        "version = 1\n[upstreams.api]\nurl = \"http://127.0.0.1:8080\"\n[upstreams.same]\nurl = \"http://localhost:8080\"\n\
         connect_timeout = \"2s\"\n[upstreams.other]\nurl = \"http://127.0.0.1:8081\"\n{routes}"
    );
    let warnings = parse(&text, "f", &environment()).unwrap_or_else(|problems| panic!("{problems}")).warnings;
    let about_routes = |warning: &String| {
        !warning.ends_with("is not used by any route")
            && !warning.starts_with("nothing limits how many invalid keys")
    };
    warnings.into_iter().filter(about_routes).collect()
}

/// One route; `more` are its lines.
fn route_of(path: &str, upstream: &str, more: &str) -> String {
    format!("[[routes]]\npath = \"{path}\"\nupstream = \"{upstream}\"\n{more}\n")
}

const OPEN: &str = "auth = \"none\"";
const ADMIN: &str = "require = { roles = [\"admin\"] }";

#[test]
fn strict_host_route_beside_loose_is_warned_of() {
    let on_host = |more: &str| format!("host = \"admin.test\"\n{more}");
    let strict = route_of("/admin/*", "api", &on_host(""));
    let expected = "routes[1] lets clients that send any host but admin.test reach /admin/* without the requirements of \
                    routes[0]; set a host in routes[1], or no host in either";
    for (loose, warned) in [
        (route_of("/*", "api", OPEN), true),
        (route_of("/*", "same", OPEN), true),
        (route_of("/*", "other", OPEN), false),
        (route_of("/*", "api", ""), false),
        (route_of("/public/*", "api", OPEN), false),
        (route_of("/*", "api", OPEN) + &route_of("/admin/*", "api", ""), false),
        (route_of("/*", "api", &format!("{OPEN}\nhost = \"docs.test\"")), false),
    ] {
        let warnings = warnings_of(&(strict.clone() + &loose));
        assert_eq!(warnings, vec![expected; usize::from(warned)], "{loose}");
    }
    // The other way round, under two names of one address.
    let wide = route_of("/*", "same", &on_host(OPEN)) + &route_of("/v1/*", "api", "");
    assert_eq!(warnings_of(&wide).len(), 1, "{wide}");
}

#[test]
fn exact_route_stricter_than_prefix_is_warned_of() {
    let expected = "routes[0] matches /v1/rotate.json without the requirements of routes[1] for /v1/rotate: make sure that the \
                    service does not treat a path with a suffix as the path without it, as Rails does, or set the same \
                    requirements in routes[0]";
    for (around, exact, warned) in [
        (route_of("/v1/*", "api", ""), route_of("/v1/rotate", "api", ADMIN), true),
        (route_of("/*", "same", OPEN), route_of("/v1/rotate", "api", ""), true),
        (route_of("/*", "api", ADMIN), route_of("/v1/rotate", "api", ""), false),
        (route_of("/*", "api", ""), route_of("/v1/rotate", "api", OPEN), false),
        (route_of("/v2/*", "api", OPEN), route_of("/v1/rotate", "api", ADMIN), false),
        (route_of("/*", "other", OPEN), route_of("/v1/rotate", "api", ADMIN), false),
    ] {
        assert_eq!(
            warnings_of(&format!("{around}{exact}")),
            vec![expected; usize::from(warned)],
            "{around}{exact}"
        );
    }
}

#[test]
fn similar_paths_with_different_requirements_are_warned_of() {
    let both = |one: &str, other: &str| route_of(one, "other", OPEN) + &route_of(other, "other", ADMIN);
    for (routes, count) in [
        (both("/a", "/a/"), 1),
        (both("/a/*", "/A/*"), 1),
        (both("/a", "/A/"), 1),
        (both("/a/*", "/B/*"), 0),
        (both("/a/*", "/A/b/*"), 0),
        (route_of("/a", "other", ADMIN) + &route_of("/A", "other", ADMIN), 0),
    ] {
        let warnings = warnings_of(&routes);
        let about = warnings.iter().filter(|warning| warning.contains("are refused as ambiguous")).count();
        assert_eq!(about, count, "{warnings:?}");
    }
}

#[test]
fn case_sensitivity_needs_all_upstreams_of_address() {
    let passes = |api: bool, same: bool| {
        let text = format!(
            "version = 1\n[upstreams.api]\nurl = \"http://127.0.0.1:8080\"\ncase_sensitive_paths = {api}\n\
             [upstreams.same]\nurl = \"http://localhost:8080\"\ncase_sensitive_paths = {same}\n{}{}",
            route_of("/*", "api", OPEN),
            route_of("/v1/*", "api", ADMIN)
        );
        let config = parse(&text, "f", &environment()).unwrap();
        config.routes.find(&hyper::Method::GET, "a", "/V1/x").is_ok()
    };
    assert_eq!([passes(true, true), passes(true, false), passes(false, false)], [true, false, false]);
}

#[test]
fn known_addresses_limit_bad_keys_by_default() {
    let read =
        |sections: &str| parse(&format!("version = 1\n{sections}\n{REST}"), "f", &environment()).unwrap();
    let proxies =
        ["[server]\ntrusted_proxies = [\"10.0.0.0/8\"]", "[server]\nproxy_protocol_from = [\"10.0.0.0/8\"]"];
    for proxies in proxies {
        for (throttle, limit) in [("", Some(300)), ("\"auto\"", Some(300)), ("7", Some(7)), ("0", None)] {
            let throttle = match throttle {
                "" => String::new(),
                throttle => format!("\n[throttle]\nbad_keys_per_minute = {throttle}"),
            };
            let config = read(&format!("{proxies}{throttle}"));
            assert_eq!(config.validator.bad_keys_per_minute, limit, "{proxies}{throttle}");
            assert_eq!(config.warnings.len(), usize::from(limit.is_none()), "{:?}", config.warnings);
        }
    }
    for (sections, warnings) in [
        ("", 1),
        ("[throttle]\nbad_keys_per_minute = 0", 1),
        ("[throttle]\nbad_keys_per_minute = \"auto\"", 1),
        ("[scalekit]\nvalidations_per_minute = 600", 0),
    ] {
        let config = read(sections);
        assert_eq!(config.validator.bad_keys_per_minute, None, "{sections}");
        assert_eq!(config.warnings.len(), warnings, "{sections}: {:?}", config.warnings);
    }
    let public = format!("version = 1\n{REST}auth = \"none\"\n");
    assert_eq!(parse(&public, "f", &environment()).unwrap().warnings, [""; 0], "no route takes keys");
    let found = problems(&format!("version = 1\n[throttle]\nbad_keys_per_minute = \"60\"\n{REST}"));
    assert!(
        found.contains("f:3:23: throttle.bad_keys_per_minute: should be \"auto\" or a whole number"),
        "{found}"
    );
}

#[test]
fn unconfirmed_for_defaults_to_two_intervals() {
    let read = |streams: &str| {
        let config =
            parse(&format!("version = 1\n[streams]\n{streams}\n{REST}"), "f", &environment()).unwrap();
        (config.gateway.revalidate_every.as_secs(), config.gateway.unconfirmed_for.as_secs())
    };
    assert_eq!(read(""), (30, 60));
    assert_eq!(read("revalidate_every = \"10s\""), (10, 20));
    assert_eq!(read("unconfirmed_for = \"1h\""), (30, 3600));
}
