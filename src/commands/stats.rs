//! `rkube stats`: use of processors, memory and processes.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::Stats;
use crate::client::{Client, runtime, unexpected};
use crate::output::{self, Shape, Table};
use crate::wire::{Reply, Request};

/// Time between two looks, over which the use of processors is averaged.
const INTERVAL: Duration = Duration::from_secs(1);

/// One look at all containers.
struct Sample {
    at: Instant,
    rows: Vec<Value>,
}

async fn sample(client: &mut Client) -> anyhow::Result<Sample> {
    match client.call(&Request::Stats).await? {
        Reply::Value(Value::Array(rows)) => Ok(Sample {
            at: Instant::now(),
            rows,
        }),
        other => Err(unexpected(&other)),
    }
}

pub(super) fn stats(root: &Path, args: &Stats) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let Some(mut client) = Client::look(root).await? else {
            let empty = Sample {
                at: Instant::now(),
                rows: Vec::new(),
            };
            return print(&empty, &empty, args);
        };
        let mut before = sample(&mut client).await?;
        if matches!(
            output::shape(args.output),
            Shape::Document(_) | Shape::Names
        ) {
            return print(&before, &before, args);
        }
        loop {
            tokio::time::sleep(INTERVAL).await;
            let now = sample(&mut client).await?;
            if !args.no_stream && std::io::stdout().is_terminal() {
                // Cursor home, clear the screen (ECMA-48).
                output::print("\x1b[H\x1b[2J")?;
            }
            print(&before, &now, args)?;
            if args.no_stream {
                return Ok(());
            }
            before = now;
        }
    })?;
    Ok(0)
}

fn print(before: &Sample, now: &Sample, args: &Stats) -> anyhow::Result<()> {
    let text = match output::shape(args.output) {
        Shape::Document(format) => output::document(&now.rows, format)?,
        Shape::Names => now.rows.iter().map(|r| name(r) + "\n").collect(),
        Shape::Table { wide } => table(before, now, wide),
    };
    output::print(&text)
}

fn word<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

fn name(row: &Value) -> String {
    format!(
        "{}/{}/{}",
        word(row, "namespace"),
        word(row, "pod"),
        word(row, "container")
    )
}

fn number(row: &Value, pointer: &str) -> Option<u64> {
    row.pointer(pointer)?.as_u64()
}

/// The run of a container that counters belong to.
fn key(row: &Value) -> String {
    format!(
        "{}/{}/{}",
        word(row, "uid"),
        word(row, "container"),
        row["attempt"]
    )
}

/// `part` of `whole` in tenths of a percent, as text.
fn percent(part: u128, whole: u128) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let tenths = (part * 1000 + whole / 2) / whole;
    format!("{}.{}%", tenths / 10, tenths % 10)
}

fn table(before: &Sample, now: &Sample, wide: bool) -> String {
    let elapsed_us = now.at.duration_since(before.at).as_micros();
    let old: BTreeMap<String, &Value> = before.rows.iter().map(|r| (key(r), r)).collect();
    let bytes = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), output::bytes);
    let count = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let mut table = if wide {
        Table::new(&[
            "NAME",
            "CPU",
            "CPU TIME",
            "THROTTLED",
            "THROTTLED TIME",
            "MEMORY",
            "LIMIT",
            "MEM",
            "PEAK",
            "RSS",
            "PIDS",
            "OOM KILLS",
        ])
    } else {
        Table::new(&[
            "NAME",
            "CPU",
            "THROTTLED",
            "MEMORY",
            "LIMIT",
            "MEM",
            "PIDS",
            "OOM KILLS",
        ])
    };
    for row in &now.rows {
        let used = number(row, "/stats/cpu/usage_usec");
        let earlier = old
            .get(&key(row))
            .and_then(|r| number(r, "/stats/cpu/usage_usec"));
        let cpu = match (used, earlier) {
            (Some(used), Some(earlier)) => percent(used.saturating_sub(earlier).into(), elapsed_us),
            _ => "-".to_owned(),
        };
        let periods = number(row, "/stats/cpu/periods").unwrap_or(0);
        let throttled = number(row, "/stats/cpu/throttled_periods").unwrap_or(0);
        let throttled = if periods == 0 {
            "-".to_owned()
        } else {
            format!("{throttled}/{periods}")
        };
        let memory = number(row, "/stats/memory/working_set_bytes");
        let limit = number(row, "/stats/memory/limit_bytes");
        let share = match (memory, limit) {
            (Some(memory), Some(limit)) => percent(memory.into(), limit.into()),
            _ => "-".to_owned(),
        };
        let pids = count(number(row, "/stats/pids/current"));
        let kills = count(number(row, "/stats/memory/oom_kills"));
        if wide {
            let time = |n: Option<u64>| {
                n.map_or_else(
                    || "-".to_owned(),
                    |us| format!("{}.{:03}s", us / 1_000_000, us / 1000 % 1000),
                )
            };
            let throttled_time = time(number(row, "/stats/cpu/throttled_usec"));
            let (peak, rss) = (
                number(row, "/stats/memory/peak_bytes"),
                number(row, "/stats/memory/rss_bytes"),
            );
            table.row([
                name(row),
                cpu,
                time(used),
                throttled,
                throttled_time,
                bytes(memory),
                bytes(limit),
                share,
                bytes(peak),
                bytes(rss),
                pids,
                kills,
            ]);
        } else {
            table.row([
                name(row),
                cpu,
                throttled,
                bytes(memory),
                bytes(limit),
                share,
                pids,
                kills,
            ]);
        }
    }
    table.text()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn use_of_processors_is_that_between_two_looks() {
        let row = |usage: u64| {
            json!({"namespace": "default", "pod": "p", "uid": "u", "container": "a", "attempt": 0, "stats": {
                "cpu": {"usage_usec": usage, "periods": 10, "throttled_periods": 9},
                "memory": {"working_set_bytes": 16 << 20, "limit_bytes": 64 << 20, "oom_kills": 0},
                "pids": {"current": 3}}})
        };
        let at = Instant::now();
        let before = Sample {
            at,
            rows: vec![row(1000)],
        };
        let now = Sample {
            at: at + Duration::from_secs(1),
            rows: vec![row(101_000)],
        };
        let text = table(&before, &now, false);
        let cells: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            cells,
            [
                "default/p/a",
                "10.0%",
                "9/10",
                "16Mi",
                "64Mi",
                "25.0%",
                "3",
                "0"
            ]
        );
        assert!(table(&before, &before, true).contains(" - "));
    }
}
