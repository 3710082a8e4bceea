//! What GNU tar and skopeo write is read, and the other way round.

use super::*;

#[test]
fn gnu_tar_writes_what_is_read() {
    let host = Host::new();
    let tree = host.path("t");
    host.write(&format!("t/{}/f", "x".repeat(120)), b"long");
    let sparse = std::fs::File::create(tree.join("sparse")).unwrap();
    std::os::unix::fs::FileExt::write_at(&sparse, b"middle", 5 << 20).unwrap();
    sparse.set_len(9 << 20).unwrap();
    let forms: [&[&str]; 6] = [
        &["--format=gnu"],
        &["--format=gnu", "--sparse"],
        &["--format=pax"],
        &["--format=pax", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
    ];
    for (i, args) in forms.iter().enumerate() {
        let out = host.path(&format!("{i}.tar"));
        let done = Command::new("tar")
            .args(*args)
            .arg("-C")
            .arg(&tree)
            .arg("-cf")
            .arg(&out)
            .arg(".")
            .status();
        assert!(done.unwrap().success());
        let name = format!("sparse.test/i:{i}");
        host.store
            .import(Source::Path(&out), &named(&name))
            .unwrap();
        let d = diff(&host.store, &name, 0);
        assert_eq!(
            std::fs::read(d.join("x".repeat(120)).join("f")).unwrap(),
            b"long"
        );
        let got = std::fs::read(d.join("sparse")).unwrap();
        assert_eq!(
            (got.len(), &got[5 << 20..(5 << 20) + 6]),
            (9 << 20, &b"middle"[..]),
            "{args:?}"
        );
        assert_eq!(got.iter().filter(|b| **b != 0).count(), 6);
        if args.contains(&"--sparse") {
            assert!(
                d.join("sparse").metadata().unwrap().blocks() < 1000,
                "{args:?}"
            );
        }
    }
}

#[test]
fn skopeo_reads_and_writes_the_same() {
    if Command::new("skopeo").arg("--version").output().is_err() {
        eprintln!("SKIP skopeo_reads_and_writes_the_same: skopeo is not installed");
        return;
    }
    let host = Host::new();
    let layers = vec![rich_layer(), Tar::new().file("etc/motd", b"hi").done()];
    for (name, data) in layout(&layers, Some("v1")) {
        host.write(&format!("src/{name}"), &data);
    }
    let src = format!("oci:{}:v1", host.path("src").display());
    let kinds = ["docker-archive", "oci-archive", "oci"];
    let mut ids = HashSet::new();
    for kind in kinds {
        let out = host.path(&format!("out-{kind}"));
        let to = format!("{kind}:{}:sk.test/img:{kind}", out.display());
        let policy = ["--insecure-policy", "copy", "-q"];
        let run = Command::new("skopeo")
            .args(policy)
            .args([&src, &to])
            .output()
            .unwrap();
        assert!(
            run.status.success(),
            "{}",
            String::from_utf8_lossy(&run.stderr)
        );
        let got = host
            .store
            .import(Source::Path(&out), &ImportOptions::default())
            .unwrap();
        assert_eq!(got[0].references, [format!("sk.test/img:{kind}")]);
        ids.insert(got[0].id);
        check_rich(&host.store, &format!("sk.test/img:{kind}"));
    }
    assert_eq!(
        count_files(&host.path("images/layers")),
        2,
        "one tree per layer, whatever the source"
    );
}
