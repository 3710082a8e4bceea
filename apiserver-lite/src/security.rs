//! The parts of authentication, authorization, admission and hooks, joined as
//! a server needs them.

use std::sync::Arc;

use rkube_pki::Pki;

use crate::admission::Chain;
use crate::auth::{Authenticate, Authenticators, Authorize, Authorizers};
use crate::authn::{BootstrapTokens, Certificates, ServiceAccountTokens};
use crate::authz::review::Reviews;
use crate::authz::{NodeAuthorizer, Rbac};
use crate::connect::{Connect, Hooks};
use crate::objects::Objects;
use crate::plugins;
use crate::proxy::Proxy;
use crate::tokens::TokenRequests;

/// Who, whether, and what on the way.
#[derive(Debug, Clone)]
pub struct Security {
    /// Certificates, service account tokens, bootstrap tokens.
    pub authenticate: Arc<dyn Authenticate>,
    /// Nodes, then roles.
    pub authorize: Arc<dyn Authorize>,
    /// The plug-ins.
    pub admission: Chain,
    /// Reviews, token requests, and `connect` for pods.
    pub hooks: Hooks,
}

/// Joins the parts over what a store holds. `connect` answers `exec`,
/// `attach`, `portforward` and `log` of pods.
///
/// # Errors
/// TLS to pods cannot be set up.
pub fn assemble(
    objects: &Objects,
    pki: &Pki,
    connect: &Arc<dyn Connect>,
) -> Result<Security, rustls::Error> {
    let tokens = ServiceAccountTokens::new(Arc::clone(pki.tokens()), objects.clone());
    let tokens = Arc::new(tokens);
    let authenticate = Authenticators(vec![
        Arc::new(Certificates::new(pki.authority().der().clone())),
        Arc::clone(&tokens) as _,
        Arc::new(BootstrapTokens::new(objects.clone())),
    ]);
    let rbac = Arc::new(Rbac::new(objects.clone()));
    let authorize: Arc<dyn Authorize> = Arc::new(Authorizers(vec![
        Arc::new(NodeAuthorizer::new(objects.clone())),
        Arc::clone(&rbac) as _,
    ]));
    let reviews = Arc::new(Reviews {
        authorize: Arc::clone(&authorize),
        rbac: Arc::clone(&rbac),
        tokens,
    });
    let mut hooks = Hooks::default();
    for (group, plural) in [
        ("authorization.k8s.io", "selfsubjectaccessreviews"),
        ("authorization.k8s.io", "subjectaccessreviews"),
        ("authorization.k8s.io", "localsubjectaccessreviews"),
        ("authorization.k8s.io", "selfsubjectrulesreviews"),
        ("authentication.k8s.io", "selfsubjectreviews"),
        ("authentication.k8s.io", "tokenreviews"),
    ] {
        hooks = hooks.post(group, plural, "", Arc::clone(&reviews) as _);
    }
    let requests = TokenRequests::new(Arc::clone(pki.tokens()));
    hooks = hooks.post("", "serviceaccounts", "token", Arc::new(requests));
    for subresource in ["exec", "attach", "portforward", "log"] {
        hooks = hooks.connect("pods", subresource, Arc::clone(connect));
    }
    let proxy = Arc::new(Proxy::new()?);
    for plural in ["pods", "services"] {
        hooks = hooks.connect(plural, "proxy", Arc::clone(&proxy) as _);
    }
    Ok(Security {
        authenticate: Arc::new(authenticate),
        admission: plugins::chain(rbac, Arc::clone(&authorize)),
        authorize,
        hooks,
    })
}
