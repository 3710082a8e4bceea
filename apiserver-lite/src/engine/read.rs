//! get and list.

use std::time::Duration;

use rkube_api::revision::Continue;
use rkube_api::status::Status;
use rkube_store::{Range, Record, Revision, StoreError};

use super::render::{self, ListMeta};
use super::{Answer, Engine};
use crate::objects::{key, prefix, store_status};
use crate::options::{Options, RevisionMatch};
use crate::request::Request;
use crate::select::Selection;

/// How long a read waits for a revision that is not there yet (`blockTimeout` of upstream's
/// watch cache).
pub(crate) const FUTURE_REVISION_WAIT: Duration = Duration::from_secs(3);

/// Records read from the store at a time while a selector looks for more.
const PAGE_RECORDS: usize = 1000;

const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

impl Engine {
    pub(super) fn get(&self, request: &Request) -> Result<Answer, Status> {
        let record = self.record(request)?;
        render::one(request, 200, &record.value, record.revision)
    }

    /// One object, at least as new as the request says.
    pub(super) async fn get_at(&self, request: &Request) -> Result<Answer, Status> {
        self.wait_for(&request.options).await?;
        self.get(request)
    }

    /// The record of the request's object.
    pub(super) fn record(&self, request: &Request) -> Result<Record, Status> {
        let key = key(request.resource, &request.namespace, &request.name);
        self.store()
            .get(key.as_bytes(), None)
            .map_err(|e| store_status(&e))?
            .ok_or_else(|| Status::not_found(self.named(request, &request.name)))
    }

    pub(super) async fn list(&self, request: &Request) -> Result<Answer, Status> {
        let (records, list_meta) = self.find(request).await?;
        render::list(request, records, &list_meta)
    }

    /// The records that a list request is about.
    pub(super) async fn find(&self, request: &Request) -> Result<(Vec<Record>, ListMeta), Status> {
        let options = &request.options;
        options.check_list(false)?;
        let selection = Selection::new(request.resource, options)?;
        let namespace = match selection.namespace() {
            // A list over all namespaces that wants one of them.
            Some(one) if request.namespace.is_empty() && request.resource.namespaced => one,
            _ => &request.namespace,
        };
        if let (Some(name), true) = (
            selection.name(),
            !request.resource.namespaced || !namespace.is_empty(),
        ) && options.continue_token.is_empty()
            && exact(options).is_none()
        {
            self.wait_for(options).await?;
            return self.find_named(request, namespace, name, &selection);
        }
        let prefix = prefix(request.resource, namespace);
        if options.continue_token.is_empty() {
            let at = exact(options);
            if at.is_none() {
                self.wait_for(options).await?;
            } else if let Some(at) = at
                && at > self.store().revision()
            {
                self.reach(at).await?;
            }
            return self
                .page(&prefix, None, at, &selection, options)
                .map_err(|e| match e {
                    StoreError::Compacted { asked, .. } => Status::expired(format!(
                        "The resourceVersion for the provided list is too old. ({asked})"
                    )),
                    other => store_status(&other),
                });
        }
        if options.revision.is_some_and(|r| r != 0) {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let token = Continue::decode(&options.continue_token)
            .map_err(|e| Status::bad_request(format!("invalid continue token: {e}")))?;
        let start = format!("{prefix}{}", token.start);
        self.page(&prefix, Some(&start), token.revision, &selection, options)
            .map_err(|e| match e {
                StoreError::Compacted { .. } => {
                    let mut status = Status::expired(CONTINUE_EXPIRED);
                    status.continue_token = Continue {
                        revision: None,
                        start: token.start.clone(),
                    }
                    .encode();
                    status
                }
                other => store_status(&other),
            })
    }

    /// A list of at most one object, without a scan.
    fn find_named(
        &self,
        request: &Request,
        namespace: &str,
        name: &str,
        selection: &Selection,
    ) -> Result<(Vec<Record>, ListMeta), Status> {
        let revision = self.store().revision();
        let key = key(request.resource, namespace, name);
        let found = if name.is_empty() || name.contains('/') {
            None
        } else {
            let record = self.store().get(key.as_bytes(), None);
            record.map_err(|e| store_status(&e))?
        };
        let records: Vec<Record> = found
            .into_iter()
            .filter(|r| selection.matches(&r.value))
            .collect();
        let newest = records.iter().map(|r| r.revision).max().unwrap_or(0);
        let list_meta = ListMeta {
            revision: revision.max(newest),
            ..ListMeta::default()
        };
        Ok((records, list_meta))
    }

    /// One page. With a selector, the store is read until the page is full.
    fn page(
        &self,
        prefix: &str,
        start: Option<&str>,
        at: Option<Revision>,
        selection: &Selection,
        options: &Options,
    ) -> Result<(Vec<Record>, ListMeta), StoreError> {
        // What may be of any age comes whole, as from upstream's cache.
        let any = options.revision == Some(0) && options.continue_token.is_empty();
        let limit = match any {
            true => 0,
            false => usize::try_from(options.limit).unwrap_or(usize::MAX),
        };
        let mut start: Option<Vec<u8>> = start.map(|s| s.as_bytes().to_vec());
        let mut at = at;
        let mut found = Vec::new();
        loop {
            let everything = selection.is_everything();
            let size = match (limit, everything) {
                (0, true) => None,
                (0, false) => Some(PAGE_RECORDS),
                (limit, true) => Some(limit),
                (limit, false) => Some(PAGE_RECORDS.max(limit)),
            };
            let page = self.store().range(&Range {
                prefix: prefix.as_bytes(),
                start: start.as_deref(),
                at,
                limit: size,
                count: everything && limit > 0,
            })?;
            at = Some(page.revision);
            let mut last = None;
            let mut more = page.more;
            let mut records = page.records.into_iter().peekable();
            while let Some(record) = records.next() {
                if !selection.matches(&record.value) {
                    last = Some(record.key);
                    continue;
                }
                last = Some(record.key.clone());
                found.push(record);
                if limit > 0 && found.len() == limit {
                    more |= records.peek().is_some();
                    break;
                }
            }
            let full = limit > 0 && found.len() >= limit;
            if !more || full {
                let mut list_meta = ListMeta {
                    revision: page.revision,
                    ..ListMeta::default()
                };
                if let (true, Some(last)) = (more, last) {
                    let relative = last.get(prefix.len()..).unwrap_or(&[]);
                    list_meta.continue_token = Continue {
                        revision: Some(page.revision),
                        // The key after the last one: a zero byte is written as "\u{0}" in
                        // upstream's tokens, which ours may not contain.
                        start: format!("{}{NEXT}", String::from_utf8_lossy(relative)),
                    }
                    .encode();
                    list_meta.remaining = page.remaining.filter(|_| everything);
                }
                return Ok((found, list_meta));
            }
            start = last.map(|key| [&key[..], b"\0"].concat());
        }
    }

    /// Waits for a revision that the options want to be reached.
    async fn wait_for(&self, options: &Options) -> Result<(), Status> {
        match options.revision {
            Some(wanted) if wanted > self.store().revision() => self.reach(wanted).await,
            _ => Ok(()),
        }
    }

    /// Waits for a revision of the store, but not for long.
    pub(crate) async fn reach(&self, wanted: Revision) -> Result<(), Status> {
        let store = self.store();
        let current = store.revision();
        let mut watcher = store.watch(b"", current).map_err(|e| store_status(&e))?;
        let wait = async {
            while store.revision() < wanted {
                watcher.next().await?;
            }
            Ok::<(), StoreError>(())
        };
        match tokio::time::timeout(FUTURE_REVISION_WAIT, wait).await {
            Ok(reached) => reached.map_err(|e| store_status(&e)),
            Err(_) => Err(Status::revision_too_high(wanted, store.revision())),
        }
    }
}

/// Orders right behind any key that it is appended to, and before every longer key: names have
/// no character below '-'.
const NEXT: char = '\u{1}';

/// The revision that a list must show exactly: asked for, or meant by an older client that
/// pages from a revision.
fn exact(options: &Options) -> Option<Revision> {
    let revision = options.revision.filter(|r| *r > 0)?;
    match options.revision_match {
        Some(RevisionMatch::Exact) => Some(revision),
        Some(RevisionMatch::NotOlderThan) => None,
        None => (options.limit > 0).then_some(revision),
    }
}
