//! `/metrics`: counts in the Prometheus text format, names as upstream's.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::limits::InFlight;

/// Upper bounds of the buckets of request durations, in seconds.
const BUCKETS_S: [f64; 10] = [0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0];
/// Different label sets kept; what comes after is counted in total only.
const SERIES_MAX: usize = 4096;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    subresource: &'static str,
    code: u16,
}

#[derive(Debug, Default)]
struct Series {
    count: u64,
    sum_s: f64,
    buckets: [u64; BUCKETS_S.len()],
}

/// What a request was, for counting.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Kind {
    pub(super) verb: &'static str,
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) resource: &'static str,
    pub(super) subresource: &'static str,
}

/// All counts of a server.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    series: Mutex<BTreeMap<Labels, Series>>,
}

impl Metrics {
    /// Counts an answered request.
    pub(super) fn count(&self, kind: Kind, code: u16, took: Duration) {
        let labels = Labels {
            verb: kind.verb,
            group: kind.group,
            version: kind.version,
            resource: kind.resource,
            subresource: kind.subresource,
            code,
        };
        let mut all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= SERIES_MAX && !all.contains_key(&labels) {
            return;
        }
        let series = all.entry(labels).or_default();
        let seconds = took.as_secs_f64();
        series.count += 1;
        series.sum_s += seconds;
        for (bucket, bound) in series.buckets.iter_mut().zip(BUCKETS_S) {
            if seconds <= bound {
                *bucket += 1;
            }
        }
    }

    /// The text of all counts.
    pub(super) fn text(&self, in_flight: &InFlight, revision: u64) -> String {
        let mut out = String::new();
        let (reads, writes) = in_flight.counts();
        // Writing to a String cannot fail.
        let _ = write!(
            out,
            "# TYPE apiserver_current_inflight_requests gauge\n\
             apiserver_current_inflight_requests{{request_kind=\"readOnly\"}} {reads}\n\
             apiserver_current_inflight_requests{{request_kind=\"mutating\"}} {writes}\n\
             # TYPE rkube_store_revision gauge\n\
             rkube_store_revision {revision}\n"
        );
        let all = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        out.push_str("# TYPE apiserver_request_total counter\n");
        for (l, series) in all.iter() {
            let _ = writeln!(
                out,
                "apiserver_request_total{{verb=\"{}\",group=\"{}\",version=\"{}\",resource=\"{}\",subresource=\"{}\",code=\"{}\"}} {}",
                l.verb, l.group, l.version, l.resource, l.subresource, l.code, series.count
            );
        }
        out.push_str("# TYPE apiserver_request_duration_seconds histogram\n");
        for (l, series) in all.iter() {
            let labels = format!(
                "verb=\"{}\",group=\"{}\",version=\"{}\",resource=\"{}\",subresource=\"{}\",code=\"{}\"",
                l.verb, l.group, l.version, l.resource, l.subresource, l.code
            );
            for (count, bound) in series.buckets.iter().zip(BUCKETS_S) {
                let _ = writeln!(
                    out,
                    "apiserver_request_duration_seconds_bucket{{{labels},le=\"{bound}\"}} {count}"
                );
            }
            let _ = write!(
                out,
                "apiserver_request_duration_seconds_bucket{{{labels},le=\"+Inf\"}} {}\n\
                 apiserver_request_duration_seconds_sum{{{labels}}} {}\n\
                 apiserver_request_duration_seconds_count{{{labels}}} {}\n",
                series.count, series.sum_s, series.count
            );
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_verb_and_resource() {
        let metrics = Metrics::default();
        let kind = Kind {
            verb: "GET",
            resource: "pods",
            version: "v1",
            ..Kind::default()
        };
        metrics.count(kind, 200, Duration::from_millis(10));
        metrics.count(kind, 200, Duration::from_secs(2));
        let text = metrics.text(&InFlight::default(), 7);
        let labels = "verb=\"GET\",group=\"\",version=\"v1\",resource=\"pods\",subresource=\"\",code=\"200\"";
        assert!(text.contains(&format!("apiserver_request_total{{{labels}}} 2")));
        assert!(text.contains(&format!(
            "apiserver_request_duration_seconds_bucket{{{labels},le=\"0.025\"}} 1"
        )));
        assert!(text.contains("rkube_store_revision 7"));
    }
}
