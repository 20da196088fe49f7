//! What the environment adds, and what becomes of secrets.

use super::*;

#[test]
fn secret_in_file_is_refused_and_not_repeated() {
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
    for (text, expected) in [
        ("client_secret = \"hunter2\"", "f:2:1: client_secret: is not a known key; a secret does not belong"),
        (
            "[scalekit]\nclient-secret = \"hunter2\"",
            "f:3:1: scalekit.client-secret: is not a known key; a secret",
        ),
        (
            "[scalekit]\npassword = \"hunter2\"",
            "f:3:1: scalekit.password: is not a known key; a secret does not",
        ),
        (
            "[scalekit]\ntoken = \"hunter2\"",
            "f:3:1: scalekit.token: is not a known key; a secret does not belong",
        ),
        (
            "[server]\napi_key = \"hunter2\"",
            "f:3:1: server.api_key: is not a known key; a secret does not belong",
        ),
        (
            "[scalekit]\nsecret_file = \"/a\"",
            "f:3:1: scalekit.secret_file: is not a known key; known keys are",
        ),
        (
            "server.tls = { certificate = \"Cargo.toml\", key = \"-----BEGIN PRIVATE KEY-----\\nhunter2\" }",
            "f:2:50: server.tls.key: should be the path of a PEM file, not its content",
        ),
        (
            "[scalekit]\nca_file = \"hunter2\"",
            "f:3:11: scalekit.ca_file: the file cannot be read: No such file",
        ),
        ("upstreams.b.url = \"https://a:hunter2/3@b\"", "f:2:19: upstreams.b.url: has a user or password"),
    ] {
        let found = problems(&format!("version = 1\n{text}\n{REST}"));
        assert!(found.contains(expected) && !found.contains("hunter2"), "{found}");
    }
    for (name, expected) in [
        ("SCALEKIT_CLIENT_SECRET_FILE", "should be the path of a file, beginning with"),
        ("SCALEKIT_ENVIRONMENT_URL", "should be a URL"),
    ] {
        let found =
            parse(&format!("version = 1\n{REST}"), "f", &Environment::from_pairs([(name, "hunter2")]));
        let found = found.unwrap_err().to_string();
        assert!(found.contains(&format!("f: {name}: {expected}")) && !found.contains("hunter2"), "{found}");
    }
    let secret = [("SCALEKIT_CLIENT_SECRET", "hunter2 hunter2"), ("SCALEKIT_CLIENT_ID", "hunter2\n")];
    let found = parse(&format!("version = 1\n{REST}"), "f", &Environment::from_pairs(secret))
        .unwrap_err()
        .to_string();
    assert!(
        found.contains("f: SCALEKIT_CLIENT_SECRET: contains white space") && !found.contains("hunter2"),
        "{found}"
    );
}

#[test]
fn connect_timeout_never_exceeds_validation_timeout() {
    for (timeout, connect) in [("2s", 1000), ("250ms", 250)] {
        let text = format!("version = 1\n[scalekit]\ntimeout = \"{timeout}\"\n{REST}");
        let origin = parse(&text, "f", &environment()).unwrap().scalekit.origin;
        assert_eq!(origin.connect_timeout, Duration::from_millis(connect));
    }
}

#[test]
fn scalekit_proxy_overrides_environment_variables() {
    let acme = ("SCALEKIT_ENVIRONMENT_URL", "https://acme.scalekit.com");
    let proxy = |line: &str, variable: (&str, &str), no_proxy: &str| {
        let variables = [
            acme,
            ("SCALEKIT_CLIENT_ID", "a"),
            ("SCALEKIT_CLIENT_SECRET", "b"),
            variable,
            ("no_proxy", no_proxy),
        ];
        let text = format!("version = 1\n[scalekit]\n{line}\n{REST}");
        let config = parse(&text, "f", &Environment::from_pairs(variables));
        config
            .map(|config| config.scalekit.proxy.map(|proxy| proxy.url()))
            .map_err(|problems| problems.to_string())
    };
    let some = |url: &str| Ok(Some(url.to_owned()));
    let variable = ("HTTPS_PROXY", "http://user:hunter2@p:1");
    assert_eq!(proxy("", ("X", ""), ""), Ok(None));
    assert_eq!(proxy("", variable, ""), some("http://p:1"));
    assert_eq!(proxy("", ("https_proxy", "p:1"), ""), some("http://p:1"));
    assert_eq!(proxy("", variable, "scalekit.com"), Ok(None));
    assert_eq!(proxy("proxy = \"none\"", variable, ""), Ok(None));
    assert_eq!(proxy("proxy = \"http://user:hunter2@q:2\"", variable, "*"), some("http://q:2"));
    let wrong = proxy("", ("https_proxy", "socks5://user:hunter2@p:1"), "").unwrap_err();
    assert!(wrong.contains("f: https_proxy: only http://") && !wrong.contains("hunter2"), "{wrong}");
    assert_eq!(proxy("proxy = \"none\"", ("https_proxy", "socks5://p"), ""), Ok(None), "not used");
}

#[test]
fn missing_scalekit_settings_are_named() {
    let found = parse(&format!("version = 1\n{REST}"), "f", &Environment::default()).unwrap_err().to_string();
    for variable in ["SCALEKIT_ENVIRONMENT_URL", "SCALEKIT_CLIENT_ID", "SCALEKIT_CLIENT_SECRET"] {
        assert!(found.contains(&format!("f: {variable}: is not set, nor {variable}_FILE")), "{found}");
    }
}

#[test]
fn environment_overrides_file_overrides_defaults() {
    let folder = Folder::new("environment");
    let secret = folder.write("secret", "from-a-file\n");
    let text = format!(
        "version = 1\n[scalekit]\nenvironment_url = \"https://file.test/\"\nclient_id_file = \"{secret}\"\n\
         client_secret_file = \"{secret}\"\n{REST}"
    );
    let read = |environment: &Environment| parse(&text, "f", environment).unwrap().scalekit;
    let from_file = read(&Environment::default());
    assert_eq!(from_file.environment.to_string(), "https://file.test");
    assert_eq!(from_file.client_id.read().unwrap().expose(), "from-a-file");
    assert_eq!(from_file.client_secret.read().unwrap().expose(), "from-a-file");
    let from_environment = read(&environment());
    assert_eq!(from_environment.environment.to_string(), "https://acme.scalekit.com");
    assert_eq!(from_environment.client_id.read().unwrap().expose(), "skc_1");
    assert_eq!(from_environment.client_secret.read().unwrap().expose(), "not-a-real-secret");
    // An empty variable is as good as none.
    let other = folder.write("other", " another ");
    let empty = [
        ("SCALEKIT_CLIENT_ID", ""),
        ("SCALEKIT_CLIENT_SECRET", ""),
        ("SCALEKIT_CLIENT_SECRET_FILE", &*other),
    ];
    let with_file = read(&Environment::from_pairs(empty));
    assert_eq!(with_file.client_id.read().unwrap().expose(), "from-a-file");
    assert_eq!(with_file.client_secret.read().unwrap().expose(), "another");
}

#[test]
fn unusable_secret_file_is_named() {
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
fn file_is_checked_without_scalekit_settings() {
    let config =
        parse(&format!("version = 1\n{REST}"), "f", &Environment::default().without_scalekit()).unwrap();
    assert_eq!(config.warnings.len(), 4);
    assert!(config.warnings[0].starts_with("SCALEKIT_ENVIRONMENT_URL is not set"), "{:?}", config.warnings);
    let wrong = format!("version = 1\n[scalekit]\nenvironment_url = 3\n{REST}");
    let found = parse(&wrong, "f", &Environment::default().without_scalekit()).unwrap_err().to_string();
    assert!(found.contains("1 problem:\n  f:3:19: scalekit.environment_url: should be a string"), "{found}");
}

#[test]
fn only_loopback_environment_may_use_cleartext() {
    let url = |url| {
        let environment = Environment::from_pairs([
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
