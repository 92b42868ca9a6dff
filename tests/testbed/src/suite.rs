//! Suites of the project's that `cargo test` leaves out: they take more than it should. They need more of the product than this crate
//! has.

use std::path::PathBuf;

use crate::error::Error;
use crate::guard;
use crate::project;

/// What tells a suite where the program is that runs it.
const PROGRAM_VARIABLE: &str = "TESTBED_PROGRAM";

/// Builds and runs one of them, those parts whose names have this in them or all; an error says that not all is as it should be.
pub async fn run(suite: &str, name: Option<String>) -> Result<(), Error> {
    let program = std::env::current_exe().map_err(Error::io("could not find this program"))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = guard::command(&cargo)?;
    let test = ["test", "--quiet", "--package", "vault-token-operator", "--test", suite, "--"];
    command.current_dir(project::root()).args(test).args(name).env(PROGRAM_VARIABLE, program);
    let failed = "could not run the suite";
    let mut running = tokio::process::Command::from(command).spawn().map_err(Error::io(failed))?;
    let id = running.id();
    let status = running.wait().await.map_err(Error::io(failed))?;
    id.into_iter().for_each(guard::forget_process);
    match status.success() {
        true => Ok(()),
        false => Err(Error::io("not all is as it should be")(std::io::Error::other(format!("{suite}: {status}")))),
    }
}

/// The testbed's command line, in a suite that it runs.
pub(crate) fn program() -> Result<PathBuf, Error> {
    let missing = || std::io::Error::other("run the suite by `cargo testbed`");
    let program = std::env::var_os(PROGRAM_VARIABLE).ok_or_else(missing);
    program.map(PathBuf::from).map_err(Error::io("the testbed's command line is not known"))
}
