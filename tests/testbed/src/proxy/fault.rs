//! What can become of a call.

use std::net::SocketAddr;
use std::time::Duration;

use http::{Method, StatusCode};

/// A call that a proxy has before it.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Its path and query.
    pub path: String,
}

impl Call {
    /// Whether it is a watch of the API server's, which goes on until somebody ends it.
    pub fn is_watch(&self) -> bool {
        self.path.contains("watch=true")
    }
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it passes.
    None,
    /// It passes after this time.
    Delay(Duration),
    /// It never reaches the server.
    Before(Break),
    /// The server has acted, and its answer is lost.
    After(Break),
    /// The answer comes in eight pieces with this time between them.
    Slow(Duration),
    /// The answer comes, and after it so many blanks each time that this time is over, without end.
    Endless(usize, Duration),
    /// It is answered as the first call of its path was that met this: an API server whose cache has stood still since.
    Stale,
    /// It passes with the second text in its body wherever the first one was.
    Rewritten(&'static str, &'static str),
    /// It passes, and its answer has the second text wherever the first one was.
    Misquoted(&'static str, &'static str),
    /// It passes, and somebody reads along: [`overheard`](super::Proxy::overheard) has the answer then.
    Overheard,
    /// It passes, and the events that it brings do not come as they are.
    Watch(WatchFault),
}

/// What a client sees of a call that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Break {
    /// The connection is reset.
    Reset,
    /// An answer of the proxy's own, as balancers and API servers under load give it.
    Answer(StatusCode),
    /// An answer that the client is to ask there, of a server with TLS at this address.
    Redirect(SocketAddr),
    /// An answer of the proxy's own with this body, in JSON: what a server says whose storage fails, or one that says what is not so.
    Says(StatusCode, &'static str),
    /// Nothing at all, until there is another script: half of the connection is gone.
    Silence,
}

/// What becomes of the events of a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFault {
    /// They are held back for this time; of those that fall together, only the last of each object is passed.
    HeldBack(Duration),
    /// Each is followed by what was said of its object before, and comes again after that.
    Replayed,
    /// The connection is reset after this time.
    Cut(Duration),
    /// They never come, as from an API server whose etcd has gone back.
    Muted,
}
