//! `rkube image`, as data.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Document, Format};

/// `rkube image`.
#[derive(Debug, Subcommand)]
pub(crate) enum Image {
    /// Bring images from their registries into the store.
    ///
    /// A name without a registry is Docker Hub's, as everywhere. Mirrors,
    /// rewrites and insecure registries are told in etc/rkube/registries.conf.
    Pull(Pull),
    /// Send an image of the store to a registry.
    Push(Push),
    /// Check user and password at a registry and keep them for this node.
    ///
    /// They are kept in etc/rkube/config.json, in Docker's form; pods of this
    /// node may pull with them.
    Login(Login),
    /// Forget user and password of a registry.
    Logout {
        /// The registry.
        #[arg(default_value = "docker.io")]
        registry: String,
        /// The file, instead of etc/rkube/config.json.
        #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
        authfile: Option<PathBuf>,
    },
    /// Give an image one more name.
    Tag {
        /// The image: a reference, an id or the beginning of one.
        image: String,
        /// The new reference.
        name: String,
    },
    /// Write images into an archive: an OCI layout that `docker load` reads too.
    Save {
        /// The images.
        #[arg(required = true)]
        image: Vec<String>,
        /// The archive; standard output if not given.
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Bring the images of an archive into the store, under their own names.
    Load {
        /// The archive; standard input if not given.
        #[arg(short, long, value_name = "FILE")]
        input: Option<PathBuf>,
        /// Print what was loaded as JSON or YAML.
        #[arg(short, long, value_enum)]
        output: Option<Document>,
    },
    /// Bring images into the store.
    ///
    /// From an OCI layout (directory or archive), a `docker save` archive, or
    /// the files of a root file system (directory or archive).
    Import(Import),
    /// List images.
    Ls {
        /// How the list is printed.
        #[arg(short, long, value_enum)]
        output: Option<Format>,
    },
    /// Show all that is known of images.
    Inspect {
        /// References or ids.
        #[arg(required = true)]
        image: Vec<String>,
        /// How they are printed.
        #[arg(short, long, value_enum, default_value = "json")]
        output: Document,
    },
    /// Show how an image was made, the newest step first.
    History {
        /// A reference or id.
        image: String,
        /// How it is printed.
        #[arg(short, long, value_enum)]
        output: Option<Document>,
    },
    /// Remove images.
    Rm {
        /// References or ids.
        #[arg(required = true)]
        image: Vec<String>,
    },
    /// Remove images that have no tag and that no container uses.
    Prune {
        /// Every image that no container uses and that is not pinned.
        #[arg(short, long)]
        all: bool,
    },
    /// Check stored images against their digests, file by file.
    Verify {
        /// References or ids; all if none.
        image: Vec<String>,
    },
    /// Keep an image when unused ones are removed.
    Pin {
        /// The reference.
        image: String,
    },
    /// Let an image go when unused ones are removed.
    Unpin {
        /// The reference.
        image: String,
    },
    /// Show what images take of the disk.
    Df {
        /// How it is printed.
        #[arg(short, long, value_enum)]
        output: Option<Document>,
    },
}

/// `rkube image pull`.
#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// References.
    #[arg(required = true)]
    pub(crate) image: Vec<String>,
    /// The platform, instead of this host's.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub(crate) platform: Option<String>,
    /// Credentials in the form of Docker's config.json, instead of the node's
    /// and the user's.
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    pub(crate) authfile: Option<PathBuf>,
    /// Show no progress.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `rkube image push`.
#[derive(Debug, Args)]
pub(crate) struct Push {
    /// The image: a reference, an id or the beginning of one.
    pub(crate) image: String,
    /// Where to, if that is not the image's own name.
    #[arg(value_name = "REFERENCE")]
    pub(crate) to: Option<String>,
    /// Credentials in the form of Docker's config.json, instead of the node's
    /// and the user's.
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    pub(crate) authfile: Option<PathBuf>,
    /// Show no progress.
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `rkube image login`.
#[derive(Debug, Args)]
pub(crate) struct Login {
    /// The registry.
    #[arg(default_value = "docker.io")]
    pub(crate) registry: String,
    /// The user; asked for if not given.
    #[arg(short, long)]
    pub(crate) username: Option<String>,
    /// The password; others on this host can see it here.
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub(crate) password: Option<String>,
    /// Read the password from standard input.
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// The file, instead of etc/rkube/config.json.
    #[arg(long, value_name = "FILE", env = "REGISTRY_AUTH_FILE")]
    pub(crate) authfile: Option<PathBuf>,
}

/// `rkube image import`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// The file or directory; - is standard input.
    #[arg(value_name = "FILE|DIR|-")]
    pub(crate) source: PathBuf,
    /// The name to store it under, instead of the names in the source.
    #[arg(value_name = "REFERENCE")]
    pub(crate) reference: Option<String>,
    /// The files of a root file system, whatever they look like.
    #[arg(long)]
    pub(crate) rootfs: bool,
    /// For a root file system: the program that the image runs.
    #[arg(long, value_name = "ARG", num_args = 1.., value_terminator = ";", allow_hyphen_values = true)]
    pub(crate) entrypoint: Vec<String>,
    /// For a root file system: a variable of the environment. May be repeated.
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) env: Vec<String>,
    /// Print what was imported as JSON or YAML.
    #[arg(short, long, value_enum)]
    pub(crate) output: Option<Document>,
}
