//! When a delivered token is renewed (rule 8).

use crate::api::VaultTokenRequestStatus;
use jiff::{SignedDuration, Timestamp};

/// No renewal follows another one sooner, however short the life is that Vault gives.
const MIN_WAIT: SignedDuration = SignedDuration::from_secs(1);

/// When the token is to be renewed next: after 40 to 50 % of the life that Vault gave it last, so that an outage of a third of
/// it does no harm. `spread` (from 0 to 1) keeps tokens that were made together from being renewed together. `None` for a token
/// that never ends.
pub fn renew_at(status: &VaultTokenRequestStatus, spread: f64) -> Option<Timestamp> {
    let since = status.renewed_at.as_ref().or(status.delivered_at.as_ref())?.0;
    let life = status.expires_at.as_ref()?.0.duration_since(since);
    let wait = SignedDuration::from_secs_f64(life.as_secs_f64().max(0.0) * (0.4 + 0.1 * spread.clamp(0.0, 1.0)));
    since.checked_add(wait.max(MIN_WAIT)).ok()
}

/// A number from 0 to 1 that is always the same for one UID, and spread evenly over many.
pub fn spread(uid: &str) -> f64 {
    // FNV-1a, 32 bits: it must only differ, and be the same after every restart.
    let hash = uid.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    f64::from(hash) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn status(delivered: i64, renewed: Option<i64>, expires: Option<i64>) -> VaultTokenRequestStatus {
        let time = |second| Time(Timestamp::from_second(second).expect("a time"));
        VaultTokenRequestStatus {
            delivered_at: Some(time(delivered)),
            renewed_at: renewed.map(time),
            expires_at: expires.map(time),
            ..Default::default()
        }
    }

    #[test]
    fn a_token_is_renewed_early_enough_to_survive_an_outage_of_a_third_of_its_period() {
        for spread in [0.0, 0.5, 1.0] {
            let at = renew_at(&status(1000, None, Some(1300)), spread).expect("a time").as_second();
            assert!((1120..=1150).contains(&at), "{at}");
            let at = renew_at(&status(1000, Some(2000), Some(2300)), spread).expect("a time").as_second();
            assert!((2120..=2150).contains(&at) && 2300 - at > 100, "{at}");
        }
        for (spread, expected) in [(0.0, 1120), (1.0, 1150)] {
            let at = renew_at(&status(1000, None, Some(1300)), spread).expect("a time").as_second();
            assert_eq!(at, expected, "tokens that were made together are not renewed together");
        }
        assert_eq!(renew_at(&status(1000, None, None), 0.0), None, "a token that never ends");
        // At the end of what Vault allows, the life is short, and renewals still do not follow each other at once.
        let at = renew_at(&status(1000, Some(2000), Some(2000)), 0.0).expect("a time").as_second();
        assert_eq!(at, 2001);
    }

    #[test]
    fn the_spread_is_even() {
        let below = (0..1000).filter(|n| spread(&format!("8f1c2f7e-0000-4000-8000-{n:012}")) < 0.5).count();
        assert!((400..600).contains(&below), "{below}");
        assert_eq!(spread("a").to_bits(), spread("a").to_bits());
    }
}
