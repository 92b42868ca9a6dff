//! Leaves nothing running or lying about after this process, however it ends.
//!
//! One small shell, the watchdog, runs beside this process. Its standard input is a pipe that only this process holds
//! open, and on which children and folders are registered. When this process is gone (a panic, Ctrl-C and SIGKILL
//! included) the watchdog reads the end of the pipe, kills the children that are left with all that they started, and
//! removes the folders.

use std::ffi::OsStr;
use std::io::{PipeWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

/// A child registers itself before it becomes what it is to run, on a copy of the pipe that it closes thereby: so there
/// is no moment in which it runs and is not known to the watchdog.
const REGISTER_AND_EXEC: &str = r#"echo "pid $$" >&0 && exec "$@" </dev/null"#;

/// The writing end of the watchdog's pipe, once there is one.
static WATCHDOG: Mutex<Option<PipeWriter>> = Mutex::new(None);

/// A command for `program` that is registered when it starts, in a process group of its own: so a Ctrl-C on a terminal
/// does not reach it before the testbed's orderly stop. Its standard input is empty.
pub fn command(program: impl AsRef<OsStr>) -> Result<Command, Error> {
    let pipe = with_watchdog(|pipe| pipe.try_clone())?;
    let mut command = Command::new("/bin/sh");
    command.args(["-c", REGISTER_AND_EXEC, "sh"]).arg(program).stdin(pipe).process_group(0);
    Ok(command)
}

/// Says that a child of this id has ended, so that the id may be given to another process.
pub fn forget_process(id: u32) {
    // There is nothing to do about a watchdog that somebody has killed.
    let _ = with_watchdog(|pipe| pipe.write_all(format!("done {id}\n").as_bytes()));
}

/// Registers a folder for removal.
pub fn remove_at_end(folder: &Path) -> Result<(), Error> {
    let mut line = b"dir ".to_vec();
    line.extend_from_slice(folder.as_os_str().as_bytes());
    if line.contains(&b'\n') {
        let source = std::io::Error::other("the path contains a line break");
        return Err(Error::Io { what: format!("could not use the folder {}", folder.display()), source });
    }
    line.push(b'\n');
    with_watchdog(|pipe| pipe.write_all(&line))
}

fn with_watchdog<T>(use_pipe: impl FnOnce(&mut PipeWriter) -> std::io::Result<T>) -> Result<T, Error> {
    let mut watchdog = WATCHDOG.lock().unwrap_or_else(PoisonError::into_inner);
    let pipe = match &mut *watchdog {
        Some(pipe) => pipe,
        none => none.insert(start().map_err(Error::io("could not start the watchdog /bin/sh"))?),
    };
    use_pipe(pipe).map_err(Error::io("could not register with the watchdog"))
}

fn start() -> std::io::Result<PipeWriter> {
    let (reader, writer) = std::io::pipe()?;
    // It holds neither the terminal, nor this process's output (whoever reads that would wait for it), nor a folder.
    // Nobody waits for it: it outlives this process.
    Command::new("/bin/sh")
        .args(["-c", include_str!("guard.sh"), "testbed-watchdog"])
        .stdin(reader)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .process_group(0)
        .spawn()?;
    Ok(writer)
}
