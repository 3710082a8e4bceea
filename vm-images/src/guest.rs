//! What the runner and the guest's init agree on.

use anyhow::Context;
use rkube_tests::case::Stage;
use rkube_tests::layout::Layout;
use rkube_tests::machines::PEER;

/// Name of the virtio-serial port over which results leave the guest.
pub const RESULTS_PORT: &str = "org.rkube.results";
/// The init, as the kernel command line names it.
pub const INIT: &str = "/rkube-vm-init";
/// Modules to load, one path a line, in order.
pub const MODULE_LIST: &str = rkube_tests::machines::MODULE_LIST;
/// Modules that init loads before the first test, one name a line, in order.
pub const BOOT_LIST: &str = "/lib/modules/boot.list";
/// What to load when the kernel asks for a module: [`crate::modules::on_demand`].
pub const DEMAND_LIST: &str = "/lib/modules/demand.list";
/// Called by this name, init is what the kernel asks for modules (its default
/// path, kernel: Documentation/admin-guide/sysctl/kernel.rst).
pub const MODPROBE: &str = "/sbin/modprobe";
/// The suite program.
pub const SUITE: &str = "/bin/rkube-suite";
/// The program under test.
pub const RKUBE: &str = "/bin/rkube";
/// Extra libtest programs.
pub const EXTRA_DIR: &str = "/extra";
/// Programs that extra programs start.
pub const HELPERS_DIR: &str = "/helpers";
/// Lines `program path`: at which path each helper is looked for.
pub const HELPER_LIST: &str = "/lib/helpers.list";
/// Where the scratch disk is mounted.
pub const DISK: &str = "/disk";
/// The block device of the scratch disk.
pub const DISK_DEVICE: &str = "/dev/vda";
/// Where the read-only disk of programs is mounted.
pub const PROGRAMS: &str = "/programs";
/// Its block device.
pub const PROGRAMS_DEVICE: &str = "/dev/vdb";

/// Where the initramfs is seen in a system of its own (the layout systemd).
pub const PROGRAMS_DIR: &str = "/opt/rkube-vm";
/// What init tells the suite's service there: lines `NAME=value`.
pub const ENVIRONMENT: &str = "/run/rkube-vm.env";

/// What a boot is for; travels on the kernel command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The cgroup layout to mount.
    pub layout: Layout,
    /// Which tests.
    pub stage: Stage,
    /// A prompt instead of the tests.
    pub shell: bool,
    /// Tests whose name contains one of these (all, if none).
    pub filters: Vec<String>,
    /// Extra programs whose tests run, by package (all, if none).
    pub programs: Vec<String>,
    /// Tests at a time.
    pub jobs: usize,
    /// Modules that are not loaded at boot, nor what needs them.
    pub without: Vec<String>,
    /// Controllers that the kernel is told to do without (v1 and v2 alike).
    pub no_controllers: Vec<String>,
    /// Its number, where guests are joined by a link.
    pub peer: Option<u8>,
}

impl Order {
    /// Runs these tests of a stage on a layout, one at a time.
    pub fn new(layout: Layout, stage: Stage) -> Order {
        Order {
            layout,
            stage,
            shell: false,
            filters: Vec::new(),
            programs: Vec::new(),
            jobs: 1,
            without: Vec::new(),
            no_controllers: Vec::new(),
            peer: None,
        }
    }

    /// The kernel parameters that carry it. The kernel hands a parameter with
    /// a dot to no one, so init sees it in `/proc/cmdline` only.
    pub fn to_cmdline(&self) -> String {
        let mut text = format!(
            "rkube.layout={} rkube.stage={} rkube.jobs={}",
            self.layout,
            self.stage.as_str(),
            self.jobs
        );
        if self.shell {
            // systemd reads the second; its prompt is a login on the console.
            text.push_str(" rkube.shell=1 systemd.mask=rkube-suite.service");
        }
        if !self.filters.is_empty() {
            text.push_str(&format!(" rkube.filter={}", self.filters.join(",")));
        }
        if !self.programs.is_empty() {
            text.push_str(&format!(" rkube.programs={}", self.programs.join(",")));
        }
        if !self.without.is_empty() {
            text.push_str(&format!(" rkube.without={}", self.without.join(",")));
        }
        if !self.no_controllers.is_empty() {
            // The kernel's own (kernel-parameters.txt).
            text.push_str(&format!(
                " cgroup_disable={}",
                self.no_controllers.join(",")
            ));
        }
        if let Some(peer) = self.peer {
            text.push_str(&format!(" {PEER}={peer}"));
        }
        text
    }

    /// Reads it back from a whole kernel command line.
    ///
    /// # Errors
    /// A value is not one that [`Order::to_cmdline`] writes.
    pub fn from_cmdline(text: &str) -> anyhow::Result<Order> {
        let mut order = Order::new(Layout::V2, Stage::Vm);
        let list = |value: &str| value.split(',').map(str::to_owned).collect();
        for (key, value) in text.split_whitespace().filter_map(|w| w.split_once('=')) {
            match key {
                "rkube.layout" => order.layout = value.parse()?,
                "rkube.stage" => order.stage = value.parse()?,
                "rkube.shell" => order.shell = value == "1",
                "rkube.jobs" => order.jobs = value.parse().context("rkube.jobs")?,
                "rkube.filter" => order.filters = list(value),
                "rkube.programs" => order.programs = list(value),
                "rkube.without" => order.without = list(value),
                "cgroup_disable" => order.no_controllers = list(value),
                PEER => order.peer = Some(value.parse().context(PEER)?),
                _ => {}
            }
        }
        Ok(order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_command_line() {
        let order = Order {
            layout: Layout::Hybrid,
            stage: Stage::AfterCut,
            shell: true,
            filters: vec!["a::b".into(), "c".into()],
            programs: vec!["rkube-cgroup".into()],
            jobs: 4,
            without: vec!["overlay".into(), "nf_tables".into()],
            no_controllers: vec!["memory".into()],
            peer: Some(2),
        };
        let line = format!("console=ttyS0 psi=1 {} quiet", order.to_cmdline());
        assert_eq!(Order::from_cmdline(&line).unwrap(), order);
        assert!(Order::from_cmdline("rkube.layout=v3").is_err());
    }
}
