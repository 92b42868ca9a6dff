//! The files that the app reads: `token` (the bare token) and `secret.json` (Vault's whole answer, as the original
//! vault-init wrote it). Each appears whole or not at all.

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

const TOKEN: &str = "token";
const SECRET: &str = "secret.json";

/// How the names of files begin that are still being written.
const TEMPORARY: &str = ".vault-token-operator-";

/// The folder with the files.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    mode: u32,
}

#[derive(Deserialize)]
struct SecretFile {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    accessor: String,
    client_token: SecretString,
}

impl Store {
    /// Files go to `directory`, with these permissions.
    ///
    /// # Errors
    /// A sentence, where there is no such folder.
    pub fn new(directory: PathBuf, mode: u32) -> Result<Self, String> {
        if !directory.is_dir() {
            return Err(format!(
                "there is no folder {} (--directory): mount a volume there, here and in the app's container",
                directory.display()
            ));
        }
        Ok(Self { directory, mode })
    }

    /// The accessor of the token that is there, if both files are there and agree.
    pub async fn accessor(&self) -> Option<String> {
        let secret = tokio::fs::read(self.path(SECRET)).await.ok()?;
        let token: SecretString = tokio::fs::read_to_string(self.path(TOKEN)).await.ok()?.into();
        let SecretFile { auth } = serde_json::from_slice(&secret).ok()?;
        (auth.client_token.expose_secret() == token.expose_secret()).then_some(auth.accessor)
    }

    /// Writes both files, `token` last: whoever sees it finds `secret.json` there.
    ///
    /// # Errors
    /// A sentence with the file's name and what the operating system said.
    pub async fn write(&self, token: SecretString, answer: Vec<u8>) -> Result<(), String> {
        let store = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            let answer = zeroize::Zeroizing::new(answer);
            store.place(SECRET, &answer)?;
            store.place(TOKEN, token.expose_secret().as_bytes())
        });
        written.await.map_err(|error| format!("the writing of the token broke off: {error}"))?
    }

    /// Removes both files, `token` first, and what a process that was killed while it wrote has left.
    ///
    /// # Errors
    /// A sentence with the file's name and what the operating system said.
    pub async fn clear(&self) -> Result<(), String> {
        let mut paths = vec![self.path(TOKEN), self.path(SECRET)];
        let unread = |error| format!("cannot read the folder {}: {error}", self.directory.display());
        let mut entries = tokio::fs::read_dir(&self.directory).await.map_err(unread)?;
        while let Some(entry) = entries.next_entry().await.map_err(unread)? {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                paths.push(entry.path());
            }
        }
        for path in paths {
            match tokio::fs::remove_file(&path).await {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("cannot remove {}: {error}", path.display())),
            }
        }
        Ok(())
    }

    fn place(&self, name: &str, content: &[u8]) -> Result<(), String> {
        let path = self.path(name);
        let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
        let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.directory).map_err(failed)?;
        file.write_all(content).map_err(failed)?;
        // After the content, and by name of mode: the umask has no say.
        file.as_file().set_permissions(Permissions::from_mode(self.mode)).map_err(failed)?;
        file.as_file().sync_all().map_err(failed)?;
        file.persist(&path).map_err(|error| failed(error.error))?;
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        Path::new(&self.directory).join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANSWER: &str = r#"{"auth": {"accessor": "acc", "client_token": "hvs.x", "lease_duration": 60}}"#;

    #[tokio::test]
    async fn files_have_their_mode_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::new(folder.path().to_owned(), 0o440).expect("a store");
        assert_eq!(store.accessor().await, None);
        for _ in 0..2 {
            store.write("hvs.x".into(), ANSWER.into()).await.expect("written");
        }
        let mut names: Vec<_> = std::fs::read_dir(folder.path())
            .expect("a folder")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name"))
            .collect();
        names.sort();
        assert_eq!(names, ["secret.json", "token"]);
        for name in names {
            let mode = std::fs::metadata(folder.path().join(name)).expect("a file").permissions().mode();
            assert_eq!(mode & 0o7777, 0o440);
        }
        assert_eq!(std::fs::read_to_string(folder.path().join("token")).expect("a token"), "hvs.x");
        assert_eq!(store.accessor().await.as_deref(), Some("acc"));
        std::fs::write(folder.path().join(".vault-token-operator-half"), "hvs.").expect("written");
        std::fs::write(folder.path().join("of-somebody-else"), "").expect("written");
        store.clear().await.expect("cleared");
        store.clear().await.expect("cleared again");
        assert_eq!(store.accessor().await, None);
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).expect("a folder").map(|e| e.expect("e").file_name()).collect();
        assert_eq!(left, ["of-somebody-else"]);
    }

    #[tokio::test]
    async fn i6_files_that_do_not_agree_are_no_token() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Store::new(folder.path().to_owned(), 0o440).expect("a store");
        store.write("hvs.other".into(), ANSWER.into()).await.expect("written");
        assert_eq!(store.accessor().await, None);
    }
}
