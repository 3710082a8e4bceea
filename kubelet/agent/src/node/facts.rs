//! What the host tells of itself.

use std::net::IpAddr;
use std::path::Path;

use rkube_kubelet::node::NodeFacts;

/// The most of a small file of the host that is read.
const MAX_FILE_BYTES: u64 = 64 << 10;
/// Huge pages that the kernel offers, one folder a size.
const HUGEPAGES: &str = "/sys/kernel/mm/hugepages";

/// Facts that go into the node's status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// CPU in thousandths.
    pub cpu_millis: u64,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Size of the file system that pods are kept on, in bytes.
    pub storage_bytes: u64,
    /// Pre-allocated huge pages: size in bytes, all of that size in bytes.
    pub hugepages: Vec<(u64, u64)>,
    /// Addresses, the preferred one first.
    pub addresses: Vec<IpAddr>,
    /// The host's name.
    pub hostname: String,
    /// /etc/machine-id.
    pub machine_id: String,
    /// The firmware's id of the machine.
    pub system_uuid: String,
    /// The id of this boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of /etc/os-release.
    pub os_image: String,
    /// The architecture in Go's words.
    pub architecture: &'static str,
}

impl HostFacts {
    /// Asks the host; `state` is where pods are kept. What it does not tell
    /// stays empty.
    #[must_use]
    pub fn of_host(node: &NodeFacts, state: &Path) -> Self {
        let uname = rustix::system::uname();
        let machine_id = first_line("/etc/machine-id");
        let uuid = first_line("/sys/class/dmi/id/product_uuid");
        let storage = rustix::fs::statvfs(state)
            .map(|s| s.f_blocks.saturating_mul(s.f_frsize))
            .unwrap_or(0);
        Self {
            cpu_millis: node.cpu_millis,
            memory_bytes: node.memory_bytes,
            storage_bytes: storage,
            hugepages: hugepages(Path::new(HUGEPAGES)),
            addresses: node.addresses.clone(),
            hostname: uname.nodename().to_string_lossy().into_owned(),
            system_uuid: if uuid.is_empty() {
                machine_id.clone()
            } else {
                uuid
            },
            machine_id,
            boot_id: rkube_kubelet::record::boot_id(),
            kernel: uname.release().to_string_lossy().into_owned(),
            os_image: os_image(&read("/etc/os-release")),
            architecture: match std::env::consts::ARCH {
                "x86_64" => "amd64",
                "aarch64" => "arm64",
                other => other,
            },
        }
    }
}

fn read(path: impl AsRef<Path>) -> String {
    use std::io::Read as _;
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open(path) {
        // What cannot be read is not told.
        let _ = file.take(MAX_FILE_BYTES).read_to_end(&mut text);
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn first_line(path: &str) -> String {
    read(path)
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// os-release(5): `PRETTY_NAME`, with or without quotes.
fn os_image(text: &str) -> String {
    let value = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    value
        .unwrap_or("Linux")
        .trim()
        .trim_matches(['"', '\''])
        .to_owned()
}

fn hugepages(dir: &Path) -> Vec<(u64, u64)> {
    let mut out: Vec<(u64, u64)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let name = entry.file_name().into_string().ok()?;
            let kib: u64 = name
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?
                .parse()
                .ok()?;
            let size = kib.checked_mul(1024)?;
            let count: u64 = read(entry.path().join("nr_hugepages"))
                .trim()
                .parse()
                .ok()?;
            Some((size, count.saturating_mul(size)))
        })
        .collect();
    out.sort_unstable();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_host() {
        assert_eq!(os_image("ID=x\nPRETTY_NAME=\"Some OS 1\"\n"), "Some OS 1");
        assert_eq!(os_image(""), "Linux");
        let dir = tempfile::tempdir().unwrap();
        for (name, count) in [
            ("hugepages-2048kB", "3\n"),
            ("hugepages-1048576kB", "0\n"),
            ("x", "1"),
        ] {
            let dir = dir.path().join(name);
            std::fs::create_dir(&dir).unwrap();
            std::fs::write(dir.join("nr_hugepages"), count).unwrap();
        }
        assert_eq!(hugepages(dir.path()), [(2 << 20, 6 << 20), (1 << 30, 0)]);
    }

    #[test]
    fn this_host_tells_something() {
        let facts = HostFacts::of_host(&NodeFacts::of_host(), Path::new("/"));
        assert!(facts.storage_bytes > 0 && !facts.kernel.is_empty() && !facts.boot_id.is_empty());
    }
}
