//! `rkube cp`.
//!
//! The writer hands out a container's root directory; the copy is made here,
//! through an archive from one thread to another.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use rkube_image::copy::{CopyError, Owner, Place, Source, Target, act_for, pack, unpack};
use rkube_kubelet::pod;

use super::{client_and_all, container_of, find};
use crate::cli::Cp;
use crate::client::{runtime, unexpected};
use crate::error::bad_input;
use crate::output;
use crate::wire::{Reply, Request};

/// One end of a copy, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Spot {
    /// `-`.
    Stream,
    Host(String),
    Pod {
        pod: String,
        path: String,
    },
}

/// What comes with [`Reply::Files`].
struct Files {
    root: OwnedFd,
    first_id: u32,
    user: (u32, u32),
}

/// One end of a copy, found.
enum End {
    Stream,
    Place {
        place: Place,
        path: String,
        /// The container's user, or the caller.
        user: (u32, u32),
        first_id: u32,
    },
}

pub(super) fn cp(root: &Path, args: &Cp) -> anyhow::Result<u8> {
    let (source, dest) = (spot(&args.source), spot(&args.dest));
    if matches!((&source, &dest), (Spot::Stream, Spot::Stream)) {
        return Err(bad_input("a copy from - to - needs no rkube"));
    }
    let ends = runtime()?.block_on(async {
        let source = place(root, args, source).await?;
        anyhow::Ok((source, place(root, args, dest).await?))
    });
    let (source, dest) = ends?;
    let note = |text: String| {
        if !args.quiet {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(io::stderr(), "{}", output::harmless(&text));
        }
    };
    let owner = |user: (u32, u32)| {
        if args.archive {
            Owner::Kept
        } else {
            Owner::Fixed(user.0, user.1)
        }
    };
    match (source, dest) {
        (End::Stream, End::Stream) => {}
        (End::Place { place, path, .. }, End::Stream) => {
            let source = Source::open(place, path.as_bytes())?;
            let mut out = io::BufWriter::new(io::stdout().lock());
            pack(&source, source.base_name(), &mut out, note)?;
        }
        (
            End::Stream,
            End::Place {
                place,
                path,
                user,
                first_id,
            },
        ) => {
            let target = Target::directory(place, path.as_bytes(), owner(user))?;
            thread_for(first_id, || unpack(&target, io::stdin().lock(), note))?;
        }
        (
            End::Place { place, path, .. },
            End::Place {
                place: to,
                path: dest,
                user,
                first_id,
            },
        ) => {
            let source = Source::open(place, path.as_bytes())?;
            let (target, base) = Target::of_copy(to, dest.as_bytes(), owner(user), &source)?;
            through(&source, &base, &target, first_id, &note)?;
        }
    }
    Ok(0)
}

/// Packs on one thread and unpacks on another.
fn through(
    source: &Source,
    base: &[u8],
    target: &Target,
    first_id: u32,
    note: &(impl Fn(String) + Sync),
) -> anyhow::Result<()> {
    let (reader, writer) = io::pipe().context("pipe2")?;
    std::thread::scope(|scope| {
        let packing = scope.spawn(move || {
            let mut out = io::BufWriter::with_capacity(64 << 10, writer);
            pack(source, base, &mut out, note)
        });
        let unpacked = thread_for(first_id, || unpack(target, reader, note));
        let packed = packing.join();
        let packed = packed.map_err(|_| anyhow::anyhow!("the thread that reads has panicked"))?;
        match (packed, unpacked) {
            // The archive broke off since nobody took it: the taker knows why.
            (Err(CopyError::Write(_)), Err(error)) => Err(error),
            (Err(error), _) => Err(error.into()),
            (Ok(()), unpacked) => unpacked,
        }
    })
}

/// Runs on a thread of its own, which makes files as a container's root.
fn thread_for(
    first_id: u32,
    work: impl FnOnce() -> Result<(), CopyError> + Send,
) -> anyhow::Result<()> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            act_for(first_id).context("act for the container's user namespace")?;
            anyhow::Ok(work()?)
        });
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the thread that writes has panicked"))?
    })
}

/// A path of the host begins with `/` or `.`, or has no colon.
fn spot(text: &str) -> Spot {
    match text.split_once(':') {
        _ if text == "-" => Spot::Stream,
        Some((pod, path)) if !pod.is_empty() && !text.starts_with(['/', '.']) => Spot::Pod {
            pod: pod.to_owned(),
            path: path.to_owned(),
        },
        _ => Spot::Host(text.to_owned()),
    }
}

async fn place(root: &Path, args: &Cp, spot: Spot) -> anyhow::Result<End> {
    match spot {
        Spot::Stream => Ok(End::Stream),
        Spot::Host(path) => {
            let caller = (
                rustix::process::geteuid().as_raw(),
                rustix::process::getegid().as_raw(),
            );
            Ok(End::Place {
                place: Place::Host,
                path,
                user: caller,
                first_id: 0,
            })
        }
        Spot::Pod { pod, path } => {
            let files = files(root, args, &pod).await?;
            Ok(End::Place {
                place: Place::Container {
                    root: files.root,
                    first_id: files.first_id,
                },
                path,
                user: files.user,
                first_id: files.first_id,
            })
        }
    }
}

async fn files(root: &Path, args: &Cp, text: &str) -> anyhow::Result<Files> {
    let (client, pods) = client_and_all(root).await?;
    let (pod, container) = meant(&pods, text, &args.namespace)?;
    if let (Some(one), Some(other)) = (&args.container, container)
        && one != other
    {
        return Err(bad_input(format!(
            "{text} names container {other}, --container {one}"
        )));
    }
    let container = container_of(pod, container.or(args.container.as_deref()))?;
    let request = Request::Files {
        uid: pod::uid(pod).to_owned(),
        container,
    };
    let mut client = client.context("find the pod")?;
    match client.call(&request).await? {
        Reply::Files { first_id, uid, gid } => Ok(Files {
            root: client
                .take_fds()
                .into_iter()
                .next()
                .context("the writer sent no directory")?,
            first_id,
            user: (uid, gid),
        }),
        other => Err(unexpected(&other)),
    }
}

/// `POD`, `NAMESPACE/POD`, either with `/CONTAINER` behind it; `A/B` is a pod
/// B of namespace A before it is a container B of pod A.
fn meant<'p, 't>(
    pods: &'p [Pod],
    text: &'t str,
    namespace: &str,
) -> anyhow::Result<(&'p Pod, Option<&'t str>)> {
    if let Ok(pod) = find(pods, text, namespace) {
        return Ok((pod, None));
    }
    if let Some((pod, container)) = text.rsplit_once('/')
        && let Ok(pod) = find(pods, pod, namespace)
    {
        return Ok((pod, Some(container)));
    }
    find(pods, text, namespace).map(|pod| (pod, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_pods_are_told_from_the_host_s() {
        let pod = |pod: &str, path: &str| Spot::Pod {
            pod: pod.to_owned(),
            path: path.to_owned(),
        };
        for (text, wanted) in [
            ("-", Spot::Stream),
            ("web:/etc", pod("web", "/etc")),
            ("default/web/app:x:y", pod("default/web/app", "x:y")),
            ("web:", pod("web", "")),
            ("./a:b", Spot::Host("./a:b".into())),
            ("/a:b", Spot::Host("/a:b".into())),
            (":a", Spot::Host(":a".into())),
            ("file", Spot::Host("file".into())),
        ] {
            assert_eq!(spot(text), wanted, "{text}");
        }
    }

    #[test]
    fn a_pod_s_name_comes_before_a_container_s() {
        let pod = |namespace: &str, name: &str| -> Pod {
            serde_json::from_value(serde_json::json!({
                "metadata": {"namespace": namespace, "name": name, "uid": name}}))
            .unwrap()
        };
        let pods = [pod("default", "web"), pod("web", "app")];
        let found = |text| {
            meant(&pods, text, "default").map(|(p, c)| (pod::display_name(p), c.map(str::to_owned)))
        };
        assert_eq!(found("web").unwrap(), ("default/web".into(), None));
        assert_eq!(found("web/app").unwrap(), ("web/app".into(), None));
        assert_eq!(
            found("web/other").unwrap(),
            ("default/web".into(), Some("other".into()))
        );
        assert_eq!(
            found("web/app/c").unwrap(),
            ("web/app".into(), Some("c".into()))
        );
        assert!(found("none/x").unwrap_err().to_string().contains("none/x"));
    }
}
