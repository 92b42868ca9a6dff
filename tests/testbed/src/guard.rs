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

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::workdir::Workdir;

    /// Runs a watchdog of its own to its end, on what a process that has gone had registered.
    fn watchdog_reads(registered: &str) {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut watchdog = Command::new("/bin/sh");
        watchdog.args(["-c", include_str!("guard.sh")]).stdin(reader).stderr(Stdio::null());
        let mut running = watchdog.spawn().unwrap();
        // It holds the other end.
        drop(watchdog);
        writer.write_all(registered.as_bytes()).unwrap();
        drop(writer);
        running.wait().unwrap();
    }

    #[test]
    fn folders_of_any_name_are_removed_and_nothing_else() {
        let workdir = Workdir::new().unwrap();
        let names = ["two  words", "it's", "$HOME", "*", "-rf", "back\\slash", "\"quoted\""];
        let folders = names.map(|name| workdir.path().join(name));
        for folder in &folders {
            std::fs::create_dir_all(folder.join("inner")).unwrap();
        }
        let kept = workdir.path().join("two");
        std::fs::create_dir(&kept).unwrap();
        watchdog_reads(&folders.map(|folder| format!("dir {}\n", folder.display())).concat());
        let left: Vec<_> = std::fs::read_dir(workdir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [kept]);
    }

    #[test]
    fn what_was_forgotten_lives_and_what_was_not_dies() {
        let start = || Command::new("/bin/sleep").arg("600").process_group(0).spawn().unwrap();
        let mut children = [start(), start(), start()];
        let [first, second, third] = children.each_ref().map(std::process::Child::id);
        // An id that ends like another is not that other.
        let registered = format!("pid {first}\npid {second}\npid {third}\ndone {second}\ndone 1{first}\n");
        watchdog_reads(&registered);
        // Killed, not ended by themselves; and the second one only now.
        assert!(children[1].try_wait().unwrap().is_none());
        children[1].kill().unwrap();
        for mut child in children {
            assert!(!child.wait().unwrap().success());
        }
    }

    #[test]
    fn a_child_has_an_empty_standard_input_and_is_registered_under_its_own_id() {
        let mut child = command("/bin/cat").unwrap().stdout(Stdio::piped()).spawn().unwrap();
        let mut output = String::new();
        child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(output, "");
        forget_process(child.id());
    }

    #[test]
    fn a_folder_with_a_line_break_in_its_name_is_refused() {
        let refused = remove_at_end(Path::new("/nowhere/two\nlines")).unwrap_err().to_string();
        assert!(refused.contains("could not use the folder"), "{refused}");
    }
}
