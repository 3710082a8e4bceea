//! Alarms on the pressure that containers feel.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::Mutex;

use rkube_cgroup::pressure::{Alarm, PressureWatch};
use rkube_cgroup::{Cgroup, Error as CgroupError};
use rustix::io::Errno;

use crate::api::{ContainerId, Event};
use crate::engine::Inner;
use crate::error::{Error, OnFile, Result, chain};
use crate::link::lock;

/// Alarms that are set, by the number of their watch.
#[derive(Debug, Default)]
pub(crate) struct Alarms(Mutex<HashMap<u64, Set>>);

#[derive(Debug)]
struct Set {
    id: ContainerId,
    alarm: Alarm,
    watch: PressureWatch,
}

impl Inner {
    /// Sets a container's alarms, all or none.
    pub(crate) fn set_alarms(
        &self,
        id: &ContainerId,
        alarms: &[Alarm],
        group: &Cgroup,
    ) -> Result<()> {
        for alarm in alarms {
            let set = group.pressure_watch(*alarm).map_err(|e| refused(id, &e));
            let set = set.and_then(|watch| self.set_alarm(id, *alarm, watch));
            if let Err(error) = set {
                self.drop_alarms(id);
                return Err(error);
            }
        }
        Ok(())
    }

    fn set_alarm(&self, id: &ContainerId, alarm: Alarm, watch: PressureWatch) -> Result<()> {
        let mut all = lock(&self.alarms.0);
        // The reader may tell of it at once, and then waits for this guard.
        let number = self.reader()?.watch(watch.as_fd());
        let number = number.on("watch", std::path::Path::new("pressure"))?;
        let id = id.clone();
        all.insert(number, Set { id, alarm, watch });
        Ok(())
    }

    /// A container's alarms go.
    pub(crate) fn drop_alarms(&self, id: &ContainerId) {
        let mut gone = Vec::new();
        {
            let mut all = lock(&self.alarms.0);
            let numbers: Vec<u64> = all
                .iter()
                .filter(|(_, s)| s.id == *id)
                .map(|(n, _)| *n)
                .collect();
            gone.extend(
                numbers
                    .into_iter()
                    .filter_map(|n| Some((n, all.remove(&n)?))),
            );
        }
        // The guard is gone before the reader's own lock is taken.
        for (number, set) in gone {
            if let Ok(reader) = self.reader() {
                reader.unwatch(number, set.watch.as_fd());
            }
        }
    }

    /// The reader's thread: a watch has fired; whether it was an alarm.
    pub(crate) fn on_alarm(&self, number: u64) -> bool {
        let told = lock(&self.alarms.0)
            .get(&number)
            .map(|s| (s.id.clone(), s.alarm));
        let Some((id, alarm)) = told else {
            return false;
        };
        self.emit(Event::Pressure { id, alarm });
        true
    }
}

/// What a host cannot do is the configuration's fault.
fn refused(id: &ContainerId, error: &CgroupError) -> Error {
    let hint = match error {
        CgroupError::Write { source, .. } if *source == Errno::INVAL => {
            " (without CAP_SYS_RESOURCE, windows are multiples of 2 s)"
        }
        _ => "",
    };
    Error::Invalid {
        object: format!("container {id}"),
        what: format!("{}{hint}", chain(error)),
    }
}
