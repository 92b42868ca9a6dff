//! Faults at random.

use std::time::Duration;

use fastrand::Rng;
use http::StatusCode;

use super::fault::{Break, Call, Fault, WatchFault};

/// One call in so many meets a fault.
const RARITY: u32 = 8;
/// What tired servers and balancers answer. All of them mean: later.
const ANSWERS: [StatusCode; 4] = [
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::INTERNAL_SERVER_ERROR,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
];

/// A script by which one call in eight meets a fault of any kind, and every watch one.
pub fn storm(seed: u64) -> impl FnMut(&Call) -> Fault + Send {
    let mut rng = Rng::with_seed(seed);
    move |call| match rng.u32(..RARITY) {
        _ if call.is_watch() => Fault::Watch(match rng.u32(..3) {
            0 => WatchFault::HeldBack(Duration::from_millis(rng.u64(100..2000))),
            1 => WatchFault::Replayed,
            _ => WatchFault::Cut(Duration::from_secs(rng.u64(1..20))),
        }),
        0 => any(&mut rng),
        _ => Fault::None,
    }
}

fn any(rng: &mut Rng) -> Fault {
    let broken = match rng.u32(..8) {
        0..4 => Break::Reset,
        4..7 => Break::Answer(ANSWERS[rng.usize(..ANSWERS.len())]),
        // It costs its caller all the time that it has.
        _ => Break::Silence,
    };
    match rng.u32(..4) {
        0 => Fault::Before(broken),
        1 => Fault::After(broken),
        2 => Fault::Delay(Duration::from_millis(rng.u64(10..1000))),
        _ => Fault::Slow(Duration::from_millis(rng.u64(1..100))),
    }
}
