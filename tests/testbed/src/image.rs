//! Container images without a registry: what the project's Dockerfile says, made by hand from binaries that are there.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{SHA256, digest};
use serde_json::json;

use crate::error::Error;
use crate::project;

/// What the project's Dockerfile gives the compiler.
pub(crate) fn rustflags() -> Result<String, Error> {
    let (path, text) = dockerfile()?;
    let flags = text.lines().find_map(|line| line.strip_prefix("ENV RUSTFLAGS=\"")?.strip_suffix('"'));
    flags.map(str::to_owned).ok_or_else(|| unusable(&path, "it sets no RUSTFLAGS".to_owned()))
}

fn dockerfile() -> Result<(PathBuf, String), Error> {
    let path = project::root().join("Dockerfile");
    let text = std::fs::read_to_string(&path).map_err(Error::path("could not read", &path))?;
    Ok((path, text))
}

fn unusable(path: &Path, why: String) -> Error {
    Error::path("cannot make an image of", path)(std::io::Error::other(why))
}

/// An image as it is to be.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name and tag.
    pub name: String,
    /// Its files, each with the path that it has in the image.
    pub files: Vec<(PathBuf, String)>,
    /// What a container of it runs.
    pub entrypoint: Vec<String>,
    /// UID and GID that it runs as, if the pod says nothing else.
    pub user: String,
}

impl Image {
    /// The image of one of the last stages of the project's Dockerfile, the empty ones that a file is copied into. `binary` gives
    /// the file here that is a file of this name there.
    pub fn of_dockerfile(
        name: &str,
        stage: Option<&str>,
        binary: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, Error> {
        let (path, text) = dockerfile()?;
        Self::parse(&text, name, stage, binary).map_err(|why| unusable(&path, why))
    }

    /// The bytes of all its files.
    pub fn size(&self) -> Result<u64, Error> {
        let size = |path: &PathBuf| {
            std::fs::metadata(path).map(|data| data.len()).map_err(Error::path("could not read", path))
        };
        self.files.iter().map(|(path, _)| size(path)).sum()
    }

    fn parse(
        text: &str,
        name: &str,
        stage: Option<&str>,
        binary: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<Self, String> {
        let from = stage.map_or_else(|| "FROM scratch".to_owned(), |stage| format!("FROM scratch AS {stage}"));
        let lines = text.lines().map(str::trim).skip_while(|line| *line != from).skip(1);
        let mut image = Self { name: name.to_owned(), files: Vec::new(), entrypoint: Vec::new(), user: String::new() };
        for line in lines
            .take_while(|line| !line.starts_with("FROM "))
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            match line.split_once(' ') {
                Some(("COPY", files)) => {
                    let words: Vec<_> = files.split_whitespace().collect();
                    let ["--from=build", from, to] = words[..] else { return Err(format!("not understood: {line}")) };
                    let file = from.rsplit('/').next().unwrap_or_default();
                    let here = binary(file).ok_or_else(|| format!("there is no {file} here"))?;
                    image.files.push((here, to.to_owned()));
                }
                Some(("USER", user)) => user.clone_into(&mut image.user),
                Some(("ENTRYPOINT", words)) => {
                    image.entrypoint = serde_json::from_str(words).map_err(|error| format!("{line}: {error}"))?;
                }
                _ => return Err(format!("not understood: {line}")),
            }
        }
        if image.files.is_empty() { Err(format!("there is nothing after {from:?}")) } else { Ok(image) }
    }

    /// Writes it as an archive that container runtimes take (`docker save` writes the like).
    pub fn save(&self, archive: &Path) -> Result<(), Error> {
        let failed = || Error::path("could not write the image", archive);
        let layer = self.layer().map_err(failed())?;
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "User": self.user, "Entrypoint": self.entrypoint },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer))] },
        });
        let config = config.to_string().into_bytes();
        let config_name = format!("{}.json", sha256(&config));
        let manifest = json!([{ "Config": config_name, "RepoTags": [self.name], "Layers": ["layer.tar"] }]);
        let manifest = manifest.to_string().into_bytes();
        let file = std::fs::File::create(archive).map_err(failed())?;
        let mut tar = tar::Builder::new(file);
        for (name, content) in [("manifest.json", &manifest), (config_name.as_str(), &config), ("layer.tar", &layer)] {
            append(&mut tar, name, 0o644, content).map_err(failed())?;
        }
        tar.into_inner().map_err(failed()).map(drop)
    }

    fn layer(&self) -> std::io::Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (here, there) in &self.files {
            append(&mut tar, there.trim_start_matches('/'), 0o755, &std::fs::read(here)?)?;
        }
        tar.into_inner()
    }
}

fn append(tar: &mut tar::Builder<impl std::io::Write>, name: &str, mode: u32, content: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    tar.append_data(&mut header, name, content)
}

fn sha256(content: &[u8]) -> String {
    digest(&SHA256, content).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The machine's architecture by the name that images have for it.
const fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dockerfile_says_what_is_in_the_images() {
        let here = |name: &str| Some(Path::new("/built").join(name));
        let image = Image::of_dockerfile("vault-token-operator:1", None, here).unwrap();
        assert_eq!(image.files, [("/built/vault-token-operator".into(), "/vault-token-operator".to_owned())]);
        assert_eq!((image.entrypoint, image.user.as_str()), (vec!["/vault-token-operator".to_owned()], "65532:65532"));
        let example = Image::of_dockerfile("vault-example:1", Some("example"), here).unwrap();
        assert_eq!(example.entrypoint, ["/vault-example"]);
    }

    #[test]
    fn what_is_not_understood_is_not_left_out() {
        let here = |_: &str| Some(PathBuf::from("/file"));
        for (text, words) in [
            ("FROM scratch\nRUN something", "not understood: RUN"),
            ("FROM scratch\nCOPY a b", "not understood: COPY"),
            ("FROM debian\nCOPY --from=build a b", "there is nothing"),
        ] {
            assert!(Image::parse(text, "image", None, here).unwrap_err().contains(words), "{text}");
        }
        assert!(Image::parse("FROM scratch\nCOPY --from=build /a /b", "image", None, |_| None).is_err());
    }
}
