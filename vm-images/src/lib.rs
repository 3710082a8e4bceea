//! Virtual machines in which the tests of rkube run.
//!
//! One machine has one kernel and one cgroup layout; users have others. This
//! crate takes Debian's cloud kernel out of its package (nothing is installed),
//! packs the modules that rkube needs, the program, the suite and an init of
//! the project's own into an initramfs, boots it in QEMU once for each layout,
//! and turns what the suite says into ordinary test results.
//!
//! # Order of things
//! [`kernel`] (package -> image and modules) and [`modules`] (which, in what
//! order) feed [`image`] (the initramfs, written by [`cpio`], cached by the hash
//! of its inputs); [`disk`] makes the scratch disk, [`systemd`] the
//! system on it for the layout of that name; [`accel`] decides how to
//! emulate; [`qemu`] boots and listens; [`boot`] is what callers use. The guest's
//! side is the program `rkube-vm-init`; [`guest`] is what both sides know.
//!
//! # Invariants
//! - Nothing is downloaded but Debian packages, and those only once.
//! - Machines boot one after another; only the two guests of a pair run at the
//!   same time, joined by a link that no other process sees (a socket pair).
//! - A kernel that lacks something is the same image: init loads no such module,
//!   and the kernel is told to do without a controller.
//! - A guest that falls silent, panics or breaks off is a failure that shows
//!   its console, never a shorter list of passes.

pub mod accel;
pub mod boot;
pub mod cpio;
pub mod disk;
pub mod guest;
pub mod image;
pub mod kernel;
pub mod modules;
pub mod qemu;
pub mod systemd;
