//! `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy`: kept in step
//! with each other and with the families that the cluster has.

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{CLUSTER_IP_NONE, family_of, spec, spec_str, spec_strs};
use crate::field::{ErrorKind, Errors, FieldError};
use crate::view::At;

const SINGLE: &str = "SingleStack";
const PREFER: &str = "PreferDualStack";
const REQUIRE: &str = "RequireDualStack";

fn spec_mut(service: &mut Value) -> Option<&mut Map<String, Value>> {
    service.get_mut("spec").and_then(Value::as_object_mut)
}

fn set(service: &mut Value, field: &str, value: Value) {
    if let Some(spec) = spec_mut(service) {
        spec.insert(field.to_owned(), value);
    }
}

/// Guesses `clusterIPs` from `clusterIP` for clients that know only the
/// latter. `old` is the stored Service of an update.
pub fn normalize(new: &mut Value, old: Option<&Value>) {
    let ip = spec_str(new, "clusterIP").to_owned();
    let Some(old) = old else {
        if !ip.is_empty() && spec_strs(new, "clusterIPs").is_empty() {
            set(new, "clusterIPs", json!([ip]));
        }
        return;
    };
    let old_ip = spec_str(old, "clusterIP");
    let none = spec_strs(new, "clusterIPs").is_empty();
    if !spec_strs(old, "clusterIPs").is_empty() && none && old_ip == ip {
        set(new, "clusterIPs", spec(old, "clusterIPs").clone());
    }
    let same = spec_strs(new, "clusterIPs") == spec_strs(old, "clusterIPs");
    if old_ip == ip || !same {
        return;
    }
    if !old_ip.is_empty() && ip.is_empty() {
        if let Some(spec) = spec_mut(new) {
            spec.remove("clusterIPs");
        }
    } else {
        set(new, "clusterIPs", json!([ip]));
    }
}

/// Whether an update leaves a Service that prefers two families as it is:
/// then a cluster that gained or lost a family changes nothing about it.
#[must_use]
pub fn is_unchanged_prefer_dual(new: &Value, old: Option<&Value>) -> bool {
    let Some(old) = old else { return false };
    let old_policy = spec_str(old, "ipFamilyPolicy");
    spec_str(new, "ipFamilyPolicy") == PREFER
        && (old_policy == PREFER || old_policy.is_empty())
        && spec_str(new, "type") == spec_str(old, "type")
        && super::needs_cluster_ip(new)
        && spec_strs(new, "clusterIPs") == spec_strs(old, "clusterIPs")
        && spec_strs(new, "ipFamilies") == spec_strs(old, "ipFamilies")
}

/// Fills in `ipFamilyPolicy` and `ipFamilies`. `cluster` has the families
/// that Services can have addresses of, the default one first.
///
/// # Errors
/// What the wish and the cluster do not allow.
pub fn init(new: &mut Value, old: Option<&Value>, cluster: &[&str]) -> Result<(), Vec<FieldError>> {
    if spec_str(new, "type") == "ExternalName" || is_unchanged_prefer_dual(new, old) {
        return Ok(());
    }
    let headless_alone = spec_str(new, "clusterIP") == CLUSTER_IP_NONE
        && spec(new, "selector").as_object().is_none_or(Map::is_empty);
    if spec(new, "ipFamilyPolicy").is_null() {
        let before = old.map(|old| spec_str(old, "ipFamilyPolicy"));
        let policy = match before {
            Some(policy) if !policy.is_empty() => policy.to_owned(),
            _ if headless_alone => REQUIRE.to_owned(),
            _ => SINGLE.to_owned(),
        };
        set(new, "ipFamilyPolicy", policy.into());
    }
    let mut errors = Errors::default();
    super::validate::cluster_ips(&mut errors, &At::root(new));
    done(errors)?;

    let mut errors = Errors::default();
    shrink(&mut errors, new, old);
    check_single(&mut errors, new);
    infer(&mut errors, new, cluster);
    done(errors)?;

    let policy = spec_str(new, "ipFamilyPolicy").to_owned();
    let mut families: Vec<String> = own(spec_strs(new, "ipFamilies"));
    if headless_alone {
        if families.is_empty() {
            families.extend(cluster.first().map(|f| (*f).to_owned()));
        }
        if policy != SINGLE {
            add_other(&mut families);
        }
        set(new, "ipFamilies", families.into());
        return Ok(());
    }

    let mut errors = Errors::default();
    let root = At::root(new);
    let at = root.get("spec");
    if policy == REQUIRE && cluster.len() < 2 {
        let rule = "this cluster is not configured for dual-stack services";
        at.get("ipFamilyPolicy").invalid(&mut errors, rule);
    }
    for family in at.get("ipFamilies").items() {
        if !cluster.contains(&family.str()) {
            family.invalid(&mut errors, "not configured on this cluster");
        }
    }
    done(errors)?;
    if families.is_empty() {
        families.extend(cluster.first().map(|f| (*f).to_owned()));
    }
    if policy != SINGLE && cluster.len() == 2 {
        add_other(&mut families);
    }
    set(new, "ipFamilies", families.into());
    Ok(())
}

fn own(texts: Vec<&str>) -> Vec<String> {
    texts.into_iter().map(str::to_owned).collect()
}

fn done(errors: Errors) -> Result<(), Vec<FieldError>> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors.into_vec())
    }
}

/// Appends the family that a list of one lacks.
fn add_other(families: &mut Vec<String>) {
    if let [one] = &families[..] {
        let other = if one == "IPv4" { "IPv6" } else { "IPv4" };
        families.push(other.to_owned());
    }
}

/// An update to one family drops the second of what it left alone; with any
/// other policy it may not take one away.
fn shrink(errors: &mut Errors, new: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    let single = spec_str(new, "ipFamilyPolicy") == SINGLE;
    for (field, rule) in [
        (
            "clusterIPs",
            "must be 'SingleStack' to release the secondary cluster IP",
        ),
        (
            "ipFamilies",
            "must be 'SingleStack' to release the secondary IP family",
        ),
    ] {
        let mut now = own(spec_strs(new, field));
        let before = spec_strs(old, field);
        if single && now == before && now.len() > 1 {
            now.truncate(1);
            set(new, field, now.into());
        } else if !single && !now.is_empty() && now.len() < before.len() {
            let root = At::root(new);
            let at = root.get("spec");
            at.get("ipFamilyPolicy").invalid(errors, rule);
        }
    }
}

fn check_single(errors: &mut Errors, new: &Value) {
    if spec_str(new, "ipFamilyPolicy") != SINGLE {
        return;
    }
    let root = At::root(new);
    let at = root.get("spec");
    for (field, what) in [("clusterIPs", "cluster IPs"), ("ipFamilies", "IP families")] {
        if at.get(field).len() == 2 {
            let rule = format!(
                "must be 'RequireDualStack' or 'PreferDualStack' when multiple {what} are specified"
            );
            at.get("ipFamilyPolicy").invalid(errors, rule);
        }
    }
}

/// Families of the addresses that were asked for.
fn infer(errors: &mut Errors, new: &mut Value, cluster: &[&str]) {
    let mut families = own(spec_strs(new, "ipFamilies"));
    let known = families.len();
    {
        let root = At::root(new);
        let at = root.get("spec");
        let list = at.get("clusterIPs");
        for item in list.items().skip(known) {
            let Ok(ip) = item.str().parse::<IpAddr>() else {
                break;
            };
            let family = family_of(ip);
            if cluster.contains(&family) {
                families.push(family.to_owned());
            } else {
                let shown = crate::field::shown(list.value());
                let rule = format!("{family} is not configured on this cluster");
                item.error_value(errors, ErrorKind::Invalid, shown, rule);
            }
        }
    }
    if families.len() > known {
        set(new, "ipFamilies", families.into());
    }
}
