//! The default profile in the kernel: each test loads it into its own thread,
//! whose children inherit it.

use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::{Capabilities, Capability};
use rkube_seccomp::{Arch, Program, default_profile};
use rkube_sys::seccomp;
use rustix::net::{AddressFamily, SocketType, socket};

/// Runs `check` in a thread under the default profile for `caps`.
fn under(caps: Capabilities, check: impl FnOnce() + Send + 'static) {
    let spec = default_profile(&caps, Arch::native().unwrap());
    let program = Program::compile(&spec, Arch::native().unwrap()).unwrap();
    let confined = std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        seccomp::load(&program.instructions, program.flags).unwrap();
        check();
    });
    confined.join().unwrap();
}

fn try_mount() -> Errno {
    // A filesystem that does not exist: whoever may mount learns that.
    let none = None::<&str>;
    mount(
        none,
        "/",
        Some("no-such-filesystem"),
        MsFlags::empty(),
        none,
    )
    .unwrap_err()
}

#[test]
fn refusals_and_ordinary_programs() {
    under(crate::verdicts::usual_caps(), || {
        assert_eq!(try_mount(), Errno::EPERM);
        assert_eq!(unshare(CloneFlags::CLONE_NEWNS), Err(Errno::EPERM));
        let vsock = socket(AddressFamily::VSOCK, SocketType::STREAM, None);
        assert_eq!(vsock.unwrap_err(), rustix::io::Errno::PERM);
        assert!(socket(AddressFamily::UNIX, SocketType::STREAM, None).is_ok());
        // Threads (clone3 answers ENOSYS, so libc takes clone) and programs.
        let thread = std::thread::spawn(|| 7);
        assert_eq!(thread.join().unwrap(), 7);
        let output = Command::new("/bin/sh")
            .args([
                "-c",
                "cat /proc/self/status | grep Seccomp: ; ls / >/dev/null && echo fine",
            ])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "Seccomp:\t2\nfine\n");
        let refused = Command::new("unshare")
            .args(["--mount", "true"])
            .output()
            .unwrap();
        assert!(String::from_utf8_lossy(&refused.stderr).contains("Operation not permitted"));
    });
}

#[test]
fn capabilities_open_gates() {
    under([Capability::SysAdmin].into(), || {
        assert_eq!(try_mount(), Errno::ENODEV);
        assert_eq!(unshare(CloneFlags::CLONE_NEWNS), Ok(()));
    });
}

#[test]
fn loading_is_quick() {
    let native = Arch::native().unwrap();
    let spec = default_profile(&crate::verdicts::usual_caps(), native);
    let program = Program::compile(&spec, native).unwrap();
    std::thread::spawn(move || {
        rustix::thread::set_no_new_privs(true).unwrap();
        let begin = std::time::Instant::now();
        seccomp::load(&program.instructions, program.flags).unwrap();
        println!("loaded in {:?}", begin.elapsed());
    })
    .join()
    .unwrap();
}
