//! Two clusters on one Vault, each with an operator, a token role and a way to log in of its own, as config/vault/README.md says.

use crate::login::{USUAL, borrowed, jwt_at};
use crate::support::{Cluster, alone};
use crate::sweep::{ROLE_PATH, meta, token};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::HashSet;
use testbed::kubelet::PodSpec;
use testbed::project;
use testbed::vault::VaultServer;

/// The second cluster's name, and where its operator makes tokens.
const OTHER: &str = "other";
const OTHER_ROLE_PATH: &str = "auth/token/create/vault-token-operator-other";

/// Tells Vault of the second cluster; gives the settings with which its operator logs in.
async fn introduce(vault: &VaultServer, cluster: &Cluster) -> Vec<(&'static str, String)> {
    let text = |name: &str| std::fs::read_to_string(project::root().join("config/vault").join(name)).expect("a file");
    let policy = text("policy.hcl").replace("vault-token-operator-main", "vault-token-operator-other");
    let role: Value = serde_json::from_str(&text("token-role.json")).expect("a role");
    for (path, body) in [
        ("sys/policies/acl/vault-token-operator-other", json!({ "policy": policy })),
        ("auth/token/roles/vault-token-operator-other", role),
    ] {
        vault.must(Method::POST, path, Some(&body)).await.expect("told");
    }
    jwt_at(vault, cluster, "jwt-other", USUAL, "vault-token-operator-other").await
}

/// The accessors of the orphans that this cluster's operators have revoked, of this namespace.
fn swept(cluster: &Cluster, namespace: &str) -> HashSet<String> {
    let lines = cluster.audit_lines("namespace", namespace);
    let swept = lines.iter().filter(|line| line["step"] == "OrphanRevoked");
    swept.map(|line| line["token_accessor"].as_str().expect("an accessor").to_owned()).collect()
}

#[tokio::test]
async fn i2_two_clusters_on_one_vault_never_touch_each_others_tokens() {
    let (main, _guard) = alone().await;
    let other = &Cluster::start().await;
    let vault = main.vault();
    let login = introduce(vault, other).await;
    let ca = vault.ca_path().to_string_lossy();
    let here = [("VAULT_ADDR", vault.address()), ("VAULT_CACERT", &*ca)];
    let settings = [&here[..], &[("VTO_CLUSTER", OTHER)], &borrowed(&login)].concat();
    other.system.start_operator(&settings).await.expect("the operator starts");

    // The same namespace, the same pod's name: only the cluster's differs.
    let namespace = main.namespace("twin").await;
    other.namespace(&namespace).await;
    let spec = PodSpec::new(&namespace, "web", "shop-read", "1h");
    let (mains, others) = (main.deliver(&spec).await, other.deliver_with(&spec, &here).await);
    main.system.kill_operator();
    other.system.kill_operator();

    // What nobody records: one in each cluster, and one that says it is of the one and was made as of the other.
    let made = "2026-01-01T00:00:01Z";
    let mut of_other = meta(&others.pod, "no-such-request", made);
    of_other["cluster"] = json!(OTHER);
    of_other["pod_uid"] = json!("a-pod-that-is-gone");
    let mut of_main = meta(&mains.pod, "no-such-request", made);
    of_main["pod_uid"] = json!("a-pod-that-is-gone");
    let mains_orphan = token(main, ROLE_PATH, &of_main).await;
    let others_orphan = token(main, OTHER_ROLE_PATH, &of_other).await;
    let strays = [token(main, ROLE_PATH, &of_other).await, token(main, OTHER_ROLE_PATH, &of_main).await];

    main.system.start_operator(&[]).await.expect("the operator starts");
    main.until_dead(&mains_orphan).await;
    main.until_healthy("1 without a request revoked").await;
    assert!(main.lives(&others_orphan).await);
    other.system.start_operator(&settings).await.expect("the operator starts");
    main.until_dead(&others_orphan).await;
    other.until_healthy("1 without a request revoked").await;
    assert_eq!(swept(main, &namespace), HashSet::from([mains_orphan]));
    assert_eq!(swept(other, &namespace), HashSet::from([others_orphan]));
    for stray in &strays {
        assert!(main.lives(stray).await);
    }

    // Each ends its own, and cannot make the other's.
    main.kubelet.remove(main.plane(), &mains.pod).await.expect("removed");
    main.until_dead(mains.accessor()).await;
    assert!(main.accepts(&others.token).await);
    other.kubelet.remove(other.plane(), &others.pod).await.expect("removed");
    main.until_dead(others.accessor()).await;
    let login = main.operators_login().await;
    let order = json!({ "policies": ["shop-read"], "period": "1h" });
    let refused = vault.request_as(Some(&login), Method::POST, OTHER_ROLE_PATH, Some(&order)).await.expect("an answer");
    assert_eq!(refused.0, StatusCode::FORBIDDEN, "{}", refused.1);

    for stray in &strays {
        let body = json!({ "accessor": stray });
        vault.must(Method::POST, "auth/token/revoke-accessor", Some(&body)).await.expect("revoked");
    }
}
