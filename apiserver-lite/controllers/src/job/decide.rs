//! What to do about a Job: a pure function.
//!
//! Rules and words: upstream's `pkg/controller/job`. Every pod has a finalizer
//! until it is counted: an ended pod's uid first goes into the status
//! (`uncountedTerminatedPods`), then its finalizer is removed, then it moves
//! into the count. So no pod is counted twice or missed, whatever crashes.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use rkube_client::{EventType, clock};

use super::indexes;
use super::policy::{self, Action};
use crate::owner;
use crate::pods;
use crate::status::{count, some};

/// Held by the pods of Jobs until they are counted.
pub(super) const TRACKING: &str = "batch.kubernetes.io/job-tracking";
/// The index of a pod of an Indexed Job.
pub(super) const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Most pods that are made or removed at once (`MaxPodCreateDeletePerSync`).
const BURST_COUNT: usize = 500;
/// Most pods that are counted at once (`MaxUncountedPods`).
const UNCOUNTED_MAX_COUNT: usize = 500;

/// What is to be done, in this order: pods, status, finalizers.
#[derive(Debug, Default)]
pub(super) struct Step {
    /// Pods to make, each with its index where the Job has such.
    pub(super) create: Vec<Option<u32>>,
    /// Pods that are too many: they do not count as failed.
    pub(super) surplus: Vec<Arc<Pod>>,
    /// Pods that end with the Job.
    pub(super) end: Vec<Arc<Pod>>,
    /// The status.
    pub(super) status: JobStatus,
    /// Pods that are noted in the status and may go.
    pub(super) release: Vec<Arc<Pod>>,
    /// Events about the Job.
    pub(super) events: Vec<(EventType, &'static str, String)>,
    /// When to look again without any event.
    pub(super) again_at: Option<Timestamp>,
    /// Pods that have failed since the last step.
    pub(super) new_failures: usize,
    /// Whether some pod has succeeded since.
    pub(super) new_success: bool,
}

/// Whether pods may be made and removed now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leave {
    /// The informer shows everything that was done.
    pub(super) may_manage: bool,
    /// After failures, no new pod before this.
    pub(super) not_before: Option<Timestamp>,
}

pub(super) fn condition<'a>(status: &'a JobStatus, kind: &str) -> Option<&'a JobCondition> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|c| c.type_ == kind && c.status == "True")
}

/// Whether a Job is over.
pub(super) fn is_finished(status: &JobStatus) -> bool {
    condition(status, "Complete").is_some() || condition(status, "Failed").is_some()
}

fn set_condition(
    status: &mut JobStatus,
    kind: &str,
    state: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) {
    let conditions = status.conditions.get_or_insert_default();
    let now = Some(clock::time(now));
    let new = JobCondition {
        type_: kind.to_owned(),
        status: state.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_probe_time: now.clone(),
        last_transition_time: now,
    };
    match conditions.iter_mut().find(|c| c.type_ == kind) {
        Some(old) if old.status == state => {}
        Some(old) => *old = new,
        None => conditions.push(new),
    }
}

pub(super) fn is_tracked(pod: &Pod) -> bool {
    let mut finalizers = pod.metadata.finalizers.iter().flatten();
    finalizers.any(|f| f == TRACKING)
}

fn uid(pod: &Pod) -> &str {
    owner::uid(pod)
}

pub(super) fn index(pod: &Pod) -> Option<u32> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(INDEX)?.parse().ok()
}

fn is_indexed(spec: &JobSpec) -> bool {
    spec.completion_mode.as_deref() == Some("Indexed")
}

fn replaces_failed_only(spec: &JobSpec) -> bool {
    spec.pod_replacement_policy.as_deref() == Some("Failed")
}

/// The running count of a Job.
struct Tally<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    status: JobStatus,
    /// Noted and not yet counted, by uid.
    succeeded: BTreeSet<String>,
    failed: BTreeSet<String>,
    done_indexes: BTreeSet<u32>,
    failed_indexes: BTreeSet<u32>,
    /// What a rule of the failure policy says.
    verdict: Option<String>,
    step: Step,
}

/// Decides about a Job and its pods.
pub(super) fn step(job: &Job, pods: &[Arc<Pod>], leave: Leave, now: Timestamp) -> Step {
    let old = job.status.clone().unwrap_or_default();
    let Some(spec) = job.spec.as_ref() else {
        return Step::default();
    };
    if is_finished(&old) || owner::is_deleting(job) {
        return Step {
            release: pods.iter().filter(|p| is_tracked(p)).cloned().collect(),
            status: old,
            ..Step::default()
        };
    }
    let uncounted = old.uncounted_terminated_pods.clone().unwrap_or_default();
    let text = |text: &Option<String>| indexes::parse(text.as_deref().unwrap_or_default());
    let mut tally = Tally {
        job,
        spec,
        succeeded: uncounted.succeeded.into_iter().flatten().collect(),
        failed: uncounted.failed.into_iter().flatten().collect(),
        done_indexes: text(&old.completed_indexes),
        failed_indexes: text(&old.failed_indexes),
        status: old,
        verdict: None,
        step: Step::default(),
    };
    tally.suspend_or_start(now);
    tally.count_released(pods);
    tally.note_ended(pods);
    tally.finish(pods, leave, now)
}

impl Tally<'_> {
    fn is_suspended(&self) -> bool {
        self.spec.suspend == Some(true)
    }

    fn suspend_or_start(&mut self, now: Timestamp) {
        let told = condition(&self.status, "Suspended").is_some();
        if self.is_suspended() {
            if !told {
                let message = "Job suspended";
                set_condition(
                    &mut self.status,
                    "Suspended",
                    "True",
                    "JobSuspended",
                    message,
                    now,
                );
                self.tell(EventType::Normal, "Suspended", message);
            }
            return;
        }
        if told {
            let message = "Job resumed";
            set_condition(
                &mut self.status,
                "Suspended",
                "False",
                "JobResumed",
                message,
                now,
            );
            self.status.start_time = Some(clock::time(now));
            self.tell(EventType::Normal, "Resumed", message);
        } else if self.status.start_time.is_none() {
            self.status.start_time = Some(clock::time(now));
        }
    }

    fn tell(&mut self, kind: EventType, reason: &'static str, message: &str) {
        self.step.events.push((kind, reason, message.to_owned()));
    }

    /// Moves noted pods whose finalizer is gone into the counts.
    fn count_released(&mut self, pods: &[Arc<Pod>]) {
        let held: BTreeSet<&str> = pods
            .iter()
            .filter(|p| is_tracked(p))
            .map(|p| uid(p))
            .collect();
        let counted = |noted: &mut BTreeSet<String>| {
            let before = noted.len();
            noted.retain(|uid| held.contains(uid.as_str()));
            count(before - noted.len())
        };
        let (succeeded, failed) = (counted(&mut self.succeeded), counted(&mut self.failed));
        let add = |old: Option<i32>, more: i32| some(old.unwrap_or(0).saturating_add(more));
        if !is_indexed(self.spec) {
            self.status.succeeded = add(self.status.succeeded, succeeded);
        }
        self.status.failed = add(self.status.failed, failed);
    }

    /// Whether a pod has failed: one that is on its way out counts as such,
    /// unless the Job wants to see how it ends.
    fn has_failed(&self, pod: &Pod) -> bool {
        match pods::phase(pod) {
            "Failed" => true,
            "Succeeded" => false,
            _ => owner::is_deleting(pod) && !replaces_failed_only(self.spec),
        }
    }

    /// Notes pods that have ended, with their finalizers on.
    fn note_ended(&mut self, pods: &[Arc<Pod>]) {
        for pod in pods.iter().filter(|p| is_tracked(p)) {
            let noted = self.succeeded.len() + self.failed.len();
            let known = self.succeeded.contains(uid(pod)) || self.failed.contains(uid(pod));
            if known {
                self.step.release.push(Arc::clone(pod));
                continue;
            }
            if noted >= UNCOUNTED_MAX_COUNT {
                continue;
            }
            if pods::phase(pod) == "Succeeded" {
                self.note_success(pod);
            } else if self.has_failed(pod) {
                self.note_failure(pod);
            }
        }
    }

    fn note_success(&mut self, pod: &Arc<Pod>) {
        self.step.new_success = true;
        self.step.release.push(Arc::clone(pod));
        if is_indexed(self.spec) {
            // The set of indexes is the count.
            let last = self.spec.completions.and_then(|c| u32::try_from(c).ok());
            if let Some(index) = index(pod).filter(|i| last.is_none_or(|l| *i < l)) {
                self.done_indexes.insert(index);
            }
        } else {
            self.succeeded.insert(uid(pod).to_owned());
        }
    }

    fn note_failure(&mut self, pod: &Arc<Pod>) {
        self.step.release.push(Arc::clone(pod));
        match policy::action(self.job, pod) {
            Action::Ignore => return,
            Action::FailJob(message) => {
                self.verdict.get_or_insert(message);
            }
            Action::FailIndex => {
                self.failed_indexes.extend(index(pod));
            }
            Action::Count => {}
        }
        self.step.new_failures += 1;
        self.failed.insert(uid(pod).to_owned());
    }

    fn succeeded_total(&self) -> i32 {
        if is_indexed(self.spec) {
            count(self.done_indexes.len())
        } else {
            let counted = self.status.succeeded.unwrap_or(0);
            counted.saturating_add(count(self.succeeded.len()))
        }
    }

    fn failed_total(&self) -> i32 {
        let counted = self.status.failed.unwrap_or(0);
        counted.saturating_add(count(self.failed.len()))
    }

    /// Why the Job fails, if it does: reason and message.
    fn failure(&mut self, pods: &[Arc<Pod>], now: Timestamp) -> Option<(&'static str, String)> {
        if let Some(target) = condition(&self.status, "FailureTarget") {
            let reason = match target.reason.as_deref() {
                Some("DeadlineExceeded") => "DeadlineExceeded",
                Some("PodFailurePolicy") => "PodFailurePolicy",
                Some("FailedIndexes") => "FailedIndexes",
                _ => "BackoffLimitExceeded",
            };
            return Some((reason, target.message.clone().unwrap_or_default()));
        }
        if let Some(message) = self.verdict.take() {
            return Some(("PodFailurePolicy", message));
        }
        let limit = self.spec.backoff_limit.unwrap_or(6);
        if self.failed_total() > limit || self.restarts_exceed(pods, limit) {
            let message = "Job has reached the specified backoff limit".to_owned();
            return Some(("BackoffLimitExceeded", message));
        }
        if let Some(at) = self.deadline() {
            if at <= now {
                let message = "Job was active longer than specified deadline".to_owned();
                return Some(("DeadlineExceeded", message));
            }
            self.step.again_at = Some(at);
        }
        let most = self.spec.max_failed_indexes;
        if most.is_some_and(|most| count(self.failed_indexes.len()) > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(("MaxFailedIndexesExceeded", message.to_owned()));
        }
        None
    }

    fn deadline(&self) -> Option<Timestamp> {
        if self.is_suspended() {
            return None;
        }
        let seconds = self.spec.active_deadline_seconds?;
        let start = self.status.start_time.as_ref()?.0.as_second();
        Timestamp::from_second(start.saturating_add(seconds)).ok()
    }

    /// Where containers are restarted in place, restarts count as failures.
    fn restarts_exceed(&self, pods: &[Arc<Pod>], limit: i32) -> bool {
        let template = self.spec.template.spec.as_ref();
        if template.and_then(|s| s.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let running = pods
            .iter()
            .filter(|p| matches!(pods::phase(p), "Running" | "Pending"));
        let restarts: i32 = running
            .filter_map(|p| p.status.as_ref())
            .flat_map(|s| {
                let main = s.container_statuses.iter().flatten();
                main.chain(s.init_container_statuses.iter().flatten())
            })
            .map(|c| c.restart_count)
            .fold(0, i32::saturating_add);
        if limit == 0 {
            restarts > 0
        } else {
            restarts >= limit
        }
    }

    fn finish(mut self, pods: &[Arc<Pod>], leave: Leave, now: Timestamp) -> Step {
        let mut active: Vec<Arc<Pod>> = pods
            .iter()
            .filter(|p| pods::is_active(p))
            .cloned()
            .collect();
        let terminating = pods.iter().filter(|p| pods::is_terminating(p)).count();
        let failure = self.failure(pods, now);
        let mut removed = 0;
        if let Some((reason, message)) = failure {
            set_condition(
                &mut self.status,
                "FailureTarget",
                "True",
                reason,
                &message,
                now,
            );
            removed = active.len();
            self.step.end = std::mem::take(&mut active);
            if removed == 0 && terminating == 0 && self.all_counted() {
                set_condition(&mut self.status, "Failed", "True", reason, &message, now);
                self.tell(EventType::Warning, reason, &message);
            }
        } else if self.is_successful(active.len()) {
            let (reason, message) = (
                "CompletionsReached",
                "Reached expected number of succeeded pods",
            );
            set_condition(
                &mut self.status,
                "SuccessCriteriaMet",
                "True",
                reason,
                message,
                now,
            );
            if terminating == 0 && self.all_counted() {
                set_condition(&mut self.status, "Complete", "True", reason, message, now);
                self.status.completion_time = Some(clock::time(now));
                self.tell(EventType::Normal, "Completed", "Job completed");
            }
        } else if leave.may_manage {
            self.manage(&active, terminating, leave, now);
        }
        let made = self.step.create.len();
        let gone = self.step.surplus.len();
        let ready = active.iter().filter(|p| pods::is_ready(p)).count();
        let status = &mut self.status;
        status.active = some(count(active.len() + made - gone));
        status.ready = Some(count(ready));
        status.terminating = Some(count(terminating + removed));
        let list = |set: BTreeSet<String>| {
            Some(set.into_iter().collect::<Vec<_>>()).filter(|l| !l.is_empty())
        };
        status.uncounted_terminated_pods = Some(UncountedTerminatedPods {
            succeeded: list(self.succeeded),
            failed: list(self.failed),
        });
        if is_indexed(self.spec) {
            let text = indexes::format(&self.done_indexes);
            status.succeeded = some(count(self.done_indexes.len()));
            status.completed_indexes = Some(text).filter(|t| !t.is_empty());
            let failed = indexes::format(&self.failed_indexes);
            let per_index = self.spec.backoff_limit_per_index.is_some();
            status.failed_indexes = per_index.then_some(failed);
        }
        self.step.status = self.status;
        self.step
    }

    fn all_counted(&self) -> bool {
        self.succeeded.is_empty() && self.failed.is_empty() && self.step.release.is_empty()
    }

    fn is_successful(&self, active: usize) -> bool {
        let done = self.succeeded_total();
        let enough = self.spec.completions.map_or(done > 0, |all| done >= all);
        enough && active == 0
    }

    /// Makes or removes pods.
    fn manage(&mut self, active: &[Arc<Pod>], terminating: usize, leave: Leave, now: Timestamp) {
        let parallelism = usize::try_from(self.spec.parallelism.unwrap_or(1)).unwrap_or(0);
        let done = usize::try_from(self.succeeded_total()).unwrap_or(0);
        let completions = self.spec.completions.and_then(|c| usize::try_from(c).ok());
        let wanted = match completions {
            _ if self.is_suspended() => 0,
            None if done > 0 => active.len().min(parallelism),
            None => parallelism,
            Some(all) => all.saturating_sub(done).min(parallelism),
        };
        let doubles = self.doubles(active);
        let surplus = active.len().saturating_sub(wanted).max(doubles.len());
        if surplus > 0 {
            let mut order = active.to_vec();
            pods::sort_for_removal(&mut order, &std::collections::HashMap::new(), now);
            // Those whose index is taken or done go first.
            order.sort_by_key(|p| !doubles.contains(uid(p)));
            order.truncate(surplus.min(BURST_COUNT));
            self.step.surplus = order;
            return;
        }
        let held = if replaces_failed_only(self.spec) {
            terminating
        } else {
            0
        };
        let missing = wanted.saturating_sub(active.len() + held).min(BURST_COUNT);
        if missing == 0 {
            return;
        }
        if let Some(at) = leave.not_before.filter(|at| *at > now) {
            let sooner = self.step.again_at.map_or(at, |a| a.min(at));
            self.step.again_at = Some(sooner);
            return;
        }
        self.step.create = if is_indexed(self.spec) {
            let taken: BTreeSet<u32> = active.iter().filter_map(|p| index(p)).collect();
            let all = u32::try_from(self.spec.completions.unwrap_or(0)).unwrap_or(0);
            let free = (0..all).filter(|i| {
                !taken.contains(i)
                    && !self.done_indexes.contains(i)
                    && !self.failed_indexes.contains(i)
            });
            free.take(missing).map(Some).collect()
        } else {
            vec![None; missing]
        };
    }

    /// Active pods of an Indexed Job whose index is done or taken twice.
    fn doubles(&self, active: &[Arc<Pod>]) -> BTreeSet<String> {
        let mut doubles = BTreeSet::new();
        if !is_indexed(self.spec) {
            return doubles;
        }
        let mut seen = BTreeSet::new();
        for pod in active {
            let fine =
                index(pod).is_some_and(|i| !self.done_indexes.contains(&i) && seen.insert(i));
            if !fine {
                doubles.insert(uid(pod).to_owned());
            }
        }
        doubles
    }
}
