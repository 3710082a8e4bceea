//! What is written to v2 files, on a plain directory tree with the kernel's
//! file names. (The same calls on a real v2 mount are in `host.rs`, where
//! the host has one with these controllers.)
#![allow(clippy::unwrap_used, reason = "tests fail by panic")]

mod fake;

use std::collections::HashMap;

use fake::Fake;
use oci_spec::runtime::LinuxResources;
use rkube_cgroup::{Controller, Error, Extras, Version};

const CONTROLLERS: [Controller; 7] = [
    Controller::Cpu,
    Controller::Cpuset,
    Controller::Io,
    Controller::Memory,
    Controller::Pids,
    Controller::Hugetlb,
    Controller::Rdma,
];

/// A group with these files, in one v2 hierarchy with all controllers.
fn v2(files: &[(&str, &str)]) -> Fake {
    Fake::of(Version::V2, &CONTROLLERS, files)
}

#[test]
fn memory_and_swap() {
    let fake = v2(&[
        ("memory.max", ""),
        ("memory.swap.max", ""),
        ("memory.low", ""),
    ]);
    fake.apply(r#"{"memory": {"limit": 1000, "swap": 1500, "reservation": 700}}"#)
        .unwrap();
    assert_eq!(fake.file("memory.max"), "1000");
    assert_eq!(fake.file("memory.swap.max"), "500");
    assert_eq!(fake.file("memory.low"), "700");
}

#[test]
fn swap_alone_is_about_the_limit_in_force() {
    let fake = v2(&[("memory.max", "1000\n"), ("memory.swap.max", "")]);
    fake.apply(r#"{"memory": {"swap": 1001}}"#).unwrap();
    assert_eq!(fake.file("memory.swap.max"), "1");
    assert!(matches!(
        fake.apply(r#"{"memory": {"swap": 999}}"#),
        Err(Error::Invalid { .. })
    ));
}

#[test]
fn no_limits() {
    let fake = v2(&[
        ("memory.max", ""),
        ("memory.swap.max", ""),
        ("pids.max", ""),
    ]);
    fake.apply(r#"{"memory": {"limit": -1}, "pids": {"limit": -1}}"#)
        .unwrap();
    assert_eq!(fake.file("memory.max"), "max");
    assert_eq!(fake.file("memory.swap.max"), "max");
    assert_eq!(fake.file("pids.max"), "max");
}

#[test]
fn a_host_without_swap_forbids_it_already() {
    let fake = v2(&[("memory.max", "")]);
    fake.apply(r#"{"memory": {"limit": 1000, "swap": 1000}}"#)
        .unwrap();
    let error = fake
        .apply(r#"{"memory": {"limit": 1000, "swap": 1001}}"#)
        .unwrap_err();
    assert!(matches!(error, Error::Write { .. }), "{error}");
}

#[test]
fn check_before_update() {
    let fake = v2(&[("memory.max", ""), ("memory.current", "5000\n")]);
    let error = fake
        .apply(r#"{"memory": {"limit": 4096, "checkBeforeUpdate": true}}"#)
        .unwrap_err();
    assert!(
        matches!(
            error,
            Error::MemoryInUse {
                limit: 4096,
                usage: 5000,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(fake.file("memory.max"), "");
}

#[test]
fn extras() {
    let fake = v2(&[
        ("memory.high", ""),
        ("memory.min", ""),
        ("memory.oom.group", "0"),
        ("memory.swap.max", ""),
    ]);
    let extras = Extras {
        memory_high: Some(900),
        memory_min: Some(100),
        oom_group: Some(true),
        swap_max: Some(0),
    };
    fake.group
        .apply(&LinuxResources::default(), &extras)
        .unwrap();
    assert_eq!(fake.file("memory.high"), "900");
    assert_eq!(fake.file("memory.min"), "100");
    assert_eq!(fake.file("memory.oom.group"), "1");
    assert_eq!(fake.file("memory.swap.max"), "0");
}

#[test]
fn cpu() {
    let fake = v2(&[
        ("cpu.weight", ""),
        ("cpu.max", "max 100000\n"),
        ("cpu.max.burst", ""),
        ("cpu.idle", ""),
        ("cpuset.cpus", ""),
        ("cpuset.mems", ""),
    ]);
    fake.apply(
        r#"{"cpu": {"shares": 1024, "quota": 50000, "period": 100000, "burst": 10, "cpus": "0-1", "mems": "0"}}"#,
    )
    .unwrap();
    assert_eq!(fake.file("cpu.weight"), "100");
    // A plain file keeps the tail of what it held before.
    assert!(fake.file("cpu.max").starts_with("50000 100000"));
    assert_eq!(fake.file("cpu.max.burst"), "10");
    assert_eq!(fake.file("cpuset.cpus"), "0-1");
    assert_eq!(fake.file("cpuset.mems"), "0");
    assert_eq!(fake.file("cpu.idle"), "");
}

#[test]
fn a_period_alone_keeps_the_quota() {
    let fake = v2(&[("cpu.max", "max 100000\n")]);
    fake.apply(r#"{"cpu": {"period": 200000}}"#).unwrap();
    assert_eq!(fake.file("cpu.max"), "max 200000\n");
}

#[test]
fn an_idle_group_has_no_weight() {
    let fake = v2(&[("cpu.weight", ""), ("cpu.idle", "")]);
    fake.apply(r#"{"cpu": {"shares": 1024, "idle": 1}}"#)
        .unwrap();
    assert_eq!(fake.file("cpu.weight"), "");
    assert_eq!(fake.file("cpu.idle"), "1");
}

#[test]
fn block_devices() {
    let fake = v2(&[("io.bfq.weight", ""), ("io.weight", ""), ("io.max", "")]);
    fake.apply(r#"{"blockIO": {"weight": 1000}}"#).unwrap();
    assert_eq!(fake.file("io.bfq.weight"), "default 1000");
    assert_eq!(fake.file("io.weight"), "default 10000");
    fake.apply(
        r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1024}]}}"#,
    )
    .unwrap();
    assert_eq!(fake.file("io.max"), "8:0 rbps=1024");
    fake.apply(
        r#"{"blockIO": {"throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 0}]}}"#,
    )
    .unwrap();
    assert!(fake.file("io.max").starts_with("8:0 wiops=max"));
}

#[test]
fn without_a_weight_scheduler_the_error_names_the_files() {
    let fake = v2(&[]);
    let error = fake
        .apply(r#"{"blockIO": {"weight": 500}}"#)
        .unwrap_err()
        .to_string();
    for part in ["io.bfq.weight", "io.weight", "cgroup v2", "BFQ"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn huge_pages_with_reservations() {
    let fake = v2(&[("hugetlb.2MB.max", ""), ("hugetlb.2MB.rsvd.max", "")]);
    fake.apply(r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#)
        .unwrap();
    assert_eq!(fake.file("hugetlb.2MB.max"), "4194304");
    assert_eq!(fake.file("hugetlb.2MB.rsvd.max"), "4194304");
    for bad in ["../x", "2MiB", "MB", "2M"] {
        let json = format!(r#"{{"hugepageLimits": [{{"pageSize": "{bad}", "limit": 1}}]}}"#);
        assert!(
            matches!(fake.apply(&json), Err(Error::Invalid { .. })),
            "{bad}"
        );
    }
}

#[test]
fn rdma() {
    let fake = v2(&[("rdma.max", "")]);
    fake.apply(r#"{"rdma": {"mlx5_1": {"hcaHandles": 3}}}"#)
        .unwrap();
    assert_eq!(fake.file("rdma.max"), "mlx5_1 hca_handle=3 hca_object=max");
}

#[test]
fn what_v2_cannot_do_is_an_error() {
    let fake = v2(&[("memory.max", ""), ("cpu.max", "")]);
    for json in [
        r#"{"memory": {"swappiness": 10}}"#,
        r#"{"memory": {"disableOOMKiller": true}}"#,
        r#"{"cpu": {"realtimeRuntime": 1000}}"#,
        r#"{"network": {"classID": 5}}"#,
        r#"{"network": {"priorities": [{"name": "eth0", "priority": 1}]}}"#,
        r#"{"blockIO": {"leafWeight": 10}}"#,
    ] {
        let error = fake.apply(json).unwrap_err();
        assert!(
            matches!(error, Error::NotExpressible { .. }),
            "{json}: {error}"
        );
        assert!(error.to_string().contains("cgroup v2"), "{error}");
    }
    let warnings = fake
        .apply(r#"{"memory": {"kernel": 10, "kernelTCP": 10, "useHierarchy": false}}"#)
        .unwrap();
    let names: Vec<_> = warnings.iter().map(|w| w.setting).collect();
    assert_eq!(
        names,
        ["memory.kernel", "memory.useHierarchy", "memory.kernelTCP"]
    );
}

#[test]
fn unified_files() {
    let fake = v2(&[
        ("memory.zswap.max", ""),
        ("cgroup.kill", ""),
        ("io.latency", ""),
    ]);
    fake.apply(r#"{"unified": {"memory.zswap.max": "7", "io.latency": "8:0 target=9"}}"#)
        .unwrap();
    assert_eq!(fake.file("memory.zswap.max"), "7");
    assert_eq!(fake.file("io.latency"), "8:0 target=9");
    for (key, value) in [
        ("../g/memory.zswap.max", "1"),
        ("/etc/passwd", "1"),
        ("memory.zswap.max", "1\n2"),
        ("memory.zswap.max", "1\0"),
        ("cgroup.kill", "1"),
        ("cgroup.procs", "1"),
        ("memory", "1"),
        (".hidden", "1"),
        ("", "1"),
    ] {
        let mut resources = LinuxResources::default();
        resources.set_unified(Some(HashMap::from([(key.to_owned(), value.to_owned())])));
        let result = fake.group.apply(&resources, &Extras::default());
        assert!(
            matches!(result, Err(Error::Invalid { .. })),
            "{key:?}={value:?}"
        );
    }
    assert_eq!(fake.file("cgroup.kill"), "");
    assert!(matches!(
        fake.apply(r#"{"unified": {"memory.nonsense": "1"}}"#),
        Err(Error::Write { .. })
    ));
}

#[test]
fn statistics() {
    let fake = v2(&[
        (
            "cpu.stat",
            "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\n",
        ),
        ("memory.current", "9000\n"),
        ("memory.peak", "9500\n"),
        ("memory.max", "max\n"),
        (
            "memory.stat",
            "anon 100\nfile 8000\ninactive_file 4000\npgfault 7\npgmajfault 1\n",
        ),
        (
            "memory.events",
            "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\noom_group_kill 0\n",
        ),
        ("memory.swap.current", "0\n"),
        (
            "memory.pressure",
            "some avg10=0.10 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4\n",
        ),
        ("pids.current", "3\n"),
        ("pids.max", "10\n"),
        (
            "io.stat",
            "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n",
        ),
    ]);
    let stats = fake.group.stats().unwrap();
    assert_eq!(stats.cpu.usage_usec, Some(30));
    assert_eq!(stats.cpu.throttled_periods, Some(3));
    let memory = stats.memory.unwrap();
    assert_eq!(memory.working_set_bytes, 5000);
    assert_eq!(memory.limit_bytes, None);
    assert_eq!(memory.oom_kills, Some(1));
    assert_eq!(memory.fail_count, Some(5));
    assert_eq!(memory.pressure.unwrap().some.total_usec, 5);
    assert_eq!(stats.pids.unwrap().limit, Some(10));
    assert_eq!(stats.io[0].writes, 4);
    assert_eq!(fake.group.oom_count().unwrap().kills, 1);
}
