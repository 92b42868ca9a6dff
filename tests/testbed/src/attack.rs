//! `cargo testbed attack`: the attacks of `tests/attack`, which need more of the product than this crate has.

use crate::error::Error;
use crate::guard;
use crate::project;

/// Builds and runs them, those whose names have this in them or all; an error says that not all was stopped as it should be.
pub async fn run(name: Option<String>) -> Result<(), Error> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = guard::command(&cargo)?;
    let test = ["test", "--quiet", "--package", "vault-token-operator", "--test", "attack", "--"];
    command.current_dir(project::root()).args(test).args(name);
    let failed = "could not run the attacks";
    let mut running = tokio::process::Command::from(command).spawn().map_err(Error::io(failed))?;
    let id = running.id();
    let status = running.wait().await.map_err(Error::io(failed))?;
    id.into_iter().for_each(guard::forget_process);
    match status.success() {
        true => Ok(()),
        false => Err(Error::io("not all is as it should be")(std::io::Error::other(format!("the attacks: {status}")))),
    }
}
