//! Device filters: the v1 controller and the v2 program.

use super::*;

/// Refuse everything but these character devices.
fn only(devices: &[(u32, u32)]) -> DeviceRules {
    let all = DeviceRule {
        allow: false,
        kind: None,
        major: None,
        minor: None,
        access: Access::ALL,
    };
    let mut rules = vec![all];
    rules.extend(devices.iter().map(|(major, minor)| DeviceRule {
        allow: true,
        kind: Some(DeviceKind::Char),
        major: Some(*major),
        minor: Some(*minor),
        access: Access::ALL,
    }));
    DeviceRules::new(rules).unwrap()
}

/// Which of two devices a process of the group can open.
fn opens(group: &Group) -> String {
    let script = "(: < /dev/zero) && echo zero; (: < /dev/urandom) && echo urandom; true";
    let output = group.run(script).wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().replace('\n', " ")
}

#[test]
fn devices_by_filter_program() {
    if host().mode() == Mode::Legacy {
        println!("SKIP: no v2 hierarchy on this host");
        return;
    }
    // Without the v1 device controller even where the host has it.
    let group = Group::with("bpf", Select::Only(Needs::none()));
    assert_eq!(opens(&group), "zero urandom ");
    group.cgroup.set_devices(&only(&[(1, 3), (1, 5)])).unwrap();
    assert_eq!(opens(&group), "zero ");
    // The next list takes the place of the first.
    group.cgroup.set_devices(&only(&[(1, 3), (1, 9)])).unwrap();
    assert_eq!(opens(&group), "urandom ");
    let dir = host()
        .v2()
        .unwrap()
        .mount_point()
        .join(group.cgroup.path().as_str());
    let dir = std::fs::File::open(dir).unwrap();
    assert_eq!(
        rkube_sys::bpf::cgroup_device_query(dir.as_fd())
            .unwrap()
            .len(),
        1
    );
    // What v1 cannot say: all but one.
    let all = |allow| DeviceRule {
        allow,
        kind: Some(DeviceKind::Char),
        major: None,
        minor: None,
        access: Access::ALL,
    };
    let hole = DeviceRule {
        major: Some(1),
        minor: Some(5),
        ..all(false)
    };
    let rules = DeviceRules::new(vec![all(true), hole]).unwrap();
    group.cgroup.set_devices(&rules).unwrap();
    assert_eq!(opens(&group), "urandom ");
}

#[test]
fn devices_by_v1_controller() {
    if host().of(Controller::Devices).is_none() {
        println!(
            "SKIP: no v1 device controller on this {} host",
            host().mode()
        );
        return;
    }
    let group = Group::new("devices");
    group.cgroup.set_devices(&only(&[(1, 3), (1, 5)])).unwrap();
    assert_eq!(opens(&group), "zero ");
    group.cgroup.set_devices(&only(&[(1, 3), (1, 9)])).unwrap();
    assert_eq!(opens(&group), "urandom ");
    let list = group.file(Controller::Devices, "devices.list", "");
    assert_eq!(list, "c 1:3 rwm\nc 1:9 rwm");
    let hole = DeviceRules::new(vec![
        DeviceRule {
            allow: true,
            kind: Some(DeviceKind::Char),
            major: None,
            minor: None,
            access: Access::ALL,
        },
        DeviceRule {
            allow: false,
            kind: Some(DeviceKind::Char),
            major: Some(1),
            minor: Some(5),
            access: Access::ALL,
        },
    ]);
    let error = group.cgroup.set_devices(&hole.unwrap()).unwrap_err();
    assert!(matches!(error, Error::NotExpressible { .. }), "{error}");
    assert_eq!(group.file(Controller::Devices, "devices.list", ""), list);
}
