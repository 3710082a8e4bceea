//! Images from and to registries and archives.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use rkube_distribution::Registries;
use rkube_image::pull::{Cancel, Progress, PullRequest, Silent};
use rkube_image::{Credential, Platform, Reference};

use super::bars::Bars;
use crate::cli::{Login, Pull, Push};
use crate::error::bad_input;
use crate::output;

/// Longest user name or password.
const MAX_SECRET_BYTES: u64 = 64 << 10;

/// The registries with the credentials that a command may use: those of the
/// file that it names, else the node's and the user's own.
fn registries(root: &Path, authfile: Option<PathBuf>) -> Registries {
    let registries = Registries::of_root(root);
    let files = match authfile {
        Some(file) => vec![file],
        None => {
            let own = std::env::var_os("DOCKER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| {
                    let home = std::env::var_os("HOME").map(PathBuf::from);
                    home.map(|h| h.join(".docker"))
                });
            let own = own.map(|dir| dir.join("config.json"));
            std::iter::once(registries.credential_file())
                .chain(own)
                .collect()
        }
    };
    registries.with_credential_files(files)
}

/// Whom to tell how a transfer goes.
fn progress(quiet: bool, verb: &'static str) -> (Arc<dyn Progress>, Option<Arc<Bars>>) {
    if quiet {
        return (Arc::new(Silent), None);
    }
    let bars = Arc::new(Bars::new(verb));
    (Arc::clone(&bars) as Arc<dyn Progress>, Some(bars))
}

fn platform(text: &str) -> anyhow::Result<Platform> {
    let mut parts = text.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(os), Some(architecture), variant, None)
            if !os.is_empty() && !architecture.is_empty() =>
        {
            Ok(Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(str::to_owned),
            })
        }
        _ => Err(bad_input(format!(
            "platform {text:?} is not OS/ARCH[/VARIANT], as linux/arm64"
        ))),
    }
}

pub(super) fn pull(root: &Path, args: Pull) -> anyhow::Result<()> {
    let mut wanted = Vec::new();
    for image in &args.image {
        wanted.push(Reference::parse(image).map_err(|e| bad_input(e.to_string()))?);
    }
    let platform = args.platform.as_deref().map(platform).transpose()?;
    let store = super::open(root)?;
    let registries = registries(root, args.authfile);
    for reference in wanted {
        let (progress, bars) = progress(args.quiet, "pulled");
        let mut request = PullRequest::new(reference.clone());
        request.progress = progress;
        if let Some(platform) = &platform {
            request.platform = platform.clone();
        }
        let pulled = registries.pull_image(&store, &request);
        if let Some(bars) = bars {
            bars.finish();
        }
        let pulled = pulled.with_context(|| format!("pull {}", reference.familiar()))?;
        let image = &pulled.image;
        output::print(&format!(
            "{}: {} layers, {} of them new, {} fetched from {}\n{}@{}\n",
            reference.familiar(),
            image.layers,
            image.new_layers,
            output::bytes(pulled.fetched_bytes),
            pulled.endpoint,
            reference.repository(),
            image.manifest_digest,
        ))?;
    }
    super::tell_writer(root)
}

pub(super) fn push(root: &Path, args: Push) -> anyhow::Result<()> {
    let to = args.to.as_ref().unwrap_or(&args.image);
    let reference = Reference::parse(to).map_err(|e| bad_input(e.to_string()))?;
    let store = super::open(root)?;
    let registries = registries(root, args.authfile);
    let (progress, bars) = progress(args.quiet, "pushed");
    let cancel = Cancel::default();
    let pushed = registries.push_image(&store, &args.image, &reference, &progress, &cancel);
    if let Some(bars) = bars {
        bars.finish();
    }
    let pushed = pushed.with_context(|| format!("push {} to {reference}", args.image))?;
    output::print(&format!(
        "{reference}: {} sent\n{}@{}\n",
        output::bytes(pushed.sent_bytes),
        reference.repository(),
        pushed.digest
    ))
}

/// A registry as users name it: `host[:port]`, maybe as an address.
fn registry_name(text: &str) -> anyhow::Result<String> {
    let bare = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let bare = bare.unwrap_or(text);
    let host = bare.split('/').next().unwrap_or(bare);
    // A reference with this registry is what it is for.
    let probe = Reference::parse(&format!("{host}/x"));
    match probe {
        Ok(r) if r.registry() == host || host == "index.docker.io" => Ok(r.registry().to_owned()),
        _ => Err(bad_input(format!("{text:?} is no registry: HOST[:PORT]"))),
    }
}

pub(super) fn login(root: &Path, args: Login) -> anyhow::Result<()> {
    let registry = registry_name(&args.registry)?;
    let username = match args.username {
        Some(name) => name,
        None => ask("user: ", true)?,
    };
    let password = match args.password {
        Some(password) => password,
        None if args.password_stdin => {
            let mut text = String::new();
            let mut input = std::io::stdin().take(MAX_SECRET_BYTES);
            input
                .read_to_string(&mut text)
                .context("read the password")?;
            text.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => ask("password: ", false)?,
    };
    if username.is_empty() || password.is_empty() {
        return Err(bad_input("user or password is empty"));
    }
    let registries = Registries::of_root(root);
    let file = args
        .authfile
        .unwrap_or_else(|| registries.credential_file());
    registries
        .login(&file, &registry, &Credential::basic(&username, &password))
        .with_context(|| format!("log in to {registry}"))?;
    output::print(&format!(
        "{registry}: user {username} is kept in {}\n",
        file.display()
    ))
}

pub(super) fn logout(root: &Path, registry: &str, authfile: Option<PathBuf>) -> anyhow::Result<()> {
    let registry = registry_name(registry)?;
    let registries = Registries::of_root(root);
    let file = authfile.unwrap_or_else(|| registries.credential_file());
    if registries.logout(&file, &registry)? {
        return output::print(&format!("{registry}: forgotten\n"));
    }
    anyhow::bail!("{} holds nothing for {registry}", file.display())
}

/// Asks on the terminal; a password is not shown.
fn ask(question: &str, echo: bool) -> anyhow::Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(bad_input(
            "give --username and --password-stdin where there is no terminal",
        ));
    }
    eprint!("{question}");
    let before = tcgetattr(&stdin).context("read the terminal's modes")?;
    if !echo {
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &silent).context("silence the terminal")?;
    }
    let mut text = String::new();
    let read = stdin.read_line(&mut text);
    if !echo {
        tcsetattr(&stdin, OptionalActions::Flush, &before).context("restore the terminal")?;
        eprintln!();
    }
    read.context("read the answer")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

pub(super) fn save(root: &Path, images: &[String], to: Option<&Path>) -> anyhow::Result<()> {
    let store = super::open(root)?;
    let Some(path) = to else {
        let out = std::io::stdout().lock();
        if out.is_terminal() {
            return Err(bad_input(
                "an archive is nothing for a terminal: give --output FILE",
            ));
        }
        let mut out = std::io::BufWriter::new(out);
        store.save(images, &mut out)?;
        return Ok(());
    };
    // A name that stands for a whole archive or for none.
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let file =
        std::fs::File::create(&partial).with_context(|| format!("create {}", partial.display()))?;
    let mut out = std::io::BufWriter::new(file);
    let saved = store
        .save(images, &mut out)
        .map_err(anyhow::Error::from)
        .and_then(|()| out.flush().context("write the archive"))
        // Its name must not come to the disk before it does.
        .and_then(|()| out.get_ref().sync_all().context("sync the archive"))
        .and_then(|()| {
            std::fs::rename(&partial, path).with_context(|| format!("rename {}", partial.display()))
        });
    if saved.is_err() {
        // What is left of it is of no use; the error is told.
        let _ = std::fs::remove_file(&partial);
    }
    saved
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_and_platforms_of_the_command_line() {
        for (text, wanted) in [
            ("docker.io", Some("docker.io")),
            ("index.docker.io", Some("docker.io")),
            ("https://reg.io:5000/v2/", Some("reg.io:5000")),
            ("localhost:5000", Some("localhost:5000")),
            ("reg", None),
            ("", None),
        ] {
            assert_eq!(registry_name(text).ok().as_deref(), wanted, "{text}");
        }
        assert_eq!(
            platform("linux/arm/v7").unwrap().variant.as_deref(),
            Some("v7")
        );
        assert!(
            platform("linux").is_err() && platform("a/b/c/d").is_err() && platform("/x").is_err()
        );
    }
}
