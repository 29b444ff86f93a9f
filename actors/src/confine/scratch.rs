//! The one folder that a confined program may write to: made, measured and removed by its keeper, whatever the program left
//! in it. Folders may lie as deep and be as closed as a program likes, so nothing here recurses or trusts a mode.
use std::collections::HashSet;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Names tried before giving up.
const TRIES: u32 = 1000;
/// Files and folders in it at most.
pub(super) const ENTRIES: usize = 10_000;
/// Bytes of a block, as `stat` counts them.
const BLOCK: u64 = 512;

/// The folder; removed with the value.
#[derive(Debug)]
pub(super) struct Scratch {
    path: PathBuf,
    device: u64,
}

impl Scratch {
    /// Makes one in `root` that only this user enters.
    pub(super) fn make(root: &Path) -> Result<Self, String> {
        let keeper = std::process::id();
        for n in 0..TRIES {
            let path = root.join(format!("cohort-confined-{keeper}-{n}"));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => {
                    let device = fs::symlink_metadata(&path).map_err(|e| format!("{}: {e}", path.display()))?.dev();
                    return Ok(Self { path, device });
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(format!("its scratch folder {}: {e}; set TMPDIR to a folder with room", path.display())),
            }
        }
        Err(format!("its scratch folder: {TRIES} of its names are taken in {}", root.display()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether more than `bytes` or [`ENTRIES`] are in it, `open` files that have no name any more included. Says so.
    pub(super) fn breach(&self, bytes: u64, open: &[PathBuf]) -> Option<String> {
        let (mut used, mut entries, mut folders) = (0, 0, vec![self.path.clone()]);
        while let Some(folder) = folders.pop() {
            let listed = match fs::read_dir(&folder) {
                Ok(listed) => listed,
                // Gone since it was listed.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Some(format!("its scratch folder cannot be measured: {e}")),
            };
            for entry in listed.flatten() {
                let Ok(metadata) = entry.metadata() else { continue };
                entries += 1;
                used += metadata.blocks() * BLOCK;
                if metadata.is_dir() {
                    folders.push(entry.path());
                }
                if entries > ENTRIES {
                    return Some(format!("more than {ENTRIES} files in its scratch folder"));
                }
            }
        }
        let mut seen = HashSet::new();
        let nameless = open.iter().filter_map(|path| fs::metadata(path).ok());
        let nameless = nameless.filter(|file| file.is_file() && file.nlink() == 0 && file.dev() == self.device);
        used += nameless.filter(|file| seen.insert(file.ino())).map(|file| file.blocks() * BLOCK).sum::<u64>();
        (used > bytes).then(|| format!("more than {} MiB in its scratch folder", bytes >> 20))
    }

    /// Removes everything: what lies deeper is moved up, so that every path stays short.
    fn clear(&self) -> io::Result<()> {
        let mut moved = 0u64;
        loop {
            let mut empty = true;
            for entry in list(&self.path)? {
                empty = false;
                if !is_folder(&entry)? {
                    fs::remove_file(&entry)?;
                    continue;
                }
                for inner in list(&entry)? {
                    if !is_folder(&inner)? {
                        fs::remove_file(&inner)?;
                        continue;
                    }
                    // Its own `..` changes: that takes the right to write to it.
                    fs::set_permissions(&inner, Permissions::from_mode(0o700))?;
                    loop {
                        moved += 1;
                        match fs::rename(&inner, self.path.join(format!("{moved}"))) {
                            // A folder of that name with something in it.
                            Err(e) if matches!(e.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory) => {}
                            done => break done?,
                        }
                    }
                }
                fs::remove_dir(&entry)?;
            }
            if empty {
                return fs::remove_dir(&self.path);
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = self.clear() {
            super::say(&format!("its scratch folder {} stays: {e}", self.path.display()));
        }
    }
}

/// What is in a folder, which is opened for this first. The program has ended: nobody swaps it for a link.
fn list(folder: &Path) -> io::Result<Vec<PathBuf>> {
    fs::set_permissions(folder, Permissions::from_mode(0o700))?;
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

fn is_folder(path: &Path) -> io::Result<bool> {
    Ok(fs::symlink_metadata(path)?.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn it_is_removed_however_deep_and_closed_with_what_links_point_to_untouched() {
        let root = tempfile::tempdir().unwrap();
        let outside = root.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "").unwrap();
        let scratch = Scratch::make(root.path()).unwrap();
        let path = scratch.path().to_owned();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        std::os::unix::fs::symlink(&outside, path.join("link")).unwrap();
        // Deeper than one path can say: built from the bottom up.
        let name = "d".repeat(200);
        for _ in 0..60 {
            fs::create_dir(path.join("above")).unwrap();
            fs::write(path.join("above/file"), "").unwrap();
            std::os::unix::fs::symlink(&outside, path.join("above/link")).unwrap();
            if path.join(&name).exists() {
                fs::rename(path.join(&name), path.join("above").join(&name)).unwrap();
            }
            fs::rename(path.join("above"), path.join(&name)).unwrap();
        }
        fs::create_dir_all(path.join("closed/inner")).unwrap();
        for folder in ["closed/inner", "closed"] {
            fs::set_permissions(path.join(folder), Permissions::from_mode(0o0)).unwrap();
        }
        drop(scratch);
        assert!(!path.exists() && outside.join("kept").exists());
    }

    #[test]
    fn bytes_files_and_nameless_files_are_counted() {
        let root = tempfile::tempdir().unwrap();
        let scratch = Scratch::make(root.path()).unwrap();
        let full = |bytes: u64| scratch.breach(bytes, &[]);
        assert_eq!(full(1 << 20), None);
        fs::create_dir(scratch.path().join("inner")).unwrap();
        fs::write(scratch.path().join("inner/data"), vec![1; 2 << 20]).unwrap();
        assert!(full(1 << 20).unwrap().contains("more than 1 MiB") && full(4 << 20).is_none());
        fs::remove_file(scratch.path().join("inner/data")).unwrap();
        let path = scratch.path().join("nameless");
        let mut nameless = fs::File::create(&path).unwrap();
        nameless.write_all(&vec![1; 2 << 20]).unwrap();
        fs::remove_file(&path).unwrap();
        use std::os::fd::AsRawFd;
        let open = vec![PathBuf::from(format!("/proc/self/fd/{}", nameless.as_raw_fd())); 2];
        assert!(scratch.breach(1 << 20, &open).is_some() && scratch.breach(3 << 20, &open).is_none(), "counted once");
        for n in 0..=ENTRIES {
            fs::write(scratch.path().join(n.to_string()), "").unwrap();
        }
        assert!(full(1 << 30).unwrap().contains("files in its scratch folder"));
    }
}
