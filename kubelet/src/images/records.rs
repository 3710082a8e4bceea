//! Which credential pulled which image (KEP-2535): files below
//! `var/lib/rkube/image-pulls`, one for each image id and one for each pull
//! under way.
//!
//! An intent is written before a pull begins and goes when its record stands:
//! an image that came by a pull which was cut off between the two is not taken
//! for a preloaded one. No secret is kept, only fingerprints.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rkube_image::{Digest, Reference};
use serde::{Deserialize, Serialize};

use super::decide::Access;
use crate::worker::lock;

/// Largest record: more credentials than one image ever sees.
const MAX_RECORD_BYTES: u64 = 4 << 20;
/// Credentials that one repository of a record keeps; the oldest go.
const MAX_PROOFS: usize = 1000;

/// The records of one root.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    /// Held while one is changed.
    changing: Mutex<()>,
}

/// One image's record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// It was pulled without a pod's credential: every pod may have it.
    #[serde(default)]
    open: bool,
    /// By repository, who has proven to be let in.
    #[serde(default)]
    repositories: BTreeMap<String, Vec<Proof>>,
}

/// A credential that opened a repository.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Proof {
    /// [`rkube_image::Credential::fingerprint`].
    pub(crate) fingerprint: Digest,
    /// The Secret that held it, for people.
    pub(crate) secret: String,
}

impl Records {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            changing: Mutex::default(),
        }
    }

    /// What an image of the store is to a pod with these credentials.
    pub(crate) fn access(
        &self,
        image_id: &str,
        reference: Option<&Reference>,
        fingerprints: &BTreeSet<Digest>,
    ) -> io::Result<Access> {
        let Some(record) = self.read(image_id)? else {
            let begun = reference.is_some_and(|r| self.intent(r).exists());
            return Ok(if begun { Access::Closed } else { Access::Open });
        };
        if record.open {
            return Ok(Access::Open);
        }
        let proofs = reference.and_then(|r| record.repositories.get(&r.repository()));
        let known = |p: &Proof| fingerprints.contains(&p.fingerprint);
        Ok(if proofs.is_some_and(|list| list.iter().any(known)) {
            Access::Proven
        } else {
            Access::Closed
        })
    }

    /// Notes that a pull begins.
    pub(crate) fn begin(&self, reference: &Reference) -> io::Result<()> {
        let path = self.intent(reference);
        self.make_dir(path.parent().unwrap_or(&self.dir))?;
        std::fs::write(path, reference.to_string())
    }

    /// Notes what a pull brought; `proof` is the pod's credential that opened
    /// the registry, none if it needed none of a pod's.
    pub(crate) fn done(
        &self,
        reference: &Reference,
        image_id: &str,
        proof: Option<Proof>,
    ) -> io::Result<()> {
        let _changing = lock(&self.changing);
        let mut record = self.read(image_id)?.unwrap_or_default();
        match proof {
            None => record.open = true,
            Some(proof) => {
                let list = record
                    .repositories
                    .entry(reference.repository())
                    .or_default();
                list.retain(|p| p.fingerprint != proof.fingerprint);
                list.push(proof);
                let extra = list.len().saturating_sub(MAX_PROOFS);
                list.drain(..extra);
            }
        }
        self.write(image_id, &record)?;
        self.end(reference)
    }

    /// Forgets images that are gone: who pulled them says nothing about those
    /// that may come under the same id.
    pub(crate) fn retain(&self, there: impl Fn(&str) -> bool) -> io::Result<()> {
        let _changing = lock(&self.changing);
        let dir = match std::fs::read_dir(self.dir.join("pulled")) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        for entry in dir {
            let entry = entry?;
            let name = entry.file_name();
            // What is torn of a write that never ended has no such name.
            let Some(digest) = name.to_str().and_then(Digest::from_hex) else {
                continue;
            };
            if !there(&digest.to_string()) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// Forgets an intent: the pull brought nothing.
    pub(crate) fn end(&self, reference: &Reference) -> io::Result<()> {
        match std::fs::remove_file(self.intent(reference)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn intent(&self, reference: &Reference) -> PathBuf {
        let name = Digest::of(reference.to_string().as_bytes()).hex();
        self.dir.join("pulling").join(name)
    }

    fn path(&self, image_id: &str) -> PathBuf {
        // Ids are digests; what is none is hashed to a name all the same.
        let name = match image_id.parse::<Digest>() {
            Ok(digest) => digest.hex(),
            Err(_) => Digest::of(image_id.as_bytes()).hex(),
        };
        self.dir.join("pulled").join(name)
    }

    fn read(&self, image_id: &str) -> io::Result<Option<Record>> {
        use std::io::Read;
        let file = match std::fs::File::open(self.path(image_id)) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        file.take(MAX_RECORD_BYTES).read_to_end(&mut bytes)?;
        // A record that cannot be read closes the image: fail closed.
        let record = serde_json::from_slice(&bytes).unwrap_or_else(|error| {
            tracing::warn!(image = image_id, %error, "the record of an image's pulls cannot be read; pods have to prove themselves");
            Record::default()
        });
        Ok(Some(record))
    }

    fn write(&self, image_id: &str, record: &Record) -> io::Result<()> {
        let path = self.path(image_id);
        self.make_dir(path.parent().unwrap_or(&self.dir))?;
        let tmp = path.with_extension("tmp");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&tmp)?;
        file.write_all(&serde_json::to_vec(record).map_err(io::Error::other)?)?;
        file.sync_all()?;
        std::fs::rename(&tmp, &path)
    }

    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_image_is_closed_to_pods_without_its_credential() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().join("image-pulls"));
        let reference = Reference::parse("a.io/private:1").unwrap();
        let other = Reference::parse("b.io/private:1").unwrap();
        let id = Digest::of(b"image").to_string();
        let key = |text: &[u8]| BTreeSet::from([Digest::of(text)]);
        let access =
            |r: &Reference, keys: &BTreeSet<Digest>| records.access(&id, Some(r), keys).unwrap();
        let none = BTreeSet::new();
        assert_eq!(access(&reference, &none), Access::Open, "preloaded");
        records.begin(&reference).unwrap();
        assert_eq!(
            access(&reference, &none),
            Access::Closed,
            "a pull was cut off"
        );
        let proof = Proof {
            fingerprint: Digest::of(b"key"),
            secret: "ns/s".into(),
        };
        records.done(&reference, &id, Some(proof)).unwrap();
        assert_eq!(access(&reference, &none), Access::Closed);
        assert_eq!(access(&reference, &key(b"other")), Access::Closed);
        assert_eq!(access(&reference, &key(b"key")), Access::Proven);
        assert_eq!(
            access(&other, &key(b"key")),
            Access::Closed,
            "another repository"
        );
        assert_eq!(
            records.access(&id, None, &key(b"key")).unwrap(),
            Access::Closed,
            "by id"
        );
        // Torn by a power cut.
        std::fs::write(records.path(&id), "{\"op").unwrap();
        assert_eq!(access(&reference, &key(b"key")), Access::Closed);
        records.done(&other, &id, None).unwrap();
        assert_eq!(access(&reference, &none), Access::Open);
        let text = std::fs::read_dir(dir.path().join("image-pulls/pulling"))
            .unwrap()
            .count();
        assert_eq!(text, 0, "no intent is left");
    }

    #[test]
    fn what_is_known_of_an_image_goes_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().join("image-pulls"));
        records.retain(|_| false).unwrap();
        let reference = Reference::parse("a.io/private:1").unwrap();
        let ids = [b"gone", b"here"].map(|text| Digest::of(text).to_string());
        for id in &ids {
            let proof = Proof {
                fingerprint: Digest::of(b"key"),
                secret: "ns/s".into(),
            };
            records.done(&reference, id, Some(proof)).unwrap();
        }
        records.retain(|id| id == ids[1]).unwrap();
        let access = |id| {
            let none = BTreeSet::new();
            records.access(id, Some(&reference), &none).unwrap()
        };
        assert_eq!(access(&ids[0]), Access::Open);
        assert_eq!(access(&ids[1]), Access::Closed);
    }
}
