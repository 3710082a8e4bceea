//! A group in one hierarchy that is a plain directory.

use std::path::PathBuf;

use oci_spec::runtime::LinuxResources;
use rkube_cgroup::{
    Cgroup, CgroupPath, Controller, Extras, Hierarchies, Layout, MountedHierarchy, Version,
};

pub(crate) struct Fake {
    _tmp: tempfile::TempDir,
    pub(crate) dir: PathBuf,
    pub(crate) group: Cgroup,
}

impl Fake {
    /// A group `g` with these files and contents, in one hierarchy with these
    /// controllers.
    pub(crate) fn of(version: Version, controllers: &[Controller], files: &[(&str, &str)]) -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("g");
        std::fs::create_dir(&dir).unwrap();
        for (name, content) in files {
            std::fs::write(dir.join(name), content).unwrap();
        }
        let host = Hierarchies::from_layout(Layout {
            hierarchies: vec![MountedHierarchy {
                version,
                controllers: controllers.to_vec(),
                name: None,
                points: vec![tmp.path().to_owned()],
                device: "0:1".to_owned(),
            }],
        })
        .unwrap();
        let group = Cgroup::open(&host, &CgroupPath::new("g").unwrap()).unwrap();
        Self {
            _tmp: tmp,
            dir,
            group,
        }
    }

    pub(crate) fn apply(&self, json: &str) -> rkube_cgroup::Result<Vec<rkube_cgroup::Warning>> {
        let resources: LinuxResources = serde_json::from_str(json).unwrap();
        self.group.apply(&resources, &Extras::default())
    }

    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap()
    }
}
