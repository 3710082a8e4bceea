//! Limits from flags, and statistics as runc prints them.

use oci_spec::runtime::LinuxResources;
use rkube_runtime::Error;
use serde_json::{Map, Value, json};

use super::args::Update;

/// Bytes with an optional unit (powers of 1024), or -1.
fn bytes(field: &str, text: &str) -> Result<i64, Error> {
    let fail = || Error::Spec {
        field: field.to_owned(),
        reason: format!("{text:?} is no number of bytes"),
    };
    let lower = text.trim().to_ascii_lowercase();
    let plain = lower.trim_end_matches('b').trim_end_matches('i');
    let (digits, unit) = match plain.char_indices().last() {
        Some((at, 'k')) => (&plain[..at], 1_i64 << 10),
        Some((at, 'm')) => (&plain[..at], 1 << 20),
        Some((at, 'g')) => (&plain[..at], 1 << 30),
        Some((at, 't')) => (&plain[..at], 1 << 40),
        _ => (plain, 1),
    };
    let number: i64 = digits.parse().map_err(|_| fail())?;
    if number < 0 {
        return if number == -1 && unit == 1 {
            Ok(-1)
        } else {
            Err(fail())
        };
    }
    number.checked_mul(unit).ok_or_else(fail)
}

fn insert<T: Into<Value>>(map: &mut Map<String, Value>, key: &str, value: Option<T>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value.into());
    }
}

/// The limits that flags ask for.
pub(super) fn from_flags(update: &Update) -> Result<LinuxResources, Error> {
    if update.kernel_memory.is_some() || update.kernel_memory_tcp.is_some() {
        return Err(Error::Unsupported {
            field: "--kernel-memory".to_owned(),
            reason: "a kernel memory limit, which Linux has dropped,".to_owned(),
        });
    }
    let mut cpu = Map::new();
    insert(&mut cpu, "shares", update.cpu_share);
    insert(&mut cpu, "quota", update.cpu_quota);
    insert(&mut cpu, "period", update.cpu_period);
    insert(&mut cpu, "burst", update.cpu_burst);
    insert(&mut cpu, "idle", update.cpu_idle);
    insert(&mut cpu, "realtimePeriod", update.cpu_rt_period);
    insert(&mut cpu, "realtimeRuntime", update.cpu_rt_runtime);
    insert(&mut cpu, "cpus", update.cpuset_cpus.clone());
    insert(&mut cpu, "mems", update.cpuset_mems.clone());
    let mut memory = Map::new();
    for (flag, key, text) in [
        ("--memory", "limit", &update.memory),
        (
            "--memory-reservation",
            "reservation",
            &update.memory_reservation,
        ),
        ("--memory-swap", "swap", &update.memory_swap),
    ] {
        let value = text.as_deref().map(|t| bytes(flag, t)).transpose()?;
        insert(&mut memory, key, value);
    }
    let mut all = Map::new();
    for (key, part) in [("cpu", cpu), ("memory", memory)] {
        if !part.is_empty() {
            all.insert(key.to_owned(), Value::Object(part));
        }
    }
    if let Some(limit) = update.pids_limit {
        all.insert("pids".to_owned(), json!({"limit": limit}));
    }
    if let Some(weight) = update.blkio_weight {
        all.insert("blockIO".to_owned(), json!({"weight": weight}));
    }
    rkube_runtime::spec::typed(&Value::Object(all)).map_err(|source| Error::Parse {
        what: "limits".to_owned(),
        source,
    })
}

/// One `stats` event in runc's form; what the kernel does not tell is left
/// out.
pub(super) fn stats_event(id: &str, stats: &rkube_cgroup::Stats) -> Value {
    let ns = |usec: Option<u64>| usec.map(|u| u.saturating_mul(1000));
    let mut data = json!({
        "cpu": {
            "usage": {
                "total": ns(stats.cpu.usage_usec),
                "user": ns(stats.cpu.user_usec),
                "kernel": ns(stats.cpu.system_usec),
            },
            "throttling": {
                "periods": stats.cpu.periods,
                "throttledPeriods": stats.cpu.throttled_periods,
                "throttledTime": ns(stats.cpu.throttled_usec),
            },
        },
    });
    if let Some(memory) = &stats.memory {
        data["memory"] = json!({
            "cache": memory.cache_bytes,
            "usage": {
                "usage": memory.usage_bytes,
                "max": memory.peak_bytes,
                "limit": memory.limit_bytes,
                "failcnt": memory.fail_count,
            },
            "swap": {"usage": memory.swap_bytes, "limit": memory.swap_limit_bytes},
            "raw": {
                "rss": memory.rss_bytes,
                "pgfault": memory.page_faults,
                "pgmajfault": memory.major_faults,
                "oom_kill": memory.oom_kills,
                "workingset": memory.working_set_bytes,
            },
        });
    }
    if let Some(pids) = &stats.pids {
        data["pids"] = json!({"current": pids.current, "limit": pids.limit, "peak": pids.peak});
    }
    let mut served = Vec::new();
    for device in &stats.io {
        for (op, value) in [("Read", device.read_bytes), ("Write", device.write_bytes)] {
            served.push(json!({
                "major": device.major, "minor": device.minor, "op": op, "value": value
            }));
        }
    }
    data["blkio"] = json!({"ioServiceBytesRecursive": served});
    let huge: Map<String, Value> = stats
        .hugetlb
        .iter()
        .map(|h| {
            let one = json!({"usage": h.usage_bytes, "failcnt": h.fail_count});
            (h.page_size.clone(), one)
        })
        .collect();
    data["hugetlb"] = Value::Object(huge);
    json!({"type": "stats", "id": id, "data": data})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_bytes() {
        for (text, value) in [
            ("64", 64),
            ("64K", 65536),
            ("2m", 2 << 20),
            ("1GiB", 1 << 30),
            ("1GB", 1 << 30),
            ("-1", -1),
        ] {
            assert_eq!(bytes("x", text).unwrap(), value, "{text}");
        }
        for bad in ["", "x", "-2", "1.5G", "9999999999G", "-1k"] {
            assert!(bytes("x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_become_limits() {
        let update = Update {
            memory: Some("64M".into()),
            cpu_quota: Some(-1),
            pids_limit: Some(7),
            ..Update::default()
        };
        let limits = from_flags(&update).unwrap();
        assert_eq!(limits.memory().unwrap().limit(), Some(64 << 20));
        assert_eq!(limits.cpu().as_ref().unwrap().quota(), Some(-1));
        assert!(limits.block_io().is_none());
    }
}
