//! Kills at every system call of every command.

use anyhow::{Context, ensure};

use super::{Driven, sample, where_cgroup2_is_alone};
use crate::host::TestHost;
use crate::tracer::{Act, End};

/// Points of a sample.
const SAMPLE: usize = 40;
/// A run makes a few calls more or less than another: this many of the last
/// ones are not among the points of a sample.
const UNSURE_CALLS: usize = 12;

/// One kill.
#[derive(Debug, Clone, Copy)]
struct Point {
    command: usize,
    /// Before the call of this number.
    count: usize,
    /// All processes of the command, or the one that makes the call.
    all: bool,
}

pub(super) fn at_any_call(host: &TestHost) -> anyhow::Result<()> {
    let driven = Driven::new(host, &["/bin/sleep", "100000"], |_| ())?;
    let (bundle, id) = (driven.bundle.as_str(), driven.id.as_str());
    let create = ["create", "--bundle", bundle, id];
    let commands: [&[&str]; 5] = [
        &create,
        &["start", id],
        &["exec", id, "/bin/true"],
        &["delete", "--force", id],
        &["run", "--detach", "--bundle", bundle, id],
    ];
    let prepare = |args: &[&str]| -> anyhow::Result<()> {
        if matches!(args[0], "start" | "exec" | "delete") {
            driven.run(&create)?;
        }
        if matches!(args[0], "exec" | "delete") {
            driven.run(&["start", id])?;
        }
        Ok(())
    };
    let mut all = Vec::new();
    for (command, args) in commands.into_iter().enumerate() {
        prepare(args)?;
        let mut calls = 0;
        let (end, _, said) = driven.traced(args, &mut |call| {
            calls = call.count;
            Act::Go
        })?;
        ensure!(
            end == End::Exited(0),
            "{args:?} under the tracer: {end:?} {said}"
        );
        driven.run(&["delete", "--force", id])?;
        println!("{} makes {calls} calls", args[0]);
        let last = calls.checked_sub(UNSURE_CALLS).context("hardly a call")?;
        all.extend((1..=last).flat_map(|count| {
            [false, true].map(|all| Point {
                command,
                count,
                all,
            })
        }));
    }
    let points = sample(host, SAMPLE, all)?;
    println!("{} points", points.len());
    for point in points {
        let args = commands[point.command];
        prepare(args)?;
        let mut killed = false;
        let mut decide = |call: &crate::tracer::Call| {
            if call.count != point.count {
                return Act::Go;
            }
            killed = true;
            if point.all { Act::KillAll } else { Act::Kill }
        };
        let after = || format!("{} at {point:?}", args[0]);
        driven.traced(args, &mut decide).with_context(after)?;
        ensure!(killed, "{}: no such call was made", after());
        driven.run(&["delete", "--force", id]).with_context(after)?;
        driven.nothing_is_left(&after())?;
    }
    Ok(())
}

pub(super) fn on_cgroup2(host: &TestHost) -> anyhow::Result<()> {
    where_cgroup2_is_alone(|| at_any_call(host))
}
