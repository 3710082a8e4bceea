//! `rkube image`, and the image that the program carries.
//!
//! The store locks itself: commands write to it beside a writer.

mod bars;
mod show;
mod transfer;

use std::collections::HashSet;
use std::path::Path;

use anyhow::Context;
use rkube_engine::Instance;
use rkube_image::{
    BuiltinContent, BuiltinFile, Format as ImageFormat, ImportOptions, Removed, RootfsConfig,
    Source, Store,
};

use crate::cli::{Document, Image, Import};
use crate::client::{Client, runtime};
use crate::output;
use crate::supervisor::node::TOOLBOX_IMAGE;
use crate::wire::Request;

/// Makes sure that the toolbox image is in the store.
pub(crate) fn ensure_toolbox(store: &Store) -> anyhow::Result<()> {
    let toolbox = rkube_toolbox::elf().context("unpack the toolbox")?;
    let links: Vec<String> = rkube_toolbox::APPLETS
        .iter()
        .map(|a| format!("bin/{a}"))
        .collect();
    let dir = |path| BuiltinFile {
        path,
        mode: 0o755,
        content: BuiltinContent::Dir,
    };
    let file = |path, mode, content| BuiltinFile {
        path,
        mode,
        content,
    };
    let text = |path, text: &'static str| file(path, 0o644, BuiltinContent::File(text.as_bytes()));
    let mut files = vec![
        dir("bin"),
        dir("etc"),
        dir("root"),
        BuiltinFile {
            path: "tmp",
            mode: 0o1777,
            content: BuiltinContent::Dir,
        },
        text(
            "etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        ),
        text("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
        file("bin/toolbox", 0o755, BuiltinContent::File(&toolbox)),
    ];
    files.extend(
        links
            .iter()
            .filter(|l| *l != "bin/toolbox")
            .map(|l| file(l, 0o777, BuiltinContent::Symlink("toolbox"))),
    );
    let config = RootfsConfig {
        env: vec!["PATH=/bin".to_owned()],
        ..RootfsConfig::default()
    };
    store
        .ensure_builtin(TOOLBOX_IMAGE, None, &files, &config)
        .context("unpack the built-in image")?;
    Ok(())
}

fn open(root: &Path) -> anyhow::Result<Store> {
    let instance = Instance::open(root)?;
    Ok(Store::open(&instance.state_dir().join("images"))?)
}

pub(super) fn image(root: &Path, command: Image) -> anyhow::Result<u8> {
    match command {
        Image::Pull(args) => transfer::pull(root, args)?,
        Image::Push(args) => transfer::push(root, args)?,
        Image::Login(args) => transfer::login(root, args)?,
        Image::Logout { registry, authfile } => transfer::logout(root, &registry, authfile)?,
        Image::Tag { image, name } => open(root)?.tag(&image, &name)?,
        Image::Save { image, output } => transfer::save(root, &image, output.as_deref())?,
        Image::Load { input, output } => load(root, input.as_deref(), output)?,
        Image::Import(args) => import(root, args)?,
        Image::Ls { output } => show::list(root, output)?,
        Image::Inspect { image, output } => {
            let store = open(root)?;
            let found: Result<Vec<_>, _> = image.iter().map(|i| store.inspect(i)).collect();
            output::print(&output::document(&found?, output)?)?;
        }
        Image::History { image, output } => show::history(&open(root)?, &image, output)?,
        Image::Rm { image } => {
            let store = open(root)?;
            for name in &image {
                told(&store.remove(name, &HashSet::new())?)?;
            }
        }
        Image::Prune { all } => told(&open(root)?.prune(all, &HashSet::new())?)?,
        Image::Verify { image } => return show::verify(&open(root)?, &image),
        Image::Pin { image } => open(root)?.keep(&image, true)?,
        Image::Unpin { image } => open(root)?.keep(&image, false)?,
        Image::Df { output } => show::disk(&open(root)?, output)?,
    }
    Ok(0)
}

/// Prints what a removal did.
fn told(removed: &Removed) -> anyhow::Result<()> {
    let untagged = removed.untagged.iter().map(|r| format!("untagged {r}\n"));
    let deleted = removed.deleted.iter().map(|d| format!("deleted {d}\n"));
    output::print(&untagged.chain(deleted).collect::<String>())
}

fn load(root: &Path, input: Option<&Path>, output: Option<Document>) -> anyhow::Result<()> {
    let options = ImportOptions {
        format: ImageFormat::Image,
        ..ImportOptions::default()
    };
    take_in(root, input, &options, output)
}

/// Imports and tells what came of it.
fn take_in(
    root: &Path,
    source: Option<&Path>,
    options: &ImportOptions,
    output: Option<Document>,
) -> anyhow::Result<()> {
    let store = open(root)?;
    let imported = match source {
        None => store.import(Source::Reader(&mut std::io::stdin()), options)?,
        Some(path) => store.import(Source::Path(path), options)?,
    };
    tell_writer(root)?;
    if let Some(format) = output {
        return output::print(&output::document(&imported, format)?);
    }
    for image in imported {
        let name = if image.references.is_empty() {
            image.id.to_string()
        } else {
            image.references.join(", ")
        };
        output::print(&format!(
            "{name}: {} layers, {} of them new, {}\n",
            image.layers, image.new_layers, image.platform
        ))?;
    }
    Ok(())
}

fn import(root: &Path, args: Import) -> anyhow::Result<()> {
    let mut options = ImportOptions {
        reference: args.reference,
        ..ImportOptions::default()
    };
    if args.rootfs {
        options.format = ImageFormat::Rootfs;
    }
    options.rootfs = RootfsConfig {
        env: args.env,
        ..options.rootfs
    };
    if !args.entrypoint.is_empty() {
        options.rootfs.entrypoint = args.entrypoint;
    }
    let source = Some(args.source.as_path()).filter(|s| *s != Path::new("-"));
    take_in(root, source, &options, args.output)
}

/// Pods may wait for what was imported; without a writer nothing waits.
fn tell_writer(root: &Path) -> anyhow::Result<()> {
    runtime()?.block_on(async {
        let Some(instance) = Instance::find(root)? else {
            return Ok(());
        };
        match Client::connect(&instance).await? {
            Some(mut client) => client.call(&Request::ImagesChanged).await.map(drop),
            None => Ok(()),
        }
    })
}
