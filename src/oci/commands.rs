//! What the commands do.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use oci_spec::runtime::{LinuxResources, Process};
use rkube_runtime::lifecycle::{
    self, Container, CreateOptions, ExecOptions, Foreground, Made, Signal, Store,
};
use rkube_runtime::{Error, capability, default};
use serde_json::{Value, json};

use super::args::{Cli, Command, Create, Delete, Events, Exec, Kill, Run, Spec, Update};
use super::log::Log;
use super::resources;
use super::show::{features, list, ps, state};

pub(super) type Result<T> = std::result::Result<T, Error>;

/// Largest process or limits file, in bytes.
const MAX_INPUT_BYTES: u64 = 4 << 20;
/// Most descriptors that are passed on.
const MAX_PRESERVED_FDS: u32 = 64;

/// Text of `--version`; callers parse its first line.
pub(super) fn version(name: &str) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let commit = option_env!("RKUBE_COMMIT").unwrap_or("unknown");
    format!(
        "{name} version {version}\ncommit: {commit}\nspec: {}\n",
        default::SPEC_VERSION
    )
}

/// Runs one command; returns the exit code.
pub(super) fn run(cli: Cli, log: &mut Log) -> Result<i32> {
    refuse(&cli)?;
    let store = Store::new(&cli.root);
    let systemd = cli.systemd_cgroup;
    let Some(command) = cli.command else {
        return Err(usage("a command is missing (see --help)"));
    };
    match command {
        Command::Create(args) => {
            let made = lifecycle::create(&store, create_options(args, false, systemd)?)?;
            warn_all(log, &made.warnings);
        }
        Command::Start(args) => store.load(&args.id)?.start()?,
        Command::State(args) => state(&store.load(&args.id)?)?,
        Command::Kill(args) => kill(&store, &args)?,
        Command::Delete(args) => delete(&store, &args, log)?,
        Command::Run(args) => return run_container(&store, args, systemd, log),
        Command::Exec(args) => return exec(&store, args, log),
        Command::Spec(args) => spec(&args)?,
        Command::Features => print(&format!("{:#}\n", features()))?,
        Command::List(args) => list(&store, &args, log)?,
        Command::Ps(args) => return ps(&store, args),
        Command::Pause(args) => store.load(&args.id)?.pause()?,
        Command::Resume(args) => store.load(&args.id)?.resume()?,
        Command::Update(args) => update(&store, &args, log)?,
        Command::Events(args) => events(&store, &args)?,
        Command::Checkpoint(_) | Command::Restore(_) => {
            return Err(unsupported("checkpoint", "checkpoint and restore"));
        }
    }
    Ok(0)
}

pub(super) fn usage(reason: &str) -> Error {
    Error::Spec {
        field: "arguments".to_owned(),
        reason: reason.to_owned(),
    }
}

fn unsupported(field: &str, reason: &str) -> Error {
    Error::Unsupported {
        field: field.to_owned(),
        reason: reason.to_owned(),
    }
}

fn refuse(cli: &Cli) -> Result<()> {
    match cli.rootless.as_deref() {
        None | Some("false" | "auto") => Ok(()),
        Some(_) => Err(unsupported("--rootless", "running without root's rights")),
    }
}

fn warn_all(log: &mut Log, warnings: &[String]) {
    for text in warnings {
        log.warn(text);
    }
}

/// Writes to standard output.
pub(super) fn print(text: &str) -> Result<()> {
    std::io::stdout()
        .write_all(text.as_bytes())
        .map_err(|source| Error::File {
            operation: "write",
            path: "standard output".into(),
            source,
        })
}

fn own_stream(n: i32) -> Option<OwnedFd> {
    let fd = match n {
        0 => rustix::stdio::stdin(),
        1 => rustix::stdio::stdout(),
        _ => rustix::stdio::stderr(),
    };
    // One that is closed becomes /dev/null.
    fd.try_clone_to_owned().ok()
}

fn own_stdio() -> [Option<OwnedFd>; 3] {
    [own_stream(0), own_stream(1), own_stream(2)]
}

/// Copies of descriptors 3, 4, ... of this process.
fn preserved(count: u32) -> Result<Vec<OwnedFd>> {
    let fail = |n: i32| {
        move |source: rustix::io::Errno| Error::Call {
            call: "pass on descriptor",
            object: n.to_string(),
            source,
        }
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > MAX_PRESERVED_FDS {
        return Err(usage("at most 64 descriptors can be passed on"));
    }
    let own = rustix::process::getpid();
    let flags = rustix::process::PidfdFlags::empty();
    let own = rustix::process::pidfd_open(own, flags).map_err(fail(0))?;
    let count = i32::try_from(count).unwrap_or(0);
    (3..3 + count)
        .map(|n| {
            let flags = rustix::process::PidfdGetfdFlags::empty();
            rustix::process::pidfd_getfd(&own, n, flags).map_err(fail(n))
        })
        .collect()
}

fn create_options(args: Create, keeps_terminal: bool, systemd: bool) -> Result<CreateOptions> {
    let listen: u32 = std::env::var("LISTEN_FDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    Ok(CreateOptions {
        id: args.id,
        bundle: args.bundle,
        pid_file: args.ends.pid_file,
        console_socket: args.ends.console_socket,
        pidfd_socket: args.ends.pidfd_socket,
        no_pivot: args.no_pivot,
        no_new_keyring: args.no_new_keyring,
        stdio: own_stdio(),
        extra_fds: preserved(listen.saturating_add(args.ends.preserve_fds))?,
        listen_fds: (listen > 0).then_some(listen),
        keeps_terminal,
        start_now: false,
        systemd,
    })
}

fn run_container(store: &Store, args: Run, systemd: bool, log: &mut Log) -> Result<i32> {
    let id = args.create.id.clone();
    // Signals are caught before there is a process that could miss one.
    let foreground = if args.detach {
        None
    } else {
        Some(Foreground::new()?)
    };
    let mut options = create_options(args.create, !args.detach, systemd)?;
    options.start_now = true;
    let made = lifecycle::create(store, options)?;
    warn_all(log, &made.warnings);
    let Made {
        container,
        pidfd,
        terminal,
        ..
    } = made;
    let code = container.poststart().and_then(|()| match &foreground {
        Some(foreground) => foreground.wait(&pidfd, terminal),
        None => Ok(0),
    });
    if foreground.is_some() && (code.is_err() || !args.keep) {
        let warnings = lifecycle::delete(store, &id, true)?;
        warn_all(log, &warnings);
    }
    code
}

fn exec(store: &Store, args: Exec, log: &mut Log) -> Result<i32> {
    let container = store.load(&args.id)?;
    let process = exec_process(&container, &args)?;
    let foreground = if args.detach {
        None
    } else {
        Some(Foreground::new()?)
    };
    let launched = lifecycle::exec(
        &container,
        ExecOptions {
            process,
            pid_file: args.ends.pid_file,
            console_socket: args.ends.console_socket,
            pidfd_socket: args.ends.pidfd_socket,
            stdio: own_stdio(),
            extra_fds: preserved(args.ends.preserve_fds)?,
            keeps_terminal: !args.detach,
            ignore_paused: args.ignore_paused,
        },
    )?;
    warn_all(log, &launched.warnings);
    match foreground {
        Some(foreground) => foreground.wait(&launched.pidfd, launched.terminal),
        None => Ok(0),
    }
}

fn read_input(path: &Path) -> Result<Vec<u8>> {
    let fail = |source| Error::File {
        operation: "read",
        path: path.to_owned(),
        source,
    };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin()
            .take(MAX_INPUT_BYTES)
            .read_to_end(&mut bytes)
            .map_err(fail)?;
    } else {
        std::fs::File::open(path)
            .map_err(fail)?
            .take(MAX_INPUT_BYTES)
            .read_to_end(&mut bytes)
            .map_err(fail)?;
    }
    Ok(bytes)
}

/// The process of an exec: a file, or the container's own with changes.
fn exec_process(container: &Container, args: &Exec) -> Result<Process> {
    if let Some(path) = &args.process {
        let text = read_input(path)?;
        return rkube_runtime::spec::process(&text, &path.display().to_string());
    }
    if args.argv.is_empty() {
        return Err(usage("a program to execute is missing"));
    }
    let spec = container.spec()?;
    let mut process = spec.process().clone().unwrap_or_default();
    process
        .set_args(Some(args.argv.clone()))
        .set_terminal(Some(args.tty))
        .set_console_size(None);
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    let env = process.env().clone().unwrap_or_default();
    process.set_env(Some(with_changes(env, &args.env)));
    if let Some(text) = &args.user {
        let (uid, gid) = user(text)?;
        let user = process.user_mut();
        user.set_uid(uid);
        if let Some(gid) = gid {
            user.set_gid(gid);
        }
        // HOME belongs to the other user.
        let mut env = process.env().clone().unwrap_or_default();
        if !args.env.iter().any(|e| e.starts_with("HOME=")) {
            env.retain(|e| !e.starts_with("HOME="));
        }
        process.set_env(Some(env));
    }
    if !args.additional_gids.is_empty() {
        let mut groups = process.user().additional_gids().clone().unwrap_or_default();
        groups.extend(&args.additional_gids);
        process.user_mut().set_additional_gids(Some(groups));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    if let Some(profile) = &args.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &args.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if !args.cap.is_empty() {
        add_capabilities(&mut process, &args.cap)?;
    }
    Ok(process)
}

/// An environment with changes, each of which replaces what there was of its
/// name: programs look at the first one that they find (getenv(3)).
fn with_changes(mut env: Vec<String>, changes: &[String]) -> Vec<String> {
    fn name(pair: &str) -> &str {
        pair.split_once('=').map_or(pair, |(name, _)| name)
    }
    for change in changes {
        env.retain(|pair| name(pair) != name(change));
        env.push(change.clone());
    }
    env
}

/// UID, or UID and GID; digits only, so that no name and no overflow becomes
/// root.
fn user(text: &str) -> Result<(u32, Option<u32>)> {
    let number = |part: &str| {
        let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        part.parse::<u32>()
            .ok()
            .filter(|id| digits && *id != u32::MAX)
            .ok_or_else(|| Error::Spec {
                field: "--user".to_owned(),
                reason: format!("{text:?} is not UID[:GID]"),
            })
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
        None => Ok((number(text)?, None)),
    }
}

fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    let mut sets = process.capabilities().clone().unwrap_or_default();
    for name in names {
        let parsed = capability::bit(name)
            .and_then(|bit| capability::names(bit).pop())
            .and_then(|full| rkube_runtime::spec::typed(&Value::String(full)).ok());
        let parsed: oci_spec::runtime::Capability = parsed.ok_or_else(|| Error::Spec {
            field: "--cap".to_owned(),
            reason: format!("unknown capability {name:?}"),
        })?;
        for set in [
            sets.bounding().clone(),
            sets.effective().clone(),
            sets.permitted().clone(),
        ]
        .into_iter()
        .enumerate()
        {
            let (n, set) = set;
            let mut set = set.unwrap_or_default();
            set.insert(parsed);
            match n {
                0 => sets.set_bounding(Some(set)),
                1 => sets.set_effective(Some(set)),
                _ => sets.set_permitted(Some(set)),
            };
        }
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

fn kill(store: &Store, args: &Kill) -> Result<()> {
    let signal: Signal = args.signal.parse()?;
    store.load(&args.id)?.kill(signal, args.all)
}

fn delete(store: &Store, args: &Delete, log: &mut Log) -> Result<()> {
    let warnings = lifecycle::delete(store, &args.id, args.force)?;
    warn_all(log, &warnings);
    Ok(())
}

fn spec(args: &Spec) -> Result<()> {
    if args.rootless {
        return Err(unsupported("--rootless", "running without root's rights"));
    }
    let path = args.bundle.join("config.json");
    let text = format!("{:#}\n", default::default_value());
    std::fs::File::create_new(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|source| Error::File {
            operation: "write",
            path,
            source,
        })
}

fn update(store: &Store, args: &Update, log: &mut Log) -> Result<()> {
    let limits: LinuxResources = match &args.resources {
        Some(path) => {
            let text = read_input(path)?;
            serde_json::from_slice(&text).map_err(|source| Error::Parse {
                what: path.display().to_string(),
                source,
            })?
        }
        None => resources::from_flags(args)?,
    };
    let warnings = lifecycle::update(&store.load(&args.id)?, &limits)?;
    warn_all(log, &warnings);
    Ok(())
}

/// `5`, `5s`, `500ms` or `2m`.
fn interval(text: &str) -> Result<Duration> {
    let fail = || usage("--interval must be a time such as 5s");
    let (digits, unit_ms) = if let Some(rest) = text.strip_suffix("ms") {
        (rest, 1)
    } else if let Some(rest) = text.strip_suffix('s') {
        (rest, 1000)
    } else if let Some(rest) = text.strip_suffix('m') {
        (rest, 60_000)
    } else {
        (text, 1000)
    };
    let number: u64 = digits.parse().map_err(|_| fail())?;
    let ms = number.checked_mul(unit_ms).filter(|ms| *ms > 0);
    Ok(Duration::from_millis(ms.ok_or_else(fail)?))
}

fn events(store: &Store, args: &Events) -> Result<()> {
    let container = store.load(&args.id)?;
    let every = interval(&args.interval)?;
    if args.stats {
        return event(&resources::stats_event(&args.id, &container.stats()?));
    }
    let pidfd = container.pidfd().ok_or(Error::NotRunning)?;
    let watch = container.oom_watch()?;
    // Kept from wait to wait: what happens while a line is printed counts too.
    let mut kills = watch.take()?.kills;
    loop {
        match container.stats() {
            Err(Error::NotRunning) => return Ok(()),
            other => event(&resources::stats_event(&args.id, &other?))?,
        }
        let (ended, oom) = lifecycle::wait_events(&pidfd, &watch, &mut kills, every)?;
        if oom {
            event(&json!({"type": "oom", "id": args.id}))?;
        }
        if ended {
            return Ok(());
        }
    }
}

fn event(value: &Value) -> Result<()> {
    print(&format!("{value}\n"))
}

#[cfg(test)]
mod tests {
    use super::super::show::only;
    use super::*;

    #[test]
    fn the_last_word_on_a_variable_holds() {
        let list = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let env = list("PATH=/bin A=1 AB=2 A=3");
        let changed = with_changes(env, &list("A=4 PATH=/opt B=5 A="));
        assert_eq!(changed, list("AB=2 PATH=/opt B=5 A="));
    }

    #[test]
    fn users_are_numbers() {
        assert_eq!(user("1").unwrap(), (1, None));
        assert_eq!(user("0:5").unwrap(), (0, Some(5)));
        for bad in [
            "",
            "root",
            "+1",
            "-1",
            "1:",
            ":1",
            "4294967296",
            "4294967295",
            "1 ",
        ] {
            assert!(user(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn intervals() {
        assert_eq!(interval("5").unwrap(), Duration::from_secs(5));
        assert_eq!(interval("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(interval("2m").unwrap(), Duration::from_secs(120));
        for bad in ["", "0", "x", "-1s", "1h"] {
            assert!(interval(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn lines_of_ps() {
        let text = "UID PID CMD\nroot 7 a\nroot 77 b\nroot x c\n";
        assert_eq!(only(text, &[77]).unwrap(), "UID PID CMD\nroot 77 b\n");
        assert!(only("A B\n", &[1]).is_err());
    }
}
