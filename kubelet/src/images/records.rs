//! Which credential pulled which image (KEP-2535): files below
//! `var/lib/rkube/image-pulls/pulled`, one for each image id.
//!
//! A record is there before its image is: an image of the store without one
//! came by no pull of a pod. One that a pull brought which was cut off before
//! its end has a record that lets nobody in. No secret is kept, only
//! fingerprints.

use std::collections::{BTreeMap, BTreeSet, HashMap};
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
    /// Images that pulls are about to bring. Held while a record is changed.
    coming: Mutex<HashMap<String, Coming>>,
}

/// What pulls are about to do to an image.
#[derive(Debug, Default)]
struct Coming {
    pulls: usize,
    /// The image was there before them without a record: if they bring
    /// nothing, it is open again.
    was_open: bool,
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
            coming: Mutex::default(),
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
            return Ok(Access::Open);
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

    /// Closes an image that a pull is about to bring, unless something is known
    /// of it; `present` says whether the store has it already.
    /// [`Records::ended`] has to follow, whatever becomes of the pull.
    pub(crate) fn coming(&self, image_id: &str, present: bool) -> io::Result<()> {
        let mut coming = lock(&self.coming);
        let fresh = self.read(image_id)?.is_none();
        if fresh {
            self.write(image_id, &Record::default())?;
        }
        let entry = coming.entry(image_id.to_owned()).or_default();
        entry.pulls += 1;
        entry.was_open |= fresh && present;
        Ok(())
    }

    /// A pull of an image that was [`Records::coming`] is over.
    pub(crate) fn ended(&self, image_id: &str) -> io::Result<()> {
        let mut coming = lock(&self.coming);
        let Some(entry) = coming.get_mut(image_id) else {
            return Ok(());
        };
        entry.pulls -= 1;
        if entry.pulls > 0 {
            return Ok(());
        }
        let was_open = entry.was_open;
        coming.remove(image_id);
        if was_open && self.read(image_id)? == Some(Record::default()) {
            std::fs::remove_file(self.path(image_id))?;
        }
        Ok(())
    }

    /// Notes what a pull brought; `proof` is the pod's credential that opened
    /// the registry, none if it needed none of a pod's.
    pub(crate) fn done(
        &self,
        reference: &Reference,
        image_id: &str,
        proof: Option<Proof>,
    ) -> io::Result<()> {
        let _changing = lock(&self.coming);
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
        self.write(image_id, &record)
    }

    /// Forgets images that are gone: who pulled them says nothing about those
    /// that may come under the same id.
    pub(crate) fn retain(&self, there: impl Fn(&str) -> bool) -> io::Result<()> {
        let coming = lock(&self.coming);
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
            let id = digest.to_string();
            if !coming.contains_key(&id) && !there(&id) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
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
        records.coming(&id, false).unwrap();
        for reference in [Some(&reference), Some(&other), None] {
            let access = records.access(&id, reference, &none).unwrap();
            assert_eq!(access, Access::Closed, "whatever it is called");
        }
        // Another pull of it is refused; then this one is cut off.
        records.coming(&id, false).unwrap();
        records.ended(&id).unwrap();
        let again = Records::new(dir.path().join("image-pulls"));
        let access_again = again.access(&id, Some(&reference), &none).unwrap();
        assert_eq!(access_again, Access::Closed);
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
        let coming = Digest::of(b"coming").to_string();
        records.coming(&coming, false).unwrap();
        records.retain(|id| id == ids[1]).unwrap();
        let access = |id| {
            let none = BTreeSet::new();
            records.access(id, Some(&reference), &none).unwrap()
        };
        assert_eq!(access(&ids[0]), Access::Open);
        assert_eq!(access(&ids[1]), Access::Closed);
        assert_eq!(access(&coming), Access::Closed);
    }

    #[test]
    fn a_preloaded_image_stays_open_if_a_pull_of_it_brings_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::new(dir.path().join("image-pulls"));
        let reference = Reference::parse("a.io/private:1").unwrap();
        let id = Digest::of(b"preloaded").to_string();
        let access = || {
            let none = BTreeSet::new();
            records.access(&id, Some(&reference), &none).unwrap()
        };
        records.coming(&id, true).unwrap();
        records.coming(&id, true).unwrap();
        records.ended(&id).unwrap();
        assert_eq!(access(), Access::Closed);
        records.ended(&id).unwrap();
        assert_eq!(access(), Access::Open);
        records.coming(&id, true).unwrap();
        let proof = Proof {
            fingerprint: Digest::of(b"key"),
            secret: "ns/s".into(),
        };
        records.done(&reference, &id, Some(proof)).unwrap();
        records.ended(&id).unwrap();
        assert_eq!(access(), Access::Closed, "somebody's own from now on");
    }
}
