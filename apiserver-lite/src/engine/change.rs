//! update and patch: the object as a change makes it, and its place in the store.

use rkube_api::field::{ErrorKind, FieldError, FieldPath};
use rkube_api::kinds::{self, Rules};
use rkube_api::patch;
use rkube_api::revision::parse_version;
use rkube_api::status::Status;
use rkube_store::{Key, StoreError, Write};
use serde_json::Value;

use super::refusal::{patch_status, unfit, upstream_key};
use super::write::{Change, Written, finish};
use super::{Answer, Engine, Warnings, decode, meta, parts, policy, render};
use crate::admission::Operation;
use crate::objects::{decode as decode_record, key, store_status};
use crate::request::{BodyType, Request, Verb};

/// How often a write that another one overtook is tried again.
const RETRIES_MAX: usize = 100;

impl Engine {
    /// PUT and PATCH of an object or of a part of it.
    pub(super) async fn update(
        &self,
        request: &Request,
        warnings: &mut Warnings,
    ) -> Result<Answer, Status> {
        let change = if request.verb == Verb::Patch {
            self.read_patch(request, warnings)?
        } else {
            let kind = request.resource.gvk.kind;
            let (body, doubled) = decode::read(kind, &request.body, request.body_type)?;
            let object = decode::object(body, doubled, &self.expected(request), warnings)?;
            Change::Replace(object)
        };
        let change = match change {
            Change::Replace(mut object) => {
                self.check_name(request, &object)?;
                self.place(request, &mut object)?;
                Change::Replace(object)
            }
            patch => patch,
        };
        let written = self.change(request, &change, warnings).await?;
        let code = if written.created { 201 } else { 200 };
        render::one(request, code, &written.stored, written.revision)
    }

    /// The body of a patch; doubled keys are told as for any body.
    pub(super) fn read_patch(
        &self,
        request: &Request,
        warnings: &mut Warnings,
    ) -> Result<Change, Status> {
        if !matches!(
            request.body_type,
            BodyType::JsonPatch | BodyType::MergePatch | BodyType::StrategicPatch
        ) {
            return Err(Status::no_such_body());
        }
        let (body, doubled) = decode::patch(&request.body, request.body_type)?;
        if !doubled.is_empty() {
            use crate::options::FieldValidation;
            let texts: Vec<String> = doubled
                .iter()
                .map(|path| format!("duplicate field {path:?}"))
                .collect();
            match request.options.field_validation {
                FieldValidation::Ignore => {}
                FieldValidation::Warn => warnings.extend(texts),
                FieldValidation::Strict => {
                    let list = texts.join(", ");
                    return Err(Status::bad_request(format!(
                        "error decoding patch: strict decoding error: {list}"
                    )));
                }
            }
        }
        Ok(Change::Patch(body))
    }

    /// The object after a patch, not yet checked.
    pub(super) fn patched(
        &self,
        request: &Request,
        patch: &Value,
        old: &Value,
        ty: Option<&'static rkube_api::types::Type>,
    ) -> Result<Value, Status> {
        let old = old.clone();
        let patched = match (request.body_type, ty) {
            (BodyType::JsonPatch, _) => patch::json(old, patch),
            (BodyType::StrategicPatch, Some(ty)) => patch::strategic(old, patch.clone(), ty),
            (BodyType::StrategicPatch, None) => {
                return Err(Status::unsupported_media_type(&[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                ]));
            }
            _ => patch::merge(old, patch.clone()),
        };
        patched.map_err(|e| patch_status(&e))
    }

    /// Changes an object until no other write comes between.
    pub(super) async fn change(
        &self,
        request: &Request,
        change: &Change,
        warnings: &mut Warnings,
    ) -> Result<Written, Status> {
        let key = Key::from(key(request.resource, &request.namespace, &request.name).as_str());
        for _ in 0..RETRIES_MAX {
            let record = self.store().get(&key, None).map_err(|e| store_status(&e))?;
            let Some(record) = record else {
                return self.replace_missing(request, change, warnings).await;
            };
            let old = decode_record(request.resource, &record)?;
            let mut told = Vec::new();
            let (new, pinned) = self.next(request, change, old.clone(), &mut told).await?;
            let stored = self.stored_form(request, &new);
            if stored == record.value {
                // Nothing changed: no revision is spent.
                warnings.append(&mut told);
                return Ok(Written {
                    stored,
                    revision: record.revision,
                    created: false,
                });
            }
            let done = removes(request, &new, &old);
            if request.options.dry_run {
                warnings.append(&mut told);
                return Ok(Written {
                    stored,
                    revision: record.revision,
                    created: false,
                });
            }
            let write = if done {
                Write::Delete {
                    key: key.clone(),
                    expected: record.revision,
                }
            } else {
                Write::Update {
                    key: key.clone(),
                    expected: record.revision,
                    value: stored.clone(),
                    ttl_s: policy::ttl_s(&request.resource.gvk),
                }
            };
            match self.store().submit(write).await {
                Ok(committed) => {
                    warnings.append(&mut told);
                    // As upstream: an update that lets go of a deleted object answers with the
                    // object as it was sent, not with the deletion's revision.
                    let revision = if done {
                        record.revision
                    } else {
                        committed.revision
                    };
                    return Ok(Written {
                        stored,
                        revision,
                        created: false,
                    });
                }
                Err(StoreError::Conflict { .. }) if pinned => {
                    return Err(Status::stale(self.named(request, &request.name)));
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(store_status(&error)),
            }
        }
        Err(Status::stale(self.named(request, &request.name)))
    }

    async fn replace_missing(
        &self,
        request: &Request,
        change: &Change,
        warnings: &mut Warnings,
    ) -> Result<Written, Status> {
        match change {
            Change::Replace(object)
                if request.subresource.is_none()
                    && policy::creates_on_update(&request.resource.gvk) =>
            {
                self.check_name(request, object)?;
                let mut object = object.clone();
                // As upstream: nobody compares a revision with nothing.
                meta::of(&mut object).remove("resourceVersion");
                self.create_object(request, object, warnings).await
            }
            _ => Err(Status::not_found(self.named(request, &request.name))),
        }
    }

    fn check_name(&self, request: &Request, object: &Value) -> Result<(), Status> {
        let name = meta::text(object, "name");
        if name.is_empty() {
            return Err(Status::bad_request(format!(
                "the name of the object ({} based on URL) was undeterminable: name must be provided",
                request.name
            )));
        }
        if name != request.name {
            return Err(Status::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                request.name
            )));
        }
        Ok(())
    }

    /// The object as a change makes it, ready to be stored; whether the client pinned the
    /// revision that it changes.
    async fn next(
        &self,
        request: &Request,
        change: &Change,
        old: Value,
        warnings: &mut Warnings,
    ) -> Result<(Value, bool), Status> {
        let resource = request.resource;
        let gvk = &resource.gvk;
        let part = request.subresource_name();
        let mut new = match change {
            Change::Replace(object) => object.clone(),
            Change::Patch(patch) => {
                let patched = || {
                    let mut object = self.patched(request, patch, &old, resource.object_type())?;
                    // Upstream reads the result of a strategic patch by its own type.
                    if let (BodyType::StrategicPatch, Some(map)) =
                        (request.body_type, object.as_object_mut())
                    {
                        map.insert("apiVersion".into(), gvk.api_version().into());
                        map.insert("kind".into(), gvk.kind.into());
                    }
                    Ok(object)
                };
                let expected = self.expected(request);
                match decode::object(patched()?, Vec::new(), &expected, warnings) {
                    Err(status) if status.reason == "BadRequest" => {
                        return Err(unfit(request, patch, &patched()?, &status));
                    }
                    object => object?,
                }
            }
        };
        self.check_name(request, &new)?;
        self.place(request, &mut new)?;
        let pinned = self.check_revision(request, change, &new, &old)?;
        let rules = kinds::rules(gvk.group, gvk.kind);
        let own = rules.unwrap_or(&Rules::NONE);
        (own.default)(&mut new);
        let mut call = self.admission_call(request, Operation::Update, new, old);
        self.admission().admit(&mut call).await?;
        let mut new = parts::keep(resource, part, call.object.take(), &call.old);
        let mut errors = meta::prepare_update(&mut new, &call.old);
        if part.is_empty() {
            (own.prepare_update)(&mut new, &call.old);
        }
        finish(request, &mut new);
        if parts::raises_generation(policy::generation(gvk), &new, &call.old) {
            let generation = meta::generation(&call.old).saturating_add(1);
            meta::of(&mut new).insert("generation".into(), generation.into());
        }
        errors.extend(parts::check(resource, part, &new, &call.old));
        match rules {
            Some(rules) => {
                errors.extend((rules.validate)(&new));
                if matches!(part, "" | "status") {
                    errors.extend((rules.validate_update)(&new, &call.old));
                }
            }
            None => errors.extend(self.check_metadata(request, &new)),
        }
        self.invalid(request, &new, errors)?;
        call.object = new;
        self.admission().validate(&mut call).await?;
        warnings.append(&mut call.warnings);
        if part.is_empty() {
            self.warn_of_lack(request, warnings);
        }
        Ok((call.object, pinned))
    }

    /// Preconditions that an update's body states: uid and revision.
    fn check_revision(
        &self,
        request: &Request,
        change: &Change,
        new: &Value,
        old: &Value,
    ) -> Result<bool, Status> {
        let (ours, theirs) = (meta::text(old, "uid"), meta::text(new, "uid"));
        let named = self.named(request, &request.name);
        // A patched object has the old one's uid, and validation tells of another.
        let replaces = matches!(change, Change::Replace(_));
        if replaces && !theirs.is_empty() && theirs != ours {
            let why = format!(
                "StorageError: invalid object, Code: 4, Key: {}, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: {theirs}, UID in object meta: {ours}",
                upstream_key(request)
            );
            return Err(Status::conflict(named, &why));
        }
        let stated = match change {
            Change::Replace(_) => meta::text(new, "resourceVersion"),
            // A patched object has the old one's revision, unless the patch says another.
            Change::Patch(patch) if patch.is_object() => meta::text(patch, "resourceVersion"),
            Change::Patch(_) => {
                let after = meta::text(new, "resourceVersion");
                if after == meta::text(old, "resourceVersion") {
                    ""
                } else {
                    after
                }
            }
        };
        let revision = parse_version(stated).map_err(|e| Status::unknown(e.to_string()))?;
        match revision {
            None | Some(0) if matches!(change, Change::Replace(_)) => {
                if policy::needs_revision(&request.resource.gvk) {
                    let error = FieldError {
                        path: FieldPath::default()
                            .field("metadata")
                            .field("resourceVersion"),
                        kind: ErrorKind::Invalid,
                        value: Some("0x0".into()),
                        detail: "must be specified for an update".into(),
                    };
                    // Upstream names the resource here, not the kind.
                    return Err(Status::invalid(named, &[error]));
                }
                Ok(false)
            }
            None | Some(0) => Ok(false),
            Some(revision) if revision.to_string() == meta::text(old, "resourceVersion") => {
                Ok(true)
            }
            Some(_) => Err(Status::stale(named)),
        }
    }
}

/// Whether an update takes away the last thing that kept a deleted object.
fn removes(request: &Request, new: &Value, old: &Value) -> bool {
    let namespace =
        request.resource.gvk.group.is_empty() && request.resource.plural == "namespaces";
    let held = namespace
        && new["spec"]["finalizers"]
            .as_array()
            .is_some_and(|f| !f.is_empty());
    let grace = old["metadata"]["deletionGracePeriodSeconds"].as_i64();
    meta::is_deleting(old)
        && grace.is_none_or(|seconds| seconds == 0)
        && meta::finalizers(new).is_empty()
        && !held
}
