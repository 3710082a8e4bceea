//! delete and deletecollection: preconditions, grace, finalizers (`registry/store.go` and
//! `rest/delete.go` of upstream).

use rkube_api::resources::Gvk;
use rkube_api::status::{Named, Status};
use rkube_api::time::Time;
use rkube_store::{Key, Record, Revision, StoreError, Value as Stored, Write};
use serde_json::Value;

use super::render::{self, ListMeta};
use super::{Answer, Engine, Warnings, decode, meta, policy, special};
use crate::admission::Operation;
use crate::codec;
use crate::convert::convert;
use crate::objects::{decode as decode_record, key, store_status, stored_as};
use crate::options::{DeleteOptions, Options, Propagation};
use crate::request::Request;

/// How often a deletion that another write overtook is tried again.
const RETRIES_MAX: usize = 100;

/// Finalizers that stand for a policy about dependents.
const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What a deletion does with an object.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Plan {
    /// Nothing: it is on its way out already.
    Leave,
    /// Store it so changed; it stays until finalizers are gone or the grace period ends.
    Mark(Value),
    /// Store it so changed, then remove it: watchers see both.
    MarkAndRemove(Value),
    /// Remove it.
    Remove,
}

/// Decides about a deletion. `now` is the server's time.
pub(crate) fn plan(gvk: &Gvk, object: &Value, options: &DeleteOptions, now: Time) -> Plan {
    let grace = grace_s(gvk, object, options);
    let mut marked = object.clone();
    let mut graceful = false;
    if meta::is_deleting(object) {
        // A deletion that is under way can only be hastened.
        let running = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
        match (running, grace) {
            (Some(running), Some(wanted)) if wanted < running => {
                let deadline = Time::parse(meta::text(object, "deletionTimestamp")).unwrap_or(now);
                mark(
                    &mut marked,
                    deadline.seconds - running + wanted,
                    wanted,
                    false,
                );
                graceful = true;
            }
            _ if grace.is_some() => return Plan::Leave,
            // Another policy about dependents is heard until the object is gone.
            _ => {}
        }
    } else if let Some(seconds) = grace {
        mark(
            &mut marked,
            now.seconds.saturating_add(seconds),
            seconds,
            true,
        );
        graceful = true;
    }
    let changed = set_finalizers(gvk, &mut marked, options);
    let held = !meta::finalizers(&marked).is_empty();
    if held {
        if !graceful && !changed && meta::is_deleting(object) {
            return Plan::Leave;
        }
        if !graceful && !meta::is_deleting(&marked) {
            mark(&mut marked, now.seconds, 0, true);
        }
        return Plan::Mark(marked);
    }
    let seconds = marked["metadata"]["deletionGracePeriodSeconds"].as_i64();
    match (graceful, seconds) {
        (true, Some(1..)) => Plan::Mark(marked),
        (true, _) => Plan::MarkAndRemove(marked),
        (false, _) if changed => Plan::MarkAndRemove(marked),
        (false, _) => Plan::Remove,
    }
}

fn mark(object: &mut Value, deadline_s: i64, grace_s: i64, raise_generation: bool) {
    let generation = meta::generation(object);
    let metadata = meta::of(object);
    let deadline = Time::from_seconds(deadline_s).to_rfc3339();
    metadata.insert("deletionTimestamp".into(), deadline.into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace_s.into());
    if raise_generation && generation > 0 {
        metadata.insert("generation".into(), generation.saturating_add(1).into());
    }
}

/// Seconds that an object gets to end; `None` for kinds that have no graceful end. Only pods
/// have one (`podStrategy.CheckGracefulDelete`).
fn grace_s(gvk: &Gvk, object: &Value, options: &DeleteOptions) -> Option<i64> {
    if !(gvk.group.is_empty() && gvk.kind == "Pod") {
        return None;
    }
    let own = object["spec"]["terminationGracePeriodSeconds"].as_i64();
    let wanted = options.grace_period_s.or(own).unwrap_or(0);
    let unscheduled = object["spec"]["nodeName"].as_str().unwrap_or("").is_empty();
    let ended = matches!(
        object["status"]["phase"].as_str(),
        Some("Failed" | "Succeeded")
    );
    if unscheduled || ended {
        return Some(0);
    }
    // Upstream reads a negative period as one second.
    Some(if wanted < 0 { 1 } else { wanted })
}

/// Puts the finalizer of the propagation policy; whether the list changed.
fn set_finalizers(gvk: &Gvk, object: &mut Value, options: &DeleteOptions) -> bool {
    let before: Vec<String> = meta::finalizers(object)
        .iter()
        .map(|f| (*f).to_owned())
        .collect();
    let has = |name: &str| before.iter().any(|f| f == name);
    let (orphan, foreground) = match (options.orphan_dependents, options.propagation) {
        (Some(orphan), _) => (orphan, false),
        (None, Some(policy)) => (
            policy == Propagation::Orphan,
            policy == Propagation::Foreground,
        ),
        (None, None) if has(ORPHAN) => (true, false),
        (None, None) if has(FOREGROUND) => (false, true),
        (None, None) => (policy::orphans_by_default(gvk), false),
    };
    let mut after: Vec<String> = before
        .iter()
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .cloned()
        .collect();
    if orphan {
        after.push(ORPHAN.to_owned());
    }
    if foreground {
        after.push(FOREGROUND.to_owned());
    }
    if after == before {
        return false;
    }
    let metadata = meta::of(object);
    if after.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), after.into());
    }
    true
}

/// What is left of a deleted object.
pub(super) struct Deleted {
    pub(super) stored: Stored,
    pub(super) revision: Revision,
    /// It is gone, not only marked.
    pub(super) gone: bool,
    uid: String,
}

impl Engine {
    pub(super) async fn delete(
        &self,
        request: &Request,
        warnings: &mut Warnings,
    ) -> Result<Answer, Status> {
        let options = delete_options(request)?;
        let gvk = &request.resource.gvk;
        if let Some(why) = policy::stays(gvk, &request.name) {
            return Err(Status::forbidden(self.named(request, &request.name), why));
        }
        let deleted = self.delete_object(request, &options, warnings).await?;
        if deleted.gone && !policy::returns_deleted(gvk) {
            let named = self.named(request, &request.name);
            return render::value(request, 200, &Status::success(named, &deleted.uid));
        }
        // 202 for whoever asked in the old way to wait for dependents.
        let accepted = !deleted.gone && options.delete.orphan_dependents == Some(false);
        let code = if accepted { 202 } else { 200 };
        render::one(request, code, &deleted.stored, deleted.revision)
    }

    /// Deletes the request's object until no other write comes between.
    pub(super) async fn delete_object(
        &self,
        request: &Request,
        options: &Options,
        warnings: &mut Warnings,
    ) -> Result<Deleted, Status> {
        let key = Key::from(key(request.resource, &request.namespace, &request.name).as_str());
        for _ in 0..RETRIES_MAX {
            let record = self.record(request)?;
            let object = decode_record(request.resource, &record)?;
            self.check_preconditions(request, &options.delete, &object)?;
            let mut call =
                self.admission_call(request, Operation::Delete, Value::Null, object.clone());
            call.options = options.to_value("DeleteOptions");
            self.admission().validate(&mut call).await?;
            let uid = meta::text(&object, "uid").to_owned();
            let plan = if special::is_namespace(request) {
                special::namespace_plan(&object, meta::now())
            } else {
                plan(&request.resource.gvk, &object, &options.delete, meta::now())
            };
            match self
                .carry_out(request, &key, &record, plan, options.dry_run)
                .await
            {
                Ok((stored, revision, gone)) => {
                    warnings.append(&mut call.warnings);
                    return Ok(Deleted {
                        stored,
                        revision,
                        gone,
                        uid,
                    });
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_status(&error)),
            }
        }
        Err(Status::stale(self.named(request, &request.name)))
    }

    async fn carry_out(
        &self,
        request: &Request,
        key: &Key,
        record: &Record,
        plan: Plan,
        dry_run: bool,
    ) -> Result<(Stored, Revision, bool), StoreError> {
        let unchanged = (record.value.clone(), record.revision);
        let (marked, remove) = match plan {
            Plan::Leave => return Ok((unchanged.0, unchanged.1, false)),
            Plan::Mark(object) => (Some(object), false),
            Plan::MarkAndRemove(object) => (Some(object), true),
            Plan::Remove => (None, true),
        };
        let (mut stored, mut revision) = unchanged;
        if let Some(object) = marked {
            let form = stored_as(request.resource);
            let object = convert(object, request.resource, form);
            let map = object.as_object().cloned().unwrap_or_default();
            stored = Stored::from(codec::encode(&map, &form.gvk));
            if !dry_run {
                let write = Write::Update {
                    key: key.clone(),
                    expected: revision,
                    value: stored.clone(),
                    ttl_s: policy::ttl_s(&request.resource.gvk),
                };
                revision = self.store().submit(write).await?.revision;
            }
        }
        if remove && !dry_run {
            let write = Write::Delete {
                key: key.clone(),
                expected: revision,
            };
            revision = self.store().submit(write).await?.revision;
        }
        Ok((stored, revision, remove))
    }

    fn check_preconditions(
        &self,
        request: &Request,
        options: &DeleteOptions,
        object: &Value,
    ) -> Result<(), Status> {
        let checks = [
            ("UID", &options.uid, "uid"),
            (
                "ResourceVersion",
                &options.resource_version,
                "resourceVersion",
            ),
        ];
        for (what, wanted, field) in checks {
            let found = meta::text(object, field);
            if let Some(wanted) = wanted
                && wanted != found
            {
                let maybe = match field {
                    "uid" => "deleted and then recreated",
                    _ => "modified",
                };
                if special::is_namespace(request) {
                    // Upstream's storage of namespaces looks itself, in other words.
                    let why = format!(
                        "Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"
                    );
                    return Err(Status::conflict(self.named(request, &request.name), &why));
                }
                let why = format!(
                    "the {what} in the precondition ({wanted}) does not match the {what} in record ({found}). The object might have been {maybe}"
                );
                // Upstream names the kind here, not the resource; both views of events are one.
                let named = Named {
                    group: match request.resource.gvk.group {
                        "events.k8s.io" => "",
                        group => group,
                    },
                    resource: request.resource.gvk.kind,
                    ..self.named(request, &request.name)
                };
                return Err(Status::conflict(named, &why));
            }
        }
        Ok(())
    }

    pub(super) async fn delete_collection(
        &self,
        request: &Request,
        warnings: &mut Warnings,
    ) -> Result<Answer, Status> {
        let options = delete_options(request)?;
        let (records, _) = self.find(request).await?;
        let list_meta = ListMeta {
            revision: self.store().revision(),
            ..ListMeta::default()
        };
        for record in &records {
            let mut one = request.clone();
            let object = decode_record(request.resource, record)?;
            meta::text(&object, "name").clone_into(&mut one.name);
            meta::text(&object, "namespace").clone_into(&mut one.namespace);
            match self.delete_object(&one, &options, warnings).await {
                Ok(_) => {}
                // Somebody else was faster.
                Err(status) if status.code == 404 => {}
                Err(status) => return Err(status),
            }
        }
        render::list(request, records, &list_meta)
    }
}

/// The options of a deletion: in the body, or else in the query.
fn delete_options(request: &Request) -> Result<Options, Status> {
    let mut options = request.options.clone();
    if !request.body.is_empty() {
        let (body, _) = decode::options(&request.body, request.body_type)?;
        let text = |name: &str, absent: &str| body[name].as_str().unwrap_or(absent).to_owned();
        let (kind, version) = (text("kind", "DeleteOptions"), text("apiVersion", "v1"));
        if kind != "DeleteOptions" {
            // Upstream names the place in its sources where the types are registered.
            return Err(Status::unknown(format!(
                "no kind {kind:?} is registered for version {version:?} in scheme \"k8s.io/apimachinery/pkg/apis/meta/internalversion/scheme/register.go:27\""
            )));
        }
        options.set_delete_body(&body)?;
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: Time = Time::from_seconds(1_700_000_000);

    fn gvk(group: &'static str, kind: &'static str) -> Gvk {
        Gvk {
            group,
            version: "v1",
            kind,
        }
    }

    fn options(grace: Option<i64>, propagation: Option<Propagation>) -> DeleteOptions {
        DeleteOptions {
            grace_period_s: grace,
            propagation,
            ..DeleteOptions::default()
        }
    }

    #[test]
    fn pods_end_gracefully() {
        let pod = json!({"metadata": {"generation": 1}, "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}});
        let pods = gvk("", "Pod");
        let Plan::Mark(marked) = plan(&pods, &pod, &options(None, None), NOW) else {
            panic!("a running pod is marked");
        };
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 30);
        assert_eq!(
            marked["metadata"]["deletionTimestamp"],
            "2023-11-14T22:13:50Z"
        );
        assert_eq!(marked["metadata"]["generation"], 2);
        assert_eq!(
            plan(&pods, &marked, &options(Some(40), None), NOW),
            Plan::Leave
        );
        let Plan::Mark(sooner) = plan(&pods, &marked, &options(Some(5), None), NOW) else {
            panic!("a shorter period counts");
        };
        assert_eq!(
            sooner["metadata"]["deletionTimestamp"],
            "2023-11-14T22:13:25Z"
        );
        assert!(matches!(
            plan(&pods, &marked, &options(Some(0), None), NOW),
            Plan::MarkAndRemove(_)
        ));
        let waiting = json!({"metadata": {}, "spec": {"terminationGracePeriodSeconds": 30}});
        assert!(matches!(
            plan(&pods, &waiting, &options(None, None), NOW),
            Plan::MarkAndRemove(_)
        ));
    }

    #[test]
    fn finalizers_and_propagation() {
        let maps = gvk("", "ConfigMap");
        let plain = json!({"metadata": {"name": "a"}});
        assert_eq!(plan(&maps, &plain, &options(None, None), NOW), Plan::Remove);
        let held = json!({"metadata": {"finalizers": ["x/y"]}});
        let Plan::Mark(marked) = plan(&maps, &held, &options(None, None), NOW) else {
            panic!("a finalizer holds it");
        };
        assert_eq!(marked["metadata"]["deletionGracePeriodSeconds"], 0);
        assert_eq!(plan(&maps, &marked, &options(None, None), NOW), Plan::Leave);
        for (policy, finalizer) in [
            (Propagation::Foreground, FOREGROUND),
            (Propagation::Orphan, ORPHAN),
        ] {
            let Plan::Mark(marked) = plan(&maps, &plain, &options(None, Some(policy)), NOW) else {
                panic!("{policy:?} holds it");
            };
            assert_eq!(marked["metadata"]["finalizers"], json!([finalizer]));
        }
        let background = options(None, Some(Propagation::Background));
        assert_eq!(plan(&maps, &plain, &background, NOW), Plan::Remove);
        let job = plan(&gvk("batch", "Job"), &plain, &options(None, None), NOW);
        assert!(
            matches!(job, Plan::Mark(_)),
            "jobs orphan their pods by default"
        );
        assert_eq!(
            plan(&gvk("batch", "Job"), &plain, &background, NOW),
            Plan::Remove
        );
    }
}
