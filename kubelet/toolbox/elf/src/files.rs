//! Applets about files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use crate::applets::{DONE, End, Outcome};
use crate::error::{During, ToolError};
use crate::output;
use crate::parse::{self, Options};

/// Files are copied and filled in pieces of this size.
const PIECE_BYTES: usize = 64 << 10;

/// `wait-file` looks for its file this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

pub(crate) fn cat(args: &[String]) -> Outcome {
    if args.is_empty() {
        copy(&mut io::stdin().lock(), "standard input")?;
    }
    for path in args {
        if path == "-" {
            copy(&mut io::stdin().lock(), "standard input")?;
        } else {
            let mut file = File::open(path).during(|| format!("open {path}"))?;
            copy(&mut file, path)?;
        }
    }
    DONE
}

fn copy(from: &mut impl Read, name: &str) -> Result<(), ToolError> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match from.read(&mut piece).during(|| format!("read {name}"))? {
            0 => return Ok(()),
            n => output::bytes(&piece[..n])?,
        }
    }
}

pub(crate) fn mounts(_: &[String]) -> Outcome {
    cat(&["/proc/self/mounts".to_owned()])
}

pub(crate) fn ls(args: &[String]) -> Outcome {
    let options = Options::new(args, &[], &["-l"])?;
    let long = options.flag("-l");
    let paths = if options.rest.is_empty() {
        vec!["."]
    } else {
        options.rest
    };
    for path in paths {
        let path = Path::new(path);
        let meta = path
            .symlink_metadata()
            .during(|| format!("stat {}", path.display()))?;
        if !meta.is_dir() {
            entry(path, &path.to_string_lossy(), long)?;
            continue;
        }
        let during = || format!("list {}", path.display());
        let mut names = Vec::new();
        for item in fs::read_dir(path).during(during)? {
            names.push(item.during(during)?.file_name());
        }
        names.sort();
        for name in names {
            entry(&path.join(&name), &name.to_string_lossy(), long)?;
        }
    }
    DONE
}

fn entry(path: &Path, name: &str, long: bool) -> Result<(), ToolError> {
    if !long {
        return output::line(name);
    }
    let meta = path
        .symlink_metadata()
        .during(|| format!("stat {}", path.display()))?;
    let target = match fs::read_link(path) {
        Ok(target) => format!(" -> {}", target.display()),
        Err(_) => String::new(),
    };
    output::line(&format!(
        "{} {:>3} {} {} {:>8} {name}{target}",
        mode_text(&meta),
        meta.nlink(),
        meta.uid(),
        meta.gid(),
        meta.len()
    ))
}

/// The ten characters that `ls -l` begins its lines with.
fn mode_text(meta: &fs::Metadata) -> String {
    let mut text = String::from(kind(meta).0);
    for shift in [6, 3, 0] {
        let bits = meta.mode() >> shift;
        let special = meta.mode() >> (9 + shift / 3) & 1 != 0;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, special, shift) {
            (false, false, _) => '-',
            (true, false, _) => 'x',
            (true, true, 0) => 't',
            (false, true, 0) => 'T',
            (true, true, _) => 's',
            (false, true, _) => 'S',
        });
    }
    text
}

/// The kind of a file as `ls` and as people say it.
fn kind(meta: &fs::Metadata) -> (&'static str, &'static str) {
    let kind = meta.file_type();
    if kind.is_dir() {
        ("d", "directory")
    } else if kind.is_symlink() {
        ("l", "symlink")
    } else if kind.is_block_device() {
        ("b", "block device")
    } else if kind.is_char_device() {
        ("c", "character device")
    } else if kind.is_fifo() {
        ("p", "fifo")
    } else if kind.is_socket() {
        ("s", "socket")
    } else {
        ("-", "file")
    }
}

/// `MODE UID GID SIZE KIND [MAJOR:MINOR] PATH`, the mode in octal.
pub(crate) fn stat(args: &[String]) -> Outcome {
    for path in args {
        let meta = fs::symlink_metadata(path).during(|| format!("stat {path}"))?;
        let device = match meta.rdev() {
            0 => String::new(),
            dev => format!(" {}:{}", rustix::fs::major(dev), rustix::fs::minor(dev)),
        };
        output::line(&format!(
            "{:04o} {} {} {} {}{device} {path}",
            meta.mode() & 0o7777,
            meta.uid(),
            meta.gid(),
            meta.len(),
            kind(&meta).1
        ))?;
    }
    DONE
}

pub(crate) fn readlink(args: &[String]) -> Outcome {
    for path in args {
        let target = fs::read_link(path).during(|| format!("readlink {path}"))?;
        output::line(&target.to_string_lossy())?;
    }
    DONE
}

pub(crate) fn touch(args: &[String]) -> Outcome {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_NOW,
    };
    let times = Timestamps {
        last_access: now,
        last_modification: now,
    };
    for path in args {
        let created = OpenOptions::new().append(true).create(true).open(path);
        created.during(|| format!("open {path} for writing"))?;
        utimensat(CWD, path, &times, AtFlags::empty()).during(|| format!("utimensat {path}"))?;
    }
    DONE
}

/// Writes the text and a newline to the file, replacing it unless `-a`.
pub(crate) fn write(args: &[String]) -> Outcome {
    let options = Options::new(args, &[], &["-a"])?;
    let (path, text) = options
        .rest
        .split_first()
        .ok_or_else(|| ToolError::Usage("write [-a] FILE TEXT".into()))?;
    let append = options.flag("-a");
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .append(append)
        .truncate(!append)
        .open(path)
        .during(|| format!("open {path} for writing"))?;
    let text = text.join(" ") + "\n";
    file.write_all(text.as_bytes())
        .during(|| format!("write {path}"))?;
    DONE
}

pub(crate) fn mkdir(args: &[String]) -> Outcome {
    let options = Options::new(args, &[], &["-p"])?;
    for path in &options.rest {
        let made = if options.flag("-p") {
            fs::create_dir_all(path)
        } else {
            fs::create_dir(path)
        };
        made.during(|| format!("mkdir {path}"))?;
    }
    DONE
}

pub(crate) fn rm(args: &[String]) -> Outcome {
    let options = Options::new(args, &[], &["-r"])?;
    for path in &options.rest {
        let meta = fs::symlink_metadata(path).during(|| format!("stat {path}"))?;
        let removed = match (meta.is_dir(), options.flag("-r")) {
            (true, true) => fs::remove_dir_all(path),
            (true, false) => fs::remove_dir(path),
            (false, _) => fs::remove_file(path),
        };
        removed.during(|| format!("remove {path}"))?;
    }
    DONE
}

/// Writes that many bytes to the file and says where it had to stop.
pub(crate) fn fill(args: &[String]) -> Outcome {
    let usage = || ToolError::Usage("fill FILE SIZE, such as 10Mi".into());
    let [path, text] = args else {
        return Err(usage());
    };
    let total = parse::size(text).ok_or_else(usage)?;
    let mut file = File::create(path).during(|| format!("create {path}"))?;
    let piece = [b'.'; PIECE_BYTES];
    let mut written: u64 = 0;
    while written < total {
        let left = usize::try_from(total - written).unwrap_or(usize::MAX);
        let n = file
            .write(&piece[..left.min(PIECE_BYTES)])
            .during(|| format!("write {path} after {written} bytes"))?;
        written += n as u64; // At most PIECE_BYTES.
    }
    file.sync_data()
        .during(|| format!("fdatasync {path} after {written} bytes"))?;
    output::line(&format!("wrote {written} bytes"))?;
    DONE
}

pub(crate) fn wait_file(args: &[String]) -> Outcome {
    let options = Options::new(args, &["--timeout"], &[])?;
    let [path] = options.rest[..] else {
        return Err(ToolError::Usage("wait-file [--timeout S] PATH".into()));
    };
    let limit = options.seconds("--timeout", None)?;
    let begin = Instant::now();
    while fs::symlink_metadata(path).is_err() {
        if limit.is_some_and(|limit| begin.elapsed() >= limit) {
            return Err(ToolError::Answer(format!("{path} did not come in time")));
        }
        let end = crate::rest::rest(Some(LOOK_INTERVAL))?;
        if let End::Exit(_) = end {
            return Ok(end);
        }
    }
    DONE
}
