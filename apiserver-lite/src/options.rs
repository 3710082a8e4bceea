//! The options of a request: `ListOptions`, `CreateOptions`, `DeleteOptions` and their kin.
//!
//! They come in the query; those of a deletion may come in its body instead.

use rkube_api::field::{ErrorKind, FieldError, FieldPath};
use rkube_api::revision::parse_version;
use rkube_api::selector::{FieldSelector, LabelSelector};
use rkube_api::status::{Named, Status};
use rkube_api::table::Include;
use serde_json::{Map, Value, json};

/// What happens to fields that a type does not have, and to keys given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FieldValidation {
    /// They are dropped.
    Ignore,
    /// They are dropped, with a warning each. The default of the API.
    #[default]
    Warn,
    /// They are an error.
    Strict,
}

/// Which revision a list shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RevisionMatch {
    /// That one.
    Exact,
    /// That one or a later one.
    NotOlderThan,
}

/// What becomes of objects that an object owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// They stay, without owner.
    Orphan,
    /// The garbage collector deletes them afterwards.
    Background,
    /// They go first.
    Foreground,
}

impl Propagation {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "Orphan" => Some(Self::Orphan),
            "Background" => Some(Self::Background),
            "Foreground" => Some(Self::Foreground),
            _ => None,
        }
    }

    /// The word of the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Orphan => "Orphan",
            Self::Background => "Background",
            Self::Foreground => "Foreground",
        }
    }
}

/// A problem with one option; `value` as upstream's messages show it.
fn problem(field: &str, kind: ErrorKind, value: String, detail: impl Into<Box<str>>) -> FieldError {
    FieldError {
        path: FieldPath::default().field(field),
        kind,
        value: Some(value.into()),
        detail: detail.into(),
    }
}

/// 422 for options that break rules.
fn invalid(kind: &'static str, problems: &[FieldError]) -> Status {
    let named = Named {
        group: "meta.k8s.io",
        resource: kind,
        name: "",
    };
    Status::invalid(named, problems)
}

/// How to delete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Seconds that the object may take to end; 0 removes it at once.
    pub grace_period_s: Option<i64>,
    /// What becomes of dependents.
    pub propagation: Option<Propagation>,
    /// The older form of the same.
    pub orphan_dependents: Option<bool>,
    /// The uid that the object must have.
    pub uid: Option<String>,
    /// The resourceVersion that the object must have.
    pub resource_version: Option<String>,
}

/// The options of any request; those that a verb does not have are ignored, as upstream does.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Objects with these labels.
    pub labels: LabelSelector,
    /// Objects with these field values.
    pub fields: FieldSelector,
    /// Changes instead of a list.
    pub watch: bool,
    /// Send bookmarks in a watch.
    pub bookmarks: bool,
    /// `None`: unset; 0: any.
    pub revision: Option<u64>,
    /// How to read `revision`.
    pub revision_match: Option<RevisionMatch>,
    /// Seconds after which a watch or list ends.
    pub timeout_s: Option<u64>,
    /// Objects in a page; 0 is all.
    pub limit: u64,
    /// Where the page begins.
    pub continue_token: String,
    /// Begin a watch with all objects.
    pub initial_events: Option<bool>,
    /// Store nothing.
    pub dry_run: bool,
    /// Who writes, for managed fields.
    pub field_manager: String,
    /// What becomes of unknown fields.
    pub field_validation: FieldValidation,
    /// Take fields from other managers (server-side apply).
    pub force: Option<bool>,
    /// Indent JSON.
    pub pretty: bool,
    /// What a Table carries of each object.
    pub include: Option<Include>,
    /// How to delete.
    pub delete: DeleteOptions,
    /// Return the objects that a deletion found, even where they are gone.
    pub ignore_store_read_error: bool,
    /// Values that their options cannot have; which of them matter depends on the verb.
    problems: Vec<FieldError>,
}

/// Longest field manager, in bytes (`MaxFieldManagerLength` of upstream).
const FIELD_MANAGER_BYTES_MAX: usize = 128;

fn bad(name: &str, value: &str, why: &str) -> Status {
    let _ = name;
    Status::bad_request(format!("strconv.ParseInt: parsing {value:?}: {why}"))
}

/// Everything but these two is true, a bare `?watch` too (`Convert_Slice_string_To_bool`).
fn flag(value: &str) -> bool {
    !matches!(value.to_ascii_lowercase().as_str(), "false" | "0")
}

fn number<T: std::str::FromStr>(name: &str, value: &str) -> Result<Option<T>, Status> {
    if value.is_empty() {
        return Ok(None);
    }
    value
        .parse()
        .map(Some)
        .map_err(|_| bad(name, value, "invalid syntax"))
}

impl Options {
    /// Reads the decoded pairs of a query.
    ///
    /// # Errors
    /// 400 for a value that its parameter cannot have.
    pub fn from_query<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Self, Status> {
        let mut options = Self::default();
        let mut broken = None;
        for (name, value) in pairs {
            if name == "resourceVersion" {
                match parse_version(value) {
                    Ok(revision) => options.revision = revision,
                    Err(why) => {
                        broken = Some(format!("resourceVersion: Invalid value: {value:?}: {why}"));
                    }
                }
                continue;
            }
            options.set(name, value)?;
        }
        match broken {
            None => Ok(options),
            Some(why) if options.asks_storage() => Err(Status::bad_request(format!(
                "invalid resource version: {why}"
            ))),
            Some(why) => Err(Status::unknown(why)),
        }
    }

    /// Whether upstream's watch cache hands such a list on to the storage below it, which has
    /// another answer to a broken revision (`shouldDelegateList` of
    /// `k8s.io/apiserver/pkg/storage/cacher`).
    fn asks_storage(&self) -> bool {
        let exact = self.revision_match == Some(RevisionMatch::Exact);
        let page = self.revision_match.is_none() && self.limit > 0;
        !self.watch && (exact || page || !self.continue_token.is_empty())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Status> {
        let text = |e: &dyn std::fmt::Display| Status::bad_request(e.to_string());
        match name {
            "labelSelector" => self.labels = LabelSelector::parse(value).map_err(|e| text(&e))?,
            "fieldSelector" => self.fields = FieldSelector::parse(value).map_err(|e| text(&e))?,
            "watch" => self.watch = flag(value),
            "allowWatchBookmarks" => self.bookmarks = flag(value),
            "resourceVersionMatch" => {
                self.revision_match = match value {
                    "" => None,
                    "Exact" => Some(RevisionMatch::Exact),
                    "NotOlderThan" => Some(RevisionMatch::NotOlderThan),
                    other => {
                        self.problems.push(problem(
                            name,
                            ErrorKind::NotSupported,
                            format!("{other:?}"),
                            "supported values: \"Exact\", \"NotOlderThan\", \"\"",
                        ));
                        Some(RevisionMatch::NotOlderThan)
                    }
                }
            }
            "timeoutSeconds" => self.timeout_s = number(name, value)?,
            "limit" => {
                // A negative limit is none, as upstream reads it.
                let limit = number::<i64>(name, value)?.unwrap_or(0);
                self.limit = u64::try_from(limit).unwrap_or(0);
            }
            "continue" => value.clone_into(&mut self.continue_token),
            "sendInitialEvents" => self.initial_events = Some(flag(value)),
            "dryRun" => match value {
                "" => {}
                "All" => self.dry_run = true,
                other => self.problems.push(problem(
                    name,
                    ErrorKind::NotSupported,
                    format!("[]string{{{other:?}}}"),
                    "supported values: \"All\"",
                )),
            },
            "fieldManager" => {
                self.check_manager(name, value);
                value.clone_into(&mut self.field_manager);
            }
            "fieldValidation" => {
                self.field_validation = match value {
                    "Ignore" => FieldValidation::Ignore,
                    "" | "Warn" => FieldValidation::Warn,
                    "Strict" => FieldValidation::Strict,
                    other => {
                        self.problems.push(problem(
                            name,
                            ErrorKind::NotSupported,
                            format!("{other:?}"),
                            "supported values: \"\", \"Ignore\", \"Strict\", \"Warn\"",
                        ));
                        FieldValidation::Warn
                    }
                }
            }
            "force" => self.force = Some(flag(value)),
            "pretty" => self.pretty = value != "false" && value != "0",
            "includeObject" => {
                let include = Include::parse(value);
                self.include = Some(include.ok_or_else(|| {
                    Status::bad_request(format!(
                        "Unable to convert to Table as requested: includeObject: Invalid value: {value:?}: must be 'Metadata', 'Object', 'None', or empty"
                    ))
                })?);
            }
            "gracePeriodSeconds" => self.delete.grace_period_s = number(name, value)?,
            "propagationPolicy" => self.set_propagation(value),
            "orphanDependents" => self.delete.orphan_dependents = Some(flag(value)),
            "ignoreStoreReadErrorWithClusterBreakingPotential" => {
                self.ignore_store_read_error = flag(value);
            }
            _ => {}
        }
        Ok(())
    }

    /// The rules of `ValidateFieldManager`.
    fn check_manager(&mut self, name: &str, value: &str) {
        if value.len() > FIELD_MANAGER_BYTES_MAX {
            self.problems.push(problem(
                name,
                ErrorKind::TooLong,
                String::new(),
                format!("may not be more than {FIELD_MANAGER_BYTES_MAX} bytes"),
            ));
        }
        for (at, c) in value.char_indices().filter(|(_, c)| c.is_control()) {
            let rule = format!(
                "invalid character U+{:04X} (at position {at})",
                u32::from(c)
            );
            let shown = format!("{value:?}");
            self.problems
                .push(problem(name, ErrorKind::Invalid, shown, rule));
        }
    }

    fn set_propagation(&mut self, value: &str) {
        self.delete.propagation = Propagation::parse(value);
        if self.delete.propagation.is_none() {
            self.problems.push(problem(
                "propagationPolicy",
                ErrorKind::NotSupported,
                format!("{value:?}"),
                "supported values: \"Foreground\", \"Background\", \"Orphan\", \"nil\"",
            ));
        }
    }

    /// 422 where an option of a kind such as `CreateOptions` has a value that it cannot have.
    ///
    /// # Errors
    /// All such values.
    pub fn check(&self, kind: &'static str) -> Result<(), Status> {
        let fields: &[&str] = match kind {
            "ListOptions" => &["resourceVersionMatch"],
            "DeleteOptions" => &["propagationPolicy", "dryRun"],
            _ => &["dryRun", "fieldManager", "fieldValidation"],
        };
        let mut problems: Vec<FieldError> = self
            .problems
            .iter()
            .filter(|p| fields.contains(&p.path.to_string().as_str()))
            .cloned()
            .collect();
        if kind == "DeleteOptions"
            && let (Some(policy), Some(_)) =
                (self.delete.propagation, self.delete.orphan_dependents)
        {
            problems.push(problem(
                "propagationPolicy",
                ErrorKind::Invalid,
                format!("{:?}", policy.as_str()),
                "orphanDependents and deletionPropagation cannot be both set",
            ));
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(invalid(kind, &problems))
        }
    }

    /// 422 for options of a list or watch that do not go together (`ValidateListOptions` of
    /// upstream).
    ///
    /// # Errors
    /// All that do not.
    pub fn check_list(&self, watch: bool) -> Result<(), Status> {
        const MATCH: &str = "resourceVersionMatch";
        let mut problems = Vec::new();
        let mut forbid = |field: &str, rule: &str| {
            problems.push(problem(field, ErrorKind::Forbidden, String::new(), rule));
        };
        let matched = self.revision_match.is_some();
        if matched && watch && self.initial_events.is_none() {
            forbid(
                MATCH,
                "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
        if watch
            && self.initial_events.is_some()
            && self.revision_match != Some(RevisionMatch::NotOlderThan)
        {
            forbid(
                MATCH,
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
        if !watch && self.initial_events.is_some() {
            forbid(
                "sendInitialEvents",
                "sendInitialEvents is forbidden for list",
            );
        }
        if matched && !watch {
            if self.revision.is_none() {
                forbid(
                    MATCH,
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                );
            }
            if !self.continue_token.is_empty() {
                forbid(
                    MATCH,
                    "resourceVersionMatch is forbidden when continue is provided",
                );
            }
            if self.revision_match == Some(RevisionMatch::Exact) && self.revision == Some(0) {
                forbid(
                    MATCH,
                    "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
                );
            }
        }
        let named = self.problems.iter();
        problems.extend(named.filter(|p| p.path.to_string() == MATCH).cloned());
        if problems.is_empty() {
            Ok(())
        } else {
            Err(invalid("ListOptions", &problems))
        }
    }

    /// Takes the options of a deletion from its body, a decoded `DeleteOptions`.
    ///
    /// # Errors
    /// 400 or 422 for values that the options cannot have.
    pub fn set_delete_body(&mut self, body: &Value) -> Result<(), Status> {
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
        self.delete = DeleteOptions {
            grace_period_s: body.get("gracePeriodSeconds").and_then(Value::as_i64),
            propagation: None,
            orphan_dependents: body.get("orphanDependents").and_then(Value::as_bool),
            uid: text("/preconditions/uid").map(str::to_owned),
            resource_version: text("/preconditions/resourceVersion").map(str::to_owned),
        };
        if let Some(policy) = text("/propagationPolicy") {
            self.set_propagation(policy);
        }
        let dry_run = body.get("dryRun").and_then(Value::as_array);
        for value in dry_run.into_iter().flatten().filter_map(Value::as_str) {
            self.set("dryRun", value)?;
        }
        self.check("DeleteOptions")
    }

    /// The options as the object that admission sees.
    #[must_use]
    pub fn to_value(&self, kind: &str) -> Value {
        let mut map = Map::new();
        map.insert("kind".into(), kind.into());
        map.insert("apiVersion".into(), "meta.k8s.io/v1".into());
        if self.dry_run {
            map.insert("dryRun".into(), json!(["All"]));
        }
        if kind == "DeleteOptions" {
            if let Some(seconds) = self.delete.grace_period_s {
                map.insert("gracePeriodSeconds".into(), seconds.into());
            }
            if let Some(policy) = self.delete.propagation {
                map.insert("propagationPolicy".into(), policy.as_str().into());
            }
        } else if !self.field_manager.is_empty() {
            map.insert("fieldManager".into(), self.field_manager.as_str().into());
        }
        Value::Object(map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Options, Status> {
        Options::from_query(pairs.iter().copied())
    }

    #[test]
    fn values_are_checked() {
        let options = read(&[
            ("labelSelector", "a=b"),
            ("limit", "5"),
            ("resourceVersion", "7"),
            ("watch", ""),
            ("unknown", "x"),
        ])
        .unwrap();
        assert!(options.watch && options.limit == 5 && options.revision == Some(7));
        for (name, value, code) in [
            ("labelSelector", "a in (", 400),
            ("fieldSelector", "a", 400),
            ("resourceVersion", "x", 500),
            ("limit", "x", 400),
        ] {
            assert_eq!(
                read(&[(name, value)]).unwrap_err().code,
                code,
                "{name}={value}"
            );
        }
        assert_eq!(read(&[("limit", "-1")]).unwrap().limit, 0);
        for (name, value, kind) in [
            ("dryRun", "Some", "CreateOptions"),
            ("fieldValidation", "strict", "UpdateOptions"),
            ("fieldManager", "a\nb", "PatchOptions"),
            ("propagationPolicy", "None", "DeleteOptions"),
        ] {
            let options = read(&[(name, value)]).unwrap();
            let status = options.check(kind).unwrap_err();
            assert_eq!((status.code, status.reason), (422, "Invalid"), "{name}");
            assert!(
                options.check("ListOptions").is_ok(),
                "{name} is not a list's"
            );
        }
        let list = read(&[("resourceVersionMatch", "Other")]).unwrap();
        let status = list.check_list(false).unwrap_err();
        assert_eq!(status.details["causes"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_deletion_s_body_replaces_its_query() {
        let mut options = read(&[("gracePeriodSeconds", "3")]).unwrap();
        let body = json!({"propagationPolicy": "Foreground", "preconditions": {"uid": "u"}, "dryRun": ["All"]});
        options.set_delete_body(&body).unwrap();
        assert_eq!(options.delete.propagation, Some(Propagation::Foreground));
        assert_eq!(options.delete.grace_period_s, None);
        assert!(options.dry_run);
        let both = json!({"propagationPolicy": "Orphan", "orphanDependents": true});
        assert_eq!(options.set_delete_body(&both).unwrap_err().code, 422);
    }
}
