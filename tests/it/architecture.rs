//! The order of modules, the documents that list them, and the tests that docs/security.md names.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The modules as `lib.rs` lists them.
fn modules() -> Vec<String> {
    let lib = read("src/lib.rs");
    lib.lines()
        .filter_map(|line| line.strip_prefix("pub mod "))
        .map(|line| line.trim_end_matches(';').to_owned())
        .collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The names after `crate::`, including those in `crate::{…}`.
fn used(source: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|char| char.is_ascii_alphanumeric() || *char == '_').collect()
    };
    let mut names = Vec::new();
    for rest in source.split("crate::").skip(1) {
        let Some(list) = rest.strip_prefix('{') else {
            names.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = 0;
        for (at, char) in list.char_indices() {
            match char {
                '{' => depth += 1,
                '}' if depth == 0 => {
                    names.push(word(&list[start..at]));
                    break;
                }
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    names.push(word(&list[start..at]));
                    start = at + 1;
                }
                _ => {}
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

#[test]
fn module_uses_only_modules_above_it() {
    let modules = modules();
    assert!(modules.len() > 20, "the list of lib.rs is read: {modules:?}");
    for (index, module) in modules.iter().enumerate() {
        let mut files = vec![root().join(format!("src/{module}.rs"))];
        let folder = root().join("src").join(module);
        if folder.is_dir() {
            files.extend(rust_files(&folder));
        }
        for file in files {
            // Tests may use any module.
            let source = fs::read_to_string(&file).unwrap();
            let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for name in used(source) {
                let place = modules.iter().position(|other| *other == name);
                let place = place.unwrap_or_else(|| panic!("{}: crate::{name} is no module", file.display()));
                assert!(place <= index, "{} uses {name}, which stands below {module}", file.display());
            }
        }
    }
}

#[test]
fn braced_imports_are_parsed() {
    let source = "use crate::{a, b::{self, c}, d};\nuse crate::e::F; pub(in crate::g)";
    assert_eq!(used(source), ["a", "b", "d", "e", "g"]);
}

#[test]
fn architecture_lists_modules_in_order() {
    let paper = read("ARCHITECTURE.md");
    let listed: Vec<&str> =
        paper.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    assert_eq!(listed, modules());
}

#[test]
fn every_file_has_module_documentation() {
    for folder in ["src", "crates", "tests/it", "fuzz/invariants", "fuzz/targets"] {
        for file in rust_files(&root().join(folder)) {
            let source = fs::read_to_string(&file).unwrap();
            assert!(source.starts_with("//! "), "{} begins without a word about itself", file.display());
        }
    }
}

#[test]
fn tests_named_in_security_page_exist() {
    let mut files = rust_files(&root().join("src"));
    files.extend(rust_files(&root().join("crates")));
    files.extend(rust_files(&root().join("tests/it")));
    let sources: Vec<_> =
        files.iter().map(|file| (file.clone(), fs::read_to_string(file).unwrap())).collect();
    let page = read("docs/security.md");
    let named: Vec<&str> =
        page.split('`').skip(1).step_by(2).filter(|text| text.contains("::") && text.contains('_')).collect();
    assert!(named.len() > 80, "{named:?}");
    for name in named {
        let mut path: Vec<&str> = name.split("::").filter(|part| *part != "tests").collect();
        let test = format!("fn {}(", path.pop().unwrap());
        let is_there = sources.iter().any(|(file, source)| {
            let file = file.with_extension("");
            let within =
                |part: &&str| file.iter().any(|own| own == *part) || source.contains(&format!("mod {part} "));
            source.contains(&test) && path.iter().all(within)
        });
        assert!(is_there, "docs/security.md names {name}, which is not there");
    }
}
