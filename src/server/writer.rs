//! Becoming the writer of a root: a supervisor gives way and leaves its pods
//! to their keepers; another server or agent does not.

use anyhow::Context;
use rkube_engine::instance::Instance;

use crate::client::{Client, runtime};
use crate::supervisor::locks::{self, Lock, LockError};
use crate::wire::{Failure, Role, socket};

/// How often a writer may come back just when it was ended.
const MAX_TRIES: u32 = 16;

/// The locks of a writer that begins: `start` is let go once it listens.
pub(crate) struct Locks {
    pub(crate) start: Lock,
    pub(crate) writer: Lock,
}

/// Takes the root over.
pub(crate) fn take(instance: &Instance) -> anyhow::Result<Locks> {
    let run_dir = instance.run_dir();
    socket::make_run_dir(&run_dir)
        .with_context(|| format!("create directory {}", run_dir.display()))?;
    for _ in 0..MAX_TRIES {
        let start = locks::start(&run_dir)?;
        match locks::writer(&run_dir) {
            Ok(writer) => return Ok(Locks { start, writer }),
            Err(LockError::Busy) => {}
            Err(error) => return Err(error.into()),
        }
        // Whoever ends needs this one for its end.
        drop(start);
        let other = runtime()?.block_on(async {
            let client = Client::connect(instance).await?;
            anyhow::Ok(client)
        })?;
        let Some(other) = other else { continue };
        if other.role() != Role::Supervisor {
            let command = other.role().command();
            let pid = other.writer_pid().unwrap_or_default();
            return Err(Failure::new(format!(
                "`{command}` (pid {pid}) serves {} already",
                instance.root.display()
            ))
            .hint("end it with SIGTERM, or use another --root")
            .into());
        }
        tracing::info!("a supervisor gives way");
        other.end_writer()?;
    }
    anyhow::bail!(
        "a supervisor of {} comes back each time that it is ended",
        instance.root.display()
    )
}
