//! `rkube events`.

use std::path::Path;
use std::time::SystemTime;

use k8s_openapi::api::core::v1::Event;
use rkube_engine::Instance;
use rkube_kubelet::node::Paths;
use rkube_kubelet::pod;
use rkube_kubelet::time::{rfc3339, system_time};

use super::{client_and_all, find};
use crate::cli::Events;
use crate::client::{Client, runtime, unexpected};
use crate::output::{self, Shape, Table};
use crate::wire::{Reply, Request};

pub(super) fn events(root: &Path, args: &Events) -> anyhow::Result<u8> {
    runtime()?.block_on(async {
        let (client, pods) = client_and_all(root).await?;
        let uid = match &args.pod {
            Some(name) => Some(pod::uid(find(&pods, name, &args.namespace)?).to_owned()),
            None => None,
        };
        if args.follow {
            let client = match client {
                Some(client) => client,
                None => Client::start(&Instance::open(root)?).await?,
            };
            return follow(client, uid).await;
        }
        let list = match client {
            Some(client) => collect(client, uid).await?,
            // The journal outlives its pods.
            None => recorded(root)?,
        };
        output::print(&text(&list, args)?)
    })?;
    Ok(0)
}

async fn collect(mut client: Client, uid: Option<String>) -> anyhow::Result<Vec<Event>> {
    let mut list = Vec::new();
    client
        .send(&Request::Events { uid, follow: false }, &[])
        .await?;
    loop {
        match client.reply().await? {
            Reply::Event(event) => list.push(*event),
            Reply::Done => return Ok(list),
            other => return Err(unexpected(&other)),
        }
    }
}

fn recorded(root: &Path) -> anyhow::Result<Vec<Event>> {
    let Some(instance) = Instance::find(root)? else {
        return Ok(Vec::new());
    };
    let bytes = match std::fs::read(Paths::new(&instance.root).events()) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut list: Vec<Event> = Vec::new();
    for line in bytes.split(|b| *b == b'\n') {
        // The last line of an event counts; half a line is none.
        if let Ok(event) = serde_json::from_slice::<Event>(line) {
            list.retain(|e| e.metadata.name != event.metadata.name);
            list.push(event);
        }
    }
    Ok(list)
}

async fn follow(mut client: Client, uid: Option<String>) -> anyhow::Result<()> {
    client
        .send(&Request::Events { uid, follow: true }, &[])
        .await?;
    loop {
        match client.reply().await? {
            Reply::Event(event) => output::print(&line(&event))?,
            Reply::Done => return Ok(()),
            other => return Err(unexpected(&other)),
        }
    }
}

fn time(event: &Event) -> Option<SystemTime> {
    event.last_timestamp.as_ref().map(system_time)
}

fn object(event: &Event) -> String {
    let o = &event.involved_object;
    let container = o
        .field_path
        .as_deref()
        .and_then(|p| p.split_once('{'))
        .map(|(_, c)| c.trim_end_matches('}'));
    let pod = format!(
        "{}/{}",
        o.namespace.as_deref().unwrap_or_default(),
        o.name.as_deref().unwrap_or_default()
    );
    container.map_or_else(|| pod.clone(), |c| format!("{pod}:{c}"))
}

fn message(event: &Event) -> String {
    let message = event.message.clone().unwrap_or_default();
    match event.count {
        Some(count) if count > 1 => format!("{message} (x{count})"),
        _ => message,
    }
}

fn word(text: Option<&String>) -> String {
    text.cloned().unwrap_or_default()
}

/// One event in one line, for those that come one by one.
pub(super) fn line(event: &Event) -> String {
    let at = time(event).map(rfc3339).unwrap_or_default();
    let (kind, reason) = (word(event.type_.as_ref()), word(event.reason.as_ref()));
    output::harmless(&format!(
        "{at} {kind} {reason} {}: {}",
        object(event),
        message(event)
    )) + "\n"
}

fn text(list: &[Event], args: &Events) -> anyhow::Result<String> {
    let shape = output::shape(args.output);
    match shape {
        Shape::Document(format) => {
            let items: anyhow::Result<Vec<_>> =
                list.iter().map(|e| output::object("Event", e)).collect();
            output::document(&output::list(items?), format)
        }
        Shape::Names => Ok(list
            .iter()
            .map(|e| word(e.metadata.name.as_ref()) + "\n")
            .collect()),
        Shape::Table { wide } => {
            let now = SystemTime::now();
            let mut table = Table::new(&[
                if wide { "TIME" } else { "AGE" },
                "TYPE",
                "REASON",
                "OBJECT",
                "MESSAGE",
            ]);
            for event in list {
                let at = time(event).map(|t| {
                    if wide {
                        rfc3339(t)
                    } else {
                        output::age(t, now)
                    }
                });
                let (kind, reason) = (word(event.type_.as_ref()), word(event.reason.as_ref()));
                table.row([
                    at.unwrap_or_default(),
                    kind,
                    reason,
                    object(event),
                    message(event),
                ]);
            }
            Ok(table.text())
        }
    }
}
