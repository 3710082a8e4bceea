//! Kubeconfig files (`k8s.io/client-go/tools/clientcmd/api/v1`): one cluster,
//! one user.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::PkiError;
use crate::files;
use crate::token::{base64_text, from_base64};

/// What a client needs to reach an API server.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Kubeconfig {
    /// `https://host:port`.
    pub server: String,
    /// Certificates that the server's must lead to, in PEM; empty: the
    /// system's.
    pub authority: String,
    /// The name to expect in the server's certificate, if not the URL's.
    pub server_name: Option<String>,
    /// Whether the server's certificate is not checked.
    pub skip_verify: bool,
    /// The client's certificate and key, in PEM.
    pub client: Option<(String, String)>,
    /// A bearer token.
    pub token: Option<String>,
    /// A file that holds one and may change.
    pub token_file: Option<PathBuf>,
    /// The default namespace.
    pub namespace: Option<String>,
}

impl std::fmt::Debug for Kubeconfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubeconfig")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Kubeconfig {
    /// The file's text. JSON is YAML; this is YAML that people read.
    #[must_use]
    pub fn to_yaml(&self, cluster: &str, user: &str) -> String {
        let quoted = |text: &str| Value::from(text).to_string();
        let mut text = String::from("apiVersion: v1\nkind: Config\nclusters:\n");
        let mut line = |indent: usize, key: &str, value: &str| {
            text.push_str(&" ".repeat(indent));
            text.push_str(key);
            if !value.is_empty() {
                text.push(' ');
                text.push_str(value);
            }
            text.push('\n');
        };
        line(0, "- name:", &quoted(cluster));
        line(2, "cluster:", "");
        line(4, "server:", &quoted(&self.server));
        if !self.authority.is_empty() {
            let data = base64_text(self.authority.as_bytes());
            line(4, "certificate-authority-data:", &data);
        }
        if let Some(name) = &self.server_name {
            line(4, "tls-server-name:", &quoted(name));
        }
        if self.skip_verify {
            line(4, "insecure-skip-tls-verify:", "true");
        }
        line(0, "users:", "");
        line(0, "- name:", &quoted(user));
        let is_empty = self.client.is_none() && self.token.is_none() && self.token_file.is_none();
        line(2, "user:", if is_empty { "{}" } else { "" });
        if let Some((certificate, key)) = &self.client {
            line(
                4,
                "client-certificate-data:",
                &base64_text(certificate.as_bytes()),
            );
            line(4, "client-key-data:", &base64_text(key.as_bytes()));
        }
        if let Some(token) = &self.token {
            line(4, "token:", &quoted(token));
        }
        if let Some(path) = &self.token_file {
            line(4, "tokenFile:", &quoted(&path.display().to_string()));
        }
        let context = format!("{user}@{cluster}");
        line(0, "contexts:", "");
        line(0, "- name:", &quoted(&context));
        line(2, "context:", "");
        line(4, "cluster:", &quoted(cluster));
        line(4, "user:", &quoted(user));
        if let Some(namespace) = &self.namespace {
            line(4, "namespace:", &quoted(namespace));
        }
        line(0, "current-context:", &quoted(&context));
        text
    }

    /// Writes the file, for its owner only.
    ///
    /// # Errors
    /// The system refuses.
    pub fn write(&self, path: &Path, cluster: &str, user: &str) -> Result<(), PkiError> {
        files::write_secret(path, self.to_yaml(cluster, user).as_bytes())
    }

    /// Reads a file: what its current context names.
    ///
    /// # Errors
    /// It cannot be read, or needs what is not supported (`exec`,
    /// `auth-provider`, a password), or names what it does not have.
    pub fn read(path: &Path) -> Result<Self, PkiError> {
        let text = files::read(path)?.ok_or_else(|| PkiError::File {
            action: "read",
            path: path.to_owned(),
            source: std::io::ErrorKind::NotFound.into(),
        })?;
        let dir = path.parent().unwrap_or_else(|| Path::new(""));
        Self::parse(&text, dir)
            .map_err(|reason| PkiError::invalid(format!("kubeconfig {}", path.display()), reason))
    }

    /// Reads a text; relative paths in it start at `dir`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str, dir: &Path) -> Result<Self, String> {
        let config: Value = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        let current = config["current-context"].as_str().unwrap_or("");
        let context = named(&config, "contexts", "context", current)?;
        let text = |value: &Value, field: &str| {
            let text = value[field].as_str().filter(|text| !text.is_empty());
            text.map(str::to_owned)
        };
        let cluster_name = text(&context, "cluster").unwrap_or_default();
        let cluster = named(&config, "clusters", "cluster", &cluster_name)?;
        let user = match text(&context, "user") {
            Some(name) => named(&config, "users", "user", &name)?,
            None => json!({}),
        };
        for field in ["exec", "auth-provider", "username", "password"] {
            if !user[field].is_null() {
                return Err(format!("a user with {field} is not supported"));
            }
        }
        if text(&cluster, "proxy-url").is_some() {
            return Err("a cluster with proxy-url is not supported".into());
        }
        let data = |value: &Value, field: &str| -> Result<Option<String>, String> {
            if let Some(data) = text(value, &format!("{field}-data")) {
                let bytes = from_base64(&data).ok_or(format!("{field}-data is not base64"))?;
                let pem =
                    String::from_utf8(bytes).map_err(|_| format!("{field}-data is not text"))?;
                return Ok(Some(pem));
            }
            let Some(path) = text(value, field) else {
                return Ok(None);
            };
            let path = dir.join(path);
            let pem = files::read(&path).map_err(|e| e.to_string())?;
            pem.map(Some)
                .ok_or(format!("{} does not exist", path.display()))
        };
        let client = match (
            data(&user, "client-certificate")?,
            data(&user, "client-key")?,
        ) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => return Err("a client certificate needs its key".into()),
        };
        let server = text(&cluster, "server").ok_or("the cluster has no server")?;
        if !server.starts_with("https://") {
            return Err(format!("the server {server:?} is not https"));
        }
        Ok(Self {
            server,
            authority: data(&cluster, "certificate-authority")?.unwrap_or_default(),
            server_name: text(&cluster, "tls-server-name"),
            skip_verify: cluster["insecure-skip-tls-verify"] == true,
            client,
            token: text(&user, "token"),
            token_file: text(&user, "tokenFile").map(|path| dir.join(path)),
            namespace: text(&context, "namespace"),
        })
    }
}

/// The entry of a list with a name.
fn named(config: &Value, list: &str, field: &str, name: &str) -> Result<Value, String> {
    let entries = config[list].as_array().map_or(&[][..], Vec::as_slice);
    let entry = entries.iter().find(|entry| entry["name"] == name);
    let entry = entry.ok_or_else(|| format!("{list} has no entry named {name:?}"))?;
    Ok(entry[field].clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(token in proptest::option::of("[ -~]{1,20}"), name in "[ -~]{1,10}", client: bool, namespace in proptest::option::of("[a-z]{1,5}")) {
            let config = Kubeconfig {
                server: "https://[fd00::1]:6443".into(),
                authority: "pem: \"x\"\n".into(),
                client: client.then(|| ("cert\n".into(), "key\n".into())),
                token,
                namespace,
                ..Kubeconfig::default()
            };
            let text = config.to_yaml(&name, "it's: me");
            prop_assert_eq!(Kubeconfig::parse(&text, Path::new("")).unwrap(), config, "{}", text);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[a-z:\n \\[\\]{}-]{0,80}") {
            prop_assert!(Kubeconfig::parse(&text, Path::new("")).is_err());
        }
    }

    #[test]
    fn files_beside_it_and_what_is_not_supported() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), "authority").unwrap();
        let text = |user: &str| {
            format!(
                "clusters: [{{name: c, cluster: {{server: 'https://h', certificate-authority: ca.crt}}}}]\n\
                 users: [{{name: u, user: {user}}}]\n\
                 contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
            )
        };
        let path = dir.path().join("config");
        std::fs::write(&path, text("{tokenFile: t}")).unwrap();
        let config = Kubeconfig::read(&path).unwrap();
        assert_eq!(config.authority, "authority");
        assert_eq!(config.token_file, Some(dir.path().join("t")));
        for user in [
            "{exec: {command: x}}",
            "{username: a}",
            "{client-certificate: ca.crt}",
        ] {
            std::fs::write(&path, text(user)).unwrap();
            assert!(Kubeconfig::read(&path).is_err(), "{user}");
        }
    }
}
