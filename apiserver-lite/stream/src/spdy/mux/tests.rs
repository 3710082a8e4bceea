use super::*;
use proptest::prelude::*;

fn named(name: &str) -> Headers {
    vec![("streamtype".to_owned(), name.to_owned())]
}

fn pair() -> (Mux, Mux, Incoming) {
    let (a, b) = tokio::io::duplex(16 << 10);
    let (client, _, drive_client) = connect(a, Role::Client).unwrap();
    let (server, incoming, drive_server) = connect(b, Role::Server).unwrap();
    tokio::spawn(drive_client);
    tokio::spawn(drive_server);
    (client, server, incoming)
}

#[tokio::test]
async fn streams_carry_bytes_both_ways_and_end_by_halves() {
    let (client, _server, mut incoming) = pair();
    for round in 0..3 {
        let (opened, accepted) = tokio::join!(client.open(named("data")), incoming.next());
        let (mut opened, mut accepted) = (opened.unwrap(), accepted.unwrap());
        assert_eq!(accepted.headers, named("data"));
        assert_eq!(accepted.id, round * 2 + 1);
        // More than the 64 KiB of SPDY's first window, in both directions.
        let body: Vec<u8> = (0..300_000u32).map(|i| i.to_be_bytes()[3]).collect();
        let sent = body.clone();
        let send = async move {
            opened.writer.write_all(&sent).await.unwrap();
            drop(opened.writer);
            let mut back = Vec::new();
            opened.reader.read_to_end(&mut back).await.unwrap();
            back
        };
        let echo = async move {
            let mut got = Vec::new();
            accepted.reader.read_to_end(&mut got).await.unwrap();
            accepted.writer.write_all(&got).await.unwrap();
        };
        let (back, ()) = tokio::join!(send, echo);
        assert!(back == body);
    }
}

/// A peer may answer before whoever opened the stream runs again.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_answer_comes_too_early() {
    let (client, server, mut incoming) = pair();
    let accepting = tokio::spawn(async move {
        while let Some(stream) = incoming.next().await {
            server.cancel(stream.id).await.unwrap();
        }
    });
    for round in 0..20_000 {
        let opening = client.open(named("data"));
        let opened = tokio::time::timeout(std::time::Duration::from_secs(30), opening).await;
        let stream = opened
            .unwrap_or_else(|_| panic!("stream {round} has no answer"))
            .unwrap();
        client.cancel(stream.id).await.unwrap();
    }
    accepting.abort();
}

#[tokio::test]
async fn a_slow_stream_holds_its_sender_back() {
    let (client, _server, mut incoming) = pair();
    let (opened, accepted) = tokio::join!(client.open(named("data")), incoming.next());
    let (mut opened, mut accepted) = (opened.unwrap(), accepted.unwrap());
    let total = 4 << 20;
    let mut taken = 0;
    let chunk = vec![1u8; 64 << 10];
    // Nobody reads: the pipes, the transport and the queue fill, and no more
    // is taken. Time only bounds how long this test looks.
    let filled = tokio::time::timeout(std::time::Duration::from_millis(300), async {
        while taken < total {
            taken += opened.writer.write(&chunk).await.unwrap();
        }
    });
    assert!(filled.await.is_err(), "{taken} bytes were taken");
    assert!(taken < 2 << 20, "{taken}");
    let reading = async {
        let mut got = Vec::new();
        accepted.reader.read_to_end(&mut got).await.unwrap();
        got.len()
    };
    let finish = async {
        drop(opened.writer);
    };
    let (got, ()) = tokio::join!(reading, finish);
    assert_eq!(got, taken);
}

#[tokio::test]
async fn too_many_streams_are_refused() {
    let (client, _server, mut incoming) = pair();
    let mut held = Vec::new();
    for _ in 0..MAX_STREAMS_COUNT {
        let (opened, accepted) = tokio::join!(client.open(named("data")), incoming.next());
        held.push((opened.unwrap(), accepted.unwrap()));
    }
    let error = client.open(named("data")).await.unwrap_err();
    assert!(matches!(error, StreamError::Limit { .. }), "{error}");
    // A cancelled stream makes room again.
    let (opened, accepted) = held.pop().unwrap();
    client.cancel(opened.id).await.unwrap();
    drop((opened, accepted));
    loop {
        if let Ok(stream) = client.open(named("data")).await {
            drop(stream);
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_reset_ends_both_halves() {
    let (client, server, mut incoming) = pair();
    let (opened, accepted) = tokio::join!(client.open(named("data")), incoming.next());
    let (mut opened, accepted) = (opened.unwrap(), accepted.unwrap());
    server.cancel(accepted.id).await.unwrap();
    let mut rest = Vec::new();
    opened.reader.read_to_end(&mut rest).await.unwrap();
    assert!(rest.is_empty());
    loop {
        if opened.writer.write_all(b"x").await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn pings_come_back_and_unknown_frames_are_skipped() {
    let (mut raw, io) = tokio::io::duplex(4096);
    let (_mux, _incoming, drive) = connect(io, Role::Server).unwrap();
    tokio::spawn(drive);
    let mut bytes = Vec::new();
    frame::encode_control(&Control::Other(4), &mut bytes);
    frame::encode_control(&Control::Other(99), &mut bytes);
    let mut ping = Vec::new();
    frame::encode_control(&Control::Ping(7), &mut ping);
    bytes.extend_from_slice(&ping);
    raw.write_all(&bytes).await.unwrap();
    let mut back = vec![0; ping.len()];
    raw.read_exact(&mut back).await.unwrap();
    assert_eq!(back, ping);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn hostile_bytes_end_the_connection_or_are_ignored(frames in proptest::collection::vec((any::<bool>(), 0u16..11, any::<u8>(), 0u32..8, proptest::collection::vec(any::<u8>(), 0..40)), 0..12)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut bytes = Vec::new();
            for (is_control, kind, flags, stream, payload) in frames {
                let len = u32::try_from(payload.len()).unwrap();
                if is_control {
                    bytes.extend_from_slice(&0x8003u16.to_be_bytes());
                    bytes.extend_from_slice(&kind.to_be_bytes());
                } else {
                    bytes.extend_from_slice(&stream.to_be_bytes());
                }
                bytes.extend_from_slice(&(u32::from(flags) << 24 | len).to_be_bytes());
                bytes.extend_from_slice(&payload);
            }
            let (mut raw, io) = tokio::io::duplex(1 << 16);
            let (_mux, incoming, drive) = connect(io, Role::Server).unwrap();
            drop(incoming);
            raw.write_all(&bytes).await.unwrap();
            raw.shutdown().await.unwrap();
            // Ends: with the peer's end, or an error.
            let _ = drive.await;
        });
    }
}
