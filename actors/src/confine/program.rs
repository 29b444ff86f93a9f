//! Which file a command is, and what that file needs to be read: through links and first lines of scripts to the
//! interpreter, with its libraries.
use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Links and first lines that are followed.
const FOLLOWED: usize = 16;
/// What stands beside a `bin` folder and belongs to the programs in it. Never the whole prefix: that of `~/.local/bin` has
/// more in it than programs.
const BESIDE_BIN: &[&str] = &["lib", "lib64", "libexec", "include", "pyvenv.cfg"];
/// What stands beside a folder of `shims` (pyenv, rbenv, asdf) and is read by them.
const BESIDE_SHIMS: &[&str] = &["bin", "libexec", "versions", "version", "plugins", "pyenv.d", "rbenv.d", "installs"];

/// The file that `command` names: with a slash from `working_dir`, else looked up in `path` as a shell does.
///
/// Errors: why there is none.
pub fn find(command: &str, working_dir: &Path, path: &OsStr) -> Result<PathBuf, String> {
    if command.contains('/') {
        let file = working_dir.join(command);
        return match file.metadata() {
            Ok(_) if is_program(&file) => Ok(file),
            Ok(_) => Err(format!("{} is no program: it is not a file with permission to execute", file.display())),
            Err(e) => Err(format!("{}: {e}", file.display())),
        };
    }
    let found = std::env::split_paths(path).map(|folder| working_dir.join(folder).join(command)).find(|file| is_program(file));
    found.ok_or_else(|| format!("there is no program {command:?} in PATH"))
}

fn is_program(file: &Path) -> bool {
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// What must be readable for `program` to start, beside the system's own folders.
pub(super) fn needs(program: &Path, path: &OsStr) -> Vec<PathBuf> {
    let mut needed = Vec::new();
    let mut next = Some(program.to_owned());
    for _ in 0..FOLLOWED {
        let Some(file) = next.take() else { break };
        needed.push(file.clone());
        needed.extend(beside(&file));
        next = link(&file).or_else(|| interpreter(&file, path));
    }
    needed.retain(|path| path.exists());
    needed
}

fn beside(file: &Path) -> Vec<PathBuf> {
    let Some(folder) = file.parent() else { return Vec::new() };
    let Some(prefix) = folder.parent() else { return Vec::new() };
    let names = match folder.file_name().and_then(OsStr::to_str) {
        Some("bin") => BESIDE_BIN,
        Some("shims") => BESIDE_SHIMS,
        _ => return Vec::new(),
    };
    std::iter::once(folder.to_owned()).chain(names.iter().map(|name| prefix.join(name))).collect()
}

/// Where a link points: one step, so that what stands beside each of several is found.
fn link(file: &Path) -> Option<PathBuf> {
    let target = std::fs::read_link(file).ok()?;
    let folder = file.parent()?.canonicalize().ok()?;
    let target = folder.join(target);
    // `..` in a link is of the real folder.
    Some(target.parent()?.canonicalize().ok()?.join(target.file_name()?))
}

/// The program of a script's first line; of `env`, the one that it looks up.
fn interpreter(file: &Path, path: &OsStr) -> Option<PathBuf> {
    let mut head = Vec::new();
    File::open(file).ok()?.take(256).read_to_end(&mut head).ok()?;
    let line = String::from_utf8_lossy(head.strip_prefix(b"#!")?).lines().next()?.trim().to_owned();
    let mut words = line.split_whitespace();
    let first = words.next()?;
    if Path::new(first).file_name() != Some(OsStr::new("env")) {
        return Some(PathBuf::from(first));
    }
    let named = words.find(|word| !word.starts_with('-'))?;
    find(named, Path::new("/"), path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn program(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_command_is_found_as_a_shell_finds_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        program(&dir.join("two/grade"), "");
        std::fs::create_dir_all(dir.join("one/grade")).unwrap();
        let path = std::env::join_paths([dir.join("none"), dir.join("one"), dir.join("two")]).unwrap();
        assert_eq!(find("grade", dir, &path).unwrap(), dir.join("two/grade"), "a folder is no program");
        assert_eq!(find("./two/grade", dir, OsStr::new("")).unwrap(), dir.join("./two/grade"));
        assert!(find("grade", dir, OsStr::new("")).unwrap_err().contains("PATH"));
        std::fs::write(dir.join("text"), "").unwrap();
        assert!(find("./text", dir, &path).unwrap_err().contains("permission to execute"));
    }

    #[test]
    fn a_virtual_environment_needs_itself_and_the_interpreter_it_was_made_from() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().canonicalize().unwrap();
        program(&dir.join("versions/3.11/bin/python3.11"), "\u{7f}ELF");
        symlink("python3.11", dir.join("versions/3.11/bin/python3")).unwrap();
        for folder in ["versions/3.11/lib", "versions/3.11/secrets", "home/.venv/bin", "home/.venv/lib"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
        }
        std::fs::write(dir.join("home/.venv/pyvenv.cfg"), "").unwrap();
        symlink("../../../versions/3.11/bin/python3", dir.join("home/.venv/bin/python")).unwrap();
        program(&dir.join("home/.venv/bin/grade"), &format!("#!{}/home/.venv/bin/python\n", dir.display()));
        let needed = needs(&dir.join("home/.venv/bin/grade"), OsStr::new(""));
        for want in ["home/.venv/lib", "home/.venv/pyvenv.cfg", "versions/3.11/bin/python3.11", "versions/3.11/lib"] {
            assert!(needed.contains(&dir.join(want)), "{want}: {needed:?}");
        }
        for too_much in ["home", "home/.venv", "versions", "versions/3.11", "versions/3.11/secrets"] {
            assert!(!needed.contains(&dir.join(too_much)), "{too_much}: {needed:?}");
        }
    }

    #[test]
    fn a_shim_needs_the_versions_it_chooses_from() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        program(&dir.join("tools/bash"), "\u{7f}ELF");
        program(&dir.join("pyenv/shims/python3"), "#!/usr/bin/env bash\n");
        std::fs::create_dir_all(dir.join("pyenv/versions")).unwrap();
        let needed = needs(&dir.join("pyenv/shims/python3"), dir.join("tools").as_os_str());
        assert!(needed.contains(&dir.join("pyenv/versions")) && needed.contains(&dir.join("tools/bash")), "{needed:?}");
    }
}
