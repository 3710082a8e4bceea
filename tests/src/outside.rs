//! A network namespace beside the test host, joined by a link: the world that
//! pods see through the host, and that sees the host's ports.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::mpsc::{Sender, channel};

use anyhow::{Context, ensure};

use crate::command::Cmd;
use crate::net;

/// A piece of work for the thread that lives outside.
type Work = Box<dyn FnOnce() + Send>;

/// The namespace; it ends with this value.
#[derive(Debug)]
pub struct Outside {
    work: Sender<Work>,
}

impl Outside {
    /// Its own address (RFC 5737).
    pub const V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    /// The host's address on the link, by which the outside knows it.
    pub const HOST_V4: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
    /// Its own address (RFC 3849).
    pub const V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 2);
    /// The host's address on the link.
    pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1);

    /// Makes the namespace, and gives the host its default route into it.
    ///
    /// # Errors
    /// `ip` is not installed, or refuses.
    pub fn join() -> anyhow::Result<Outside> {
        let (work, todo) = channel::<Work>();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let tid = rustix::thread::gettid().as_raw_nonzero();
            let _ = tell.send(net::enter_new().map(|()| tid));
            while let Ok(work) = todo.recv() {
                work();
            }
        });
        let tid = told.recv().context("the thread outside ended")??;
        let outside = Outside { work };
        let peer = tid.to_string();
        ip(&[
            "link", "add", "uplink", "type", "veth", "peer", "name", "inside", "netns", &peer,
        ])?;
        addressed("uplink", Self::HOST_V4, Self::HOST_V6)?;
        outside.run(|| addressed("inside", Self::V4, Self::V6))?;
        ip(&["route", "add", "default", "via", &Self::V4.to_string()])?;
        ip(&[
            "-6",
            "route",
            "add",
            "default",
            "via",
            &Self::V6.to_string(),
        ])?;
        Ok(outside)
    }

    /// Gives the outside its default route to the host: a host without one
    /// does not know where cluster addresses are, before they are translated.
    ///
    /// # Errors
    /// `ip` refuses.
    pub fn route_back(&self) -> anyhow::Result<()> {
        self.run(|| {
            let (v4, v6) = (Self::HOST_V4.to_string(), Self::HOST_V6.to_string());
            ip(&["route", "add", "default", "via", &v4])?;
            ip(&["-6", "route", "add", "default", "via", &v6])
        })
    }

    /// Does something there, and gives what came of it.
    ///
    /// # Errors
    /// The work's own.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        let (tell, told) = channel();
        let sent = self.work.send(Box::new(move || {
            // Whoever asked has given up if nobody takes it.
            let _ = tell.send(work());
        }));
        ensure!(sent.is_ok(), "the thread outside ended");
        told.recv().context("the work outside panicked")?
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        // Only a failed case leaves it, and that is told otherwise.
        let _ = ip(&["link", "delete", "uplink"]);
    }
}

fn ip(args: &[&str]) -> anyhow::Result<()> {
    Cmd::new("ip", args).ok().map(drop)
}

fn addressed(link: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> anyhow::Result<()> {
    ip(&["address", "add", &format!("{v4}/24"), "dev", link])?;
    ip(&[
        "-6",
        "address",
        "add",
        &format!("{v6}/64"),
        "dev",
        link,
        "nodad",
    ])?;
    ip(&["link", "set", link, "up"])
}
