//! A world for tests, whose containers do what a script says.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, UNIX_EPOCH};

use serde_json::Value;

use super::*;
use crate::pod::tests::pod as pod_of;

/// What one attempt of a container does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// Ends by itself after this time.
    pub(super) after: Option<u64>,
    pub(super) code: i32,
    /// Ends this long after the stop signal; never if `None`.
    pub(super) obeys: Option<u64>,
}

pub(super) const FOREVER: Run = Run {
    after: None,
    code: 0,
    obeys: Some(0),
};
pub(super) const STUBBORN: Run = Run {
    after: None,
    code: 0,
    obeys: None,
};

pub(super) fn ends(after: u64, code: i32) -> Run {
    Run {
        after: Some(after),
        code,
        obeys: Some(0),
    }
}

pub(super) struct World {
    pub(super) desired: Desired,
    pub(super) state: PodState,
    pub(super) failures: Failures,
    pub(super) now: SystemTime,
    pub(super) scripts: BTreeMap<String, VecDeque<Run>>,
    pub(super) hook_seconds: u64,
    pub(super) news: Vec<(SystemTime, Report)>,
    pub(super) running: BTreeMap<String, (u32, Run)>,
    pub(super) log: Vec<String>,
    pub(super) forgotten: bool,
    pub(super) sandbox_fails: u32,
}

impl World {
    pub(super) fn new(spec: Value, scripts: &[(&str, &[Run])]) -> Self {
        let pod = pod_of(spec);
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Self {
            state: PodState::new(&pod, now),
            desired: Desired {
                pod,
                deletion: None,
            },
            failures: Failures::default(),
            now,
            scripts: scripts
                .iter()
                .map(|(name, runs)| ((*name).to_owned(), runs.iter().copied().collect()))
                .collect(),
            hook_seconds: 0,
            news: Vec::new(),
            running: BTreeMap::new(),
            log: Vec::new(),
            forgotten: false,
            sandbox_fails: 0,
        }
    }

    pub(super) fn seconds(&self) -> u64 {
        self.now.duration_since(UNIX_EPOCH).unwrap().as_secs() - 1_700_000_000
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        let line = format!("{:>4} {}", self.seconds(), text.into());
        self.log.push(line);
    }

    pub(super) fn later(&mut self, seconds: u64, report: Report) {
        self.news
            .push((self.now + Duration::from_secs(seconds), report));
    }

    pub(super) fn exit(&mut self, name: &str, attempt: u32, after: u64, code: i32) {
        let end = Termination::of_exit(
            attempt,
            &rkube_engine::api::Exit {
                code,
                signal: None,
                finished_at: self.now + Duration::from_secs(after),
                oom_killed: false,
            },
        );
        self.later(
            after,
            Report::Exited {
                name: name.to_owned(),
                end,
            },
        );
    }

    pub(super) fn act(&mut self, action: Action) {
        match action {
            Action::MakeVolumes => self.later(0, Report::VolumesMade(Ok(()))),
            Action::RemoveVolumes => {
                self.note("remove volumes");
                self.later(0, Report::VolumesRemoved);
            }
            Action::MakeSandbox if self.sandbox_fails > 0 => {
                self.sandbox_fails -= 1;
                self.note("sandbox fails");
                let refusal = Refusal {
                    reason: "FailedCreatePodSandBox".into(),
                    message: "no".into(),
                };
                self.later(0, Report::SandboxMade(Err(refusal)));
            }
            Action::MakeSandbox => {
                self.note("sandbox");
                self.later(
                    0,
                    Report::SandboxMade(Ok(vec!["10.0.0.2".parse().unwrap()])),
                );
            }
            Action::RemoveSandbox => {
                self.note("remove sandbox");
                self.running.clear();
                self.later(0, Report::SandboxRemoved(Ok(())));
            }
            Action::Start { name, attempt } => {
                self.note(format!("start {name}/{attempt}"));
                let script = self.scripts.entry(name.clone()).or_default();
                let run = script.pop_front().unwrap_or(FOREVER);
                if run.code == 128 {
                    self.later(
                        0,
                        Report::StartFailed {
                            name,
                            attempt,
                            message: "no such file".into(),
                        },
                    );
                    return;
                }
                let started_at = self.now;
                self.later(
                    0,
                    Report::Started {
                        name: name.clone(),
                        attempt,
                        started_at,
                        image_id: "img".into(),
                    },
                );
                if let Some(after) = run.after {
                    self.exit(&name, attempt, after, run.code);
                }
                self.running.insert(name, (attempt, run));
            }
            Action::PostStart { name, attempt } => {
                self.note(format!("postStart {name}"));
                self.later(
                    self.hook_seconds,
                    Report::PostStarted {
                        name,
                        attempt,
                        result: Ok(()),
                    },
                );
            }
            Action::PreStop {
                name,
                attempt,
                grace_seconds,
            } => {
                self.note(format!("preStop {name} {grace_seconds}"));
                self.later(self.hook_seconds, Report::PreStopped { name, attempt });
            }
            Action::Signal {
                name,
                attempt,
                kill,
            } => {
                self.note(format!("{} {name}", if kill { "kill" } else { "term" }));
                let run = self
                    .running
                    .get(&name)
                    .filter(|(a, _)| *a == attempt)
                    .map(|(_, r)| *r);
                match run {
                    Some(_) if kill => self.exit(&name, attempt, 0, 137),
                    Some(Run {
                        obeys: Some(after), ..
                    }) => self.exit(&name, attempt, after, 143),
                    _ => {}
                }
            }
        }
    }

    /// Lives on until `until` seconds have passed since the beginning.
    pub(super) fn until(&mut self, until: u64) -> &mut Self {
        let end = UNIX_EPOCH + Duration::from_secs(1_700_000_000 + until);
        for _ in 0..100_000 {
            let step = step(&self.desired, &mut self.state, self.now);
            let twice = super::step(&self.desired, &mut self.state, self.now);
            assert_eq!(twice.actions, Vec::new(), "an action was asked for twice");
            // A record must say the same after a round trip.
            let text = serde_json::to_string(&self.state).unwrap();
            assert_eq!(serde_json::from_str::<PodState>(&text).unwrap(), self.state);
            if step.forget {
                self.forgotten = true;
                return self;
            }
            for action in step.actions {
                self.act(action);
            }
            self.news.sort_by_key(|(at, _)| *at);
            let next = self.news.first().map(|(at, _)| *at);
            let wake = [next, twice.wake_at].into_iter().flatten().min();
            match wake {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => {
                    self.now = end;
                    return self;
                }
            }
            while self.news.first().is_some_and(|(at, _)| *at <= self.now) {
                let (_, report) = self.news.remove(0);
                fold(
                    &self.desired,
                    &mut self.state,
                    &mut self.failures,
                    report,
                    self.now,
                );
            }
        }
        panic!(
            "the pod never rests: {:#?}",
            &self.log[self.log.len() - 10..]
        );
    }

    pub(super) fn delete(&mut self, grace_seconds: Option<u64>) -> &mut Self {
        self.desired.deletion = Some(Deletion {
            at: self.now,
            grace_seconds,
            keep: false,
        });
        self
    }

    pub(super) fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
            .into_iter()
            .map(|l| l.trim().to_owned())
            .collect()
    }
}
