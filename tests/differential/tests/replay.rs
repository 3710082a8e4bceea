//! The recorded answers of a real kube-apiserver against rkube's own.
//!
//! `open.txt` names the requests whose answers still differ without a listed reason. It only gets
//! shorter: a request that is not on it must be answered alike, and one that is must still differ.
#![allow(missing_docs)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use rkube_differential::compare::{Difference, compare};
use rkube_differential::differences::{self, Explained};
use rkube_differential::drive::Dialect;
use rkube_differential::subject::Subject;
use rkube_differential::{corpus, folder, record};

/// Fewest requests that the corpus is to have.
const REQUESTS_MIN: usize = 1000;
/// Most differences that are printed whole.
const SHOWN_MAX: usize = 40;

/// All differences by kind, field and change, the most frequent first.
fn report(found: &[(String, Difference)]) -> String {
    let mut classes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (id, d) in found {
        let class = format!("{} {}: {} -> {}", d.kind, d.field, d.recorded, d.found);
        classes.entry(class).or_default().push(id);
    }
    let mut sorted: Vec<_> = classes.into_iter().collect();
    sorted.sort_by_key(|(_, ids)| std::cmp::Reverse(ids.len()));
    let mut text = format!("{} differences, {} classes\n", found.len(), sorted.len());
    for (class, ids) in &sorted {
        let _ = writeln!(
            text,
            "{:>4}  {class}\n        {}",
            ids.len(),
            ids.join("\t")
        );
    }
    text
}

/// Strikes out of the list what does not differ any more; nothing is ever added to it here.
fn write_fewer(list: &Path, differing: &BTreeSet<&str>) {
    let before = std::fs::read_to_string(list).expect("the open ones");
    let mut kept: Vec<&str> = before
        .lines()
        .filter(|line| line.starts_with('#') || differing.contains(line))
        .collect();
    kept.push("");
    std::fs::write(list, kept.join("\n")).expect("the list is written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rkube_answers_as_kube_apiserver_does() {
    let folder = folder();
    let scenarios = corpus::load(&folder.join("corpus")).expect("the corpus");
    let (stamp, recorded) = record::read(&folder.join("answers"), &scenarios).expect("the answers");
    assert!(
        stamp.answers >= REQUESTS_MIN,
        "only {} requests",
        stamp.answers
    );
    let entries = differences::load(&folder.join("differences.yaml")).expect("the differences");
    let place = tempfile::tempdir().expect("a folder");
    let subject = Subject::start(place.path()).await.expect("rkube starts");
    let endpoint = subject.endpoint().expect("its authority");
    let answers = record::drive_all(&endpoint, &scenarios, Dialect::default())
        .await
        .expect("rkube answers");
    let asked: BTreeSet<&str> = answers.values().flatten().map(|a| a.id.as_str()).collect();
    let unasked: Vec<_> = recorded
        .keys()
        .filter(|id| !asked.contains(id.as_str()))
        .collect();
    assert!(
        unasked.is_empty(),
        "recorded, and never asked: {unasked:#?}"
    );
    let mut explained = Explained::new(&entries);
    let (mut found, mut ruled) = (Vec::new(), Vec::new());
    for answer in answers.values().flatten() {
        let Some(before) = recorded.get(&answer.id) else {
            panic!("{} was not recorded: run `make record`", answer.id);
        };
        for difference in compare(before, answer) {
            let all = if explained.explains(&answer.id, &difference) {
                &mut ruled
            } else {
                &mut found
            };
            all.push((answer.id.clone(), difference));
        }
    }
    if let Some(path) = std::env::var_os("RKUBE_DIFFERENCES") {
        std::fs::write(path, report(&found)).expect("the report is written");
    }
    // To see that the listed rules explain no more than they should.
    if let Some(path) = std::env::var_os("RKUBE_RULED") {
        std::fs::write(path, report(&ruled)).expect("the report is written");
    }
    let list = folder.join("open.txt");
    let differing: BTreeSet<&str> = found.iter().map(|(id, _)| id.as_str()).collect();
    if std::env::var_os("RKUBE_OPEN_FEWER").is_some() {
        write_fewer(&list, &differing);
    }
    let open = std::fs::read_to_string(&list).expect("the open ones");
    let open: BTreeSet<&str> = open.lines().filter(|l| !l.starts_with('#')).collect();
    let mended: Vec<&&str> = open.difference(&differing).collect();
    assert!(mended.is_empty(), "no longer open: {mended:#?}");
    found.retain(|(id, _)| !open.contains(id.as_str()));
    let shown: Vec<String> = report(&found)
        .lines()
        .take(2 * SHOWN_MAX)
        .map(ToOwned::to_owned)
        .collect();
    assert!(found.is_empty(), "{}", shown.join("\n"));
    assert_eq!(
        explained.unused(),
        Vec::<String>::new(),
        "listed differences that no answer shows"
    );
}
