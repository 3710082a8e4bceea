//! Which of the cases that run anywhere run in the VMs, too.
//!
//! A guest is emulated where nothing better works, and takes seconds for each
//! case. So each layout runs what it has a part in, and of every other topic
//! of `rkube run` what shows that it works there; v2 runs more. Everything runs
//! on every layout where that is asked for (`make vm-test WHOLE=1`).

use crate::case::{Case, Place};
use crate::layout::Layout;

/// On every layout.
const EVERYWHERE: &[&str] = &[
    "again::limits_change_in_place",
    "chaos::everything_killed_and_cleaned",
    "chaos::keepers_are_outside_the_pods_limits",
    "chaos::reset_refuses_and_clears",
    "chaos::supervisor_killed_and_nothing_restarts",
    "exec::streams_and_exit_codes",
    "lifecycle::backoff_is_ten_seconds",
    "lifecycle::grace_then_kill",
    "lifecycle::init_containers_in_order",
    "lifecycle::liveness_restarts",
    "lifecycle::restart_policies",
    "lifecycle::sidecars_start_first_and_end_last",
    "limits::cpu_quota_holds",
    "limits::group_kill_v2",
    "limits::oom_scores",
    "limits::out_of_memory_is_told",
    "limits::pressure_is_told",
    "limits::process_count_is_counted",
    "limits::qos_tree_v1",
    "limits::qos_tree_v2",
    "logs::form_on_disk",
    "machine::legacy_hierarchies",
    "machine::unified_controllers",
    "namespaces::shared_and_own",
    "namespaces::users_of_a_pod",
    "network::host_network",
    "network::host_ports_from_everywhere",
    "run::detached_pods_stay",
    "run::hello_end_to_end",
    "security::device_nodes",
    "volumes::config_maps_and_secrets",
];

/// On v2 too.
const ON_V2: &[&str] = &[
    "again::a_limit_below_use",
    "chaos::ends_while_nobody_watches_are_known",
    "chaos::keeper_killed_and_nothing_restarts",
    "chaos::pause_killed_and_the_sandbox_is_new",
    "exec::has_the_containers_rights",
    "exec::terminal",
    "lifecycle::",
    "logs::following_ends_with_the_pod",
    "logs::of_the_run_before",
    "namespaces::process_namespace_is_shared",
    "namespaces::the_hosts_own",
    "network::host_ports_of_udp",
    "network::pods_have_addresses",
    "network::ports_are_free_after_removal",
    "run::ctrl_c_ends_gracefully",
    "security::default_privileges",
    "selftest::",
    "volumes::claims_keep_their_files",
    "volumes::empty_dirs",
    "volumes::nothing_is_mounted_on_the_host",
    "volumes::projected_and_downward",
    "writer::a_keeper_starts_it",
];

/// The case with the VMs that it runs in.
pub(super) fn placed(case: Case) -> Case {
    if case.place != Place::Anywhere {
        return case;
    }
    // A topic stands for all of its cases.
    let is_in = |list: &[&str]| {
        let same = |name: &&str| match name.ends_with("::") {
            true => case.name.starts_with(name),
            false => case.name == *name,
        };
        list.iter().any(same)
    };
    if is_in(EVERYWHERE) {
        case
    } else if is_in(ON_V2) {
        case.vms(&[Layout::V2])
    } else {
        case.vms(&[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Stage;
    use crate::cases;

    #[test]
    fn the_lists_name_cases() {
        let all = cases::all();
        for name in EVERYWHERE.iter().chain(ON_V2) {
            let found = all
                .iter()
                .any(|c| c.name == *name || (name.ends_with("::") && c.name.starts_with(name)));
            assert!(found, "{name}: no such case");
        }
    }

    /// What users count on wherever they run it.
    #[test]
    fn each_layout_has_a_case_of_each_topic() {
        const TOPICS: &[&str] = &[
            "chaos",
            "exec",
            "lifecycle",
            "limits",
            "logs",
            "machine",
            "namespaces",
            "network",
            "run",
            "volumes",
        ];
        const BY_NAME: &[&str] = &[
            "chaos::reset_refuses_and_clears",
            "lifecycle::backoff_is_ten_seconds",
            "limits::cpu_quota_holds",
            "limits::full_capabilities",
            "limits::out_of_memory_is_told",
            "namespaces::users_of_a_pod",
            "network::host_network",
            "network::host_ports_from_everywhere",
        ];
        let all = cases::all();
        for layout in Layout::ALL {
            let names: Vec<&str> = all
                .iter()
                .filter(|c| c.applies(*layout, Stage::Vm))
                .map(|c| c.name)
                .collect();
            for topic in TOPICS {
                let of_it = |n: &&str| n.split("::").next() == Some(topic);
                assert!(names.iter().any(of_it), "{layout}: nothing of {topic}");
            }
            for name in BY_NAME {
                assert!(names.contains(name), "{layout}: not {name}");
            }
        }
    }

    #[test]
    fn everything_runs_where_everything_is_asked_for() {
        for case in cases::all().iter().filter(|c| c.place == Place::Anywhere) {
            for layout in case.layouts {
                assert!(case.applies(*layout, Stage::VmWhole), "{}", case.name);
            }
        }
    }
}
