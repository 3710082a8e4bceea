//! What a guest boots from: an initramfs with init and the modules, and a
//! read-only disk with the programs, which the guest reads as it needs them.
//!
//! The initramfs is small, since the kernel copies all of it before init runs,
//! and not compressed: under software emulation the kernel takes longer to
//! unpack than QEMU takes to hand over the bytes. Programs are links into the
//! disk in it.

use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rkube_tests::command::Cmd;

use crate::cpio::Archive;
use crate::kernel::Kernel;
use crate::modules::{BOOT, Module, Modules, WANTED, on_demand};
use crate::{disk, guest};

/// Change it when the way an image is put together changes.
const RECIPE: &str = "rkube initramfs 4";
/// The protocols that tests name (IANA numbers).
const PROTOCOLS: &[u8] =
    b"icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n";
/// Files of built images that are kept (two each); older ones are removed.
const FILES_KEPT: usize = 6;
/// Room on the disk of programs beside them: its journal above all.
const PROGRAMS_SPARE_BYTES: u64 = 40 << 20;

/// Programs of the host that cases use, if they are installed: peers and
/// oracles. Each is packed with the libraries that it needs.
const HOST_TOOLS: &[&str] = &[
    "ip",
    "nft",
    "tc",
    "nsenter",
    "unshare",
    "strace",
    "conntrack",
    "script",
    "mkfs.ext4",
];

/// What goes into an image beside the kernel's modules.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The static init.
    pub init: PathBuf,
    /// The static suite program.
    pub suite: PathBuf,
    /// The static program under test; absent while it is not built.
    pub rkube: Option<PathBuf>,
    /// Static programs that libtest programs start by the path at which cargo
    /// built them (`CARGO_BIN_EXE_...`); the guest has them there too.
    pub helpers: Vec<PathBuf>,
    /// Static libtest programs, by the name that prefixes their tests.
    pub extra: Vec<(String, PathBuf)>,
}

/// A built image.
#[derive(Debug, Clone)]
pub struct Image {
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The disk with the programs.
    pub programs: PathBuf,
}

/// Builds the image, or finds the one built from the same inputs.
///
/// # Errors
/// An input is missing, or not static, or the cache cannot be written.
pub fn build(kernel: &Kernel, contents: &Contents, cache: &Path) -> anyhow::Result<Image> {
    let dir = cache.join("image");
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let files = gather(contents)?;
    let modules = match &kernel.modules {
        Some(dir) => Modules::find(dir)?.closure(WANTED)?,
        None => Vec::new(),
    };
    let key = hash(&files, &modules)?;
    let image = Image {
        initramfs: dir.join(format!("{key}.cpio")),
        programs: dir.join(format!("{key}.ext4")),
    };
    if image.initramfs.is_file() && image.programs.is_file() {
        return Ok(image);
    }
    // The initramfs is placed last: where it is, the disk is whole.
    write_programs(&dir, &image.programs, &files)?;
    let mut partial = tempfile::NamedTempFile::new_in(&dir).context("make the image's file")?;
    write(BufWriter::new(partial.as_file_mut()), &files, &modules)
        .with_context(|| format!("write {}", image.initramfs.display()))?;
    partial
        .persist(&image.initramfs)
        .with_context(|| format!("place {}", image.initramfs.display()))?;
    prune(&dir)?;
    Ok(image)
}

/// Makes the disk that the initramfs links into.
fn write_programs(dir: &Path, place: &Path, items: &[Item]) -> anyhow::Result<()> {
    let tree = tempfile::Builder::new()
        .prefix("programs-")
        .tempdir_in(dir)
        .context("make a directory for the programs")?;
    let mut bytes = 0;
    for item in items.iter().filter(|i| !i.early) {
        let path = tree.path().join(item.name.trim_start_matches('/'));
        let parent = path.parent().unwrap_or(tree.path());
        std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
        let content = content_of(item)?;
        bytes += content.len() as u64;
        std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
            .with_context(|| format!("chmod {}", path.display()))?;
    }
    // Tables and the ends of blocks take less than a tenth.
    disk::make(
        place,
        tree.path(),
        bytes + bytes / 10 + PROGRAMS_SPARE_BYTES,
    )?;
    Ok(())
}

/// One file of the image.
struct Item {
    /// Its path in the guest.
    name: String,
    from: PathBuf,
    /// Debug sections are of no use in there and five times the size.
    strip: bool,
    /// It is needed before the disk of programs is there.
    early: bool,
}

fn gather(contents: &Contents) -> anyhow::Result<Vec<Item>> {
    let own = |name: &str, from: &Path| Item {
        name: name.into(),
        from: from.into(),
        strip: true,
        early: name == guest::INIT,
    };
    let mut items = vec![
        own(guest::INIT, &contents.init),
        own(guest::SUITE, &contents.suite),
    ];
    items.extend(contents.rkube.iter().map(|p| own(guest::RKUBE, p)));
    for (name, program) in &contents.extra {
        items.push(own(&format!("{}/{name}", guest::EXTRA_DIR), program));
    }
    for helper in &contents.helpers {
        let name = helper
            .file_name()
            .context("a helper has a name")?
            .to_string_lossy();
        items.push(own(&format!("{}/{name}", guest::HELPERS_DIR), helper));
    }
    for item in &items {
        ensure_static(&item.from)?;
    }
    let busybox = which("busybox").context("no busybox: install busybox-static")?;
    ensure_static(&busybox)?;
    items.push(Item {
        name: "/bin/busybox".into(),
        from: busybox,
        strip: false,
        early: true,
    });
    let mut libraries = BTreeSet::new();
    for tool in HOST_TOOLS.iter().filter_map(|t| which(t)) {
        let name = tool
            .file_name()
            .context("no file name")?
            .to_string_lossy()
            .into_owned();
        libraries.extend(needed_libraries(&tool)?);
        items.push(Item {
            name: format!("/bin/{name}"),
            from: tool,
            strip: false,
            early: false,
        });
    }
    for library in libraries {
        let name = library.to_string_lossy().into_owned();
        items.push(Item {
            name,
            from: library,
            strip: false,
            early: false,
        });
    }
    Ok(items)
}

/// The guest has no dynamic loader for our own programs, on purpose: what runs
/// there is what users get.
fn ensure_static(program: &Path) -> anyhow::Result<()> {
    let libraries = needed_libraries(program)?;
    ensure!(
        libraries.is_empty(),
        "{}: not static, needs {libraries:?}",
        program.display()
    );
    Ok(())
}

fn which(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|dir| Path::new(dir).join(name))
        .find(|p| p.is_file())
        // Alternatives are links that a guest would not have.
        .map(|p| match p.canonicalize() {
            Ok(real) if real.file_name() == p.file_name() => real,
            _ => p,
        })
}

/// Paths that `ldd` names, the loader included; none for a static program.
fn needed_libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    ensure!(program.is_file(), "{}: no such program", program.display());
    let out = Cmd::new("ldd", [program]).output()?;
    Ok(out
        .stdout
        .split_whitespace()
        .filter(|word| word.starts_with('/') && word.contains(".so"))
        .map(PathBuf::from)
        .collect())
}

/// One sum over the names and contents of all inputs.
fn hash(items: &[Item], modules: &[Module]) -> anyhow::Result<String> {
    let files = items
        .iter()
        .map(|i| &i.from)
        .chain(modules.iter().map(|m| &m.from));
    let mut text = format!("{RECIPE}\n{}", Cmd::new("sha256sum", files).ok()?.stdout);
    for item in items {
        text.push_str(&format!("{} from {}\n", item.name, item.from.display()));
    }
    let sum = Cmd::new("sha256sum", ["-"]).stdin(text).ok()?.stdout;
    Ok(sum.chars().take(24).collect())
}

fn write(out: impl Write, items: &[Item], modules: &[Module]) -> anyhow::Result<()> {
    let mut archive = Archive::new(out);
    let mut dirs = BTreeSet::new();
    for dir in [
        "dev",
        "proc",
        "sys",
        "run",
        "mnt",
        "root",
        "etc",
        "var",
        "disk",
        "extra",
        "programs",
        "lib/modules",
    ] {
        make_dirs(&mut archive, &mut dirs, dir)?;
    }
    archive.dir("tmp", 0o1777)?;
    // The kernel opens it for init before anything is mounted.
    archive.char_device("dev/console", 0o600, (5, 1))?;
    archive.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    archive.file("etc/group", 0o644, b"root:x:0:\nnobody:x:65534:\n")?;
    // nft prints protocols by name where this file tells them.
    archive.file("etc/protocols", 0o644, PROTOCOLS)?;
    archive.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")?;
    archive.file("etc/resolv.conf", 0o644, b"nameserver 127.0.0.1\n")?;
    for item in items {
        let name = item.name.trim_start_matches('/');
        if let Some((parent, _)) = name.rsplit_once('/') {
            make_dirs(&mut archive, &mut dirs, parent)?;
        }
        if item.early {
            archive.file(name, 0o755, &content_of(item)?)?;
        } else {
            archive.link(name, &format!("{}/{name}", guest::PROGRAMS))?;
        }
    }
    make_dirs(&mut archive, &mut dirs, "sbin")?;
    archive.link(guest::MODPROBE, guest::INIT)?;
    let taken: BTreeSet<&str> = items.iter().map(|i| i.name.as_str()).collect();
    for applet in Cmd::new("busybox", ["--list"]).ok()?.stdout.lines() {
        let name = format!("/bin/{applet}");
        if !taken.contains(name.as_str()) {
            archive.link(&name, "busybox")?;
        }
    }
    let mut list = String::new();
    for module in modules {
        let path = format!("lib/modules/{}.ko", module.name);
        archive.file(&path, 0o644, &module.content)?;
        list.push_str(&format!("/{path}\n"));
    }
    let mut boot = String::new();
    for name in BOOT
        .iter()
        .filter(|n| modules.iter().any(|m| m.name == **n))
    {
        boot.push_str(&format!("{name}\n"));
    }
    archive.file(guest::BOOT_LIST, 0o644, boot.as_bytes())?;
    archive.file(guest::DEMAND_LIST, 0o644, on_demand(modules).as_bytes())?;
    let helpers = items
        .iter()
        .filter(|i| i.name.starts_with(guest::HELPERS_DIR));
    let links: String = helpers
        .map(|i| format!("{} {}\n", i.name, i.from.display()))
        .collect();
    archive.file(guest::HELPER_LIST, 0o644, links.as_bytes())?;
    archive.file(guest::MODULE_LIST, 0o644, list.as_bytes())?;
    archive.finish()?;
    Ok(())
}

fn make_dirs(
    archive: &mut Archive<impl Write>,
    done: &mut BTreeSet<String>,
    dir: &str,
) -> anyhow::Result<()> {
    let ends = dir.match_indices('/').map(|(at, _)| at).chain([dir.len()]);
    for end in ends {
        if done.insert(dir[..end].to_owned()) {
            archive.dir(&dir[..end], 0o755)?;
        }
    }
    Ok(())
}

fn content_of(item: &Item) -> anyhow::Result<Vec<u8>> {
    if !item.strip {
        return std::fs::read(&item.from).with_context(|| format!("read {}", item.from.display()));
    }
    let stripped = tempfile::NamedTempFile::new().context("make a file to strip into")?;
    Cmd::new(
        "strip",
        [
            "--strip-debug".as_ref(),
            "-o".as_ref(),
            stripped.path().as_os_str(),
            item.from.as_os_str(),
        ],
    )
    .ok()?;
    Ok(std::fs::read(stripped.path())?)
}

/// Removes all but the newest images.
fn prune(dir: &Path) -> anyhow::Result<()> {
    let mut images = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        images.push((entry.metadata()?.modified()?, entry.path()));
    }
    images.sort();
    let excess = images.len().saturating_sub(FILES_KEPT);
    for (_, path) in images.into_iter().take(excess) {
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}
