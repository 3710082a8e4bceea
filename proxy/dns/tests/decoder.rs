//! The decoder on arbitrary bytes, and against an independent one.

#![allow(clippy::unwrap_used, reason = "tests")]

use hickory_proto::op::{Message, Query as TheirQuery};
use hickory_proto::rr::{Name as TheirName, RecordType};
use proptest::prelude::*;
use rkube_dns::wire::{Answer, Name, Query, Records};

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = Query::read(&bytes);
        let _ = Name::read(&bytes, 12);
        if let Some(answer) = Answer::read(&bytes, 7, &[0, 0, 1, 0, 1]) {
            let total = answer.counts.iter().sum();
            let _ = Records::new(&bytes, answer.records_at, total).count();
        }
        let mut header = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
        header.extend(bytes);
        let _ = Query::read(&header);
    }

    #[test]
    fn queries_read_as_others_write_them(
        labels in proptest::collection::vec("[a-zA-Z0-9_]{1,20}", 1..8),
        id: u16,
    ) {
        let text = format!("{}.", labels.join("."));
        let mut message = Message::query();
        message.metadata.id = id;
        message.add_query(TheirQuery::query(TheirName::from_ascii(&text).unwrap(), RecordType::AAAA));
        let bytes = message.to_vec().unwrap();
        let query = Query::read(&bytes).unwrap();
        prop_assert_eq!(query.id, id);
        prop_assert_eq!(query.kind, 28);
        prop_assert_eq!(query.name, Name::parse(&text.to_lowercase()).unwrap());
        prop_assert_eq!(query.name.labels().count(), labels.len());
    }
}

#[test]
fn names_have_limits() {
    assert!(Name::parse(&"a.".repeat(127)).is_some());
    assert!(Name::parse(&"a.".repeat(128)).is_none());
    assert!(Name::parse(&"a".repeat(64)).is_none());
    assert!(Name::parse("a..b").is_none());
}
