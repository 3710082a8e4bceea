//! The images that the suite's cases name, made here: what they need of the
//! real ones is `agnhost`, a shell with the usual tools, `curl`, `dig` and `nc`,
//! and a web server.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Context;
use rkube_tests::command::Cmd;
use rkube_tests::{debian, images, repo};
use serde_json::{Value, json};

/// An image to import under a name.
pub(super) struct Archive {
    pub(super) name: &'static str,
    pub(super) path: PathBuf,
}

/// Whose files an image has, beside agnhost's.
#[derive(Clone, Copy, PartialEq)]
enum Tree {
    /// Debian with tools.
    Tools,
    /// Busybox with pages to serve.
    Busybox,
}

/// Names as in 1.20's test/utils/image/manifest.go; what starts in them.
const IMAGES: &[(&str, Tree, &[&str], &[&str])] = &[
    (
        "k8s.gcr.io/e2e-test-images/agnhost:2.21",
        Tree::Tools,
        &["/agnhost"],
        &["pause"],
    ),
    (
        "gcr.io/kubernetes-e2e-test-images/jessie-dnsutils:1.0",
        Tree::Tools,
        &[],
        &["sh"],
    ),
    (
        "gcr.io/kubernetes-e2e-test-images/nonewprivs:1.0",
        Tree::Busybox,
        &[],
        &["nnp"],
    ),
    (
        "k8s.gcr.io/pause:3.2",
        Tree::Busybox,
        &["/agnhost", "pause"],
        &[],
    ),
    (
        "docker.io/library/busybox:1.29",
        Tree::Busybox,
        &[],
        &["sh"],
    ),
    (
        "docker.io/library/httpd:2.4.38-alpine",
        Tree::Busybox,
        &[],
        WEB,
    ),
    (
        "docker.io/library/httpd:2.4.39-alpine",
        Tree::Busybox,
        &[],
        WEB,
    ),
    (
        "docker.io/library/nginx:1.14-alpine",
        Tree::Busybox,
        &[],
        WEB,
    ),
    (
        "docker.io/library/nginx:1.15-alpine",
        Tree::Busybox,
        &[],
        WEB,
    ),
    (
        "gcr.io/kubernetes-e2e-test-images/nautilus:1.0",
        Tree::Busybox,
        &[],
        NAUTILUS,
    ),
    (
        "gcr.io/kubernetes-e2e-test-images/kitten:1.0",
        Tree::Busybox,
        &[],
        KITTEN,
    ),
];
/// The first process of a container ignores SIGTERM unless it says otherwise.
const WEB: &[&str] = &["sh", "-c", "trap exit TERM; httpd -f -p 80 -h /srv & wait"];
const NAUTILUS: &[&str] = &[
    "sh",
    "-c",
    "trap exit TERM; httpd -f -p 80 -h /srv/nautilus & wait",
];
const KITTEN: &[&str] = &[
    "sh",
    "-c",
    "trap exit TERM; httpd -f -p 80 -h /srv/kitten & wait",
];
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Packages beyond Debian's minimum that stand for those of agnhost's Dockerfile.
const PACKAGES: &[&str] = &["curl", "bind9-dnsutils", "netcat-openbsd", "iproute2"];

/// Makes what is not there yet.
pub(super) fn make(programs: &Path) -> anyhow::Result<Vec<Archive>> {
    let mut made = Vec::new();
    let mut trees: Vec<(Tree, tempfile::TempDir)> = Vec::new();
    for (name, tree, entry, command) in IMAGES {
        let file = format!("conformance-{}.tar", name.replace(['/', ':'], "_"));
        let path = repo::images_dir().join(&file);
        if !path.is_file() {
            if !trees.iter().any(|(t, _)| t == tree) {
                trees.push((*tree, unpack(*tree, programs)?));
            }
            let (_, dir) = trees
                .iter()
                .find(|(t, _)| t == tree)
                .context("the tree was just made")?;
            let config = config(entry, command);
            images::cached(&file, |partial| {
                images::save(dir.path(), partial, config.clone())
            })?;
        }
        made.push(Archive { name, path });
    }
    Ok(made)
}

fn config(entry: &[&str], command: &[&str]) -> Value {
    json!({"Entrypoint": entry, "Cmd": command, "Env": [PATH]})
}

fn unpack(tree: Tree, programs: &Path) -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir().context("make a directory for an image")?;
    let at = dir.path();
    // It becomes the container's root, which everybody may enter.
    std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o755))?;
    let busybox = images::busybox()?;
    let unpack_busybox = |into: &Path, more: &[&str]| {
        let (from, into) = (busybox.to_string_lossy(), into.to_string_lossy());
        let mut args = vec!["-C", &*into, "-xf", &*from];
        args.extend(more);
        Cmd::new("tar", args).ok().map(drop)
    };
    match tree {
        Tree::Busybox => {
            unpack_busybox(at, &[])?;
            for (page, content) in [
                (
                    "index.html",
                    "<html><body><h1>It works!</h1></body></html>\n",
                ),
                ("nautilus/data.json", "{\"image\": \"nautilus.jpg\"}\n"),
                ("kitten/data.json", "{\"image\": \"kitten.jpg\"}\n"),
            ] {
                let path = at.join("srv").join(page);
                let parent = path.parent().unwrap_or(at);
                std::fs::create_dir_all(parent)
                    .and_then(|()| std::fs::write(&path, content))
                    .with_context(|| format!("write {}", path.display()))?;
            }
        }
        Tree::Tools => {
            debian::bootstrap(at, PACKAGES)?;
            // What Debian has not, busybox has (`nslookup`, `wget`, ...), and
            // cases run these in a place of their own.
            let rest = at.join("usr/local/busybox");
            std::fs::create_dir_all(&rest).context("make a directory for busybox")?;
            unpack_busybox(&rest, &["--strip-components=2", "bin"])?;
            add_applets(at)?;
        }
    }
    add_programs(at, programs)?;
    Ok(dir)
}

fn add_programs(at: &Path, programs: &Path) -> anyhow::Result<()> {
    let copy = |name: &str, to: &str, mode: u32| -> anyhow::Result<()> {
        let (from, to) = (programs.join(name), at.join(to));
        std::fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(mode))?;
        Ok(())
    };
    copy("agnhost", "agnhost", 0o755)?;
    for name in ["localhost.crt", "localhost.key"] {
        if programs.join(name).is_file() {
            copy(name, name, 0o644)?;
        }
    }
    if programs.join("nnp").is_file() {
        std::fs::create_dir_all(at.join("usr/local/bin")).context("make /usr/local/bin")?;
        copy("nnp", "usr/local/bin/nnp", 0o6755)?;
    }
    symlink("agnhost", at.join("agnhost-2")).context("link agnhost-2")?;
    std::fs::create_dir(at.join("uploads")).context("make /uploads")
}

/// Links busybox's applets where Debian has no program of the name.
fn add_applets(at: &Path) -> anyhow::Result<()> {
    for applet in std::fs::read_dir(at.join("usr/local/busybox"))?.flatten() {
        let name = applet.file_name();
        let there = ["bin", "sbin", "usr/bin", "usr/sbin"];
        if !there.iter().any(|d| at.join(d).join(&name).exists()) {
            symlink("../busybox/busybox", at.join("usr/local/bin").join(&name))
                .with_context(|| format!("link {}", name.display()))?;
        }
    }
    Ok(())
}
