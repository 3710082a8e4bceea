//! The table of applets and the choice among them.

use std::fmt::Write as _;

use crate::error::ToolError;
use crate::{files, http, load, net, output, probe, process, shell};

/// How an applet ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// It ran to its end with this status.
    Status(u8),
    /// `exit`: a sequence of applets ends here too.
    Exit(u8),
}

impl End {
    /// The exit status of the process if nothing follows.
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Status(code) | Self::Exit(code) => code,
        }
    }
}

pub(crate) type Outcome = Result<End, ToolError>;

/// The ordinary end of an applet.
pub(crate) const DONE: Outcome = Ok(End::Status(0));

struct Applet {
    name: &'static str,
    usage: &'static str,
    run: fn(&[String]) -> Outcome,
}

macro_rules! table {
    ($($name:literal $usage:literal $run:path,)*) => {
        const TABLE: &[Applet] = &[$(Applet { name: $name, usage: $usage, run: $run }),*];

        /// The names of all applets, in alphabetical order.
        pub const APPLETS: &[&str] = &[$($name),*];
    };
}

table! {
    "burn-cpu" "[--threads N] [--seconds S]" load::burn_cpu,
    "caps" "" probe::caps,
    "cat" "[FILE]..." files::cat,
    "crash" "[SIGNAL]" process::crash,
    "echo" "[-n] [TEXT]..." process::echo,
    "env" "[NAME]" process::env,
    "exit" "[STATUS]" process::exit,
    "false" "" process::fail,
    "fill" "FILE SIZE" files::fill,
    "fork-bomb" "[--max N] [--seconds S]" load::fork_bomb,
    "get" "[--timeout S] [--retry S] URL" http::get,
    "hog-memory" "SIZE [--step SIZE] [--interval MS] [--seconds S]" load::hog_memory,
    "hostname" "" process::hostname,
    "httpd" "[-p PORT] [-h DIR] [--text TEXT]" http::httpd,
    "id" "" process::id,
    "kill" "[-SIGNAL] PID..." process::kill,
    "ls" "[-l] [PATH]..." files::ls,
    "mkdir" "[-p] DIR..." files::mkdir,
    "mounts" "" files::mounts,
    "nslookup" "NAME" net::nslookup,
    "ps" "" probe::ps,
    "readlink" "PATH..." files::readlink,
    "rm" "[-r] PATH..." files::rm,
    "run" "\"APPLET ARGS; APPLET ARGS...\"" shell::run,
    "say" "[--lines N|inf] [--interval MS] [--bytes N] [TEXT]" process::say,
    "sleep" "SECONDS|inf" process::sleep,
    "stamp" "" process::stamp,
    "stat" "PATH..." files::stat,
    "syscall-probe" "[NAME]..." probe::syscalls,
    "tcp" "connect HOST PORT [TEXT] | listen PORT" net::tcp,
    "touch" "FILE..." files::touch,
    "trap" "[--code N] [--delay MS] [--ignore]" process::trap,
    "true" "" process::succeed,
    "tty" "" probe::tty,
    "udp" "send HOST PORT TEXT | listen PORT" net::udp,
    "ulimit" "" probe::ulimit,
    "wait-file" "[--timeout S] PATH" files::wait_file,
    "write" "[-a] FILE TEXT" files::write,
}

/// The applet's name and its arguments, if `args` (with `argv[0]`) name one.
pub(crate) fn select(args: &[String]) -> Option<(&str, &[String])> {
    let (first, rest) = args.split_first()?;
    let base = first.rsplit('/').next().unwrap_or(first);
    if APPLETS.contains(&base) {
        return Some((base, rest));
    }
    let (name, rest) = rest.split_first()?;
    APPLETS
        .contains(&name.as_str())
        .then_some((name.as_str(), rest))
}

/// Runs one applet; a failure is printed and becomes a status.
pub(crate) fn run(name: &str, args: &[String]) -> End {
    let Some(applet) = TABLE.iter().find(|applet| applet.name == name) else {
        eprintln!("toolbox: no applet {name:?}");
        return End::Status(127);
    };
    if args.first().is_some_and(|arg| arg == "--help") {
        let text = format!("usage: {} {}", applet.name, applet.usage);
        return End::Status(u8::from(output::line(&text).is_err()));
    }
    match (applet.run)(args) {
        Ok(end) => end,
        Err(error) => {
            eprintln!("{name}: {error}");
            End::Status(error.status())
        }
    }
}

/// One line per applet.
pub(crate) fn usage() -> String {
    let mut text = String::from("usage: toolbox APPLET [ARGS]\n");
    for applet in TABLE {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {} {}", applet.name, applet.usage);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{APPLETS, select};

    fn owned(args: &[&str]) -> Vec<String> {
        args.iter().map(|&arg| arg.to_owned()).collect()
    }

    #[test]
    fn names_are_sorted_and_unique() {
        assert!(APPLETS.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn applet_by_link_name_or_first_argument() {
        let args = owned(&["/bin/sleep", "1"]);
        assert_eq!(select(&args), Some(("sleep", &args[1..])));
        let args = owned(&["/toolbox", "cat", "sleep"]);
        assert_eq!(select(&args), Some(("cat", &args[2..])));
        assert_eq!(select(&owned(&["/toolbox"])), None);
        assert_eq!(select(&owned(&["/toolbox", "bash"])), None);
    }
}
