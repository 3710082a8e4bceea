//! The commands, one module for each idea.

mod again;
mod attach;
mod check;
mod cp;
mod end;
mod events;
mod exec;
mod forward;
mod generate;
pub(crate) mod image;
mod keys;
mod logs;
mod lsns;
mod paint;
mod plan;
mod progress;
mod ps;
mod reset;
mod run;
mod stats;
mod streams;
mod terminal;

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use rkube_kubelet::pod;

use crate::cli::{Cli, Command};
use crate::client::Client;
use crate::error::bad_input;
use crate::{output, server, supervisor};

/// Runs a command; its exit code.
pub(crate) fn dispatch(cli: Cli) -> anyhow::Result<u8> {
    let root = cli.root.as_path();
    // A reader that has gone ends the commands that only print. `run` must
    // still delete its pods, a copy tells why it broke off, a forward outlives
    // any connection, and the supervisor has no such reader.
    let lasting = matches!(
        cli.command,
        Command::Run(_)
            | Command::Supervisor { .. }
            | Command::Server(_)
            | Command::Agent(_)
            | Command::Cp(_)
            | Command::PortForward(_)
    );
    if !lasting {
        rkube_sys::signal::default_sigpipe();
    }
    match cli.command {
        Command::Run(args) => run::run(root, args),
        Command::Ps(args) => ps::ps(root, &args),
        Command::Inspect(args) => ps::inspect(root, &args),
        Command::Logs(args) => logs::logs(root, &args),
        Command::Exec(args) => exec::exec(root, args),
        Command::Attach(args) => attach::attach(root, args),
        Command::Cp(args) => cp::cp(root, &args),
        Command::PortForward(args) => forward::port_forward(root, &args),
        Command::Start(args) => again::start(root, &args),
        Command::Restart(args) => again::restart(root, &args),
        Command::Update(args) => again::update(root, &args),
        Command::Stats(args) => stats::stats(root, &args),
        Command::Stop(args) => end::stop(root, &args),
        Command::Rm(args) => end::rm(root, &args),
        Command::Wait(args) => end::wait(root, &args),
        Command::Events(args) => events::events(root, &args),
        Command::Lsns(args) => lsns::lsns(root, &args),
        Command::Nsenter(args) => lsns::nsenter(root, args),
        Command::Image(args) => image::image(root, args),
        Command::Server(args) => server::serve(root, &args).map(|()| 0),
        Command::Agent(args) => server::join(root, &args).map(|()| 0),
        Command::Reset(args) => reset::reset(root, &args),
        Command::Check(args) => check::check(&args),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { dir } => generate::man_pages(&dir),
        Command::Version => {
            output::print(concat!("rkube ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| 0)
        }
        Command::Supervisor { serve: true, adopt } => supervisor::serve(root, adopt).map(|()| 0),
        Command::Supervisor { serve: false, .. } => {
            // A keeper's call may come after the reset that ended its pod.
            if let Some(instance) = rkube_engine::Instance::find(root)? {
                supervisor::launch::start_and_leave(&instance)?;
            }
            Ok(0)
        }
        // Answered in `main`, before anything is set up.
        Command::Oci { args } => Ok(crate::oci_code(args)),
    }
}

/// The pod that a NAME, NAMESPACE/NAME or uid means.
fn find<'a>(pods: &'a [Pod], text: &str, namespace: &str) -> anyhow::Result<&'a Pod> {
    let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
    let named = pods
        .iter()
        .find(|p| pod::namespace(p) == namespace && pod::name(p) == name);
    let found = named.or_else(|| pods.iter().find(|p| pod::uid(p) == text));
    found.ok_or_else(|| anyhow::anyhow!("there is no pod {namespace}/{name}"))
}

/// Connects and finds pods.
async fn client_and_pods(
    root: &Path,
    names: &[String],
    namespace: &str,
) -> anyhow::Result<(Client, Vec<Pod>)> {
    let (client, all) = client_and_all(root).await?;
    let Some(client) = client else {
        return Err(anyhow::anyhow!("there is no pod {}", names.join(", ")));
    };
    let mut found = Vec::new();
    for name in names {
        let pod = find(&all, name, namespace)?;
        if !found.contains(pod) {
            found.push(pod.clone());
        }
    }
    Ok((client, found))
}

/// Connects, if there are pods, and lists them.
async fn client_and_all(root: &Path) -> anyhow::Result<(Option<Client>, Vec<Pod>)> {
    match Client::look(root).await? {
        Some(mut client) => {
            let pods = client.pods().await?;
            Ok((Some(client), pods))
        }
        None => Ok((None, Vec::new())),
    }
}

/// The container that a command means: the one named, or the pod's first
/// main one.
fn container_of(pod: &Pod, name: Option<&str>) -> anyhow::Result<String> {
    match name {
        Some(name) if pod::container(pod, name).is_some() => Ok(name.to_owned()),
        Some(name) => {
            let all: Vec<&str> = pod::containers(pod).map(|(_, c)| c.name.as_str()).collect();
            let text = format!(
                "pod {} has no container {name}; it has {}",
                pod::display_name(pod),
                all.join(", ")
            );
            Err(bad_input(text))
        }
        None => {
            let main = pod::containers(pod).find(|(kind, _)| *kind == pod::Kind::Main);
            main.map(|(_, c)| c.name.clone())
                .ok_or_else(|| anyhow::anyhow!("the pod has no containers"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_are_found_by_name_and_uid() {
        let pod = |namespace: &str, name: &str, uid: &str| -> Pod {
            serde_json::from_value(
                serde_json::json!({"metadata": {"namespace": namespace, "name": name, "uid": uid},
                "spec": {"containers": [{"name": "a"}, {"name": "b"}]}}),
            )
            .unwrap()
        };
        let pods = [pod("default", "web", "u1"), pod("other", "web", "u2")];
        assert_eq!(pod::uid(find(&pods, "web", "default").unwrap()), "u1");
        assert_eq!(pod::uid(find(&pods, "web", "other").unwrap()), "u2");
        assert_eq!(pod::uid(find(&pods, "other/web", "default").unwrap()), "u2");
        assert_eq!(pod::uid(find(&pods, "u2", "default").unwrap()), "u2");
        assert_eq!(
            find(&pods, "x", "n").unwrap_err().to_string(),
            "there is no pod n/x"
        );
        assert_eq!(container_of(&pods[0], None).unwrap(), "a");
        assert_eq!(container_of(&pods[0], Some("b")).unwrap(), "b");
        assert!(
            container_of(&pods[0], Some("c"))
                .unwrap_err()
                .to_string()
                .contains("it has a, b")
        );
    }
}
