//! `vm-test` and `vm-shell`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use rkube_tests::layout::Layout;
use rkube_tests::report::{Summary, short_table, table};
use rkube_tests::unit::TestResult;
use rkube_tests::{images, repo};
use rkube_vm::boot::{LAYOUTS, Plan};
use rkube_vm::image::Contents;

use crate::builds::{self, Built, TEST_PROFILE};
use crate::test::{Phases, conclude};

/// Packages whose own tests also run in each VM: what they drive differs by
/// kernel and cgroup layout.
const PACKAGES_IN_VM: &[&str] = &[
    "rkube-cgroup",
    "rkube-engine",
    "rkube-keeper",
    "rkube-netns",
    "rkube-nft",
    "rkube-runtime",
    "rkube-sys",
    "rkube-tests",
];
/// Those whose tests drive cgroups: they run on every layout, the others on v2
/// alone.
const PACKAGES_BY_LAYOUT: [&str; 3] = ["rkube-cgroup", "rkube-engine", "rkube-runtime"];
/// Packages among them whose tests start the package's own programs.
const HELPERS_OF: &[&str] = &["rkube-keeper"];
/// Tests that are about the source tree, which is not in a VM.
const PROGRAMS_OF_THE_TREE: &[&str] = &["rkube-tests.layering", "rkube-tests.tidy"];

/// What is asked for.
pub(crate) struct Options {
    kernel: Option<PathBuf>,
    layouts: Vec<Layout>,
    /// Boots that are about the machine itself, too.
    special: bool,
    /// The tests of packages, too.
    packages: bool,
    /// Every case on every layout, not what each layout adds.
    whole: bool,
    verbose: bool,
    filters: Vec<String>,
}

impl Options {
    /// Everything.
    pub(crate) fn all() -> Options {
        Options {
            special: true,
            ..Options::of(LAYOUTS)
        }
    }

    /// Everything on these layouts.
    pub(crate) fn of(layouts: &[Layout]) -> Options {
        Options {
            kernel: None,
            layouts: layouts.to_vec(),
            special: false,
            packages: false,
            whole: false,
            verbose: false,
            filters: Vec::new(),
        }
    }
}

fn parse(args: &[String]) -> anyhow::Result<Options> {
    let mut options = Options {
        layouts: Vec::new(),
        special: false,
        ..Options::all()
    };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
        match arg.as_str() {
            "--kernel" => options.kernel = Some(PathBuf::from(value()?)),
            "--layout" => options.layouts.push(value()?.parse()?),
            "--special" => options.special = true,
            "--packages" => options.packages = true,
            "--whole" => options.whole = true,
            "--verbose" => options.verbose = true,
            other if other.starts_with('-') => bail!("unknown option {other}"),
            filter => options.filters.push(filter.to_owned()),
        }
    }
    if options.layouts.is_empty() && !options.special {
        options.layouts = LAYOUTS.to_vec();
        options.special = options.filters.is_empty();
    }
    Ok(options)
}

/// The plan of boots; the programs must be built.
pub(crate) fn plan(tests: &Built) -> anyhow::Result<Plan> {
    let cache = repo::target_dir().join("vm");
    let built = repo::target_dir().join(repo::TEST_OPT_DIR);
    Ok(Plan {
        cache,
        images: vec![images::busybox()?, images::minbase()?],
        contents: Contents {
            init: built.join("rkube-vm-init"),
            suite: built.join("rkube-suite"),
            rkube: repo::rkube_program(),
            helpers: tests
                .helpers
                .iter()
                .filter(|(package, _)| HELPERS_OF.contains(&package.as_str()))
                .map(|(_, path)| path.clone())
                .collect(),
            extra: tests
                .tests
                .iter()
                .filter(|p| PACKAGES_IN_VM.contains(&p.package.as_str()))
                .filter(|p| !PROGRAMS_OF_THE_TREE.contains(&p.name.as_str()))
                .map(|p| (p.name.clone(), p.path.clone()))
                .collect(),
        },
        kernel: None,
        filters: Vec::new(),
        whole: false,
        everywhere: PACKAGES_BY_LAYOUT.map(str::to_owned).to_vec(),
    })
}

/// The programs that a boot and the host's suite need.
pub(crate) const PROGRAMS: &[(&str, &str)] = &[
    ("rkube", "rkube"),
    ("rkube-tests", "rkube-suite"),
    ("rkube-vm", "rkube-vm-init"),
];

/// Cuts the power at each of these times after the guest said that all of its
/// work is under way; at the first alone, unless everything is asked for.
const CUTS_MILLIS: [u64; 2] = [2700, 300];

/// What takes boots of its own: a kernel that lacks something, two guests, and
/// power cuts, each followed by a boot on the same disk.
fn special(plan: &Plan) -> anyhow::Result<Vec<TestResult>> {
    let mut results = plan.lacking()?;
    results.extend(plan.pair()?);
    let cuts = if plan.whole { CUTS_MILLIS.len() } else { 1 };
    for millis in CUTS_MILLIS.into_iter().take(cuts) {
        for mut result in plan.cut(Layout::V2, Duration::from_millis(millis))? {
            result.name = format!("{} (cut at {millis} ms)", result.name);
            results.push(result);
        }
    }
    Ok(results)
}

/// Boots each layout in turn and then what takes boots of its own, and prints
/// the table of layouts by tests.
pub(crate) fn run(
    plan: &Plan,
    options: &Options,
    phases: &mut Phases,
    summary: &mut Summary,
) -> anyhow::Result<()> {
    let mut columns = Vec::new();
    for layout in &options.layouts {
        let results = phases.run(&format!("tests in a VM: {layout}"), || {
            plan.test(*layout, options.verbose)
        })?;
        summary.add(layout.as_str(), results.iter().cloned());
        columns.push((layout.to_string(), results));
    }
    if options.special {
        let results = phases.run("tests in VMs: cuts, lacks, pairs", || special(plan))?;
        summary.add("special", results.iter().cloned());
        columns.push(("special".to_owned(), results));
    }
    println!("\n{}\n{}", table(&columns), short_table(&columns));
    Ok(())
}

pub(crate) fn test(args: &[String]) -> anyhow::Result<bool> {
    let options = parse(args)?;
    let (mut phases, mut summary) = (Phases::new(), Summary::default());
    let broken = phases
        .run("build", || prepared(&options))
        .and_then(|plan| run(&plan, &options, &mut phases, &mut summary));
    conclude(summary, &phases, broken)
}

pub(crate) fn shell(args: &[String]) -> anyhow::Result<bool> {
    let options = parse(args)?;
    let plan = prepared(&options)?;
    let layout = options.layouts.first().copied().context("no layout")?;
    plan.shell(layout)?;
    Ok(true)
}

fn prepared(options: &Options) -> anyhow::Result<Plan> {
    builds::programs(TEST_PROFILE, PROGRAMS)?;
    let tests = match options.packages {
        true => builds::test_programs(TEST_PROFILE, PACKAGES_IN_VM)?,
        false => Built::default(),
    };
    let mut plan = plan(&tests)?;
    plan.kernel.clone_from(&options.kernel);
    plan.filters.clone_from(&options.filters);
    plan.whole = options.whole || !options.filters.is_empty();
    Ok(plan)
}
