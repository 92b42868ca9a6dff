//! The versions that programs tell.

use std::fmt;

/// The two leading numbers of a version: what decides whether a component fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u64,
    /// The second number.
    pub minor: u64,
}

impl Version {
    /// The first `<major>.<minor>.<...>` in what a program says of itself; a `v` or a word may stand directly before it.
    pub(crate) fn in_text(text: &str) -> Option<Self> {
        text.split(|c: char| !c.is_ascii_alphanumeric() && c != '.').find_map(|word| {
            let mut numbers = word.trim_start_matches(|c: char| c.is_ascii_alphabetic()).split('.');
            let (major, minor) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
            Some(Self { major, minor })
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_components_words_are_understood() {
        let version = |text| Version::in_text(text).map(|version| (version.major, version.minor));
        assert_eq!(version("etcd Version: 3.6.12\nGit SHA: Not provided\nGo Version: go1.26.8"), Some((3, 6)));
        assert_eq!(version("Kubernetes v1.37.2"), Some((1, 37)));
        assert_eq!(version("OpenBao v2.7.2 (9e0a0d3c3504), committed 2026-10-26T20:32:27Z"), Some((2, 7)));
        assert_eq!(version("Vault v1.21.0, built 2025-11-23T19:10:55Z"), Some((1, 21)));
        assert_eq!(version("go1.26.8"), Some((1, 26)));
        let helm =
            r#"version.BuildInfo{Version:"v4.3", GitCommit:"", GoVersion:"go1.26.8", KubeClientVersion:"v1.37"}"#;
        assert_eq!(version(helm), Some((4, 3)));
        let kubectl = r#"{"clientVersion": {"major": "1", "gitVersion": "v1.35.4-rc.1", "goVersion": "go1.26.8"}}"#;
        assert_eq!(version(kubectl), Some((1, 35)));
        assert_eq!(version("no version here, 2026 or so"), None);
    }
}
