//! The one way to Vault (HashiCorp Vault or OpenBao): its HTTP API, and nothing but plain data comes back.

mod breaker;
mod connection;
mod error;
mod list;
mod login;
mod operation;
mod reply;
mod rights;
mod session;
mod tls;
mod token;
mod wrapping;

pub use connection::{Connection, Server};
pub use error::Error;
pub use list::TokenLister;
pub use login::{Lease, Login};
pub use operation::{Operation, Recorder};
pub use reply::{Answer, Proof};
pub use session::Session;
pub use token::{TokenInfo, TokenOrder, TokenStore};
pub use wrapping::{Unwrapped, WrappingInfo};
