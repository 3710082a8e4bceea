//! create, update and patch.

use rkube_api::field::{ErrorKind, FieldError, FieldPath};
use rkube_api::kinds::{self, Rules};
use rkube_api::patch;
use rkube_api::revision::parse_version;
use rkube_api::status::{Named, Status};
use rkube_api::view::At;
use rkube_api::{field, meta as meta_rules};
use rkube_store::{Key, Revision, StoreError, Value as Stored, Write};
use serde_json::Value;

use super::decode::{self, Expected};
use super::refusal::{patch_status, unfit, upstream_key};
use super::{Answer, Engine, Warnings, meta, normal, parts, policy, render};
use crate::admission::Operation;
use crate::codec;
use crate::convert::convert;
use crate::objects::{decode, key, store_status, stored_as};
use crate::request::{BodyType, Request, Verb};

/// How often a write that another one overtook is tried again.
const RETRIES_MAX: usize = 100;

/// How often a generated name that is taken is made anew (upstream's `maxNameGenerationCreateAttempts`).
const NAME_ATTEMPTS_MAX: usize = 8;

/// What a write left: bytes for the answer.
pub(super) struct Written {
    pub(super) stored: Stored,
    /// 0 where nothing was stored (a dry run of a new object).
    pub(super) revision: Revision,
    pub(super) created: bool,
}

/// What changes an object.
pub(super) enum Change {
    /// This is the new object.
    Replace(Value),
    /// These are changes to the old one.
    Patch(Value),
}

impl Engine {
    /// What a body is read as: the request's type, or that of its subresource.
    fn expected(&self, request: &Request) -> Expected {
        let gvk = request.resource.gvk;
        Expected {
            gvk,
            validation: request.options.field_validation,
            required: kinds::rules(gvk.group, gvk.kind).is_none(),
        }
    }

    pub(super) async fn create(
        &self,
        request: &Request,
        warnings: &mut Warnings,
    ) -> Result<Answer, Status> {
        let kind = request.resource.gvk.kind;
        let (body, doubled) = decode::read(kind, &request.body, request.body_type)?;
        let object = decode::object(body, doubled, &self.expected(request), warnings)?;
        let written = self.create_object(request, object, warnings).await?;
        render::one(request, 201, &written.stored, written.revision)
    }

    /// Stores a decoded object.
    pub(super) async fn create_object(
        &self,
        request: &Request,
        mut object: Value,
        warnings: &mut Warnings,
    ) -> Result<Written, Status> {
        let gvk = &request.resource.gvk;
        if !meta::text(&object, "resourceVersion").is_empty() {
            return Err(Status::unknown(
                "resourceVersion should not be set on objects to be created",
            ));
        }
        self.place(request, &mut object)?;
        let rules = kinds::rules(gvk.group, gvk.kind);
        let own = rules.unwrap_or(&Rules::NONE);
        (own.default)(&mut object);
        let mut call = self.admission_call(request, Operation::Create, object, Value::Null);
        meta::text(&call.object, "name").clone_into(&mut call.name);
        self.admission().admit(&mut call).await?;
        let has_generation = policy::generation(gvk) != policy::Generation::None;
        meta::prepare_create(&mut call.object, has_generation, meta::now())?;
        let generate = meta::text(&call.object, "generateName").to_owned();
        let generated = !generate.is_empty() && meta::text(&call.object, "name").is_empty();
        // A kind's own preparation may use the name, so each name begins anew.
        let nameless = generated.then(|| call.object.clone());
        let mut attempts = 0;
        loop {
            attempts += 1;
            if let Some(nameless) = &nameless {
                if attempts > 1 {
                    call.object.clone_from(nameless);
                }
                let name = meta::generated_name(&generate)?;
                meta::of(&mut call.object).insert("name".into(), name.into());
            }
            (own.prepare_create)(&mut call.object);
            if let Some(status) = policy::initial_status(request.resource, &call.object) {
                call.object["status"] = status;
            }
            finish(request, &mut call.object);
            meta::text(&call.object, "name").clone_into(&mut call.name);
            if attempts == 1 {
                self.check_new(request, rules, &call.object)?;
            }
            self.admission().validate(&mut call).await?;
            let answer = self.store_new(request, &call.object).await;
            match answer {
                Err(status) if generated && status.reason == "AlreadyExists" => {
                    if attempts < NAME_ATTEMPTS_MAX {
                        continue;
                    }
                    return Err(status);
                }
                answer => {
                    warnings.append(&mut call.warnings);
                    self.warn_unruled(request, rules, warnings);
                    return answer;
                }
            }
        }
    }

    /// Namespace of the path and of the body must agree.
    fn place(&self, request: &Request, object: &mut Value) -> Result<(), Status> {
        let metadata = meta::of(object);
        let given = metadata
            .get("namespace")
            .and_then(Value::as_str)
            .unwrap_or("")
            .to_owned();
        if !request.resource.namespaced {
            metadata.remove("namespace");
            return Ok(());
        }
        if given.is_empty() {
            metadata.insert("namespace".into(), request.namespace.as_str().into());
        } else if given != request.namespace {
            return Err(Status::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        Ok(())
    }

    fn check_new(
        &self,
        request: &Request,
        rules: Option<&Rules>,
        object: &Value,
    ) -> Result<(), Status> {
        let errors = match rules {
            Some(rules) => {
                let mut errors = (rules.validate)(object);
                errors.extend((rules.validate_create)(object));
                errors
            }
            None => self.check_metadata(request, object),
        };
        self.invalid(request, object, errors)
    }

    /// The rules for metadata, for kinds without a validation of their own.
    fn check_metadata(&self, request: &Request, object: &Value) -> Vec<FieldError> {
        let mut errors = field::Errors::default();
        let root = At::root(object);
        meta_rules::validate(
            &mut errors,
            &root.get("metadata"),
            request.resource.namespaced,
            policy::name_rule(&request.resource.gvk),
        );
        errors.into_vec()
    }

    fn invalid(
        &self,
        request: &Request,
        object: &Value,
        errors: Vec<FieldError>,
    ) -> Result<(), Status> {
        if errors.is_empty() {
            return Ok(());
        }
        // Both views of events are one kind to upstream.
        let group = match request.resource.gvk.group {
            "events.k8s.io" => "",
            group => group,
        };
        let named = Named {
            group,
            resource: request.resource.gvk.kind,
            name: meta::text(object, "name"),
        };
        Err(Status::invalid(named, &errors))
    }

    /// Says that a kind is only stored.
    fn warn_unruled(&self, request: &Request, rules: Option<&Rules>, warnings: &mut Warnings) {
        if rules.is_none() {
            warnings.push(format!(
                "rkube stores {} objects and checks their fields only: their rules and controllers are not there yet",
                request.resource.gvk.kind
            ));
        }
    }

    /// The stored form of an object in the request's version.
    fn stored_form(&self, request: &Request, object: &Value) -> Stored {
        let stored = stored_as(request.resource);
        let converted;
        let object = if stored.gvk == request.resource.gvk {
            object
        } else {
            converted = convert(object.clone(), request.resource, stored);
            &converted
        };
        let map = object.as_object().cloned().unwrap_or_default();
        Stored::from(codec::encode(&map, &stored.gvk))
    }

    async fn store_new(&self, request: &Request, object: &Value) -> Result<Written, Status> {
        let name = meta::text(object, "name");
        let key = Key::from(key(request.resource, &request.namespace, name).as_str());
        let stored = self.stored_form(request, object);
        let exists = || Status::already_exists(self.named(request, name));
        if request.options.dry_run {
            let there = self.store().get(&key, None).map_err(|e| store_status(&e))?;
            if there.is_some() {
                return Err(exists());
            }
            return Ok(Written {
                stored,
                revision: 0,
                created: true,
            });
        }
        let again = key.clone();
        let write = Write::Create {
            key,
            value: stored.clone(),
            ttl_s: policy::ttl_s(&request.resource.gvk),
        };
        match self.store().submit(write).await {
            Ok(committed) => Ok(Written {
                stored,
                revision: committed.revision,
                created: true,
            }),
            Err(StoreError::Conflict { .. }) => {
                let there = self.store().get(&again, None);
                let there = there.map_err(|e| store_status(&e))?;
                let ending = match &there {
                    Some(record) => meta::is_deleting(&decode(request.resource, record)?),
                    None => false,
                };
                let mut status = exists();
                if ending {
                    status.message = format!("object is being deleted: {}", status.message);
                }
                Err(status)
            }
            Err(error) => Err(store_status(&error)),
        }
    }

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
        let (body, doubled) = decode::value(&request.body, request.body_type)
            .map_err(|e| Status::bad_request(format!("error decoding patch: {}", e.message)))?;
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
            let old = decode(request.resource, &record)?;
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
                    return Ok(Written {
                        stored,
                        revision: committed.revision,
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
                // Whoever names a revision means an object that was there.
                let named = meta::of(&mut object).remove("resourceVersion");
                if named.is_some_and(|r| r != "" && r != "0") {
                    return Err(Status::not_found(self.named(request, &request.name)));
                }
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
                let patched = || self.patched(request, patch, &old, resource.object_type());
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
        errors.extend(parts::check(part, &new, &call.old));
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
            self.warn_unruled(request, rules, warnings);
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
        let revision = parse_version(stated).map_err(|e| Status::bad_request(e.to_string()))?;
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

/// The object as its structs write it.
fn finish(request: &Request, object: &mut Value) {
    if let Some(ty) = request.resource.object_type() {
        normal::finish(object, ty);
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
