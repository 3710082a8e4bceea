//! What a controller asks about one process that is there.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;

use super::Keeper;
use crate::error::{Context, Result, failure, refusal};
use crate::protocol::Reply;

impl Keeper {
    pub(super) fn signal(&mut self, key: &str, signal: i32) -> Result<()> {
        let process = self.get(key)?;
        if process.status.exit.is_some() {
            return Err(failure("send signal to", key, Errno::SRCH));
        }
        rkube_sys::signal::pidfd_signal(process.pidfd.as_fd(), signal).on("send signal to", key)
    }

    pub(super) fn forget(&mut self, key: &str) -> Result<()> {
        let slot = self.find(key)?;
        if let Some(process) = self.processes.get(&slot)
            && process.status.exit.is_none()
        {
            return Err(refusal("forget", key, "it lives"));
        }
        if let Some(mut process) = self.processes.remove(&slot) {
            process.finish_output(&self.scratch);
            process.remove_files(&self.dir);
        }
        rkube_sys::process::trim_heap();
        Ok(())
    }

    pub(super) fn resize(&mut self, key: &str, columns: u16, rows: u16) -> Result<()> {
        let process = self.get(key)?;
        let Some(master) = &process.terminal else {
            return Err(refusal("resize terminal of", key, "it has none"));
        };
        let size = rustix::termios::Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(master, size).on("resize terminal of", key)
    }

    pub(super) fn close_input(&mut self, key: &str) -> Result<()> {
        let slot = self.find(key)?;
        if let Some(process) = self.processes.get_mut(&slot) {
            process.close_input(&self.dir);
        }
        Ok(())
    }

    pub(super) fn attach(&mut self, key: &str, pipes: Vec<OwnedFd>) -> Result<()> {
        let slot = self.find(key)?;
        match self.processes.get_mut(&slot) {
            Some(process) => process.attach(pipes, &self.scratch),
            None => Ok(()),
        }
    }

    pub(super) fn hand_out_terminal(&mut self, token: u64, key: &str) {
        let master = self.get(key).and_then(|process| {
            let master = process.terminal.as_ref().map(OwnedFd::try_clone);
            let master = master.ok_or_else(|| refusal("attach to", key, "it has no terminal"))?;
            master.on("duplicate terminal of", key)
        });
        match master {
            Ok(master) => self.say(&Reply::Done { token }, &[master.as_fd()]),
            Err(failure) => self.say(&Reply::Failed { token, failure }, &[]),
        }
    }
}
