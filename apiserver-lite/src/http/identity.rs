//! Who asks, and on whose behalf: credentials of a connection, impersonation.

use std::net::SocketAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderMap, Request};
use rkube_api::status::Status;
use rustls::pki_types::CertificateDer;

use crate::auth::{Access, Authenticate, Credentials, Target};
use crate::engine::Engine;
use crate::request::{GROUP_AUTHENTICATED, GROUP_UNAUTHENTICATED, USER_ANONYMOUS, User};

/// What a connection knows about its client.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) certificates: Arc<[CertificateDer<'static>]>,
    pub(super) remote: SocketAddr,
}

/// A WebSocket client in a browser cannot set headers: the token comes as a subprotocol.
const BEARER_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// Longest token looked at, in bytes.
const TOKEN_BYTES_MAX: usize = 64 << 10;

fn bearer(headers: &HeaderMap) -> Option<String> {
    if let Some(value) = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()) {
        let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
        if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() {
            return Some(token.trim().to_owned());
        }
    }
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .find_map(|protocol| {
            let encoded = protocol.trim().strip_prefix(BEARER_PROTOCOL)?;
            let bytes = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?;
            String::from_utf8(bytes).ok()
        })
}

/// The user of a request. Credentials are taken out of the headers, so that no hook passes
/// them on.
///
/// # Errors
/// 401 for credentials that prove nothing.
pub(super) fn authenticate(
    authenticator: &dyn Authenticate,
    peer: &Peer,
    headers: &mut HeaderMap,
) -> Result<User, Status> {
    let token = bearer(headers).filter(|t| t.len() <= TOKEN_BYTES_MAX);
    headers.remove(AUTHORIZATION);
    let credentials = Credentials {
        certificates: &peer.certificates,
        bearer: token.as_deref(),
        remote: Some(peer.remote),
    };
    match authenticator.authenticate(&credentials) {
        Ok(Some(mut user)) => {
            if user.name != USER_ANONYMOUS && !user.in_group(GROUP_AUTHENTICATED) {
                user.groups.push(GROUP_AUTHENTICATED.to_owned());
            }
            Ok(user)
        }
        // A token that nobody knows is a mistake, not an anonymous request.
        Ok(None) if token.is_some() => Err(Status::unauthorized()),
        Ok(None) => Ok(User::anonymous()),
        Err(refused) => {
            tracing::debug!(remote = %peer.remote, reason = refused.reason, "credentials refused");
            Err(Status::unauthorized())
        }
    }
}

/// Whom the headers name, as Go prints references to objects: kind, namespace, name, uid, version,
/// revision and field.
fn references(acting: &User) -> String {
    const VERSION: &str = "authentication.k8s.io/v1";
    let mut all: Vec<String> = acting
        .groups
        .iter()
        .map(|group| format!("{{Group  {group}    }}"))
        .collect();
    for (key, values) in &acting.extra {
        all.extend(
            values
                .iter()
                .map(|v| format!("{{UserExtra  {v}  {VERSION}  {key}}}")),
        );
    }
    if !acting.uid.is_empty() {
        all.push(format!("{{UID  {}  {VERSION}  }}", acting.uid));
    }
    all.join(" ")
}

const EXTRA_PREFIX: &str = "impersonate-extra-";

/// The user that the headers ask to act as, if the asking one may
/// (`filters/impersonation.go` of upstream).
///
/// # Errors
/// 403 where it may not; 500 for groups or extras without a user, as upstream has it.
pub(super) fn impersonate<B>(
    engine: &Engine,
    user: User,
    http: &mut Request<B>,
) -> Result<User, Status> {
    let headers = http.headers();
    let one = |name: &str| {
        let value = headers.get(name).and_then(|v| v.to_str().ok());
        value.unwrap_or("").to_owned()
    };
    let (name, uid) = (one("impersonate-user"), one("impersonate-uid"));
    let texts = |name: &http::HeaderName| -> Vec<String> {
        let values = headers.get_all(name).iter();
        values
            .filter_map(|v| v.to_str().ok().map(str::to_owned))
            .collect()
    };
    let groups = texts(&http::HeaderName::from_static("impersonate-group"));
    let mut acting = User {
        name: name.clone(),
        uid: uid.clone(),
        groups: groups.clone(),
        ..User::default()
    };
    let mut used = Vec::new();
    for header in headers.keys() {
        let Some(key) = header.as_str().strip_prefix(EXTRA_PREFIX) else {
            continue;
        };
        let key = percent_encoding::percent_decode_str(key)
            .decode_utf8_lossy()
            .to_lowercase();
        acting.extra.insert(key, texts(header));
        used.push(header.clone());
    }
    if name.is_empty() {
        if groups.is_empty() && uid.is_empty() && acting.extra.is_empty() {
            return Ok(user);
        }
        let message = format!(
            "Internal Server Error: {:?}: requested [{}] without impersonating a user\n",
            http.uri().to_string(),
            references(&acting)
        );
        return Err(Status::as_text(500, "InternalError", message));
    }
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        engine.authorize(&Access {
            user: &user,
            verb: "impersonate",
            target: Target::Resource {
                group,
                version: "v1",
                resource,
                subresource,
                namespace,
                name,
            },
        })
    };
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'));
    if let Some((namespace, account)) = account {
        may("", "serviceaccounts", "", namespace, account)?;
        if acting.groups.is_empty() {
            acting.groups = vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
            ];
        }
    } else {
        may("", "users", "", "", &name)?;
    }
    for group in &groups {
        may("", "groups", "", "", group)?;
    }
    if !uid.is_empty() {
        may("authentication.k8s.io", "uids", "", "", &uid)?;
    }
    for (key, values) in &acting.extra {
        for value in values {
            may("authentication.k8s.io", "userextras", key, "", value)?;
        }
    }
    let nobody = name == USER_ANONYMOUS;
    let group = if nobody {
        GROUP_UNAUTHENTICATED
    } else {
        GROUP_AUTHENTICATED
    };
    if !acting.in_group(group) {
        acting.groups.push(group.to_owned());
    }
    let headers = http.headers_mut();
    for header in ["impersonate-user", "impersonate-uid", "impersonate-group"] {
        headers.remove(header);
    }
    for header in used {
        headers.remove(header);
    }
    Ok(acting)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_in_two_ways() {
        let mut headers = HeaderMap::new();
        assert_eq!(bearer(&headers), None);
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            "v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.dG9rZW4"
                .parse()
                .unwrap(),
        );
        assert_eq!(bearer(&headers).as_deref(), Some("token"));
        headers.insert(AUTHORIZATION, "bearer x.y.z".parse().unwrap());
        assert_eq!(bearer(&headers).as_deref(), Some("x.y.z"));
        headers.insert(AUTHORIZATION, "Basic abc".parse().unwrap());
        assert_eq!(bearer(&headers).as_deref(), Some("token"));
    }
}
