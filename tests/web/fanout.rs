//! Many sockets at one node: each hears everything once, whatever the others do.

use tokio::net::TcpSocket;
use tokio_tungstenite::client_async;

use super::*;

/// Says all of it at once, as a program does.
async fn say_all(handle: &Handle, texts: &[String]) {
    let draft = |text: &String| hubless::Draft::new(hubless::Room::lobby(), text.as_str());
    handle.publish_all(texts.iter().map(draft).collect()).await.expect("published");
}

fn texts(numbers: std::ops::Range<usize>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn three_hundred_sockets_of_all_kinds_hear_everything_once_in_order() {
    let site = site("three-hundred").await;
    let (mut early, welcome) = site.join(json!({ "type": "hello" })).await;
    say_all(&site.handle, &texts(0..40)).await;
    let mut first = (Vec::new(), welcome["cursor"].clone());
    while first.0.len() < 40 {
        take(&mut early, &mut first.0, &mut first.1).await;
    }
    let (mut plain, mut live, mut resumed, mut alone) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for number in 0..75 {
        plain.push(site.plain().await);
        live.push(site.join(json!({ "type": "hello" })).await.0);
        // All of these lack something, more or less.
        let after = if number % 2 == 0 { &welcome["cursor"] } else { &first.1 };
        resumed.push(site.join(json!({ "type": "hello", "after": after })).await.0);
        alone.push(site.join(json!({ "type": "hello", "burst": 1 + number % 7 })).await.0);
        if number % 15 == 0 {
            say_all(&site.handle, &[format!("meanwhile {number}")]).await;
        }
    }
    let meanwhile: Vec<String> = (0..75).step_by(15).map(|number| format!("meanwhile {number}")).collect();
    let said = texts(100..900);
    say_all(&site.handle, &said[..500]).await;
    for text in &said[500..510] {
        site.say(text).await;
    }
    say_all(&site.handle, &said[510..]).await;

    // Each kind began at its own time: what was said before that was not for it.
    for (number, socket) in plain.iter_mut().enumerate() {
        for expected in meanwhile[number.div_ceil(15).min(5)..].iter().chain(&said) {
            assert_eq!(&socket.text().await, expected, "plain {number}");
        }
    }
    let mut cursors = Vec::new();
    for (kind, sockets) in [("live", &mut live), ("alone", &mut alone), ("resumed", &mut resumed)] {
        for (number, socket) in sockets.iter_mut().enumerate() {
            let missed = match (kind, number % 2) {
                ("resumed", 0) => texts(0..40),
                _ => Vec::new(),
            };
            let begin = if kind == "resumed" { 0 } else { number.div_ceil(15).min(5) };
            let expected: Vec<String> = missed.iter().chain(&meanwhile[begin..]).chain(&said).cloned().collect();
            let (mut heard, mut cursor) = (Vec::new(), Value::Null);
            while heard.len() < expected.len() {
                take(socket, &mut heard, &mut cursor).await;
            }
            assert_eq!(heard, expected, "{kind} {number}");
            if number % 10 == 0 {
                cursors.push(cursor);
            }
        }
    }
    // Whatever way a cursor was come by, it covers all of it.
    say_all(&site.handle, &texts(900..910)).await;
    for cursor in cursors {
        let (mut socket, _) = site.join(json!({ "type": "hello", "after": cursor })).await;
        let (mut heard, mut cursor) = (Vec::new(), Value::Null);
        while heard.len() < 10 {
            take(&mut socket, &mut heard, &mut cursor).await;
        }
        assert_eq!(heard, texts(900..910));
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_one_among_many_is_let_go_and_loses_nothing_when_it_comes_back() {
    let site = site("slow-one").await;
    let stream = TcpSocket::new_v4().unwrap();
    // A large one would take much of what is said here.
    stream.set_recv_buffer_size(64 * 1024).unwrap();
    let stream = stream.connect(site.address()).await.unwrap();
    let mut request = format!("ws://{}/", site.address()).into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "hubless.v1".parse().unwrap());
    let (mut slow, _) = client_async(request, stream).await.unwrap();
    slow.send(Message::text(r#"{"type":"hello"}"#)).await.unwrap();
    let mut quick = site.plain().await;
    let (mut reading, welcome) = site.join(json!({ "type": "hello" })).await;

    // More than waits for anybody, less than what the node remembers.
    let said: Vec<String> = (0..180).map(|number| format!("{number} {}", "x".repeat(240 * 1024))).collect();
    let (mut heard, mut cursor) = (Vec::new(), welcome["cursor"].clone());
    for part in said.chunks(20) {
        say_all(&site.handle, part).await;
        for text in part {
            assert_eq!(&quick.text().await, text);
        }
        let until = heard.len() + part.len();
        while heard.len() < until {
            take(&mut reading, &mut heard, &mut cursor).await;
        }
    }
    assert!(heard == said);

    let (mut heard, mut pending, mut cursor, mut missing) = (Vec::new(), Vec::new(), Value::Null, 0);
    let code = loop {
        match timeout(PATIENCE, slow.next()).await.expect("a frame in time") {
            Some(Ok(Message::Text(text))) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                match frame["type"].as_str().unwrap() {
                    "welcome" => cursor = frame["cursor"].clone(),
                    "message" => {
                        pending.push(frame["text"].as_str().unwrap().to_string());
                        if frame["cursor"].is_string() {
                            cursor = frame["cursor"].clone();
                            heard.append(&mut pending);
                        }
                    }
                    "gap" => {
                        assert_eq!(frame["reason"], "slow");
                        missing = frame["missing"].as_u64().unwrap();
                    }
                    other => assert_eq!(other, "stored"),
                }
            }
            Some(Ok(Message::Close(Some(close)))) => break u16::from(close.code),
            Some(Ok(_)) => {}
            other => panic!("{other:?} instead of a frame"),
        }
    };
    assert_eq!(code, 1013);
    assert!(pending.is_empty() && heard.len() < said.len() && missing > 0, "{} heard, {missing} missing", heard.len());
    let (mut back, _) = site.join(json!({ "type": "hello", "after": cursor })).await;
    while heard.len() < said.len() {
        take(&mut back, &mut heard, &mut cursor).await;
    }
    assert!(heard == said, "lost, doubled or out of order");
    site.end().await;
}
