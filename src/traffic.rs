//! How calls to other servers went, as they are counted.

/// How a call went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The server did what was asked.
    Ok,
    /// The server refused (4xx).
    Refused,
    /// The server could not do it (5xx), had too much to do (429), or did not answer.
    Unavailable,
}

impl Outcome {
    /// Every outcome there is.
    pub const ALL: [Self; 3] = [Self::Ok, Self::Refused, Self::Unavailable];

    /// The outcome as it stands in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Unavailable => "unavailable",
        }
    }

    /// What an answer with this HTTP status is.
    pub fn of_status(status: u16) -> Self {
        match status {
            429 | 500.. => Self::Unavailable,
            400..500 => Self::Refused,
            _ => Self::Ok,
        }
    }
}
