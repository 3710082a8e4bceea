//! `pods/eviction`: a deletion that asks the disruption budgets first
//! (`pkg/registry/core/pod/storage/eviction.go` of upstream).

use rkube_api::resources::{self, Gvk};
use rkube_api::selector::LabelSelector;
use rkube_api::status::{Named, Status};
use rkube_api::time::Time;
use rkube_store::{Key, StoreError, Value as Stored, Write};
use serde_json::{Value, json};

use super::binding::{set_condition, success};
use crate::admission::Operation;
use crate::codec;
use crate::engine::decode::{self, Expected};
use crate::engine::{Answer, Engine, Warnings, meta, render};
use crate::objects::{decode as decode_record, key, store_status};
use crate::request::Request;

const EVICTION: Gvk = Gvk {
    group: "policy",
    version: "v1",
    kind: "Eviction",
};

/// How often a budget or pod that another write changed is tried again.
const RETRIES_MAX: usize = 20;
/// Pods that a budget counts as disrupted while its controller has not seen them
/// (`MaxDisruptedPodSize` of upstream).
const DISRUPTED_PODS_MAX: usize = 2000;
/// Seconds after which to ask again while a budget is not yet processed.
const RETRY_S: u32 = 10;

/// What a budget says.
#[derive(Debug, PartialEq)]
enum Verdict {
    /// The eviction may go on; the budget so changed.
    Take(Value),
    /// Not now.
    Wait(Status),
}

fn too_many(retry_s: u32, cause: String) -> Status {
    let mut status = Status::too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        retry_s,
    );
    let cause = json!({"reason": "DisruptionBudget", "message": cause});
    status.details.insert("causes".into(), vec![cause].into());
    status
}

/// Asks a budget about one more disruption.
fn ask(budget: &Value, pod: &str, now: Time) -> Verdict {
    let name = meta::text(budget, "name");
    let int = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    if int("observedGeneration") < meta::generation(budget) {
        let cause = format!("The disruption budget {name} is still being processed by the server.");
        return Verdict::Wait(too_many(RETRY_S, cause));
    }
    let forbidden = |why: &str| {
        let named = Named {
            group: "policy",
            resource: "poddisruptionbudgets",
            name,
        };
        Verdict::Wait(Status::forbidden(named, why))
    };
    let allowed = int("disruptionsAllowed");
    if allowed < 0 {
        return forbidden("pdb disruptions allowed is negative");
    }
    let disrupted = budget["status"]["disruptedPods"].as_object();
    if disrupted.is_some_and(|d| d.len() > DISRUPTED_PODS_MAX) {
        return forbidden(
            "DisruptedPods map too big - too many evictions not confirmed by PDB controller",
        );
    }
    if allowed == 0 {
        let cause = format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            int("desiredHealthy"),
            int("currentHealthy")
        );
        return Verdict::Wait(too_many(0, cause));
    }
    let mut budget = budget.clone();
    budget["status"]["disruptionsAllowed"] = (allowed - 1).into();
    let stamp = Time::from_seconds(now.seconds).to_rfc3339();
    budget["status"]["disruptedPods"][pod] = stamp.into();
    Verdict::Take(budget)
}

/// Whether a pod counts for no budget: it does not run, or ends already.
fn is_free(pod: &Value) -> bool {
    let phase = pod["status"]["phase"].as_str().unwrap_or("");
    meta::is_deleting(pod) || matches!(phase, "Succeeded" | "Failed" | "Pending")
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Whether a pod that is not ready may go without asking (`unhealthyPodEvictionPolicy`).
fn skips_budget(pod: &Value, budget: &Value) -> bool {
    if is_ready(pod) {
        return false;
    }
    let int = |field: &str| budget["status"][field].as_i64().unwrap_or(0);
    match budget["spec"]["unhealthyPodEvictionPolicy"].as_str() {
        Some("AlwaysAllow") => true,
        _ => int("currentHealthy") >= int("desiredHealthy") && int("desiredHealthy") > 0,
    }
}

impl Engine {
    pub(in crate::engine) async fn evict(
        &self,
        request: &Request,
        warnings: &mut Warnings,
    ) -> Result<Answer, Status> {
        let expected = Expected {
            gvk: EVICTION,
            validation: request.options.field_validation,
            required: false,
        };
        let (mut body, doubled) = decode::value(&request.body, request.body_type)?;
        if body["apiVersion"] == "policy/v1beta1" {
            // Old clients; the fields are the same.
            body["apiVersion"] = "policy/v1".into();
        }
        let eviction = decode::object(body, doubled, &expected, warnings)?;
        if meta::text(&eviction, "name") != request.name {
            return Err(Status::bad_request(
                "name in URL does not match name in Eviction object",
            ));
        }
        let mut call = self.admission_call(request, Operation::Create, eviction, Value::Null);
        self.admission().admit(&mut call).await?;
        self.admission().validate(&mut call).await?;
        warnings.append(&mut call.warnings);
        let mut deletion = request.clone();
        deletion.subresource = None;
        deletion.body = bytes::Bytes::new();
        let mut options = request.options.clone();
        if call.object["deleteOptions"].is_object() {
            let dry_run = options.dry_run;
            options.set_delete_body(&call.object["deleteOptions"])?;
            options.dry_run |= dry_run;
        }
        let pod = decode_record(request.resource, &self.record(&deletion)?)?;
        if !is_free(&pod) {
            self.ask_budgets(request, &pod, options.dry_run).await?;
            if !options.dry_run {
                self.tell_disruption(&deletion).await?;
            }
        }
        self.delete_object(&deletion, &options, warnings).await?;
        render::value(request, 201, &success())
    }

    async fn ask_budgets(
        &self,
        request: &Request,
        pod: &Value,
        dry_run: bool,
    ) -> Result<(), Status> {
        let labels = pod["metadata"]["labels"].as_object();
        let budgets = self
            .objects()
            .list("policy", "poddisruptionbudgets", &request.namespace)?;
        let mut matching = budgets.iter().filter(|budget| {
            LabelSelector::from_value(&budget["spec"]["selector"])
                .is_ok_and(|selector| selector.matches(labels))
        });
        let Some(budget) = matching.next() else {
            return Ok(());
        };
        if matching.next().is_some() {
            return Err(Status::unknown(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        if skips_budget(pod, budget) {
            return Ok(());
        }
        let resource = resources::by_plural("policy", "v1", "poddisruptionbudgets")
            .ok_or_else(|| Status::internal("no resource poddisruptionbudgets"))?;
        let key = Key::from(key(resource, &request.namespace, meta::text(budget, "name")).as_str());
        for _ in 0..RETRIES_MAX {
            let record = self.store().get(&key, None).map_err(|e| store_status(&e))?;
            let Some(record) = record else {
                return Ok(());
            };
            let budget = decode_record(resource, &record)?;
            let taken = match ask(&budget, &request.name, meta::now()) {
                Verdict::Take(budget) => budget,
                Verdict::Wait(status) => return Err(status),
            };
            if dry_run {
                return Ok(());
            }
            let map = taken.as_object().cloned().unwrap_or_default();
            let write = Write::Update {
                key: key.clone(),
                expected: record.revision,
                value: Stored::from(codec::encode(&map, &resource.gvk)),
                ttl_s: None,
            };
            match self.store().submit(write).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_status(&error)),
            }
        }
        let cause = "couldn't update PodDisruptionBudget due to conflicts".to_owned();
        Err(too_many(RETRY_S, cause))
    }

    /// Writes the condition that tells why the pod ends.
    async fn tell_disruption(&self, request: &Request) -> Result<(), Status> {
        let key = Key::from(key(request.resource, &request.namespace, &request.name).as_str());
        for _ in 0..RETRIES_MAX {
            let record = self.record(request)?;
            let mut pod = decode_record(request.resource, &record)?;
            let condition = json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
                "message": "Eviction API: evicting"});
            set_condition(&mut pod, condition, meta::now());
            let map = pod.as_object().cloned().unwrap_or_default();
            let write = Write::Update {
                key: key.clone(),
                expected: record.revision,
                value: Stored::from(codec::encode(&map, &request.resource.gvk)),
                ttl_s: None,
            };
            match self.store().submit(write).await {
                Ok(_) => return Ok(()),
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_status(&error)),
            }
        }
        Err(Status::stale(self.named(request, &request.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_count_down() {
        let now = Time::from_seconds(0);
        let budget = json!({"metadata": {"name": "b", "generation": 1},
            "status": {"observedGeneration": 1, "disruptionsAllowed": 1, "desiredHealthy": 2, "currentHealthy": 3}});
        let Verdict::Take(once) = ask(&budget, "p", now) else {
            panic!("one disruption is allowed");
        };
        assert_eq!(once["status"]["disruptionsAllowed"], 0);
        assert_eq!(once["status"]["disruptedPods"]["p"], "1970-01-01T00:00:00Z");
        let Verdict::Wait(status) = ask(&once, "q", now) else {
            panic!("no second one is");
        };
        assert_eq!(status.code, 429);
        assert_eq!(status.details["causes"][0]["reason"], "DisruptionBudget");
        let mut stale = budget.clone();
        stale["metadata"]["generation"] = 2.into();
        let Verdict::Wait(status) = ask(&stale, "p", now) else {
            panic!("its controller comes first");
        };
        assert_eq!(status.details["retryAfterSeconds"], 10);
        let broken = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
        assert!(skips_budget(&broken, &budget));
        let always = json!({"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}});
        assert!(skips_budget(&broken, &always));
    }
}
