//! Writer of the "newc" archive that the kernel unpacks as its initramfs.
//!
//! Format: `Documentation/driver-api/early-userspace/buffer-format.rst`. The
//! same input gives the same bytes: times are 0, inodes count up.

use std::io::{self, Write};

/// File type bits of `st_mode` (inode(7)).
const TYPE_DIR: u32 = 0o040_000;
const TYPE_FILE: u32 = 0o100_000;
const TYPE_LINK: u32 = 0o120_000;
const TYPE_CHAR: u32 = 0o020_000;

/// An archive being written.
#[derive(Debug)]
pub struct Archive<W: Write> {
    out: W,
    written: u64,
    inode: u32,
}

impl<W: Write> Archive<W> {
    /// Begins one.
    pub fn new(out: W) -> Archive<W> {
        Archive {
            out,
            written: 0,
            inode: 0,
        }
    }

    /// A directory; its parents must be there already.
    ///
    /// # Errors
    /// The stream's.
    pub fn dir(&mut self, name: &str, mode: u32) -> io::Result<()> {
        self.entry(name, TYPE_DIR | mode, &[])
    }

    /// A regular file.
    ///
    /// # Errors
    /// The stream's, or more than 4 GiB.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, TYPE_FILE | mode, content)
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// The stream's.
    pub fn link(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(name, TYPE_LINK | 0o777, target.as_bytes())
    }

    /// A character device.
    ///
    /// # Errors
    /// The stream's.
    pub fn char_device(&mut self, name: &str, mode: u32, device: (u32, u32)) -> io::Result<()> {
        let (major, minor) = device;
        self.header(name, TYPE_CHAR | mode, 0, (major, minor))
    }

    /// Writes the end mark and gives the stream back.
    ///
    /// # Errors
    /// The stream's.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, &[])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len())
            .map_err(|_| io::Error::other(format!("{name}: over 4 GiB")))?;
        self.header(name, mode, size, (0, 0))?;
        self.write(content)?;
        self.pad()
    }

    fn header(&mut self, name: &str, mode: u32, size: u32, device: (u32, u32)) -> io::Result<()> {
        let name = name.trim_start_matches('/');
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        self.inode += 1;
        let links = if mode & TYPE_DIR == TYPE_DIR { 2 } else { 1 };
        let fields = [
            self.inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0,
        ];
        let mut head = String::from("070701");
        for field in fields {
            head.push_str(&format!("{field:08x}"));
        }
        self.write(head.as_bytes())?;
        self.write(name.as_bytes())?;
        self.write(&[0])?;
        self.pad()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written += u64::try_from(bytes.len()).map_err(io::Error::other)?;
        self.out.write_all(bytes)
    }

    /// Headers and contents begin at multiples of 4.
    fn pad(&mut self) -> io::Result<()> {
        const ZEROS: [u8; 3] = [0; 3];
        match self.written % 4 {
            1 => self.write(&ZEROS),
            2 => self.write(&ZEROS[..2]),
            3 => self.write(&ZEROS[..1]),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rkube_tests::command::Cmd;

    #[test]
    fn another_reader_agrees() {
        let mut archive = Archive::new(Vec::new());
        archive.dir("d", 0o755).unwrap();
        archive.file("d/odd", 0o644, b"12345").unwrap();
        archive.link("l", "d/odd").unwrap();
        archive.char_device("d/null", 0o666, (1, 3)).unwrap();
        let bytes = archive.finish().unwrap();
        let dir = tempfile::tempdir().unwrap();
        Cmd::new("cpio", ["-id", "--quiet"])
            .stdin(bytes)
            .dir(dir.path())
            .ok()
            .unwrap();
        assert_eq!(std::fs::read(dir.path().join("l")).unwrap(), b"12345");
        let out = Cmd::new("stat", ["-c", "%a %t %T %F", "d/null", "d"])
            .dir(dir.path())
            .ok();
        assert_eq!(
            out.unwrap().stdout,
            "666 1 3 character special file\n755 0 0 directory\n"
        );
    }
}
