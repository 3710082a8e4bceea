//! Strategic merge patch: lists merge by key, directives steer the rest.
//!
//! The rules are those of `k8s.io/apimachinery/pkg/util/strategicpatch` as the
//! API server uses it; strategies and keys come from the type tables.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::{PatchError, malformed};
use crate::types::{Merge, Shape, Type};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const SET_ORDER: &str = "$setElementOrder/";

type Object = Map<String, Value>;

/// Applies a strategic merge patch to an object of type `ty`.
///
/// # Errors
/// Where the patch is no map, or a directive has no meaning where it stands.
pub fn strategic(object: Value, patch: Value, ty: &'static Type) -> Result<Value, PatchError> {
    let (Value::Object(object), Value::Object(patch)) = (object, patch) else {
        return Err(malformed("a strategic merge patch must be a map"));
    };
    merge_map(object, patch, Schema::Struct(ty)).map(Value::Object)
}

/// What is known about the fields of a map.
#[derive(Clone, Copy)]
enum Schema {
    Struct(&'static Type),
    Map(&'static Shape),
    Free,
}

impl Schema {
    fn of(shape: Option<&'static Shape>) -> Self {
        match shape {
            Some(Shape::Struct(ty)) => Self::Struct(ty),
            Some(Shape::Map(inner)) => Self::Map(inner),
            _ => Self::Free,
        }
    }

    /// A field's shape and strategy.
    fn field(self, name: &str) -> (Option<&'static Shape>, Option<Merge>) {
        match self {
            Self::Struct(ty) => match ty.field(name) {
                Some(field) => (Some(&field.shape), field.merge),
                None => (None, None),
            },
            Self::Map(shape) => (Some(shape), None),
            Self::Free => (None, None),
        }
    }
}

fn merge_map(
    mut original: Object,
    mut patch: Object,
    schema: Schema,
) -> Result<Object, PatchError> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        return match directive.as_str() {
            Some("replace") => Ok(patch),
            Some("delete") => Ok(Object::new()),
            _ => {
                let printed = crate::printed::printed(&directive);
                patch.insert(DIRECTIVE.to_owned(), directive);
                Err(PatchError::BadDirective {
                    directive: printed,
                    holder: crate::printed::printed(&Value::Object(patch)),
                })
            }
        };
    }
    retain_keys(&mut original, &mut patch)?;
    set_orders(&mut original, &mut patch, schema)?;
    for (name, removed) in take_prefixed(&mut patch, DELETE_FROM) {
        let Value::Array(removed) = removed else {
            // As upstream: what is no list takes the list's place, and does not fit there.
            if let Some(value) = original.get_mut(&name) {
                *value = removed;
            }
            continue;
        };
        if let Some(Value::Array(items)) = original.get_mut(&name) {
            let removed: HashSet<&Value> = removed.iter().collect();
            items.retain(|item| !removed.contains(item));
        }
    }
    for (name, value) in patch {
        if value.is_null() {
            original.remove(&name);
            continue;
        }
        let (shape, merge) = schema.field(&name);
        let merged = match (original.remove(&name), value) {
            (Some(Value::Object(old)), Value::Object(new)) if merge != Some(Merge::Replace) => {
                Value::Object(merge_map(old, new, Schema::of(shape))?)
            }
            (Some(Value::Array(old)), Value::Array(new)) => {
                merge_field_list(old, new, shape, merge)?
            }
            (_, new) => match without_directives(new) {
                Some(new) => new,
                None => continue,
            },
        };
        original.insert(name, merged);
    }
    Ok(original)
}

/// `$retainKeys` drops every field that it does not list.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<(), PatchError> {
    let Some(keys) = patch.remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return Err(malformed("$retainKeys must be a list"));
    };
    let keys: HashSet<&str> = keys.iter().filter_map(Value::as_str).collect();
    let kept = |name: &str| keys.contains(name);
    for (name, value) in patch.iter() {
        let directive = name.starts_with(DELETE_FROM) || name.starts_with(SET_ORDER);
        if !value.is_null() && !directive && !kept(name) {
            return Err(PatchError::NotRetained {
                field: name.clone(),
            });
        }
    }
    original.retain(|name, _| kept(name));
    Ok(())
}

/// Takes the fields out whose names begin with a directive's prefix.
fn take_prefixed(patch: &mut Object, prefix: &str) -> Vec<(String, Value)> {
    let names: Vec<String> = patch
        .keys()
        .filter(|n| n.starts_with(prefix))
        .cloned()
        .collect();
    names
        .into_iter()
        .filter_map(|name| {
            let value = patch.remove(&name)?;
            Some((name.get(prefix.len()..)?.to_owned(), value))
        })
        .collect()
}

/// `$setElementOrder/NAME`: merges the list NAME and puts it in order.
fn set_orders(original: &mut Object, patch: &mut Object, schema: Schema) -> Result<(), PatchError> {
    for (name, order) in take_prefixed(patch, SET_ORDER) {
        let Value::Array(order) = order else {
            return Err(malformed(format!("{SET_ORDER}{name} must be a list")));
        };
        let (shape, merge) = schema.field(&name);
        let key = match merge {
            Some(Merge::ByKey(key)) => Some(key),
            _ => None,
        };
        let list = |holder: &mut Object| match holder.get_mut(&name) {
            Some(Value::Array(items)) => Some(std::mem::take(items)),
            _ => None,
        };
        // A null in the patch deletes, which the order does not change.
        if patch.get(&name).is_some_and(|v| !v.is_array()) {
            continue;
        }
        let (old, new) = (list(original), list(patch));
        patch.remove(&name);
        if let Some(new) = &new {
            check_order(&name, new, &order, key)?;
        }
        let before = old.clone().unwrap_or_default();
        let merged = match (old, new) {
            (Some(old), None) => old,
            (None, Some(new)) => match without_directives(Value::Array(new)) {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            },
            (Some(old), Some(new)) => match merge_field_list(old, new, shape, merge)? {
                Value::Array(items) => items,
                _ => Vec::new(),
            },
            (None, None) => continue,
        };
        original.insert(name, Value::Array(in_order(merged, &order, &before, key)));
    }
    Ok(())
}

/// The patch's elements must come in the order that is to be set.
fn check_order(
    name: &str,
    items: &[Value],
    order: &[Value],
    key: Option<&'static str>,
) -> Result<(), PatchError> {
    let mut rest = order.iter();
    let live = items
        .iter()
        .filter(|i| i.get(DIRECTIVE).is_none_or(|d| d != "delete"));
    for item in live {
        if item.get(DIRECTIVE).is_some_and(|d| d == "replace") && key.is_some() {
            continue;
        }
        let own = id(item, key);
        if own.is_none() || !rest.any(|ordered| id(ordered, key) == own) {
            return Err(PatchError::OrderMismatch {
                field: name.to_owned(),
            });
        }
    }
    Ok(())
}

/// What identifies an element: the value of the merge key for maps, else the
/// whole value. Lists come from outside and may be long, so elements are found
/// by hash.
fn id<'a>(item: &'a Value, key: Option<&str>) -> Option<&'a Value> {
    key.map_or(Some(item), |key| item.get(key))
}

/// The first place of every element of a list.
fn places<'a>(list: &'a [Value], key: Option<&str>) -> HashMap<&'a Value, usize> {
    let mut places = HashMap::with_capacity(list.len());
    for (i, item) in list.iter().enumerate() {
        if let Some(id) = id(item, key) {
            places.entry(id).or_insert(i);
        }
    }
    places
}

/// Merges one list field by its strategy; without one, the patch replaces.
fn merge_field_list(
    old: Vec<Value>,
    new: Vec<Value>,
    shape: Option<&'static Shape>,
    merge: Option<Merge>,
) -> Result<Value, PatchError> {
    let element = match shape {
        Some(Shape::List(inner)) => Some(&**inner),
        _ => None,
    };
    let merged = match merge {
        Some(Merge::ByKey(key)) => merge_by_key(old, new, key, element)?,
        Some(Merge::Plain) => merge_set(old, new),
        Some(Merge::Replace) | None => {
            let new = without_directives(Value::Array(new));
            return Ok(new.unwrap_or_else(|| Value::Array(Vec::new())));
        }
    };
    Ok(Value::Array(merged))
}

/// A list of scalars as a set: the union, the patch's in the patch's order.
fn merge_set(old: Vec<Value>, new: Vec<Value>) -> Vec<Value> {
    let mut seen = HashSet::with_capacity(old.len() + new.len());
    let both = old.iter().chain(&new);
    let union = both.filter(|item| seen.insert(*item)).cloned().collect();
    in_order(union, &new, &old, None)
}

fn merge_by_key(
    mut old: Vec<Value>,
    new: Vec<Value>,
    key: &'static str,
    element: Option<&'static Shape>,
) -> Result<Vec<Value>, PatchError> {
    let no_key = |element: &Value| PatchError::NoMergeKey {
        element: crate::printed::printed(element),
        key,
    };
    let (mut patches, mut gone) = (Vec::new(), HashSet::new());
    let mut replace = false;
    for item in new {
        if !item.is_object() {
            let reason = format!("an element merged by {key:?} must be a map: {item}");
            return Err(malformed(reason));
        }
        match item.get(DIRECTIVE).map(|d| (d.as_str(), d)) {
            None => patches.push(item),
            Some((Some("replace"), _)) => replace = true,
            Some((Some("delete"), _)) => {
                gone.insert(item.get(key).ok_or_else(|| no_key(&item))?.clone());
            }
            Some((_, other)) => {
                return Err(PatchError::BadDirective {
                    directive: crate::printed::printed(other),
                    holder: crate::printed::printed(&item),
                });
            }
        }
    }
    if replace {
        return Ok(patches.into_iter().filter_map(without_directives).collect());
    }
    old.retain(|item| item.get(key).is_none_or(|id| !gone.contains(id)));
    let before = old.clone();
    let known = places(&before, Some(key));
    let mut order = Vec::with_capacity(patches.len());
    // Where the elements that the patch adds stand, should it name one twice.
    let mut added: HashMap<Value, usize> = HashMap::new();
    for patch in patches {
        let own = patch.get(key).ok_or_else(|| no_key(&patch))?.clone();
        let mut marker = Object::new();
        marker.insert(key.to_owned(), own.clone());
        order.push(Value::Object(marker));
        match known
            .get(&own)
            .or_else(|| added.get(&own))
            .and_then(|i| old.get_mut(*i))
        {
            Some(slot) => {
                if let (Value::Object(map), Value::Object(patch)) = (slot.take(), patch) {
                    *slot = Value::Object(merge_map(map, patch, Schema::of(element))?);
                }
            }
            None => {
                added.insert(own, old.len());
                old.extend(without_directives(patch));
            }
        }
    }
    Ok(in_order(old, &order, &before, Some(key)))
}

/// Puts `items` in order: those in `order` by it, the others as they stood in
/// `before`, and between the two whatever `before` says.
fn in_order(items: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let (order, before) = (places(order, key), places(before, key));
    let place = |places: &HashMap<&Value, usize>, item: &Value| {
        id(item, key).and_then(|id| places.get(id).copied())
    };
    let (mut ours, mut others): (Vec<_>, Vec<_>) = items
        .into_iter()
        .partition(|item| place(&order, item).is_some());
    ours.sort_by_key(|item| place(&order, item));
    others.sort_by_key(|item| place(&before, item).unwrap_or(usize::MAX));
    let mut out = Vec::with_capacity(ours.len() + others.len());
    let (mut ours, mut others) = (ours.into_iter().peekable(), others.into_iter().peekable());
    loop {
        let first = match (others.peek(), ours.peek()) {
            (Some(other), Some(our)) => {
                let (other, our) = (place(&before, other), place(&before, our));
                if matches!((other, our), (Some(a), Some(b)) if a < b) {
                    others.next()
                } else {
                    ours.next()
                }
            }
            (Some(_), None) => others.next(),
            (None, _) => ours.next(),
        };
        match first {
            Some(item) => out.push(item),
            None => return out,
        }
    }
}

/// A value that goes in as new: without nulls and directives; `None` for a
/// map that is nothing but a directive's carrier.
fn without_directives(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => {
            let is_directive = |name: &str| {
                name == RETAIN_KEYS || name.starts_with(DELETE_FROM) || name.starts_with(SET_ORDER)
            };
            let kept = map
                .into_iter()
                .filter(|(name, value)| !value.is_null() && !is_directive(name))
                .filter_map(|(name, value)| Some((name, without_directives(value)?)))
                .collect();
            Some(Value::Object(kept))
        }
        Value::Array(items) => Some(Value::Array(
            items.into_iter().filter_map(without_directives).collect(),
        )),
        value => Some(value),
    }
}
