//! What a group has used, in one shape for v1 and v2.
//!
//! A field is `None` where the kernel, the mode or the group's controllers
//! do not tell. Times are microseconds, sizes bytes; a limit of `None` is no
//! limit (or not known).

use serde::Serialize;

use crate::error::Result;
use crate::file::{Dir, flat_value};
use crate::group::Cgroup;
use crate::hierarchy::{Controller, Version};

/// Nanoseconds in a microsecond: v1's `cpuacct` counts in nanoseconds.
const NSEC_PER_USEC: u64 = 1_000;

/// Everything at about one moment (the kernel has no snapshot of it).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// CPU time.
    pub cpu: CpuStats,
    /// Memory, if the group is in that controller.
    pub memory: Option<MemoryStats>,
    /// Processes and threads, if the group is in that controller.
    pub pids: Option<PidsStats>,
    /// Block devices, those that were used.
    pub io: Vec<IoDeviceStats>,
    /// Huge pages by size.
    pub hugetlb: Vec<HugetlbStats>,
    /// Pressure on block devices.
    pub io_pressure: Option<Pressure>,
}

/// CPU time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "unit in the name")]
pub struct CpuStats {
    pub usage_usec: Option<u64>,
    pub user_usec: Option<u64>,
    pub system_usec: Option<u64>,
    /// Periods in which a quota was in force and something ran.
    pub periods: Option<u64>,
    /// Those in which the quota ran out.
    pub throttled_periods: Option<u64>,
    pub throttled_usec: Option<u64>,
    /// Pressure.
    pub pressure: Option<Pressure>,
}

/// Memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryStats {
    /// In use, caches included.
    pub usage_bytes: u64,
    /// Usage less what can be dropped at once (`inactive_file`).
    pub working_set_bytes: u64,
    /// The most there ever was (v2: Linux 5.19).
    pub peak_bytes: Option<u64>,
    /// Limit.
    pub limit_bytes: Option<u64>,
    /// Anonymous memory, of groups below too.
    pub rss_bytes: Option<u64>,
    /// Page cache, of groups below too.
    pub cache_bytes: Option<u64>,
    /// Swap in use.
    pub swap_bytes: Option<u64>,
    /// Limit of swap alone.
    pub swap_limit_bytes: Option<u64>,
    /// How often a limit was hit (v1: of memory, or of memory and swap;
    /// Linux 6.18 has v1's files but leaves them at 0).
    pub fail_count: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Page faults that needed the disk.
    pub major_faults: Option<u64>,
    /// Page faults.
    pub page_faults: Option<u64>,
    /// Pressure.
    pub pressure: Option<Pressure>,
}

/// Processes and threads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PidsStats {
    /// Now.
    pub current: u64,
    /// Limit.
    pub limit: Option<u64>,
    /// The most there ever were (Linux 6.1).
    pub peak: Option<u64>,
}

/// One block device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "unit in the name")]
pub struct IoDeviceStats {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HugetlbStats {
    /// The kernel's name of the size (`2MB`).
    pub page_size: String,
    /// In use.
    pub usage_bytes: u64,
    /// Limit.
    pub limit_bytes: Option<u64>,
    /// How often the limit was hit.
    pub fail_count: Option<u64>,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pressure {
    /// At least one task waited.
    pub some: PressureLine,
    /// All tasks waited at once (for CPU since Linux 5.13).
    pub full: Option<PressureLine>,
}

/// One line of it; averages are hundredths of a percent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "unit in the name")]
pub struct PressureLine {
    pub avg10_centipercent: u32,
    pub avg60_centipercent: u32,
    pub avg300_centipercent: u32,
    pub total_usec: u64,
}

impl Cgroup {
    /// Reads everything the group's controllers tell.
    ///
    /// # Errors
    /// The file that could not be read or understood; a missing file is no
    /// error.
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = Stats {
            cpu: self.cpu_stats()?,
            ..Stats::default()
        };
        if let Some((version, dir)) = self.dir(Controller::Memory) {
            stats.memory = match version {
                Version::V1 => memory_v1(dir)?,
                Version::V2 => memory_v2(dir)?,
            };
        }
        if let Some((_, dir)) = self.dir(Controller::Pids)
            && let Some(current) = dir.read_number_optional("pids.current")?
        {
            stats.pids = Some(PidsStats {
                current,
                limit: dir.read_number_optional("pids.max")?,
                peak: dir.read_number_optional("pids.peak")?,
            });
        }
        if let Some((version, dir)) = self.dir(Controller::Io) {
            stats.io = match version {
                Version::V1 => io_v1(dir)?,
                Version::V2 => dir
                    .read_optional("io.stat")?
                    .map(|text| parse_io_stat(&text))
                    .unwrap_or_default(),
            };
        }
        if let Some((version, dir)) = self.dir(Controller::Hugetlb) {
            stats.hugetlb = hugetlb(dir, version)?;
        }
        // Pressure is a core feature of v2 groups, whatever they control.
        if let Some(dir) = self.v2() {
            stats.cpu.pressure = pressure(dir, "cpu.pressure")?;
            stats.io_pressure = pressure(dir, "io.pressure")?;
            if let Some(memory) = &mut stats.memory {
                memory.pressure = pressure(dir, "memory.pressure")?;
            }
        }
        Ok(stats)
    }

    fn cpu_stats(&self) -> Result<CpuStats> {
        let mut cpu = CpuStats::default();
        if let Some((Version::V1, dir)) = self.dir(Controller::Cpuacct) {
            let usec = |nsec: u64| nsec / NSEC_PER_USEC;
            cpu.usage_usec = dir.read_number_optional("cpuacct.usage")?.map(usec);
            cpu.user_usec = dir.read_number_optional("cpuacct.usage_user")?.map(usec);
            cpu.system_usec = dir.read_number_optional("cpuacct.usage_sys")?.map(usec);
        } else if let Some(dir) = self.v2()
            && let Some(text) = dir.read_optional("cpu.stat")?
        {
            // There for every v2 group, with or without the controller.
            cpu.usage_usec = flat_value(&text, "usage_usec");
            cpu.user_usec = flat_value(&text, "user_usec");
            cpu.system_usec = flat_value(&text, "system_usec");
        }
        if let Some((version, dir)) = self.dir(Controller::Cpu)
            && let Some(text) = dir.read_optional("cpu.stat")?
        {
            cpu.periods = flat_value(&text, "nr_periods");
            cpu.throttled_periods = flat_value(&text, "nr_throttled");
            cpu.throttled_usec = match version {
                Version::V1 => flat_value(&text, "throttled_time").map(|nsec| nsec / NSEC_PER_USEC),
                Version::V2 => flat_value(&text, "throttled_usec"),
            };
        }
        Ok(cpu)
    }
}

fn memory_v1(dir: &Dir) -> Result<Option<MemoryStats>> {
    let Some(usage) = dir.read_number_optional("memory.usage_in_bytes")? else {
        return Ok(None);
    };
    let text = dir.read("memory.stat")?;
    let value = |key| flat_value(&text, key);
    let limit = dir.read_number("memory.limit_in_bytes")?;
    let both_limit = dir.read_number_optional("memory.memsw.limit_in_bytes")?;
    let oom = dir.read_optional("memory.oom_control")?.unwrap_or_default();
    // With no swap allowed both limits are equal, and the sum's is hit first.
    let fails = match dir.read_number_optional("memory.failcnt")? {
        None => None,
        Some(fails) => {
            let both = dir.read_number_optional("memory.memsw.failcnt")?;
            Some(fails.saturating_add(both.unwrap_or(0)))
        }
    };
    Ok(Some(MemoryStats {
        usage_bytes: usage,
        working_set_bytes: usage.saturating_sub(value("total_inactive_file").unwrap_or(0)),
        peak_bytes: dir.read_number_optional("memory.max_usage_in_bytes")?,
        limit_bytes: limit,
        rss_bytes: value("total_rss"),
        cache_bytes: value("total_cache"),
        swap_bytes: value("total_swap"),
        swap_limit_bytes: both_limit.map(|both| both.saturating_sub(limit.unwrap_or(0))),
        fail_count: fails,
        oom_kills: flat_value(&oom, "oom_kill"),
        major_faults: value("total_pgmajfault"),
        page_faults: value("total_pgfault"),
        pressure: None,
    }))
}

fn memory_v2(dir: &Dir) -> Result<Option<MemoryStats>> {
    let Some(usage) = dir.read_number_optional("memory.current")? else {
        return Ok(None);
    };
    let text = dir.read("memory.stat")?;
    let value = |key| flat_value(&text, key);
    let events = dir.read_optional("memory.events")?.unwrap_or_default();
    Ok(Some(MemoryStats {
        usage_bytes: usage,
        working_set_bytes: usage.saturating_sub(value("inactive_file").unwrap_or(0)),
        peak_bytes: dir.read_number_optional("memory.peak")?,
        limit_bytes: dir.read_number_optional("memory.max")?,
        rss_bytes: value("anon"),
        cache_bytes: value("file"),
        swap_bytes: dir.read_number_optional("memory.swap.current")?,
        swap_limit_bytes: dir.read_number_optional("memory.swap.max")?,
        fail_count: flat_value(&events, "max"),
        oom_kills: flat_value(&events, "oom_kill"),
        major_faults: value("pgmajfault"),
        page_faults: value("pgfault"),
        pressure: None,
    }))
}

/// v1: one file for bytes and one for operations, from the throttling layer,
/// which sees every device; groups below included.
fn io_v1(dir: &Dir) -> Result<Vec<IoDeviceStats>> {
    let mut out = Vec::new();
    for (file, bytes) in [
        ("blkio.throttle.io_service_bytes_recursive", true),
        ("blkio.throttle.io_serviced_recursive", false),
    ] {
        if let Some(text) = dir.read_optional(file)? {
            add_v1_io(&mut out, &text, bytes);
        }
    }
    Ok(out)
}

/// Lines `major:minor Read|Write|… value`, and a total.
fn add_v1_io(out: &mut Vec<IoDeviceStats>, text: &str, bytes: bool) {
    for line in text.lines() {
        let mut parts = line.split_ascii_whitespace();
        let (Some(device), Some(kind), Some(value)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let (Some(device), Ok(value)) = (io_device(out, device), value.parse::<u64>()) else {
            continue;
        };
        match (kind, bytes) {
            ("Read", true) => device.read_bytes = value,
            ("Write", true) => device.write_bytes = value,
            ("Read", false) => device.reads = value,
            ("Write", false) => device.writes = value,
            _ => {}
        }
    }
}

/// v2: lines `major:minor rbytes=1 wbytes=2 rios=3 wios=4 …`.
fn parse_io_stat(text: &str) -> Vec<IoDeviceStats> {
    let mut out = Vec::new();
    for line in text.lines() {
        let mut parts = line.split_ascii_whitespace();
        let Some(device) = parts.next().and_then(|name| io_device(&mut out, name)) else {
            continue;
        };
        for part in parts {
            let Some((key, Ok(value))) = part.split_once('=').map(|(k, v)| (k, v.parse::<u64>()))
            else {
                continue;
            };
            match key {
                "rbytes" => device.read_bytes = value,
                "wbytes" => device.write_bytes = value,
                "rios" => device.reads = value,
                "wios" => device.writes = value,
                _ => {}
            }
        }
    }
    out.retain(|d| d.reads + d.writes > 0);
    out
}

/// The entry of `major:minor`, made if it is new.
fn io_device<'a>(out: &'a mut Vec<IoDeviceStats>, name: &str) -> Option<&'a mut IoDeviceStats> {
    let (major, minor) = name.split_once(':')?;
    let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
    let at = out
        .iter()
        .position(|d| (d.major, d.minor) == (major, minor));
    if at.is_none() {
        out.push(IoDeviceStats {
            major,
            minor,
            ..IoDeviceStats::default()
        });
    }
    match at {
        Some(at) => out.get_mut(at),
        None => out.last_mut(),
    }
}

/// The page sizes are those the group has files for.
fn hugetlb(dir: &Dir, version: Version) -> Result<Vec<HugetlbStats>> {
    let mut out = Vec::new();
    for size in page_sizes() {
        let (usage, limit) = match version {
            Version::V1 => ("usage_in_bytes", "limit_in_bytes"),
            Version::V2 => ("current", "max"),
        };
        let Some(current) = dir.read_number_optional(&format!("hugetlb.{size}.{usage}"))? else {
            continue;
        };
        let fail_count = match version {
            Version::V1 => dir.read_number_optional(&format!("hugetlb.{size}.failcnt"))?,
            Version::V2 => dir
                .read_optional(&format!("hugetlb.{size}.events"))?
                .and_then(|text| flat_value(&text, "max")),
        };
        out.push(HugetlbStats {
            usage_bytes: current,
            limit_bytes: dir.read_number_optional(&format!("hugetlb.{size}.{limit}"))?,
            fail_count,
            page_size: size,
        });
    }
    Ok(out)
}

/// The host's huge page sizes as cgroup files name them, from
/// `/sys/kernel/mm/hugepages/hugepages-<n>kB`; none if that is missing.
fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else {
        return Vec::new();
    };
    let mut sizes: Vec<u64> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let name = name
                .to_str()?
                .strip_prefix("hugepages-")?
                .strip_suffix("kB")?;
            name.parse().ok()
        })
        .collect();
    sizes.sort_unstable();
    sizes.into_iter().map(page_size_name).collect()
}

/// `mem_fmt` of mm/hugetlb_cgroup.c.
fn page_size_name(kib: u64) -> String {
    if kib >= 1 << 20 {
        format!("{}GB", kib >> 20)
    } else if kib >= 1 << 10 {
        format!("{}MB", kib >> 10)
    } else {
        format!("{kib}KB")
    }
}

/// One pressure file; `None` where PSI is off or not compiled in.
fn pressure(dir: &Dir, file: &str) -> Result<Option<Pressure>> {
    Ok(dir
        .read_optional(file)?
        .and_then(|text| parse_pressure(&text)))
}

/// Lines `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and `full …`.
fn parse_pressure(text: &str) -> Option<Pressure> {
    let line = |name: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        let mut out = PressureLine::default();
        for part in rest.split_ascii_whitespace() {
            let (key, value) = part.split_once('=')?;
            match key {
                "avg10" => out.avg10_centipercent = centipercent(value)?,
                "avg60" => out.avg60_centipercent = centipercent(value)?,
                "avg300" => out.avg300_centipercent = centipercent(value)?,
                "total" => out.total_usec = value.parse().ok()?,
                _ => {}
            }
        }
        Some(out)
    };
    Some(Pressure {
        some: line("some ")?,
        full: line("full "),
    })
}

/// `12.34` as 1234.
fn centipercent(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.')?;
    if part.len() != 2 {
        return None;
    }
    whole
        .parse::<u32>()
        .ok()?
        .checked_mul(100)?
        .checked_add(part.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_files() {
        let v2 = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:1 rbytes=0 wbytes=0 rios=0 wios=0\n";
        assert_eq!(
            parse_io_stat(v2),
            [IoDeviceStats {
                major: 8,
                minor: 0,
                read_bytes: 10,
                write_bytes: 20,
                reads: 1,
                writes: 2
            }]
        );
        let mut v1 = Vec::new();
        add_v1_io(
            &mut v1,
            "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
            true,
        );
        add_v1_io(&mut v1, "8:0 Read 1\n8:0 Write 2\n", false);
        assert_eq!(v1, parse_io_stat(v2));
    }

    #[test]
    fn pressure_files() {
        let text = "some avg10=1.50 avg60=0.07 avg300=100.00 total=42\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n";
        let pressure = parse_pressure(text).unwrap();
        assert_eq!(pressure.some.avg10_centipercent, 150);
        assert_eq!(pressure.some.avg60_centipercent, 7);
        assert_eq!(pressure.some.avg300_centipercent, 10_000);
        assert_eq!(pressure.full.unwrap().total_usec, 7);
        assert!(parse_pressure("").is_none());
    }

    #[test]
    fn sizes() {
        assert_eq!(page_size_name(64), "64KB");
        assert_eq!(page_size_name(2048), "2MB");
        assert_eq!(page_size_name(1 << 20), "1GB");
    }
}
