//! What the operator's login may do in Vault, held against what it needs.

use std::collections::{BTreeSet, HashMap};

/// What Vault lets a login do, by path.
pub type Capabilities = HashMap<String, Vec<String>>;

/// A part of a path that nothing is called by: who has rights there has them by a `*` or a `+`.
const ANYTHING: &str = "anything";

/// What Vault asks of whoever writes; which of them depends on the path, and on what is there already.
const WRITE: &[&str] = &["create", "update", "patch", "delete"];

/// What a login is for: what it must be able to do, and what it must not.
#[derive(Clone, Debug)]
pub struct Duties {
    needs: Vec<Point>,
    tell_tales: Vec<Point>,
    /// Which login it is, where it is not the everyday one.
    by: &'static str,
}

/// What is known of a login's rights.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rights {
    /// Nothing yet.
    #[default]
    Unknown,
    /// The login may not ask.
    Hidden,
    /// What Vault said comes to this.
    Told {
        /// What does not work for want of a right, and which one that is.
        missing: Vec<String>,
        /// What it could do and should not.
        excess: Vec<String>,
    },
}

/// What one path is asked about.
#[derive(Clone, Debug)]
struct Point {
    path: String,
    capabilities: &'static [&'static str],
    /// What cannot be done without all of them, or can be done with any.
    words: &'static str,
}

impl Point {
    fn new(path: impl Into<String>, capabilities: &'static [&'static str], words: &'static str) -> Self {
        Self { path: path.into(), capabilities, words }
    }

    /// Those of its capabilities that are there, or that are not.
    fn which(&self, capabilities: &Capabilities, there: bool) -> Option<String> {
        let has = |wanted: &str| capabilities.get(&self.path).is_some_and(|has| has.iter().any(|has| has == wanted));
        let which: Vec<_> = self.capabilities.iter().copied().filter(|wanted| has(wanted) == there).collect();
        (!which.is_empty()).then(|| which.join(" and "))
    }
}

impl Duties {
    /// Those of the everyday login, as in `config/vault/policy.hcl`: tokens are made through `token_role`. `login_role` is the path
    /// of the role that it was made by, where its method has one. `lists`: it is also the login that lists tokens.
    pub fn everyday(token_role: &str, login_role: Option<String>, lists: bool) -> Self {
        let mut tell_tales = tell_tales(token_role, login_role);
        if !lists {
            // With the slash that a list has, of which Vault also says what it could do without: not the other way round.
            tell_tales.push(Point::new(
                "auth/token/accessors/",
                &["sudo"],
                "list all tokens, which it has a login of its own for",
            ));
        }
        Self { needs: needs(token_role), tell_tales, by: "" }
    }

    /// Those of the login that lists tokens, as in `config/vault/sweep-policy.hcl`. That it can is seen when it does; together with
    /// what the everyday login is for, it could have all tokens of Vault.
    pub fn listing(token_role: &str, login_role: Option<String>) -> Self {
        let mut tell_tales = tell_tales(token_role, login_role);
        tell_tales.extend([
            Point::new(format!("auth/token/create/{token_role}"), &["update"], "make tokens"),
            Point::new("auth/token/lookup-accessor", &["update"], "look at tokens"),
            Point::new("auth/token/renew-accessor", &["update"], "renew tokens"),
            Point::new("auth/token/revoke-accessor", &["update"], "revoke tokens"),
        ]);
        Self { needs: Vec::new(), tell_tales, by: " by its login for the sweep" }
    }

    /// The paths to ask Vault about.
    pub fn paths(&self) -> Vec<String> {
        let points = self.needs.iter().chain(&self.tell_tales);
        points.map(|point| point.path.clone()).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// What Vault's answer comes to.
    pub fn judge(&self, capabilities: &Capabilities) -> Rights {
        let by = self.by;
        if capabilities.values().flatten().any(|capability| capability == "root") {
            let excess = format!("can do everything{by}, since it is logged in with a root token");
            return Rights::Told { missing: Vec::new(), excess: vec![excess] };
        }
        let missing = |point: &Point| {
            let Point { path, words, .. } = point;
            point.which(capabilities, false).map(|lacking| format!("cannot {words}{by}: it needs {lacking} on {path}"))
        };
        let excess = |point: &Point| {
            let Point { path, words, .. } = point;
            point.which(capabilities, true).map(|held| format!("can {words}{by}: it has {held} on {path}"))
        };
        Rights::Told {
            missing: self.needs.iter().filter_map(missing).collect(),
            excess: self.tell_tales.iter().filter_map(excess).collect(),
        }
    }
}

/// What the everyday login must have.
fn needs(token_role: &str) -> Vec<Point> {
    vec![
        Point::new(
            format!("auth/token/create/{token_role}"),
            &["update", "sudo"],
            "make tokens, so that no pod gets any",
        ),
        Point::new(
            format!("auth/token/roles/{token_role}"),
            &["read"],
            "see whether its token role is there, so that bindings are TokenRoleUnreadable",
        ),
        Point::new(
            "auth/token/lookup-accessor",
            &["update"],
            "look at tokens, so that none is handed to its pod, and the sweep finds none",
        ),
        Point::new(
            "auth/token/renew-accessor",
            &["update"],
            "renew tokens, so that they end with their ttl while their pods live",
        ),
        Point::new(
            "auth/token/revoke-accessor",
            &["update"],
            "revoke tokens, so that they live on without their pods until their ttl ends",
        ),
        Point::new(
            "auth/token/lookup-self",
            &["read"],
            "look at its own login, so that it logs in anew whenever Vault forbids it anything",
        ),
        Point::new(
            "auth/token/renew-self",
            &["update"],
            "renew its own login, so that it logs in anew each time instead",
        ),
        Point::new(
            "auth/token/revoke-self",
            &["update"],
            "give its own login back, so that it lives on when the operator has ended, until its ttl ends",
        ),
    ]
}

/// A few paths that no login of the operator's has any business with, each of a right that would be worth stealing, or that is had by
/// a pattern which is too wide. Where Vault asks for `sudo`, no other capability is of use without it.
fn tell_tales(token_role: &str, login_role: Option<String>) -> Vec<Point> {
    let mut points = vec![
        Point::new("auth/token/create", &["update"], "make tokens that no token role bounds"),
        Point::new("auth/token/create-orphan", &["update"], "make tokens that no token role bounds"),
        Point::new(format!("auth/token/create/{ANYTHING}"), &["update"], "make tokens through other token roles"),
        Point::new(
            format!("auth/token/roles/{token_role}"),
            WRITE,
            "change its token role, which says what pods can get at most",
        ),
        Point::new("sys/policies/acl/vault-token-operator", WRITE, "change policies, its own among them"),
        Point::new(format!("sys/auth/{ANYTHING}"), &["sudo"], "change how Vault lets anybody in"),
        Point::new(format!("sys/raw/{ANYTHING}"), &["sudo"], "reach all that Vault stores"),
        Point::new(format!("secret/data/{ANYTHING}"), &["read"], "read secrets"),
    ];
    points.extend(login_role.map(|path| Point::new(path, WRITE, "change the role that it logs in by")));
    points
}

impl Rights {
    /// Together with what is known of another login.
    pub fn and(self, other: &Self) -> Self {
        match (self, other) {
            (Self::Told { mut missing, mut excess }, Self::Told { missing: more, excess: others }) => {
                missing.extend_from_slice(more);
                excess.extend_from_slice(others);
                Self::Told { missing, excess }
            }
            (rights, _) => rights,
        }
    }

    /// What does not work for want of a right, in one line.
    pub fn narrower(&self) -> Option<String> {
        match self {
            Self::Told { missing, .. } => line(missing),
            Self::Unknown | Self::Hidden => None,
        }
    }

    /// What the login could do and should not, in one line.
    pub fn wider(&self) -> Option<String> {
        match self {
            Self::Told { excess, .. } => line(excess),
            Self::Unknown | Self::Hidden => None,
        }
    }

    /// In words, for the health endpoint.
    pub fn describe(&self) -> String {
        match (self, self.narrower(), self.wider()) {
            (Self::Unknown, ..) => "not looked at yet".to_owned(),
            (Self::Hidden, ..) => "Vault does not tell without update on sys/capabilities-self".to_owned(),
            (_, None, None) => "as needed".to_owned(),
            (_, narrower, wider) => {
                let both: Vec<_> = narrower.into_iter().chain(wider).collect();
                format!("{} (config/vault/ has all that is needed)", both.join("; "))
            }
        }
    }
}

fn line(words: &[String]) -> Option<String> {
    (!words.is_empty()).then(|| format!("the operator {}", words.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn duties() -> Duties {
        Duties::everyday("role", Some("auth/kubernetes/role/operator".to_owned()), false)
    }

    /// What Vault says of a login with the usual policy, but for these paths.
    fn told(changes: &[(&str, &[&str])]) -> Capabilities {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let deny = duties().paths().into_iter().map(|path| (path, words(&["deny"])));
        let mut told: Capabilities = deny.collect();
        let usual: [(&str, &[&str]); 8] = [
            ("auth/token/create/role", &["create", "sudo", "update"]),
            ("auth/token/roles/role", &["read"]),
            ("auth/token/lookup-accessor", &["update"]),
            ("auth/token/renew-accessor", &["update"]),
            ("auth/token/revoke-accessor", &["update"]),
            ("auth/token/lookup-self", &["read"]),
            ("auth/token/renew-self", &["update"]),
            ("auth/token/revoke-self", &["update"]),
        ];
        for (path, capabilities) in usual.iter().chain(changes) {
            told.insert((*path).to_owned(), words(capabilities));
        }
        told
    }

    #[test]
    fn the_usual_rights_are_as_needed() {
        let rights = duties().judge(&told(&[]));
        assert_eq!(rights, Rights::Told { missing: vec![], excess: vec![] });
        assert_eq!((rights.narrower(), rights.wider(), rights.describe()), (None, None, "as needed".to_owned()));
    }

    #[test]
    fn a_right_that_is_missing_is_named_with_what_does_not_work() {
        for (path, has, words) in [
            (
                "auth/token/create/role",
                &["create", "sudo"][..],
                "no pod gets any: it needs update on auth/token/create/",
            ),
            ("auth/token/create/role", &["create", "update"], "needs sudo on"),
            ("auth/token/create/role", &["deny"], "needs update and sudo on"),
            ("auth/token/lookup-accessor", &["deny"], "none is handed to its pod"),
            ("auth/token/renew-accessor", &["read"], "end with their ttl while their pods live"),
            ("auth/token/revoke-accessor", &[], "live on without their pods"),
            ("auth/token/roles/role", &["deny"], "TokenRoleUnreadable"),
            ("auth/token/lookup-self", &["update"], "cannot look at its own login"),
            ("auth/token/renew-self", &["deny"], "cannot renew its own login"),
            ("auth/token/revoke-self", &["deny"], "cannot give its own login back"),
        ] {
            let rights = duties().judge(&told(&[(path, has)]));
            let Rights::Told { missing, excess } = &rights else { panic!("{rights:?}") };
            assert!(missing.len() == 1 && excess.is_empty(), "{rights:?}");
            assert!(missing[0].contains(words) && missing[0].ends_with(path), "{missing:?}");
            assert!(rights.describe().contains(words), "{}", rights.describe());
        }
        let rights = duties().judge(&Capabilities::new());
        assert!(matches!(&rights, Rights::Told { missing, .. } if missing.len() == 8), "{rights:?}");
    }

    #[test]
    fn a_right_that_is_too_much_is_named_with_what_it_is_for() {
        for (path, has, words) in [
            ("auth/token/create", &["update"][..], "no token role bounds: it has update on"),
            ("auth/token/create-orphan", &["create", "update"], "no token role bounds"),
            ("auth/token/create/anything", &["sudo", "update"], "other token roles"),
            ("auth/token/roles/role", &["read", "update", "create"], "change its token role"),
            ("auth/token/accessors/", &["list", "sudo"], "list all tokens"),
            ("auth/kubernetes/role/operator", &["update"], "change the role that it logs in by"),
            ("sys/policies/acl/vault-token-operator", &["patch"], "change policies"),
            ("sys/auth/anything", &["create", "sudo"], "lets anybody in"),
            ("sys/raw/anything", &["read", "sudo"], "all that Vault stores"),
            ("secret/data/anything", &["list", "read"], "read secrets"),
        ] {
            let rights = duties().judge(&told(&[(path, has)]));
            let Rights::Told { missing, excess } = &rights else { panic!("{rights:?}") };
            assert!(excess.len() == 1 && missing.is_empty(), "{rights:?}");
            assert!(excess[0].contains(words) && excess[0].ends_with(path), "{excess:?}");
        }
        // What is harmless is nobody's business.
        let rights = duties().judge(&told(&[
            ("auth/token/create", &["read"]),
            ("sys/policies/acl/vault-token-operator", &["read", "list"]),
        ]));
        assert_eq!(rights.wider(), None);
    }

    #[test]
    fn a_login_that_also_lists_tokens_may_do_so() {
        let all = Duties::everyday("role", None, true);
        assert_eq!(all.judge(&told(&[("auth/token/accessors/", &["list", "sudo"])])).wider(), None);
        assert!(all.paths().iter().all(|path| !path.contains("accessors")));
    }

    #[test]
    fn the_login_for_the_sweep_does_nothing_but_list() {
        let listing = Duties::listing("role", Some("auth/kubernetes/role/sweep".to_owned()));
        let list = ("auth/token/accessors/", &["list", "sudo"][..]);
        let usual = Capabilities::from([(list.0.to_owned(), list.1.iter().map(|word| (*word).to_owned()).collect())]);
        let everyday = duties().judge(&told(&[]));
        assert_eq!(everyday.clone().and(&listing.judge(&usual)), everyday);
        assert_eq!(everyday.clone().and(&Rights::Unknown), everyday);
        let both = everyday.and(&listing.judge(&told(&[])));
        assert_eq!(both.narrower(), None);
        let wider = both.wider().expect("it can do what the everyday login does");
        assert!(wider.contains("can revoke tokens by its login for the sweep: it has update on"), "{wider}");
    }

    #[test]
    fn of_a_root_token_one_thing_is_said() {
        let root = duties().paths().into_iter().map(|path| (path, vec!["root".to_owned()])).collect();
        let rights = duties().judge(&root);
        assert_eq!(rights.narrower(), None);
        assert_eq!(
            rights.wider().as_deref(),
            Some("the operator can do everything, since it is logged in with a root token")
        );
    }
}
