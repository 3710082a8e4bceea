//! create; what update and patch ([`super::change`]) have in common with it.

use rkube_api::field::FieldError;
use rkube_api::kinds::{self, Lack, Rules};
use rkube_api::status::{Named, Status};
use rkube_api::view::At;
use rkube_api::{field, meta as meta_rules};
use rkube_store::{Key, Revision, StoreError, Value as Stored, Write};
use serde_json::{Map, Value};

use super::decode::{self, Expected};
use super::{Answer, Engine, Warnings, meta, normal, policy, render};
use crate::admission::Operation;
use crate::codec;
use crate::convert::convert;
use crate::objects::{decode, key, store_status, stored_as};
use crate::request::Request;

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
    pub(super) fn expected(&self, request: &Request) -> Expected {
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
                    self.warn_of_lack(request, warnings);
                    return answer;
                }
            }
        }
    }

    /// Namespace of the path and of the body must agree.
    pub(super) fn place(&self, request: &Request, object: &mut Value) -> Result<(), Status> {
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
    pub(super) fn check_metadata(&self, request: &Request, object: &Value) -> Vec<FieldError> {
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

    pub(super) fn invalid(
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

    /// Says what is not there yet for a kind.
    pub(super) fn warn_of_lack(&self, request: &Request, warnings: &mut Warnings) {
        let kind = request.resource.gvk.kind;
        let text = match kinds::lack(request.resource.gvk.group, kind) {
            None => return,
            Some(Lack::Controller) => {
                format!("rkube stores {kind} objects: no controller works on them yet")
            }
            Some(Lack::Rules) => format!(
                "rkube checks only the fields of {kind} objects: the rest of their rules is not there yet"
            ),
            Some(Lack::Both) => format!(
                "rkube stores {kind} objects and checks their fields only: their rules and controllers are not there yet"
            ),
        };
        warnings.push(text);
    }

    /// The stored form of an object in the request's version.
    pub(super) fn stored_form(&self, request: &Request, object: &Value) -> Stored {
        let stored = stored_as(request.resource);
        let converted;
        let object = if stored.gvk == request.resource.gvk {
            object
        } else {
            converted = convert(object.clone(), request.resource, stored);
            &converted
        };
        Stored::from(match object.as_object() {
            Some(map) => codec::encode(map, &stored.gvk),
            None => codec::encode(&Map::new(), &stored.gvk),
        })
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
}

/// The object as its structs write it.
pub(super) fn finish(request: &Request, object: &mut Value) {
    if let Some(ty) = request.resource.object_type() {
        normal::finish(object, ty);
    }
}
