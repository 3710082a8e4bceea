//! Which kernel modules go into an image, and in what order they are loaded.
//!
//! Dependencies are read from the modules themselves (the `depends=` entry of
//! their `.modinfo`), so neither `depmod` nor its tables are needed. What a boot
//! needs is loaded by init; the rest when the kernel asks for it by one of a
//! module's aliases, as on a user's host: init is the guest's `modprobe` too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// Modules that rkube's tests need. One that is built into the kernel, or that
/// this kernel does not know, is passed over; a case that needs it will say so.
pub const WANTED: &[&str] = &[
    // To reach the results port and the disk.
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_rng",
    "virtio_net",
    "ext4",
    // Root file systems of containers; configfs and friends stay out.
    "overlay",
    // Links of pods and of the tests around them.
    "veth",
    "dummy",
    "bridge",
    "vxlan",
    "wireguard",
    "macvlan",
    "tun",
    "sch_netem",
    "sch_fq_codel",
    "sch_tbf",
    "sch_ingress",
    // Packet filter and address translation.
    "nf_tables",
    "nfnetlink",
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_nat",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_redir",
    "nft_chain_nat",
    "nft_limit",
    "nft_numgen",
    "nft_hash",
    "nft_log",
    "nft_quota",
    "nft_objref",
    "nft_socket",
    "nft_reject",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "nft_reject_ipv6",
    "nft_fib",
    "nft_fib_inet",
    "nft_fib_ipv4",
    "nft_fib_ipv6",
    "nft_connlimit",
    "nft_tproxy",
    "nf_tproxy_ipv4",
    "nf_tproxy_ipv6",
    "br_netfilter",
    // Services by IPVS, as a peer.
    "ip_vs",
    "ip_vs_rr",
    // Checksums that ext4 and conntrack ask the crypto layer for by name.
    "crc32c_generic",
    "crc32c_intel",
    "libcrc32c",
];

/// What init loads before the first test: the way to the results and the disk.
pub const BOOT: &[&str] = &[
    "virtio_pci",
    "virtio_console",
    "virtio_blk",
    "virtio_net",
    "ext4",
    "crc32c_generic",
    "crc32c_intel",
];

/// A module to load.
#[derive(Clone, Debug)]
pub struct Module {
    /// Its name (with `_`, never `-`).
    pub name: String,
    /// The file in the package.
    pub from: PathBuf,
    /// The module itself, uncompressed.
    pub content: Vec<u8>,
}

impl Module {
    /// What the kernel may ask for it by: its name and its aliases. Those with
    /// a wildcard are of devices, which the boot list has.
    pub fn names(&self) -> Vec<String> {
        let aliases = modinfo(&self.content, b"alias=")
            .into_iter()
            .filter(|alias| !alias.contains(['*', '?', '[']))
            .map(|alias| alias.replace('-', "_"));
        [self.name.clone()].into_iter().chain(aliases).collect()
    }
}

/// Lines `NAME MODULE...`: what to load, in order, when the kernel asks for a
/// name (`-` and `_` are the same in it).
pub fn on_demand(modules: &[Module]) -> String {
    let known: BTreeMap<&str, &Module> = modules.iter().map(|m| (m.name.as_str(), m)).collect();
    let mut text = String::new();
    for module in modules {
        let mut order = Vec::new();
        chain(module, &known, &mut order);
        for name in module.names() {
            text.push_str(&format!("{name} {}\n", order.join(" ")));
        }
    }
    text
}

/// The module after all that it depends on.
fn chain<'a>(module: &'a Module, known: &BTreeMap<&str, &'a Module>, order: &mut Vec<&'a str>) {
    if order.contains(&module.name.as_str()) {
        return;
    }
    for dependency in depends(&module.content) {
        if let Some(needed) = known.get(dependency.as_str()) {
            chain(needed, known, order);
        }
    }
    order.push(&module.name);
}

/// The modules of one kernel, found in its package.
#[derive(Debug)]
pub struct Modules {
    /// Name (with `_`, never `-`) to file.
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Finds every module below a directory.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn find(dir: &Path) -> anyhow::Result<Modules> {
        let mut files = BTreeMap::new();
        let mut open = vec![dir.to_path_buf()];
        while let Some(dir) = open.pop() {
            let entries =
                std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
            for entry in entries {
                let entry = entry?;
                let path = entry.path();
                if entry.file_type()?.is_dir() {
                    open.push(path);
                } else if let Some(name) = module_name(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Modules { files })
    }

    /// The wanted modules that this kernel has, with all they depend on, each
    /// after its dependencies.
    ///
    /// # Errors
    /// A module cannot be read, or names a dependency that is not there.
    pub fn closure(&self, wanted: &[&str]) -> anyhow::Result<Vec<Module>> {
        let mut done = BTreeSet::new();
        let mut ordered = Vec::new();
        for name in wanted.iter().filter(|n| self.files.contains_key(**n)) {
            self.add(name, &mut done, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn add(
        &self,
        name: &str,
        done: &mut BTreeSet<String>,
        ordered: &mut Vec<Module>,
    ) -> anyhow::Result<()> {
        if !done.insert(name.to_owned()) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            bail!("module {name} is needed and not in the package");
        };
        let content = read_module(path)?;
        for dependency in depends(&content) {
            self.add(&dependency, done, ordered)
                .with_context(|| format!("module {name} depends on {dependency}"))?;
        }
        ordered.push(Module {
            name: name.to_owned(),
            from: path.clone(),
            content,
        });
        Ok(())
    }
}

/// `kernel/net/llc/llc.ko[.xz]` is the module `llc`.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let stem = name.split_once(".ko")?.0;
    Some(stem.replace('-', "_"))
}

fn read_module(path: &Path) -> anyhow::Result<Vec<u8>> {
    let packed_by = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => Some("xz"),
        Some("zst") => Some("zstd"),
        Some("gz") => Some("gzip"),
        _ => None,
    };
    let Some(program) = packed_by else {
        return std::fs::read(path).with_context(|| format!("read {}", path.display()));
    };
    let out = std::process::Command::new(program)
        .arg("-dc")
        .arg(path)
        .output()
        .with_context(|| format!("run {program}"))?;
    if !out.status.success() {
        bail!(
            "{program} -dc {}: {}",
            path.display(),
            String::from_utf8_lossy(&out.stderr)
        );
    }
    Ok(out.stdout)
}

/// The `depends=` entry of a module.
fn depends(module: &[u8]) -> Vec<String> {
    modinfo(module, b"depends=")
        .first()
        .map(String::as_str)
        .unwrap_or_default()
        .split(',')
        .filter(|d| !d.is_empty())
        .map(|d| d.replace('-', "_"))
        .collect()
}

/// Values of a key in a module's `.modinfo`: NUL-terminated `key=value` strings
/// (kernel: include/linux/moduleparam.h).
fn modinfo(module: &[u8], key: &[u8]) -> Vec<String> {
    let strings = module.split(|b| *b == 0);
    strings
        .filter_map(|s| s.strip_prefix(key))
        .map(|value| String::from_utf8_lossy(value).into_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first() {
        let dir = tempfile::tempdir().unwrap();
        let module = |name: &str, depends: &str| {
            let text = format!("ELF\0name={name}\0depends={depends}\0vermagic=6\0");
            std::fs::write(dir.path().join(format!("{name}.ko")), text).unwrap();
        };
        module("top", "mid-a,low");
        module("mid-a", "low");
        module("low", "");
        module("broken", "gone");
        let modules = Modules::find(dir.path()).unwrap();
        let names = |wanted: &[&str]| -> Vec<String> {
            modules
                .closure(wanted)
                .unwrap()
                .into_iter()
                .map(|m| m.name)
                .collect()
        };
        assert_eq!(names(&["top", "unknown"]), ["low", "mid_a", "top"]);
        let err = format!("{:#}", modules.closure(&["broken"]).unwrap_err());
        assert!(err.contains("gone"), "{err}");
    }

    #[test]
    fn the_kernel_asks_by_alias() {
        let module = |name: &str, info: &str| Module {
            name: name.into(),
            from: PathBuf::new(),
            content: format!("ELF\0{info}\0").into_bytes(),
        };
        let list = on_demand(&[
            module("low", "depends="),
            module("top", "depends=low\0alias=rtnl-link-top\0alias=pci:v*"),
        ]);
        assert_eq!(list, "low low\ntop low top\nrtnl_link_top low top\n");
    }
}
