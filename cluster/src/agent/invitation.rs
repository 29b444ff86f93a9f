//! How the hosts of one allocation find each other: the head node leaves an invitation in a folder that all of them see, the
//! others wait for it. It holds a token, so that it is a secret: a file that its owner alone can read, and never printed.
use super::nodes::enrolment::Enrolment;
use super::nodes::tokens::Token;
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How long an invitation is good.
const SECONDS: u64 = 3600;

/// What an invitation says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Invitation {
    /// Which allocation is invited; a file that an earlier one has left behind is none.
    allocation: String,
    /// Where the head node listens, as `gpu-1:7400`.
    pub(crate) head: String,
    /// The token of its hosts.
    pub(crate) token: Token,
}

/// Whom a launch invites.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invites {
    /// The folder.
    pub folder: PathBuf,
    /// The allocation's name.
    pub allocation: String,
    /// Hosts that are to come.
    pub hosts: u32,
    /// Under what name others find this host; nothing: as without an allocation.
    pub head: Option<String>,
}

impl Invites {
    /// Leaves the invitation, and takes it away when it is dropped.
    ///
    /// # Errors
    /// A sentence with the file's name.
    pub(super) fn leave(&self, enrolment: &Enrolment, head: String) -> Result<Left, String> {
        let token = enrolment.issue(self.hosts, SECONDS)?;
        let invitation = Invitation { allocation: self.allocation.clone(), head, token };
        let text = toml::to_string(&invitation).map_err(|e| e.to_string())?;
        let path = place(&self.folder);
        let draft = path.with_extension(format!("new-{}", std::process::id()));
        let written = std::fs::create_dir_all(&self.folder)
            // One of an earlier launch that died may lie there, whatever its mode.
            .and_then(|()| {
                std::fs::remove_file(&draft).or_else(|e| if e.kind() == ErrorKind::NotFound { Ok(()) } else { Err(e) })
            })
            .and_then(|()| OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft))
            .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| std::fs::rename(&draft, &path));
        written.map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Left(path))
    }
}

/// An invitation that lies in its folder.
#[derive(Debug)]
pub(super) struct Left(PathBuf);

impl Drop for Left {
    fn drop(&mut self) {
        // A run that is over refuses its token.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Invitation {
    /// The invitation of an allocation, once it is there.
    ///
    /// # Errors
    /// A file that cannot be read or is somebody else's, by its name.
    pub(crate) fn look(folder: &Path, allocation: &str) -> Result<Option<Self>, String> {
        let path = place(folder);
        let failed = |why: String| format!("the invitation {}: {why}", path.display());
        let mut file = match OpenOptions::new().read(true).open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e.to_string())),
        };
        let facts = file.metadata().map_err(|e| failed(e.to_string()))?;
        if facts.uid() != rustix::process::geteuid().as_raw() || facts.mode() & 0o077 != 0 {
            let why = "is another user's, or others can read it: the head node leaves it with mode 0600, under the same user";
            return Err(failed(why.to_owned()));
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|e| failed(e.to_string()))?;
        // The message of the parser would show the line, and the line may be the secret.
        let invitation: Self = toml::from_str(&text).map_err(|_| failed("is none of this version".to_owned()))?;
        Ok((invitation.allocation == allocation).then_some(invitation))
    }
}

fn place(folder: &Path) -> PathBuf {
    folder.join("invitation.toml")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::nodes::enrolment::Seats;
    use cohort_actors::certs::RunAuthority;
    use cohort_protocol::RunId;
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Arc;

    #[test]
    fn an_invitation_is_its_owners_alone_and_of_one_allocation() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(RunAuthority::open_or_create(&dir.path().join("certs"), RunId(5)).unwrap());
        let enrolment = Enrolment::open(RunId(5), dir.path().join("hosts.json"), authority, Seats::of(0, 1)).unwrap();
        let folder = dir.path().join("shared");
        assert_eq!(Invitation::look(&folder, "slurm 1.0"), Ok(None));
        let invites = Invites { folder: folder.clone(), allocation: "slurm 1.0".into(), hosts: 2, head: None };
        let left = invites.leave(&enrolment, "gpu-1:7400".into()).unwrap();
        let mode = std::fs::metadata(place(&folder)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let found = Invitation::look(&folder, "slurm 1.0").unwrap().unwrap();
        assert_eq!((found.head.as_str(), found.token.parse().unwrap().0), ("gpu-1:7400", RunId(5)));
        let secret = std::fs::read_to_string(place(&folder)).unwrap();
        let secret = secret.lines().find_map(|line| line.strip_prefix("secret = ")).unwrap().trim_matches('"').to_owned();
        assert!(secret.len() == 64 && !format!("{found:?}").contains(&secret), "it is never printed");
        assert_eq!(Invitation::look(&folder, "slurm 2.0"), Ok(None), "another allocation's");
        std::fs::set_permissions(place(&folder), std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Invitation::look(&folder, "slurm 1.0").unwrap_err().contains("others can read it"));
        drop(left);
        assert_eq!(Invitation::look(&folder, "slurm 1.0"), Ok(None));
    }
}
