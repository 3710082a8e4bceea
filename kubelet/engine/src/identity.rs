//! What an image says of whom its program runs as, and how it is stopped.

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::image::ImageConfiguration;

use crate::api::ContainerConfig;
use crate::error::{Error, Result};
use crate::spec::Identity;

/// SIGTERM (signal(7)): what asks a container to stop whose image names no
/// signal.
const SIGTERM: i32 = 15;

/// Whom a container runs as: its configuration, else the image's user, asked
/// in the image's own files.
pub(crate) fn of(
    rootfs: &OwnedFd,
    config: &ContainerConfig,
    image: &ImageConfiguration,
) -> Result<Identity> {
    let refused = |what: String| Error::Invalid {
        object: config.id.to_string(),
        what,
    };
    let security = &config.security;
    let image_user = image.config().as_ref().and_then(|c| c.user().clone());
    let own = match (security.uid, security.gid) {
        (Some(uid), Some(gid)) => Some(format!("{uid}:{gid}")),
        (Some(uid), None) => Some(uid.to_string()),
        (None, _) => image_user.filter(|u| !u.is_empty()),
    };
    let found = rkube_image::resolve_user(rootfs.as_fd(), own.as_deref());
    let found = found.map_err(|source| Error::Image {
        image: config.image.clone(),
        source,
    })?;
    let named = own.as_deref().is_some_and(|u| {
        let user = u.split(':').next().unwrap_or_default();
        !user.bytes().all(|b| b.is_ascii_digit())
    });
    if security.run_as_non_root && security.uid.is_none() && named {
        return Err(refused(format!(
            "runAsNonRoot: the image's user {:?} is no number, so it cannot be told whether it is \
             root; set runAsUser",
            own.unwrap_or_default()
        )));
    }
    if security.run_as_non_root && found.uid == 0 {
        return Err(refused(
            "runAsNonRoot: the container would run as root; set runAsUser".into(),
        ));
    }
    let mut groups = security.supplemental_groups.clone();
    if !security.strict_groups {
        groups.extend(&found.additional_gids);
    }
    let gid = security.gid.unwrap_or(found.gid);
    // The kubelet lists the primary group among the supplementary ones.
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    Ok(Identity {
        uid: found.uid,
        gid,
        groups,
        home: found.home,
    })
}

/// The image's stop signal, by number or name with or without `SIG`.
pub(crate) fn stop_signal(image: &ImageConfiguration) -> i32 {
    let name = image
        .config()
        .as_ref()
        .and_then(|c| c.stop_signal().clone());
    name.and_then(|n| rkube_sys::signal::parse(&n))
        .unwrap_or(SIGTERM)
}
