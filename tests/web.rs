//! The page, the HTTP API and the WebSocket of real nodes, spoken to as any browser or script would.
#![cfg(feature = "web")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hubless::config::{Listen, Seed};
use hubless::handle::Handle;
use hubless::web::Web;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

#[path = "web/fanout.rs"]
mod fanout;
#[cfg(feature = "history")]
#[path = "web/history.rs"]
mod history;

const PATIENCE: Duration = Duration::from_secs(10);
const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// A node that looks for nobody but these seeds.
async fn start_node(mesh: &str, name: &str, seeds: Vec<Seed>) -> Handle {
    let builder = hubless::Node::builder().mesh(mesh).name(name).listen(Listen::At(ANY_PORT)).mdns(false);
    builder.seeds(seeds).start().await.expect("a node")
}

struct Site {
    handle: Handle,
    web: Web,
}

/// A node with its page.
async fn site(mesh: &str) -> Site {
    named_site(mesh, "ada", Vec::new()).await
}

async fn named_site(mesh: &str, name: &str, seeds: Vec<Seed>) -> Site {
    let handle = start_node(mesh, name, seeds).await;
    let web = Web::serve_tcp(handle.clone(), ANY_PORT, None).await.expect("a free port");
    Site { handle, web }
}

impl Site {
    fn address(&self) -> SocketAddr {
        self.web.address().unwrap()
    }

    async fn end(self) {
        timeout(PATIENCE, self.web.close()).await.expect("the page closes");
        timeout(PATIENCE, self.handle.shutdown()).await.expect("the node ends");
    }

    /// Status and body of a request; a body that is no JSON comes as a JSON string.
    async fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "Host") {
            head += &format!("Host: {}\r\n", self.address());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        let mut answer = Vec::new();
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).await.unwrap();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time").unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_else(|_| body.into()))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, body) = self.request("GET", path, &[], "").await;
        assert_eq!(status, 200, "GET {path}: {body}");
        body
    }

    async fn post(&self, said: Value) -> (u16, Value) {
        self.request("POST", "/api/v1/messages", &[], &said.to_string()).await
    }

    /// Says a text in the lobby and answers its id.
    async fn say(&self, text: &str) -> String {
        let (status, body) = self.post(json!({ "text": text })).await;
        assert_eq!(status, 201, "{body}");
        body["id"].as_str().unwrap().into()
    }

    async fn try_socket(&self, headers: &[(&'static str, &str)]) -> Result<Socket, Error> {
        let mut request = format!("ws://{}/", self.address()).into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let (socket, answer) = timeout(PATIENCE, connect_async(request)).await.expect("a handshake in time")?;
        let protocol = answer.headers().get("sec-websocket-protocol").map(|name| name.to_str().unwrap().to_string());
        Ok(Socket { socket, protocol })
    }

    /// A socket without a subprotocol.
    async fn plain(&self) -> Socket {
        self.try_socket(&[]).await.expect("a WebSocket")
    }

    /// A socket that speaks `hubless.v1`, and the welcome that its hello got.
    async fn join(&self, hello: Value) -> (Socket, Value) {
        let mut socket = self.try_socket(&[("sec-websocket-protocol", "hubless.v1")]).await.expect("a WebSocket");
        assert_eq!(socket.protocol.as_deref(), Some("hubless.v1"));
        socket.send(hello).await;
        let welcome = socket.next("welcome").await;
        (socket, welcome)
    }
}

struct Socket {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    protocol: Option<String>,
}

impl Socket {
    async fn write(&mut self, message: impl Into<Message>) {
        self.socket.send(message.into()).await.expect("the socket is open");
    }

    async fn send(&mut self, frame: Value) {
        self.write(frame.to_string()).await;
    }

    /// The next text, or the code it was closed with.
    async fn read(&mut self) -> Result<String, u16> {
        loop {
            match timeout(PATIENCE, self.socket.next()).await.expect("a frame in time") {
                Some(Ok(Message::Text(text))) => return Ok(text.to_string()),
                Some(Ok(Message::Close(Some(close)))) => return Err(close.code.into()),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?} instead of a frame"),
            }
        }
    }

    async fn text(&mut self) -> String {
        self.read().await.expect("the socket is open")
    }

    /// The next frame of this type, passing over word of peers and of disks.
    async fn next(&mut self, kind: &str) -> Value {
        loop {
            let frame: Value = serde_json::from_str(&self.text().await).expect("frames are JSON");
            if frame["type"] == kind {
                return frame;
            }
            let aside = ["peers", "stored", "acked", "catch_up"].iter().any(|aside| frame["type"] == *aside);
            assert!(aside, "{frame} instead of {kind}");
        }
    }

    async fn error(&mut self) -> String {
        self.next("error").await["code"].as_str().unwrap().into()
    }

    /// Both frames that a `send` of one's own brings, in whichever order.
    async fn accepted_and_heard(&mut self) -> (Value, Value) {
        let mut frames = Vec::new();
        while frames.len() < 2 {
            let frame: Value = serde_json::from_str(&self.text().await).unwrap();
            if frame["type"] == "accepted" || frame["type"] == "message" {
                frames.push(frame);
            }
        }
        frames.sort_by_key(|frame| frame["type"].to_string());
        let [accepted, message] = <[Value; 2]>::try_from(frames).unwrap();
        assert_eq!((&accepted["type"], &message["type"]), (&json!("accepted"), &json!("message")));
        (accepted, message)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_tutorial_chat_in_the_lobby() {
    let site = site("tutorial").await;
    let (mut ada, mut bob) = (site.plain().await, site.plain().await);
    assert_eq!(ada.protocol, None);
    ada.write("").await;
    ada.write("hello world").await;
    assert_eq!((ada.text().await, bob.text().await), ("hello world".into(), "hello world".into()));
    bob.write(Message::binary(vec![0xff, 0xfe])).await;
    bob.write(Message::binary("grüße".as_bytes().to_vec())).await;
    assert_eq!((ada.text().await, bob.text().await), ("grüße".into(), "grüße".into()));
    let (status, body) = site.post(json!({ "room": "other", "text": "not for the lobby" })).await;
    assert_eq!(status, 201, "{body}");
    site.say("<b>from the API</b>").await;
    assert_eq!(ada.text().await, "<b>from the API</b>");
    let page = site.get("/api/v1/messages?room=lobby").await;
    assert_eq!(page["messages"][0]["name"], "guest");

    bob.write("x".repeat(256 * 1024 + 1)).await;
    assert_eq!(bob.text().await, "<b>from the API</b>");
    assert_eq!(bob.read().await, Err(1009));
    ada.write("still here").await;
    assert_eq!(ada.text().await, "still here");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_the_subprotocol_says_and_hears() {
    let site = site("subprotocol").await;
    let (mut grace, welcome) = site.join(json!({ "type": "hello", "name": "grace" })).await;
    assert_eq!((&welcome["mesh"], &welcome["name"]), (&json!("subprotocol"), &json!("ada")));
    assert_eq!((&welcome["rooms"], &welcome["peers"]), (&json!([]), &json!([])));
    assert!(welcome["cursor"].is_string());

    grace.send(json!({ "type": "send", "client_id": "1", "room": "nodejs", "text": "hi" })).await;
    let (accepted, message) = grace.accepted_and_heard().await;
    assert_eq!((&accepted["client_id"], &accepted["state"]), (&json!("1"), &json!("sent")));
    assert_eq!(message["id"], accepted["id"]);
    assert_eq!(
        (&message["room"], &message["text"], &message["name"]),
        (&json!("nodejs"), &json!("hi"), &json!("grace"))
    );
    assert_eq!(message["node"], welcome["node"]);
    assert!(message["cursor"].is_string() && message["key"].is_string(), "{message}");

    grace.send(json!({ "type": "name", "name": "hopper" })).await;
    let data = json!({ "type": "send", "client_id": "2", "content_type": "image/png", "data": "AP8=" });
    grace.send(data).await;
    let (_, message) = grace.accepted_and_heard().await;
    assert_eq!((&message["content_type"], &message["data"]), (&json!("image/png"), &json!("AP8=")));
    assert_eq!((&message["room"], &message["name"]), (&json!("lobby"), &json!("hopper")));

    let page = site.get("/api/v1/messages?limit=1").await;
    assert_eq!((&page["messages"][0]["type"], &page["messages"][0]["data"]), (&json!("image/png"), &json!("AP8=")));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_are_answered_and_the_socket_stays() {
    let site = site("bad-frames").await;
    let (mut socket, _) = site.join(json!({ "type": "hello" })).await;
    for (frame, code) in [
        ("{".to_string(), "malformed"),
        ("[]".into(), "malformed"),
        (r#"{"type":"fly"}"#.into(), "malformed"),
        (r#"{"type":"send","text":7}"#.into(), "malformed"),
        (r#"{"type":"send"}"#.into(), "malformed"),
        (r#"{"type":"send","text":""}"#.into(), "malformed"),
        (r#"{"type":"hello"}"#.into(), "malformed"),
        (r#"{"type":"ack","cursor":""}"#.into(), "no_durable"),
        (r#"{"type":"send","room":"No Room","text":"x"}"#.into(), "room"),
        (json!({ "type": "name", "name": "x".repeat(200) }).to_string(), "name"),
        (json!({ "type": "send", "text": "x".repeat(256 * 1024 + 1) }).to_string(), "too_large"),
    ] {
        socket.write(frame.as_str()).await;
        assert_eq!(socket.error().await, code, "{frame:.80}");
    }
    socket.write(Message::binary(vec![1])).await;
    assert_eq!(socket.error().await, "malformed");
    socket.send(json!({ "type": "send", "client_id": "7", "room": "", "text": "x" })).await;
    assert_eq!(socket.next("error").await["client_id"], "7");
    socket.send(json!({ "type": "ping" })).await;
    socket.next("pong").await;
    socket.write("x".repeat(2 * 1024 * 1024 + 1)).await;
    assert_eq!(socket.read().await, Err(1009));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_forgets_its_hello_is_served_all_the_same() {
    let site = site("no-hello").await;
    let (mut socket, _) = site.join(json!({ "type": "send", "client_id": "1", "text": "hi" })).await;
    let (_, message) = socket.accepted_and_heard().await;
    assert_eq!((&message["text"], &message["name"]), (&json!("hi"), &json!("ada")));
    let (mut other, _) = site.join(json!({ "type": "hello", "after": "%%", "durable": "d" })).await;
    assert_eq!((other.error().await.as_str(), other.error().await.as_str()), ("cursor", "not_available"));
    site.say("live").await;
    assert_eq!(other.next("message").await["text"], "live");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn coming_back_with_a_cursor_neither_loses_nor_doubles() {
    let site = site("resume").await;
    let (mut socket, welcome) = site.join(json!({ "type": "hello" })).await;
    let mut cursor = welcome["cursor"].clone();
    let mut heard = Vec::new();
    for round in 0..5 {
        // Half of them while it listens, half while it is away; it leaves wherever its last cursor was.
        for number in 0..20 {
            site.say(&format!("{round}.{number}")).await;
        }
        while heard.len() < round * 40 + 20 {
            take(&mut socket, &mut heard, &mut cursor).await;
        }
        drop(socket);
        for number in 20..40 {
            site.say(&format!("{round}.{number}")).await;
        }
        (socket, _) = site.join(json!({ "type": "hello", "after": cursor })).await;
        while heard.len() < (round + 1) * 40 {
            take(&mut socket, &mut heard, &mut cursor).await;
        }
    }
    let expected: Vec<String> =
        (0..5).flat_map(|round| (0..40).map(move |number| format!("{round}.{number}"))).collect();
    assert_eq!(heard, expected);
    site.end().await;
}

/// Hears messages up to one that carries a cursor.
async fn take(socket: &mut Socket, heard: &mut Vec<String>, cursor: &mut Value) {
    loop {
        let message = socket.next("message").await;
        heard.push(message["text"].as_str().unwrap().to_string());
        if message["cursor"].is_string() {
            *cursor = message["cursor"].clone();
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subprotocol_that_nobody_speaks_is_refused() {
    let site = site("foreign-protocol").await;
    let refused = site.try_socket(&[("sec-websocket-protocol", "mqtt, soap")]).await;
    assert!(matches!(refused, Err(Error::Http(answer)) if answer.status() == 400));
    let chosen = site.try_socket(&[("sec-websocket-protocol", "mqtt, hubless.v1")]).await.expect("one of them will do");
    assert_eq!(chosen.protocol.as_deref(), Some("hubless.v1"));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_from_elsewhere_are_kept_out() {
    let site = site("foreign-origin").await;
    let refused = site.try_socket(&[("origin", "http://evil.example")]).await;
    assert!(matches!(refused, Err(Error::Http(answer)) if answer.status() == 403));
    let own = format!("http://{}", site.address());
    assert!(site.try_socket(&[("origin", &own)]).await.is_ok());
    let said = json!({ "text": "x" }).to_string();
    let (status, body) = site.request("POST", "/api/v1/messages", &[("Origin", "null")], &said).await;
    assert_eq!((status, &body["error"]["code"]), (403, &json!("origin")));
    let (status, body) = site.request("GET", "/api/v1/node", &[("Host", "evil.example")], "").await;
    assert_eq!((status, &body["error"]["code"]), (421, &json!("host")));
    let (status, _) = site.request("POST", "/api/v1/messages", &[("Origin", &own)], &said).await;
    assert_eq!(status, 201);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_id_makes_retries_one_message() {
    let site = site("once").await;
    let said = json!({ "text": "once", "name": "grace", "client_id": "c-1" });
    let (first, second) = (site.post(said.clone()).await, site.post(said).await);
    assert_eq!((first.0, &first), (201, &second));
    let (status, body) = site.post(json!({ "text": "other", "client_id": "c-1" })).await;
    assert_eq!((status, &body["error"]["code"]), (409, &json!("client_id_reused")));
    let page = site.get("/api/v1/messages").await;
    assert_eq!(page["messages"].as_array().unwrap().len(), 1);
    let (mut socket, _) = site.join(json!({ "type": "hello" })).await;
    socket.send(json!({ "type": "send", "text": "once", "name": "grace", "client_id": "c-1" })).await;
    assert_eq!(socket.next("accepted").await["id"], first.1["id"]);
    socket.send(json!({ "type": "send", "text": "another", "client_id": "c-1" })).await;
    assert_eq!(socket.error().await, "client_id_reused");
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_said_is_paged_both_ways() {
    let site = site("paging").await;
    let nothing = site.get("/api/v1/messages").await["after"].as_str().unwrap().to_string();
    for number in 0..25 {
        site.say(&number.to_string()).await;
        site.post(json!({ "room": "noise", "text": "x" })).await;
    }
    let texts = |page: &Value| -> Vec<u32> {
        let messages = page["messages"].as_array().unwrap().iter();
        messages.map(|message| message["text"].as_str().unwrap().parse().unwrap()).collect()
    };
    let mut page = site.get("/api/v1/messages?room=lobby&limit=10").await;
    assert_eq!(texts(&page), (15..25).collect::<Vec<_>>());
    let after = page["after"].as_str().unwrap().to_string();
    let mut back = Vec::new();
    while let Some(before) = page["before"].as_str() {
        page = site.get(&format!("/api/v1/messages?room=lobby&limit=10&before={before}")).await;
        back.splice(0..0, texts(&page));
    }
    assert_eq!(back, (0..15).collect::<Vec<_>>());

    assert_eq!(site.get(&format!("/api/v1/messages?after={after}")).await["messages"], json!([]));
    site.say("25").await;
    assert_eq!(texts(&site.get(&format!("/api/v1/messages?after={after}")).await), [25]);
    let (mut forth, mut at) = (Vec::new(), nothing);
    loop {
        let page = site.get(&format!("/api/v1/messages?room=lobby&limit=7&after={at}")).await;
        at = page["after"].as_str().unwrap().into();
        forth.extend(texts(&page));
        if texts(&page).len() < 7 {
            break;
        }
    }
    assert_eq!(forth, (0..26).collect::<Vec<_>>());

    assert_eq!(texts(&site.get("/api/v1/messages?room=lobby&since=10m").await).len(), 26);
    assert_eq!(site.get("/api/v1/messages?since=2200-01-01T00:00:00Z").await["messages"], json!([]));
    let rooms = site.get("/api/v1/rooms").await;
    assert_eq!((&rooms[0]["room"], &rooms[0]["messages"]), (&json!("lobby"), &json!(26)));
    assert_eq!((&rooms[1]["room"], &rooms[1]["messages"]), (&json!("noise"), &json!(25)));
    for (query, code) in
        [("limit=0", "malformed"), ("room=%20", "room"), ("after=!", "cursor"), ("since=x", "malformed")]
    {
        let (status, body) = site.request("GET", &format!("/api/v1/messages?{query}"), &[], "").await;
        assert_eq!((status, body["error"]["code"].as_str()), (400, Some(code)), "{query}");
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_two_nodes_are_one_chat() {
    let ada = site("two").await;
    let seed = ada.handle.info().listen.to_string().parse().expect("a seed");
    let bob = named_site("two", "bob", vec![seed]).await;
    let (mut at_ada, mut told) = ada.join(json!({ "type": "hello", "name": "grace" })).await;
    let (mut at_bob, _) = bob.join(json!({ "type": "hello" })).await;
    let mut plain_at_bob = bob.plain().await;
    let both_up = async {
        ada.handle.wait_for_peers(1).await.unwrap();
        bob.handle.wait_for_peers(1).await.unwrap();
    };
    timeout(PATIENCE, both_up).await.expect("they meet");
    while told["peers"][0]["state"] != "up" {
        told = at_ada.next("peers").await;
    }

    at_ada.send(json!({ "type": "send", "client_id": "c-1", "text": "hi bob" })).await;
    let (accepted, _) = at_ada.accepted_and_heard().await;
    let heard = at_bob.next("message").await;
    assert_eq!((&heard["id"], &heard["name"], &heard["text"]), (&accepted["id"], &json!("grace"), &json!("hi bob")));
    assert_eq!(plain_at_bob.text().await, "hi bob");
    let id = accepted["id"].as_str().unwrap();
    assert_eq!(ada.get(&format!("/api/v1/messages/{id}/held?wait=10s")).await["held_by"], 1);

    // The client moves: its cursor and its retry hold on the other node, too.
    let (status, again) = bob.post(json!({ "text": "hi bob", "name": "grace", "client_id": "c-1" })).await;
    assert_eq!((status, &again["id"]), (201, &accepted["id"]));
    let (mut moved, _) = ada.join(json!({ "type": "hello", "after": heard["cursor"] })).await;
    bob.say("and now").await;
    assert_eq!(moved.next("message").await["text"], "and now");
    assert_eq!(plain_at_bob.text().await, "and now");
    bob.end().await;
    ada.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_cannot_be_met_say_why() {
    let site = site("refusals").await;
    let large = json!({ "text": "x".repeat(256 * 1024 + 1) }).to_string();
    let larger = json!({ "text": "x".repeat(2 * 1024 * 1024) }).to_string();
    let (status, answer) = site.request("POST", "/api/v1/messages", &[], "[]").await;
    let said = answer["error"]["message"].as_str().unwrap();
    assert!(status == 400 && said.contains("a JSON object with a text"), "{status} {said}");
    for (method, path, body, status, code) in [
        ("GET", "/nothing", "", 404, "not_found"),
        ("GET", "/../Cargo.toml", "", 404, "not_found"),
        ("GET", "/api/v1/nothing", "", 404, "not_found"),
        ("DELETE", "/api/v1/messages", "", 405, "method"),
        ("GET", "/api/v1/messages/export?room=Lobby", "", 400, "room"),
        ("GET", "/api/v1/history/export", "", 404, "not_available"),
        ("POST", "/api/v1/history/import", "", 404, "not_available"),
        ("DELETE", "/api/v1/durables/nobody", "", 404, "not_found"),
        ("DELETE", "/api/v1/durables/%zz", "", 400, "malformed"),
        ("GET", "/api/v1/messages/x/held", "", 400, "malformed"),
        ("GET", "/api/v1/messages?limit=1&limit=2", "", 400, "malformed"),
        ("GET", "/api/v1/messages/x/held?count=1&count=2", "", 400, "malformed"),
        ("POST", "/api/v1/messages", "{", 400, "malformed"),
        ("POST", "/api/v1/messages", r#"{"text":"x","room":"A"}"#, 400, "room"),
        ("POST", "/api/v1/messages", &large, 413, "too_large"),
        ("POST", "/api/v1/messages", &larger, 413, "too_large"),
    ] {
        let (got, answer) = site.request(method, path, &[], body).await;
        assert_eq!((got, answer["error"]["code"].as_str()), (status, Some(code)), "{method} {path}: {answer}");
        assert!(answer["error"]["message"].as_str().is_some_and(|message| !message.is_empty()));
    }
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_text_is_taken_however_json_writes_it() {
    let site = site("escapes").await;
    let longest = "\u{1}".repeat(256 * 1024);
    site.say(&longest).await;
    let (mut socket, _) = site.join(json!({ "type": "hello" })).await;
    socket.send(json!({ "type": "send", "client_id": "1", "text": longest })).await;
    let (_, message) = socket.accepted_and_heard().await;
    assert_eq!(message["text"], longest);
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_of_itself() {
    let site = site("health").await;
    assert_eq!(site.get("/healthz").await, "ok\n");
    assert_eq!(site.get("/readyz").await, json!({ "ready": true, "peers": 0, "history": false, "bridges": [] }));
    let node = site.get("/api/v1/node").await;
    assert_eq!((&node["name"], &node["mesh"], &node["open"]), (&json!("ada"), &json!("health"), &json!(true)));
    assert_eq!(node["epoch"].as_str().map(str::len), Some(16));
    assert_eq!(site.get("/api/v1/peers").await, json!([]));
    assert!(site.get("/metrics").await.as_str().unwrap().contains("hubless_web_sockets 0"));
    assert!(site.get("/").await.as_str().unwrap().contains("<!doctype html>"));
    let id = site.say("who has it?").await;
    let held = site.get(&format!("/api/v1/messages/{id}/held?count=1&wait=10ms")).await;
    assert_eq!(held, json!({ "id": id, "held_by": 0, "stored_by": 0, "state": "sent" }));

    site.handle.shutdown().await;
    let (status, body) = site.request("GET", "/readyz", &[], "").await;
    assert_eq!((status, &body["ready"]), (503, &json!(false)));
    let (status, body) = site.post(json!({ "text": "too late" })).await;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("stopped")));
    site.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_tells_every_socket() {
    let site = site("closing").await;
    let mut plain = site.plain().await;
    let (mut json, _) = site.join(json!({ "type": "hello" })).await;
    let address = site.address();
    let Site { handle, web } = site;
    let closing = tokio::spawn(web.close());
    assert_eq!((plain.read().await, json.read().await), (Err(1001), Err(1001)));
    assert!(plain.socket.next().await.is_none() && json.socket.next().await.is_none());
    timeout(PATIENCE, closing).await.expect("closed in time").unwrap();
    assert!(TcpStream::connect(address).await.is_err());
    assert_eq!(handle.metrics().web_sockets.get(), 0);
    handle.shutdown().await;
}
