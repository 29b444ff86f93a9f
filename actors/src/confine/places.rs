//! Which paths a confined program may use, and how: the system's own, its own, and what must stay hidden in between.
use super::policy::Confinement;
use super::program;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

/// Read by every program. In `/etc` only what resolving names, linking and time need: as root, permissions hide nothing.
const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki/ca-trust",
    "/etc/pki/tls/certs",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/timezone",
    "/dev/random",
    "/dev/urandom",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/self",
    "/proc/stat",
    "/proc/sys/vm/overcommit_memory",
    "/proc/version",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
];
/// Not read, though inside one of the above.
const SYSTEM_HIDDEN: &[&str] = &["/usr/local/etc", "/usr/local/var"];
/// Read and written by every program.
const DEVICES: &[&str] = &["/dev/null", "/dev/zero", "/dev/full"];

/// What a rule allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Access {
    /// Names in this folder and those below it; no contents.
    List,
    /// Reading and executing.
    Read,
    /// Everything but devices.
    Write,
    /// Reading and writing a device.
    Device,
}

/// A path, with everything below it, and what it is allowed for.
pub(super) type Place = (PathBuf, Access);

/// All places of a program. `path` is its PATH.
///
/// Errors: one of its own is not there, or is hidden as a whole.
pub(super) fn of(confinement: &Confinement, path: &OsStr) -> Result<Vec<Place>, String> {
    let hidden: Vec<PathBuf> = confinement.hidden.iter().map(|path| real(path)).collect();
    let system_hidden: Vec<PathBuf> = SYSTEM_HIDDEN.iter().map(PathBuf::from).chain(hidden.iter().cloned()).collect();
    let mut places = Vec::new();
    for path in SYSTEM.iter().map(Path::new).filter(|path| path.exists()) {
        open(path, &system_hidden, &mut places).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    places.extend(DEVICES.iter().map(|path| (PathBuf::from(path), Access::Device)));
    for path in program::needs(&confinement.program, path) {
        open(&real(&path), &hidden, &mut places).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    for path in std::iter::once(&confinement.working_dir).chain(&confinement.read) {
        let path = own(path, &hidden)?;
        open(&path, &hidden, &mut places).map_err(|e| format!("{}: {e}", path.display()))?;
    }
    for path in confinement.write.iter().chain(&confinement.scratch) {
        let path = own(path, &[])?;
        if let Some(inside) = hidden.iter().find(|hidden| hidden.starts_with(&path) || path.starts_with(hidden)) {
            return Err(format!("write = [{:?}]: {} must stay hidden", path.display(), inside.display()));
        }
        places.push((path, Access::Write));
    }
    places.sort();
    places.dedup();
    Ok(places)
}

fn own(path: &Path, hidden: &[PathBuf]) -> Result<PathBuf, String> {
    let real = path.canonicalize().map_err(|e| format!("{} cannot be opened to it: {e}", path.display()))?;
    match hidden.iter().find(|hidden| real.starts_with(hidden)) {
        Some(hidden) => Err(format!("{} lies in {}, which stays hidden: move it", path.display(), hidden.display())),
        None => Ok(real),
    }
}

/// The path without links, as far as there is one.
fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    })
}

/// Opens `path` for reading, around what is hidden in it: a rule cannot take back what one above it gives.
fn open(path: &Path, hidden: &[PathBuf], places: &mut Vec<Place>) -> io::Result<()> {
    if hidden.iter().any(|hidden| path.starts_with(hidden)) {
        return Ok(());
    }
    if !hidden.iter().any(|hidden| hidden.starts_with(path)) {
        places.push((path.to_owned(), Access::Read));
        return Ok(());
    }
    places.push((path.to_owned(), Access::List));
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        // What a link points to has a rule of its own or none.
        if !entry.file_type()?.is_symlink() {
            open(&entry.path(), hidden, places)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confine::Limits;

    fn confinement(dir: &Path) -> Confinement {
        let limits = Limits { processes: 1, memory: None, scratch: 1 };
        Confinement::new("/bin/sh".into(), Vec::new(), dir.to_owned(), limits)
    }

    #[test]
    fn a_run_directory_in_the_folder_of_the_plug_in_stays_hidden() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().canonicalize().unwrap();
        for folder in ["runs/a/keys", "runs/b", "data"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
        }
        std::fs::write(dir.join("grade.py"), "").unwrap();
        let mut confinement = confinement(&dir);
        confinement.hidden = vec![dir.join("runs/a"), dir.join("not/there")];
        let places: Vec<Place> =
            of(&confinement, OsStr::new("")).unwrap().into_iter().filter(|(path, _)| path.starts_with(&dir)).collect();
        let want = [("", Access::List), ("data", Access::Read), ("grade.py", Access::Read), ("runs", Access::List)];
        let mut want: Vec<Place> = want.map(|(path, access)| (dir.join(path).components().collect(), access)).to_vec();
        want.push((dir.join("runs/b"), Access::Read));
        assert_eq!(places, want);
    }

    #[test]
    fn what_is_hidden_is_neither_home_nor_written() {
        let root = tempfile::tempdir().unwrap();
        let mut confinement = confinement(root.path());
        confinement.hidden = vec![root.path().to_owned()];
        assert!(of(&confinement, OsStr::new("")).unwrap_err().contains("stays hidden: move it"));
        confinement.hidden = vec![root.path().join("run")];
        confinement.write = vec![root.path().to_owned()];
        assert!(of(&confinement, OsStr::new("")).unwrap_err().contains("must stay hidden"));
        confinement.write = vec![root.path().join("none")];
        assert!(of(&confinement, OsStr::new("")).unwrap_err().contains("cannot be opened to it"));
    }

    #[test]
    fn nothing_secret_of_the_system_is_open() {
        let places = of(&confinement(Path::new("/usr")), OsStr::new("")).unwrap();
        for secret in ["/etc/shadow", "/etc/ssl/private", "/root", "/home", "/var/run/docker.sock", "/proc/1/environ", "/dev/sda"]
        {
            let path = Path::new(secret);
            assert!(!places.iter().any(|(place, _)| path.starts_with(place)), "{secret}");
        }
    }
}
