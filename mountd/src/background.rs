//! `mount --background`: the daemon is this program started anew (a process with threads must not fork).

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    process::{Command, Stdio},
};

use anyhow::Context;
use chiral::config::Settings;

use crate::{cli::MountArgs, exit::Exited, output, stderr};

/// Where the daemon logs to, in its data folder.
const LOG_NAME: &str = "chiral.log";

/// Largest log that the next start appends to: some months of warnings.
const LOG_LEN: u64 = 4 << 20;

/// Starts the daemon and returns when it has mounted; what it complained of before is shown here.
pub(crate) fn start(settings: &Settings, args: &MountArgs) -> anyhow::Result<()> {
    let path = settings.data_dir.join(LOG_NAME);
    let mut log =
        open_log(&settings.data_dir, &path).with_context(|| path.display().to_string())?;
    let from = log.seek(SeekFrom::End(0))?;
    let program = env::current_exe().context("the path of this program")?;
    let given = env::args_os().skip(1).filter(|arg| arg != "--background");
    let mut daemon = Command::new(program)
        .args(given)
        .arg("--own-session")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()
        .context("cannot start the daemon")?;
    let mut ready = String::new();
    if let Some(stdout) = daemon.stdout.take() {
        BufReader::new(stdout).read_line(&mut ready)?;
    }
    // It closed its output without a word of success, so it is ending.
    let failed = if ready.is_empty() { Some(daemon.wait()?) } else { None };
    let mut complaints = Vec::new();
    log.seek(SeekFrom::Start(from))?;
    log.read_to_end(&mut complaints)?;
    stderr::lines(&String::from_utf8_lossy(&complaints));
    if let Some(status) = failed {
        return Err(Exited::of(status, &args.mountpoint).into());
    }
    Ok(output::line(ready.trim_end())?)
}

/// Opens the log to append to. One that has grown large is put aside under the name that ends in `.old`; what was
/// there is dropped.
fn open_log(folder: &Path, path: &Path) -> std::io::Result<File> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    if fs::metadata(path).is_ok_and(|log| log.len() > LOG_LEN) {
        fs::rename(path, path.with_extension("log.old"))?;
    }
    OpenOptions::new().create(true).append(true).read(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn a_log_that_has_grown_large_is_put_aside_and_a_small_one_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOG_NAME);
        fs::write(&path, "small").unwrap();
        assert_eq!(open_log(dir.path(), &path).unwrap().metadata().unwrap().len(), 5);
        File::options().write(true).open(&path).unwrap().set_len(LOG_LEN + 1).unwrap();
        assert_eq!(open_log(dir.path(), &path).unwrap().metadata().unwrap().len(), 0);
        let old = fs::metadata(dir.path().join("chiral.log.old")).unwrap();
        assert_eq!(old.len(), LOG_LEN + 1);
    }
}
