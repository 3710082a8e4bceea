//! podman with runc in a place: its own store, network and mounts, and nothing
//! from a registry. The pause image is made by podman itself of catatonit; the
//! payload's image is imported.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use rkube_tests::wait;

use crate::clock::{self, Timed};
use crate::kernel::{self, Process};
use crate::peers;
use crate::place::Place;

/// The payload's image in its store.
pub const IMAGE: &str = "localhost/toolbox:latest";
/// Programs that podman keeps for its pods, beside the infra containers.
const HELPERS: [&str; 2] = ["conmon", "aardvark-dns"];
/// The parent of its cgroups on a host with the cgroupfs driver.
const CGROUP_PARENT: &str = "libpod_parent";

/// A podman of its own.
#[derive(Debug)]
pub struct Podman {
    program: PathBuf,
    place: Place,
    had_cgroups: bool,
}

impl Podman {
    /// With an empty store and the payload's image.
    ///
    /// # Errors
    /// It is not installed, or does not work here.
    pub fn open(toolbox: &Path) -> anyhow::Result<Podman> {
        let program = peers::need("podman")?;
        for other in ["runc", "conmon", "catatonit", "iptables"] {
            peers::need(other)?;
        }
        let podman = Podman {
            program,
            place: Place::of_peer()?,
            had_cgroups: kernel::cgroups_named(CGROUP_PARENT).next().is_some(),
        };
        podman.configure()?;
        let image = podman.place.dir().join("image.tar");
        write_image(toolbox, &image)?;
        podman.run(&["import", "--quiet", &image.to_string_lossy(), IMAGE])?;
        Ok(podman)
    }

    fn configure(&self) -> anyhow::Result<()> {
        let dir = self.place.dir();
        for name in ["work", "networks"] {
            std::fs::create_dir(dir.join(name)).with_context(|| format!("make {name}"))?;
        }
        let at = dir.display();
        // Limits as a host without CAP_SYS_RESOURCE has to set them.
        let containers = format!(
            "[containers]\n\
             default_ulimits = [\"nofile=4000:4000\", \"nproc=4000:4000\"]\n\
             [engine]\n\
             runtime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n\
             tmp_dir = \"{at}/libpod\"\nstatic_dir = \"{at}/store/libpod\"\n\
             volume_path = \"{at}/store/volumes\"\n\
             [network]\n\
             network_backend = \"netavark\"\nnetwork_config_dir = \"{at}/networks\"\n"
        );
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{at}/store\"\nrunroot = \"{at}/run\"\n"
        );
        for (name, text) in [("containers.conf", containers), ("storage.conf", storage)] {
            std::fs::write(dir.join(name), text).with_context(|| format!("write {name}"))?;
        }
        Ok(())
    }

    /// Runs a command line that has to succeed.
    ///
    /// # Errors
    /// It fails; its output is in the message.
    pub fn run(&self, args: &[&str]) -> anyhow::Result<Timed> {
        let dir = self.place.dir();
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("CONTAINERS_CONF", dir.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", dir.join("storage.conf"))
            // `kube play` builds an image where a directory has its name.
            .current_dir(dir.join("work"));
        self.place.run(move || clock::succeeds(command))
    }

    /// Writes a manifest and gives its path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn manifest(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.place.dir().join(format!("{name}.yaml"));
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// `podman kube play`.
    ///
    /// # Errors
    /// The pod does not run.
    pub fn start(&self, file: &str) -> anyhow::Result<Timed> {
        self.run(&["kube", "play", file])
    }

    /// When the payload of a pod was at its first instruction.
    ///
    /// # Errors
    /// It printed no stamp.
    pub fn stamp(&self, pod: &str) -> anyhow::Result<i64> {
        let container = format!("{pod}-a");
        let deadline = Duration::from_secs(wait::WAIT_SECS);
        wait::until("the stamp in the container's log", deadline, || {
            Ok(clock::stamp_in(&self.run(&["logs", &container])?.stdout))
        })
    }

    /// `podman pod rm --force`.
    ///
    /// # Errors
    /// It fails.
    pub fn remove(&self, pods: &[&str]) -> anyhow::Result<Timed> {
        self.run(&[&["pod", "rm", "--force", "--time", "0"], pods].concat())
    }

    /// conmon, the name server and the infra containers, without payloads.
    ///
    /// # Errors
    /// `/proc` is not mounted.
    pub fn processes(&self) -> anyhow::Result<Vec<Process>> {
        let mounts = self.place.run(|| kernel::mount_namespace("thread-self"))?;
        let mut found = kernel::processes()?;
        found.retain(|p| {
            let name = p.exe.rsplit('/').next().unwrap_or_default();
            let helper = HELPERS.contains(&name)
                && kernel::mount_namespace(&p.pid.to_string()).is_ok_and(|m| m == mounts);
            helper || (name == "catatonit" && p.cgroups.contains("libpod"))
        });
        Ok(found)
    }

    /// Removes every pod, and what podman would leave on the host.
    ///
    /// # Errors
    /// Something stays.
    pub fn close(self) -> anyhow::Result<()> {
        self.run(&["pod", "rm", "--force", "--time", "0", "--all"])?;
        self.place.close()?;
        if !self.had_cgroups {
            for group in kernel::cgroups_named(CGROUP_PARENT) {
                kernel::remove_tree_of_groups(&group);
            }
        }
        Ok(())
    }
}

fn write_image(toolbox: &Path, target: &Path) -> anyhow::Result<()> {
    let file = File::create(target).with_context(|| format!("make {}", target.display()))?;
    let mut tar = tar::Builder::new(file);
    let mut header = tar::Header::new_gnu();
    let content = std::fs::read(toolbox).with_context(|| format!("read {}", toolbox.display()))?;
    header.set_mode(0o755);
    header.set_size(u64::try_from(content.len())?);
    tar.append_data(&mut header, "bin/toolbox", &*content)
        .context("append bin/toolbox")?;
    tar.into_inner()?.sync_all().context("write the image")
}
