//! Compresses the descriptions of the API, which few requests show, so that the program carries
//! a quarter of them.

use std::io::Write as _;
use std::path::PathBuf;
use std::{env, fs, io};

const SOURCE: &str = "data/descriptions.txt";

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed={SOURCE}");
    let out = env::var_os("OUT_DIR").map(PathBuf::from);
    let out = out.ok_or_else(|| io::Error::other("cargo sets OUT_DIR"))?;
    let text = fs::read(SOURCE)?;
    let file = fs::File::create(out.join("descriptions.gz"))?;
    let mut encoder = flate2::write::GzEncoder::new(file, flate2::Compression::best());
    encoder.write_all(&text)?;
    encoder.finish()?;
    Ok(())
}
