//! How much history is kept: by age, and at most so many bytes.

use std::collections::VecDeque;

use crate::model::Revision;

/// Resolution of the age.
const MARK_S: u64 = 30;

/// What was the newest revision at the end of a while.
#[derive(Debug)]
struct Mark {
    begin_unix_s: u64,
    end_unix_s: u64,
    newest: Revision,
}

/// Remembers which revision was the newest when. It is asked at every batch: without writes no
/// history grows, so it needs no timer.
#[derive(Debug)]
pub(crate) struct Retention {
    keep_s: u64,
    marks: VecDeque<Mark>,
    aged: Revision,
}

impl Retention {
    pub(crate) fn new(keep_s: u64) -> Self {
        Self {
            keep_s,
            marks: VecDeque::new(),
            aged: 0,
        }
    }

    /// Notes that `revision` is the newest at `now`; returns the revision to compact to.
    pub(crate) fn note(&mut self, now_unix_s: u64, revision: Revision) -> Revision {
        while let Some(mark) = self.marks.front()
            && mark.end_unix_s.saturating_add(self.keep_s) <= now_unix_s
        {
            self.aged = mark.newest;
            self.marks.pop_front();
        }
        match self.marks.back_mut() {
            Some(mark) if mark.begin_unix_s.saturating_add(MARK_S) > now_unix_s => {
                mark.end_unix_s = mark.end_unix_s.max(now_unix_s);
                mark.newest = revision;
            }
            _ => self.marks.push_back(Mark {
                begin_unix_s: now_unix_s,
                end_unix_s: now_unix_s,
                newest: revision,
            }),
        }
        self.aged
    }
}

#[cfg(test)]
mod tests {
    use super::Retention;

    #[test]
    fn what_was_the_newest_then_stays_readable_for_its_time() {
        let mut retention = Retention::new(300);
        let mut newest_at = Vec::new();
        for now in 1000..3000 {
            // Ten writes a second, and a quiet time.
            let revision = if now < 2000 { now * 10 } else { 20_000 };
            let compact = retention.note(now, revision);
            newest_at.push((now, revision));
            for (then, revision) in &newest_at {
                let age = now - then;
                assert!(age >= 300 || compact <= *revision, "gone after {age} s");
                assert!(
                    age <= 300 + 2 * super::MARK_S || compact >= *revision,
                    "kept {age} s"
                );
            }
        }
    }
}
