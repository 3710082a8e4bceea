//! What is written to v1 files, on a plain directory tree with the kernel's
//! file names: also those that few hosts mount or compile in.
#![allow(clippy::unwrap_used, reason = "tests fail by panic")]

mod fake;

use fake::Fake;
use oci_spec::runtime::LinuxResources;
use rkube_cgroup::{Controller, Error, Extras, Version};

/// What v1 shows of a limit that is not set (PAGE_COUNTER_MAX in bytes).
const UNLIMITED: &str = "9223372036854771712\n";

const CONTROLLERS: [Controller; 9] = [
    Controller::Cpu,
    Controller::Cpuset,
    Controller::Io,
    Controller::Memory,
    Controller::Pids,
    Controller::Hugetlb,
    Controller::Rdma,
    Controller::NetCls,
    Controller::NetPrio,
];

/// A group with these files, in one v1 hierarchy with all controllers.
fn v1(files: &[(&str, &str)]) -> Fake {
    Fake::of(Version::V1, &CONTROLLERS, files)
}

/// `limit` may never be above the sum: which is written first depends on where
/// the sum is now. The one whose file is not there stops the other.
#[test]
fn limit_and_sum_in_the_order_that_the_kernel_takes() {
    const BOTH: &str = r#"{"memory": {"limit": 4000, "swap": 6000}}"#;
    let raised = v1(&[("memory.memsw.limit_in_bytes", "2000")]);
    assert!(matches!(raised.apply(BOTH), Err(Error::Write { .. })));
    assert_eq!(raised.file("memory.memsw.limit_in_bytes"), "6000");
    for now in ["9000", UNLIMITED] {
        let lowered = v1(&[("memory.memsw.limit_in_bytes", now)]);
        assert!(matches!(lowered.apply(BOTH), Err(Error::Write { .. })));
        assert_eq!(lowered.file("memory.memsw.limit_in_bytes"), now);
    }
    // No limit at all: the sum goes up before the limit does.
    let lifted = v1(&[("memory.memsw.limit_in_bytes", "20")]);
    let none = r#"{"memory": {"limit": -1}}"#;
    assert!(matches!(lifted.apply(none), Err(Error::Write { .. })));
    assert_eq!(lifted.file("memory.memsw.limit_in_bytes"), "-1");
}

#[test]
fn memory_without_swap_accounting() {
    let fake = v1(&[("memory.limit_in_bytes", "")]);
    fake.apply(r#"{"memory": {"limit": 4000}}"#).unwrap();
    assert_eq!(fake.file("memory.limit_in_bytes"), "4000");
    fake.apply(r#"{"memory": {"limit": 5000, "swap": -1}}"#)
        .unwrap();
    assert_eq!(fake.file("memory.limit_in_bytes"), "5000");
    let error = fake.apply(r#"{"memory": {"limit": 4000, "swap": 6000}}"#);
    let text = error.unwrap_err().to_string();
    assert!(text.contains("swapaccount=1"), "{text}");
    for bad in [
        r#"{"memory": {"limit": 4000, "swap": 3000}}"#,
        r#"{"memory": {"swappiness": 101}}"#,
    ] {
        assert!(
            matches!(fake.apply(bad), Err(Error::Invalid { .. })),
            "{bad}"
        );
    }
}

#[test]
fn what_v1_alone_has_of_memory() {
    let fake = v1(&[
        ("memory.soft_limit_in_bytes", ""),
        ("memory.kmem.tcp.limit_in_bytes", ""),
        ("memory.swappiness", ""),
        ("memory.oom_control", ""),
    ]);
    fake.apply(
        r#"{"memory": {"reservation": 7000, "kernelTCP": 8000, "swappiness": 30,
            "disableOOMKiller": true}}"#,
    )
    .unwrap();
    assert_eq!(fake.file("memory.soft_limit_in_bytes"), "7000");
    assert_eq!(fake.file("memory.kmem.tcp.limit_in_bytes"), "8000");
    assert_eq!(fake.file("memory.swappiness"), "30");
    assert_eq!(fake.file("memory.oom_control"), "1");
    // And what it has not.
    for extras in [
        Extras {
            memory_high: Some(1),
            ..Extras::default()
        },
        Extras {
            memory_min: Some(1),
            ..Extras::default()
        },
        Extras {
            oom_group: Some(true),
            ..Extras::default()
        },
    ] {
        let refused = fake.group.apply(&LinuxResources::default(), &extras);
        assert!(matches!(refused, Err(Error::NotExpressible { .. })));
    }
}

#[test]
fn time_and_place() {
    let fake = v1(&[
        ("cpu.shares", ""),
        ("cpu.cfs_period_us", ""),
        ("cpu.cfs_quota_us", ""),
        ("cpu.cfs_burst_us", ""),
        ("cpu.rt_period_us", ""),
        ("cpu.rt_runtime_us", ""),
        ("cpuset.cpus", ""),
        ("cpuset.mems", ""),
    ]);
    fake.apply(
        r#"{"cpu": {"shares": 512, "period": 50000, "quota": -5, "burst": 100,
            "realtimePeriod": 1000000, "realtimeRuntime": 9000, "cpus": "0-1", "mems": "0"}}"#,
    )
    .unwrap();
    for (name, value) in [
        ("cpu.shares", "512"),
        ("cpu.cfs_period_us", "50000"),
        ("cpu.cfs_quota_us", "-1"),
        ("cpu.cfs_burst_us", "100"),
        ("cpu.rt_period_us", "1000000"),
        ("cpu.rt_runtime_us", "9000"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
    ] {
        assert_eq!(fake.file(name), value, "{name}");
    }
}

#[test]
fn the_rarer_controllers() {
    let fake = v1(&[
        ("pids.max", ""),
        ("net_cls.classid", ""),
        ("net_prio.ifpriomap", ""),
        ("rdma.max", ""),
        ("hugetlb.2MB.limit_in_bytes", ""),
        ("hugetlb.2MB.rsvd.limit_in_bytes", ""),
        ("blkio.bfq.weight", ""),
        ("blkio.throttle.read_bps_device", ""),
        ("blkio.throttle.write_iops_device", ""),
    ]);
    let warnings = fake
        .apply(
            r#"{"pids": {"limit": 0},
            "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]},
            "rdma": {"mlx5_1": {"hcaHandles": 3}},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
            "blockIO": {"weight": 300,
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}}"#,
        )
        .unwrap();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for (name, value) in [
        ("pids.max", "1"),
        ("net_cls.classid", "1048577"),
        ("net_prio.ifpriomap", "eth0 5"),
        ("rdma.max", "mlx5_1 hca_handle=3 hca_object=max"),
        ("hugetlb.2MB.limit_in_bytes", "4194304"),
        ("hugetlb.2MB.rsvd.limit_in_bytes", "4194304"),
        ("blkio.bfq.weight", "300"),
        ("blkio.throttle.read_bps_device", "8:0 1000"),
        ("blkio.throttle.write_iops_device", "8:16 0"),
    ] {
        assert_eq!(fake.file(name), value, "{name}");
    }
    for bad in [
        r#"{"network": {"priorities": [{"name": "a b", "priority": 1}]}}"#,
        r#"{"rdma": {"a/b": {"hcaHandles": 1}}}"#,
        r#"{"hugepageLimits": [{"pageSize": "2", "limit": 1}]}"#,
        r#"{"blockIO": {"weight": 5}}"#,
    ] {
        assert!(
            matches!(fake.apply(bad), Err(Error::Invalid { .. })),
            "{bad}"
        );
    }
    let other_size = fake.apply(r#"{"hugepageLimits": [{"pageSize": "1GB", "limit": 0}]}"#);
    assert!(matches!(other_size, Err(Error::NotExpressible { .. })));
}
