//! The plan of a further process in a running container.

use rkube_keeper::plan::{Join, Step};

use super::{Draft, ExecInput, Source, attach, process, streams};
use crate::error::Result;

/// Drafts the plan of an exec: joins, no steps, a program.
///
/// # Errors
/// The field of the process that breaks a rule or cannot be honoured.
pub fn plan_exec(input: ExecInput<'_>) -> Result<Draft> {
    let mut draft = Draft::default();
    draft.plan.id = input.id.to_owned();
    if !input.joins.is_empty() {
        // One by one: whoever gets into a user namespace may not look at the
        // container's first process any more.
        for (kind, fd) in input.joins {
            let fd = draft.source(Source::Open(fd))?;
            let kind = crate::spec::namespace_flag(kind);
            draft.plan.joins.push(Join { kind, fd });
        }
    } else if input.namespaces != 0 {
        let fd = draft.source(Source::Open(input.target))?;
        draft.plan.joins.push(Join {
            kind: input.namespaces,
            fd,
        });
    }
    draft.plan.stream_owner = input.stream_owner;
    if let Some(fds) = input.attach {
        attach(&mut draft, fds)?;
    }
    process::add(
        &mut draft,
        input.process,
        input.home.as_deref(),
        input.grantable,
    )?;
    draft.plan.program.personality = process::personality(input.personality)?;
    process::seccomp(&mut draft, input.seccomp, input.seccomp_cache, &|| {
        input.state.clone()
    })?;
    let affinity = input.process.exec_cpu_affinity().as_ref();
    let list = affinity.and_then(|a| a.cpu_affinity_final().as_deref());
    if let Some(list) = list.filter(|list| !list.is_empty()) {
        // After the cgroup has been joined, which may have changed it.
        let cpus = super::number_mask("process.execCPUAffinity.final", list)?;
        draft.plan.start_steps.push(Step::CpuAffinity { cpus });
    }
    streams(&mut draft, input.stdio, input.extra_fds)?;
    Ok(draft)
}
