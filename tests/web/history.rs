//! What the API and the WebSocket say of a log: states, pages, exports, imports, durable cursors.

use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;

fn folder() -> TempDir {
    TempDir::with_prefix("hl").expect("a folder")
}

impl Site {
    /// A node that keeps its log in `folder`, with its page.
    async fn kept(mesh: &str, folder: &Path, seeds: Vec<Seed>) -> Site {
        let builder = hubless::Node::builder().mesh(mesh).name("ada").listen(Listen::At(ANY_PORT)).mdns(false);
        let handle = builder.seeds(seeds).data_dir(Some(folder.into())).history(true).start().await.expect("a node");
        let web = Web::serve_tcp(handle.clone(), ANY_PORT, None).await.expect("a free port");
        Site { handle, web }
    }

    fn seed(&self) -> Vec<Seed> {
        vec![self.handle.info().listen.to_string().parse().expect("a seed")]
    }

    async fn say_many(&self, texts: impl IntoIterator<Item = String>) {
        let drafts = texts.into_iter().map(|text| hubless::Draft::new(hubless::Room::lobby(), text)).collect();
        self.handle.publish_all(drafts).await.expect("published");
    }

    /// Head and body of a request, the body as it came, chunks put together.
    async fn raw(&self, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            self.address(),
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // Whoever refuses a body may answer before it is sent.
        let _ = stream.write_all(body).await;
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time").unwrap();
        let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a head") + 4;
        let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer[end..].to_vec();
        (
            status,
            if head.contains("transfer-encoding: chunked") { chunks(&body).expect("a complete body") } else { body },
        )
    }
}

/// The body in these chunks; none if it is not complete.
fn chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let end = rest.windows(2).position(|window| window == b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(end + 2..end + 2 + size)?);
        rest = rest.get(end + 2 + size + 2..)?;
    }
}

/// The texts of a page.
fn texts(page: &Value) -> Vec<String> {
    let messages = page["messages"].as_array().expect("messages").iter();
    messages.map(|message| message["text"].as_str().expect("a text").to_string()).collect()
}

async fn meet(one: &Site, other: &Site) {
    let both_up = async {
        one.handle.wait_for_peers(1).await.unwrap();
        other.handle.wait_for_peers(1).await.unwrap();
    };
    timeout(PATIENCE, both_up).await.expect("they meet");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_durable_when_it_is_accepted_and_rises_when_another_node_stores_it() {
    let (here, there) = (folder(), folder());
    let ada = Site::kept("rises", here.path(), Vec::new()).await;
    let (mut socket, welcome) = ada.join(json!({ "type": "hello" })).await;
    assert_eq!(welcome["history"], "working");
    assert_eq!(ada.get("/readyz").await["history"], true);
    socket.send(json!({ "type": "send", "client_id": "1", "text": "alone" })).await;
    let (mut state, mut stored_by) = (Value::Null, Value::Null);
    while state != "durable" {
        let frame: Value = serde_json::from_str(&socket.text().await).unwrap();
        match frame["type"].as_str().unwrap() {
            "message" => stored_by = frame["stored_by"].clone(),
            "accepted" => {
                assert_eq!((&frame["client_id"], &frame["state"]), (&json!("1"), &json!("durable")));
                state = frame["state"].clone();
            }
            _ => {}
        }
    }
    let id = ada.get("/api/v1/messages").await["messages"][0]["id"].as_str().unwrap().to_string();
    let held = ada.get(&format!("/api/v1/messages/{id}/held?stored=1&wait=10ms")).await;
    assert_eq!(held, json!({ "id": id, "held_by": 0, "stored_by": 0, "state": "durable" }));
    assert!(stored_by.is_null() || stored_by == 0);

    let bob = Site::kept("rises", there.path(), ada.seed()).await;
    let told = loop {
        let frame: Value = serde_json::from_str(&socket.text().await).unwrap();
        if frame["type"] == "stored" && frame["state"] == "replicated" {
            break frame;
        }
    };
    assert_eq!((&told["id"], &told["by"]), (&json!(id), &json!(1)));
    let held = ada.get(&format!("/api/v1/messages/{id}/held?stored=1&wait=10s")).await;
    assert_eq!((&held["stored_by"], &held["held_by"], &held["state"]), (&json!(1), &json!(1), &json!("replicated")));
    for site in [&ada, &bob] {
        let message = site.get("/api/v1/messages").await["messages"][0].clone();
        assert_eq!((&message["state"], &message["stored_by"]), (&json!("replicated"), &json!(1)), "{message}");
    }
    bob.end().await;
    ada.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_one_message_after_a_restart_and_on_another_node() {
    let (here, there) = (folder(), folder());
    let ada = Site::kept("retries", here.path(), Vec::new()).await;
    let said = json!({ "text": "once", "name": "grace", "client_id": "c-1" });
    let (status, first) = ada.post(said.clone()).await;
    assert_eq!((status, &first["state"]), (201, &json!("durable")), "{first}");
    ada.end().await;

    let ada = Site::kept("retries", here.path(), Vec::new()).await;
    let (status, again) = ada.post(said.clone()).await;
    assert_eq!((status, &again["id"]), (201, &first["id"]));
    let bob = Site::kept("retries", there.path(), ada.seed()).await;
    meet(&ada, &bob).await;
    let id = first["id"].as_str().unwrap();
    assert_eq!(ada.get(&format!("/api/v1/messages/{id}/held?stored=1&wait=10s")).await["stored_by"], 1);
    let (status, there) = bob.post(said).await;
    assert_eq!((status, &there["id"]), (201, &first["id"]));
    let (status, refused) = bob.post(json!({ "text": "other", "client_id": "c-1" })).await;
    assert_eq!((status, &refused["error"]["code"]), (409, &json!("client_id_reused")));
    for site in [&ada, &bob] {
        assert_eq!(texts(&site.get("/api/v1/messages").await), ["once"]);
    }
    bob.end().await;
    ada.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_in_one_go_is_accepted_in_order() {
    let here = folder();
    let site = Site::kept("pipeline", here.path(), Vec::new()).await;
    let (mut socket, _) = site.join(json!({ "type": "hello" })).await;
    for number in 0..2_000 {
        let frame = json!({ "type": "send", "client_id": number.to_string(), "text": format!("text {number}") });
        socket.socket.feed(Message::text(frame.to_string())).await.unwrap();
        if number == 1_000 {
            let reused = json!({ "type": "send", "client_id": "0", "text": "another" });
            socket.socket.feed(Message::text(reused.to_string())).await.unwrap();
        }
    }
    socket.socket.flush().await.unwrap();
    let (mut accepted, mut heard, mut refused) = (Vec::new(), Vec::new(), Vec::new());
    while accepted.len() < 2_000 || heard.len() < 2_000 {
        let frame: Value = serde_json::from_str(&socket.text().await).unwrap();
        let word = |key: &str| frame[key].as_str().unwrap_or_default().to_string();
        match frame["type"].as_str().unwrap() {
            "accepted" => {
                assert_eq!(frame["state"], "durable");
                accepted.push(word("client_id"));
            }
            "message" => heard.push(word("text")),
            "error" => refused.push((word("code"), word("client_id"))),
            _ => {}
        }
    }
    assert_eq!(accepted, (0..2_000).map(|number| number.to_string()).collect::<Vec<_>>());
    assert_eq!(heard, (0..2_000).map(|number| format!("text {number}")).collect::<Vec<_>>());
    assert_eq!(refused, [("client_id_reused".to_string(), "0".to_string())]);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_goes_on_after_the_node_was_restarted() {
    let here = folder();
    let site = Site::kept("comes-back", here.path(), Vec::new()).await;
    let (mut socket, welcome) = site.join(json!({ "type": "hello" })).await;
    let mut cursor = welcome["cursor"].clone();
    let mut heard = Vec::new();
    site.say_many((0..700).map(|number| number.to_string())).await;
    while heard.len() < 300 {
        take(&mut socket, &mut heard, &mut cursor).await;
    }
    drop(socket);
    site.end().await;
    let site = Site::kept("comes-back", here.path(), Vec::new()).await;
    site.say_many((700..800).map(|number| number.to_string())).await;
    let (mut socket, _) = site.join(json!({ "type": "hello", "after": cursor })).await;
    site.say_many((800..900).map(|number| number.to_string())).await;
    while heard.len() < 900 {
        take(&mut socket, &mut heard, &mut cursor).await;
    }
    assert_eq!(heard, (0..900).map(|number| number.to_string()).collect::<Vec<_>>());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_searched_and_walked() {
    let here = folder();
    let site = Site::kept("search", here.path(), Vec::new()).await;
    let words: Vec<String> =
        (0..60).map(|number| format!("{} {number}", ["Apfel", "Birne", "ÄPFEL"][number % 3])).collect();
    site.say_many(words.clone()).await;
    site.post(json!({ "room": "other", "text": "apfel elsewhere" })).await;
    let found = texts(&site.get("/api/v1/messages?room=lobby&grep=apfel").await);
    assert_eq!(found, words.iter().filter(|text| text.starts_with("Apfel")).cloned().collect::<Vec<_>>());
    let umlaut = texts(&site.get("/api/v1/messages?grep=%C3%A4pfel&limit=5").await);
    assert_eq!(umlaut, ["ÄPFEL 47", "ÄPFEL 50", "ÄPFEL 53", "ÄPFEL 56", "ÄPFEL 59"]);
    let all = texts(&site.get("/api/v1/messages?grep=APFEL").await);
    assert_eq!(all.last().map(String::as_str), Some("apfel elsewhere"));
    assert_eq!(texts(&site.get("/api/v1/messages?until=2020-01-01T00:00:00Z").await), Vec::<String>::new());
    assert_eq!(texts(&site.get("/api/v1/messages?room=lobby&until=2200-01-01T00:00:00Z").await), words);

    // From the oldest to the newest, in pages.
    let (mut walked, mut next) = (Vec::new(), String::new());
    loop {
        let page = site.get(&format!("/api/v1/messages?room=lobby&limit=7&next={next}")).await;
        assert!(page["messages"].as_array().unwrap().len() <= 7);
        walked.extend(texts(&page));
        match page["next"].as_str() {
            Some(place) => next = place.into(),
            None => break,
        }
    }
    assert_eq!(walked, words);
    let time = site.get("/api/v1/messages?room=lobby").await["messages"][0]["time"].as_str().unwrap().to_string();
    assert_eq!(texts(&site.get(&format!("/api/v1/messages?room=lobby&since={time}&next=")).await), words);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_log_is_exported_line_by_line() {
    let here = folder();
    let site = Site::kept("lines", here.path(), Vec::new()).await;
    let words: Vec<String> = (0..5_000).map(|number| format!("line\n{number}")).collect();
    site.say_many(words.clone()).await;
    site.post(json!({ "room": "other", "text": "elsewhere" })).await;
    let export = async |query: &str| {
        let (status, body) = site.raw("GET", &format!("/api/v1/messages/export{query}"), b"").await;
        assert_eq!(status, 200);
        let text = String::from_utf8(body).unwrap();
        assert!(text.ends_with('\n'));
        let lines: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("a message a line")).collect();
        lines
    };
    let lobby = export("?room=lobby").await;
    assert_eq!(lobby.iter().map(|line| line["text"].as_str().unwrap()).collect::<Vec<_>>(), words);
    assert_eq!((&lobby[0]["state"], &lobby[0]["stored_by"]), (&json!("durable"), &json!(0)));
    assert_eq!(export("").await.len(), 5_001);

    // More than what lies between reader and writer: who does not read is waited for, and loses nothing.
    let large = "x".repeat(200_000);
    site.say_many((0..150).map(|_| large.clone())).await;
    let mut stream = TcpStream::connect(site.address()).await.unwrap();
    let ask = format!("GET /api/v1/messages/export HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", site.address());
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut first = [0; 1024];
    stream.read_exact(&mut first).await.unwrap();
    site.say("meanwhile").await;
    let mut rest = first.to_vec();
    timeout(PATIENCE * 3, stream.read_to_end(&mut rest)).await.expect("in time").unwrap();
    let end = rest.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let body = chunks(&rest[end..]).expect("complete");
    let lines = body.iter().filter(|byte| **byte == b'\n').count();
    assert!((5_151..=5_152).contains(&lines), "{lines}");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_carried_to_a_mesh_that_never_met_it_and_back_once_only() {
    let (here, there) = (folder(), folder());
    let ada = Site::kept("sneakers", here.path(), Vec::new()).await;
    let bob = Site::kept("sneakers", there.path(), Vec::new()).await;
    ada.say_many((0..3_000).map(|number| format!("ada {number}"))).await;
    bob.say_many((0..200).map(|number| format!("bob {number}"))).await;
    let (status, file) = ada.raw("GET", "/api/v1/history/export", b"").await;
    assert_eq!((status, &file[..12]), (200, &b"hubless-log\n"[..]));
    let import = async |site: &Site, file: &[u8]| {
        let (status, body) = site.raw("POST", "/api/v1/history/import", file).await;
        (status, serde_json::from_slice::<Value>(&body).expect("JSON"))
    };
    assert_eq!(import(&bob, &file).await, (200, json!({ "new": 3_000, "known": 0, "refused": 0 })));
    assert_eq!(import(&bob, &file).await, (200, json!({ "new": 0, "known": 3_000, "refused": 0 })));
    assert_eq!(texts(&bob.get("/api/v1/messages?grep=ada&limit=1000").await).len(), 1_000);
    let (_, back) = bob.raw("GET", "/api/v1/history/export", b"").await;
    assert_eq!(import(&ada, &back).await, (200, json!({ "new": 200, "known": 3_000, "refused": 0 })));
    let all = |body: Vec<u8>| {
        let text = String::from_utf8(body).unwrap();
        let ids = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["id"].to_string());
        ids.collect::<Vec<_>>()
    };
    let at_ada = all(ada.raw("GET", "/api/v1/messages/export", b"").await.1);
    assert_eq!(at_ada.len(), 3_200);
    assert_eq!(at_ada, all(bob.raw("GET", "/api/v1/messages/export", b"").await.1));
    bob.end().await;
    ada.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_refused_from_the_damage_on() {
    let (here, there) = (folder(), folder());
    let ada = Site::kept("damaged", here.path(), Vec::new()).await;
    for part in 0..10 {
        // Batches of their own.
        ada.say_many([format!("part {part}")]).await;
    }
    let (_, file) = ada.raw("GET", "/api/v1/history/export", b"").await;
    let bob = Site::kept("damaged", there.path(), Vec::new()).await;
    let import = async |file: &[u8]| {
        let (status, body) = bob.raw("POST", "/api/v1/history/import", file).await;
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let said = |key: &str| body["error"][key].as_str().unwrap_or_default().to_string();
        (status, said("code"), said("message"))
    };
    let mut newer = file.clone();
    newer[12] = 9;
    let (status, code, said) = import(&newer).await;
    assert_eq!((status, code.as_str()), (400, "newer_import"));
    assert!(said.contains("newer version (9)"), "{said}");
    let (status, code, _) = import(b"{}").await;
    assert_eq!((status, code.as_str()), (400, "corrupt_import"));
    assert_eq!(texts(&bob.get("/api/v1/messages").await), Vec::<String>::new());

    let mut flipped = file.clone();
    let at = file.len() / 2;
    flipped[at] ^= 1;
    let (status, code, said) = import(&flipped).await;
    assert_eq!((status, code.as_str()), (400, "corrupt_import"));
    let byte: usize =
        said.split(' ').skip_while(|word| *word != "byte").nth(1).unwrap().trim_end_matches(';').parse().unwrap();
    assert!(byte <= at && byte > at - 1_000, "{said}");
    let kept = texts(&bob.get("/api/v1/messages").await);
    assert!((4..=5).contains(&kept.len()), "{kept:?}");
    assert!(said.contains(&format!("{} messages", kept.len())), "{said}");
    assert_eq!(kept, (0..kept.len()).map(|part| format!("part {part}")).collect::<Vec<_>>());

    let (status, code, said) = import(&file[..file.len() - 1]).await;
    assert_eq!((status, code.as_str()), (400, "corrupt_import"));
    assert!(said.contains(&format!("byte {}", file.len() - 1)), "{said}");
    assert_eq!(texts(&bob.get("/api/v1/messages").await).len(), 10, "what came before the cut is kept");
    bob.end().await;
    ada.end().await;
}

/// Hears messages up to one that carries a cursor; answers their texts and the cursor.
async fn burst(socket: &mut Socket) -> (Vec<String>, Value) {
    let (mut heard, mut cursor) = (Vec::new(), Value::Null);
    take(socket, &mut heard, &mut cursor).await;
    (heard, cursor)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_cursor_goes_on_where_it_was_acknowledged() {
    let here = folder();
    let site = Site::kept("durable", here.path(), Vec::new()).await;
    site.say("before it begins").await;
    let (mut socket, welcome) = site.join(json!({ "type": "hello", "durable": "an indexer" })).await;
    assert_eq!(welcome["durable"], "an indexer");
    site.say_many((0..600).map(|number| number.to_string())).await;
    let (mut heard, mut cursors) = (Vec::new(), Vec::new());
    while heard.len() < 600 {
        let (texts, cursor) = burst(&mut socket).await;
        assert!(texts.len() <= 256);
        heard.extend(texts);
        cursors.push((heard.len(), cursor));
    }
    assert_eq!(heard, (0..600).map(|number| number.to_string()).collect::<Vec<_>>());
    let (acked, cursor) = cursors[0].clone();
    socket.send(json!({ "type": "ack", "cursor": cursor })).await;
    assert_eq!(socket.next("acked").await["cursor"], cursor);
    for unknown in [cursor, welcome["cursor"].clone()] {
        socket.send(json!({ "type": "ack", "cursor": unknown })).await;
        assert_eq!(socket.error().await, "unknown_cursor");
    }
    let listed = site.get("/api/v1/durables").await;
    assert_eq!((&listed[0]["name"], &listed[0]["held"]), (&json!("an indexer"), &json!(true)));
    assert!(listed[0]["acked"].is_string() && listed[0]["behind"].is_u64(), "{listed}");
    drop(socket);
    site.end().await;

    // What was not acknowledged comes again, also after a restart; a name that is known begins nowhere else.
    let site = Site::kept("durable", here.path(), Vec::new()).await;
    let hello = json!({ "type": "hello", "durable": "an indexer", "after": welcome["cursor"] });
    let (mut socket, _) = site.join(hello).await;
    let mut again = Vec::new();
    while again.len() < 600 - acked {
        again.extend(burst(&mut socket).await.0);
    }
    assert_eq!(again, heard[acked..]);

    // The newer holder wins; whoever is removed is closed, too.
    let (mut newer, _) = site.join(json!({ "type": "hello", "durable": "an indexer" })).await;
    assert_eq!(closed(&mut socket).await, 4001);
    assert_eq!(newer.next("message").await["text"], heard[acked]);
    assert_eq!(site.raw("DELETE", "/api/v1/durables/an%20indexer", b"").await.0, 204);
    assert_eq!(closed(&mut newer).await, 4001);
    assert_eq!(site.raw("DELETE", "/api/v1/durables/an%20indexer", b"").await.0, 404);
    assert_eq!(site.get("/api/v1/durables").await, json!([]));
    assert!(site.get("/metrics").await.as_str().unwrap().contains("hubless_durables 0"));

    // A new name may begin with what its holder missed.
    let (mut late, _) = site.join(json!({ "type": "hello", "durable": "late", "after": welcome["cursor"] })).await;
    assert_eq!(late.next("message").await["text"], "0");
    let (mut nameless, _) = site.join(json!({ "type": "hello", "durable": "" })).await;
    assert_eq!(nameless.error().await, "durable_name");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_lost_a_durable_cursor_neither_moves_nor_releases_it() {
    use hubless::error::DurableError;
    use hubless::handle::Begin;

    let here = folder();
    let site = Site::kept("holders", here.path(), Vec::new()).await;
    let open = async || site.handle.durable("d", hubless::Filter::all(), Begin::Start).await.expect("a durable cursor");
    site.say("one").await;
    let mut first = open().await;
    let (_, mark) = first.next().await.unwrap().expect("a message");
    assert!(site.handle.remove_durable("d").await.unwrap());
    assert!(first.is_replaced());
    assert_eq!(first.ack(mark).await, Err(DurableError::Replaced));
    assert_eq!(site.get("/api/v1/durables").await, json!([]), "an old holder does not bring it back");
    let second = open().await;
    drop(first);
    assert_eq!(site.get("/api/v1/durables").await[0]["held"], true);
    let third = open().await;
    assert!(second.is_replaced() && !third.is_replaced());
    drop((second, third));
    site.end().await;
}

/// Reads on until the socket is closed; answers the code.
async fn closed(socket: &mut Socket) -> u16 {
    loop {
        if let Err(code) = socket.read().await {
            return code;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_holder_that_acknowledges_nothing_gets_a_thousand_and_the_rest_as_it_does() {
    let here = folder();
    let site = Site::kept("unacked", here.path(), Vec::new()).await;
    let (mut socket, _) = site.join(json!({ "type": "hello", "durable": "slow" })).await;
    site.say_many((0..2_500).map(|number| number.to_string())).await;
    let mut heard = Vec::new();
    let mut last = Value::Null;
    while heard.len() < 1_000 {
        take(&mut socket, &mut heard, &mut last).await;
    }
    assert_eq!(heard.len(), 1_000);
    // What is asked now is answered before anything else comes.
    socket.send(json!({ "type": "ping" })).await;
    socket.next("pong").await;
    while heard.len() < 2_500 {
        socket.send(json!({ "type": "ack", "cursor": last })).await;
        let (mut acked, wanted) = (false, (heard.len() + 1_000).min(2_500));
        while heard.len() < wanted || !acked {
            let frame: Value = serde_json::from_str(&socket.text().await).unwrap();
            match frame["type"].as_str().unwrap() {
                "message" => {
                    heard.push(frame["text"].as_str().unwrap().to_string());
                    if frame["cursor"].is_string() {
                        last = frame["cursor"].clone();
                    }
                }
                "acked" => acked = true,
                _ => {}
            }
        }
    }
    assert_eq!(heard, (0..2_500).map(|number| number.to_string()).collect::<Vec<_>>());
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_durable_holder_killed_again_and_again_acknowledges_every_message() {
    let here = folder();
    let site = Site::kept("killed", here.path(), Vec::new()).await;
    let (mut done, mut given) = (std::collections::BTreeSet::new(), 0);
    drop(site.join(json!({ "type": "hello", "durable": "d" })).await);
    for round in 0..20 {
        site.say_many((0..50).map(|number| (round * 50 + number).to_string())).await;
        let (mut socket, _) = site.join(json!({ "type": "hello", "durable": "d" })).await;
        // It does its work for what it acknowledges, and dies with more in its hands, or before it hears that the
        // acknowledgement is kept.
        let (texts, cursor) = burst(&mut socket).await;
        given += texts.len();
        done.extend(texts);
        socket.send(json!({ "type": "ack", "cursor": cursor })).await;
        site.say(&format!("more {round}")).await;
        if round % 3 == 0 {
            given += burst(&mut socket).await.0.len();
        }
    }
    site.say("end").await;
    let (mut socket, _) = site.join(json!({ "type": "hello", "durable": "d" })).await;
    while !done.contains("end") {
        let (texts, cursor) = burst(&mut socket).await;
        given += texts.len();
        done.extend(texts);
        socket.send(json!({ "type": "ack", "cursor": cursor })).await;
    }
    let wanted = (0..1_000).map(|number| number.to_string()).chain((0..20).map(|round| format!("more {round}")));
    let missing: Vec<String> = wanted.filter(|text| !done.contains(text)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(given > 1_021, "something was given twice");
    site.end().await;
}
