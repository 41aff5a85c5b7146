//! A mesh with a key: those who have it talk, nobody else is let in or learns anything, and the key is changed without an
//! outage.
#![cfg(all(feature = "cli", feature = "mdns"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use common::dice::Dice;
use common::load::Poster;
use common::log::same_logs;
use common::mesh::{Member, Mesh};
use common::raw::{self, Face, Raw};
use common::soak::{self, Claim};
use common::{Home, Hubless, Lan, Place, eventually, eventually_some, one_at_a_time};
use hubless::MeshKey;

const PATIENCE: Duration = Duration::from_secs(20);
/// A node that is called takes either.
const NOISE: [&str; 2] = ["Noise_XXpsk0_25519_AESGCM_BLAKE2s", "Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s"];
const PROLOGUE: &[u8] = b"hubless link 1";

#[test]
fn the_wire_shows_nothing_of_a_closed_mesh_and_others_stay_outside() {
    let _alone = one_at_a_time();
    let lan = Lan::new(4);
    let (ours, other) = (Home::new(), Home::new());
    let (ours, other) = (new_key(&ours), new_key(&other));
    let options = |key: &'static str, file: &Path| {
        let file = file.to_str().unwrap().to_string();
        ["--mesh", "canary-mesh", "--name", "canary-name", key, &file].map(String::from).to_vec()
    };
    let start = |machine: usize, options: &[String]| {
        Hubless::start(&lan.place(machine), &options.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let wire = Wire::tap(&lan);
    let (a, b) = (start(0, &options("--key-file", &ours)), start(1, &options("--key-file", &ours)));
    eventually(PATIENCE, "both find each other", || a.sees_up(&[&b]) && b.sees_up(&[&a]));
    let heard = b.listen_in();
    let said = a.request("POST", "/api/v1/messages", r#"{"room":"canary-room","text":"canary-text"}"#);
    assert_eq!(said.0, 201, "{said:?}");
    eventually(PATIENCE, "it is heard", || heard.times("canary-text") == 1);
    eventually(PATIENCE, "it is on both disks", || b.messages() == 1);
    let shown = wire.end();
    // The tap works: it has seen both ask for others of their kind.
    assert!(contains(&shown, b"_hubless") && shown.len() > 10_000, "{} bytes", shown.len());
    for canary in
        ["canary-mesh", "canary-name", "canary-room", "canary-text", "HUBLESS", "Hubless-Run", "chat", "READY"]
    {
        assert!(!contains(&shown, canary.as_bytes()), "{canary} is on the wire");
    }
    assert_eq!((&a.get("/api/v1/node")["open"], a.stderr().contains("closed by a key")), (&false.into(), true));

    let open = start(2, &["--mesh", "canary-mesh"].map(String::from));
    let stranger = start(3, &options("--key-file", &other));
    assert_eq!(open.get("/api/v1/node")["open"], true);
    for outsider in [&open, &stranger] {
        eventually(PATIENCE, "its neighbours are named, with the remedy", || {
            outsider.stderr().contains("does not have this node's mesh key: give both the same with --key-file")
        });
    }
    for (from, text) in [(&a, "inside"), (&open, "open"), (&stranger, "strange")] {
        assert!(Poster::new(from).say(text).is_promised());
    }
    eventually(PATIENCE, "those inside hear each other", || heard.times("inside") == 1);
    // What is on the disks of those outside is their own, and theirs is on nobody else's.
    assert_eq!((a.messages(), b.messages(), open.messages(), stranger.messages()), (2, 2, 1, 1));
    assert!(!a.sees_up(&[&open]) && !open.sees_up(&[&a]) && !stranger.sees_up(&[&b]));
}

/// Rotation: the new key is let in everywhere, then dialled with everywhere, then the old one goes; one node after the other.
#[test]
fn the_key_is_changed_in_a_running_mesh_and_nothing_is_lost() {
    let _alone = one_at_a_time();
    let count = soak::count(5, 200);
    let mut claim = Claim::new("closed: messages while the key of five nodes is changed", 5 * 3 * 5 * count);
    let homes: Vec<Home> = (0..5).map(|_| Home::new()).collect();
    let (old, new) = (MeshKey::random().unwrap().code(), MeshKey::random().unwrap().code());
    let files: Vec<PathBuf> = homes.iter().map(|home| home.path().join("mesh.key")).collect();
    files.iter().for_each(|file| add(file, &old, &[]));
    let member = |(number, home): (usize, &Home)| {
        let file = files[number].to_str().unwrap();
        Member::with_home(&format!("n{number}"), home.clone()).args(&["--key-file", file])
    };
    let mut mesh = Mesh::start(homes.iter().enumerate().map(member).collect());
    let mut promised = BTreeSet::new();
    let step = |mesh: &mut Mesh, promised: &mut BTreeSet<String>, what: &str, change: &dyn Fn(&Path)| {
        for (index, file) in files.iter().enumerate() {
            change(file);
            mesh.0[index].stop();
            let others: Vec<usize> = (0..5).filter(|other| *other != index).collect();
            for (speaker, number) in others.iter().cycle().zip(0..4 * count) {
                let text = format!("{what} {index} {speaker} {number}");
                assert!(Poster::new(&mesh.0[*speaker]).say(&text).is_promised(), "{text}");
                promised.insert(text);
            }
            mesh.start_again(&[index]);
            for number in 0..count {
                let text = format!("{what} {index} back {number}");
                assert!(Poster::new(&mesh.0[index]).say(&text).is_promised(), "{text}");
                promised.insert(text);
            }
        }
    };
    step(&mut mesh, &mut promised, "let in", &|file| add(file, &new, &[]));
    step(&mut mesh, &mut promised, "first", &|file| add(file, &new, &["--first"]));
    step(&mut mesh, &mut promised, "alone", &|file| {
        std::fs::remove_file(file).unwrap();
        add(file, &new, &[]);
    });
    assert_eq!(promised.len(), 5 * 3 * 5 * count);
    let (log, _) = same_logs(&mesh.running(), PATIENCE, &promised);
    assert_eq!(log.0.len(), promised.len(), "each once");
    // Whoever still has the old one only is outside now.
    let late = Home::new();
    let file = late.path().join("mesh.key");
    add(&file, &old, &[]);
    let seed = mesh.0[0].seed();
    let args = ["--no-mdns", "--listen", "127.0.0.1:0", "--connect", &seed, "--key-file", file.to_str().unwrap()];
    let late = Hubless::start(&Place::Here, &args);
    let before = cut(&mesh.0[0], "key");
    eventually(PATIENCE, "it is turned away", || cut(&mesh.0[0], "key") > before);
    assert!(!mesh.0[0].sees_up(&[&late]));
    claim.measured("messages", promised.len());
}

#[test]
fn no_handshake_without_the_key_is_ever_accepted() {
    let _alone = one_at_a_time();
    let attempts = soak::count(400, 100_000);
    let mut claim = Claim::new("closed: handshakes of who has no key", attempts);
    let home = Home::new();
    let file = new_key(&home);
    // Each begins handshakes at a bounded pace.
    let nodes: Vec<Hubless> = (0..soak::count(4, 16))
        .map(|_| {
            let args = ["--no-mdns", "--listen", "127.0.0.1:0", "--key-file", file.to_str().unwrap()];
            Hubless::start(&Place::Here, &args)
        })
        .collect();
    let node = &nodes[0];
    let address: SocketAddr = node.listen().parse().unwrap();
    let secret = secret(&std::fs::read_to_string(&file).unwrap());
    // Who has the key is accepted: so what follows fails for want of it.
    let wholes = NOISE.map(|noise| {
        let whole = Caller { secret, ..Caller::new(noise) }.call(address);
        assert!(whole.came > ACCEPTED_BYTES, "{} bytes came", whole.came);
        // Who has it and takes another's name is not.
        let (named, before) = (Caller { secret, claims: Some(2), ..Caller::new(noise) }, cut(node, "name"));
        named.call(address);
        eventually(PATIENCE, "a stolen name is refused", || cut(node, "name") == before + 1);
        whole.said
    });

    let dice = Dice::new();
    claim.seeded(dice.seed);
    let next = AtomicUsize::new(0);
    let turned_away = || nodes.iter().map(|node| cut(node, "key")).sum::<u64>();
    let before = turned_away();
    std::thread::scope(|scope| {
        for (thread, node) in nodes.iter().enumerate() {
            let (next, wholes, mut dice) = (&next, &wholes, dice.clone());
            let address: SocketAddr = node.listen().parse().unwrap();
            // Each has chances of its own.
            (0..thread * 1_000_000).for_each(|_| _ = dice.below(2));
            scope.spawn(move || {
                while next.fetch_add(1, Relaxed) < attempts {
                    let suite = dice.below(2) as usize;
                    let (noise, said) = (NOISE[suite], &wholes[suite]);
                    let attempt = match dice.below(6) {
                        0 => Caller { secret: random(&mut dice), ..Caller::new(noise) }.call(address),
                        1 => Caller { secret, prologue: b"hubless link 0", ..Caller::new(noise) }.call(address),
                        2 => say(address, &Raw::opening("SUB", &Face { run: raw::run(1), mesh: "default", port: 9 })),
                        3 => say(address, said),
                        4 => mirror(address),
                        _ => {
                            let mut said = said.clone();
                            said[dice.below(150) as usize] ^= 1 << dice.below(8);
                            say(address, &said)
                        }
                    };
                    assert!(attempt.came <= ACCEPTED_BYTES, "accepted: {} bytes came", attempt.came);
                }
            });
        }
    });
    // A changed length may leave the node waiting until the caller goes.
    let turned_away = turned_away() - before;
    assert!(turned_away as usize > attempts * 8 / 10, "{turned_away} of {attempts}");
    for node in &nodes {
        assert!(node.peers().is_empty(), "{:?}", node.peers());
        assert!(Poster::new(node).say("unharmed").is_promised());
    }
    claim.measured("turned_away", turned_away);
}

#[test]
fn keys_are_made_shown_and_added_by_hand() {
    let home = Home::new();
    let made = key(&home, &["new"]);
    assert!(made.status.success(), "{made:?}");
    let code = String::from_utf8(made.stdout).unwrap();
    assert!(code.starts_with("HUBLESS1-") && code.trim().parse::<MeshKey>().is_ok(), "{code}");
    let file = home.find("mesh.key").unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), code);
    assert_eq!(String::from_utf8(key(&home, &["show"]).stdout).unwrap(), code);
    let shown: serde_json::Value = serde_json::from_slice(&key(&home, &["show", "--json"]).stdout).unwrap();
    assert_eq!((shown["code"].as_str(), shown["file"].as_str()), (Some(code.trim()), file.to_str()));
    let again = key(&home, &["new"]);
    assert_eq!((again.status.code(), again.stdout.len()), (Some(2), 0));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is there already"));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), code, "it is as it was");

    let mut mistyped = code.trim().to_string();
    mistyped.replace_range(9..10, if &code[9..10] == "A" { "B" } else { "A" });
    for (wrong, says) in [("nonsense", "no invite code"), (&*mistyped, "a letter of this invite code is wrong")] {
        let refused = key(&home, &["add", wrong]);
        assert_eq!(refused.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&refused.stderr).contains(says), "{refused:?}");
    }
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    let exposed = home.hubless(&Place::Here, &["run", "--key-file", file.to_str().unwrap()]).output().unwrap();
    let stderr = String::from_utf8_lossy(&exposed.stderr);
    assert_eq!(exposed.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("can be read by others") && stderr.contains("hint: chmod 600 "), "{stderr}");
    assert!(!stderr.contains(&code[9..20]), "the code is in the error");
}

/// Logs at their loudest, metrics, API and errors.
#[test]
fn no_secret_is_ever_shown() {
    let home = Home::new();
    let file = new_key(&home);
    let args = ["--no-mdns", "--listen", "127.0.0.1:0", "--key-file", file.to_str().unwrap()];
    let start = |home: &Home, more: &[&str]| {
        let loud = [("RUST_LOG", "trace".into())];
        let node = Hubless::spawn_with(&Place::Here, home, &[&args, more].concat(), &loud);
        node.ready();
        node
    };
    let (a, other) = (start(&home, &[]), Home::new());
    let b = start(&other, &["--connect", &a.listen()]);
    eventually(PATIENCE, "both are up", || a.sees_up(&[&b]) && b.sees_up(&[&a]));
    assert!(Poster::new(&a).say("something").is_promised());
    eventually(PATIENCE, "it is heard", || b.messages() == 1);
    say(a.listen().parse().unwrap(), b"nonsense");
    let code = std::fs::read_to_string(&file).unwrap();
    let identity = std::fs::read(home.find("identity").unwrap()).unwrap();
    let mut shown = vec![a.stderr(), b.stderr(), a.get("/metrics").to_string(), a.get("/api/v1/node").to_string()];
    shown.push(a.get("/api/v1/peers").to_string());
    let damaged = home.path().join("damaged.key");
    std::fs::write(&damaged, code.replace("HUBLESS1", "HUBLESS2")).unwrap();
    std::fs::set_permissions(&damaged, std::fs::Permissions::from_mode(0o600)).unwrap();
    let refused = home.hubless(&Place::Here, &["-vv", "--key-file", damaged.to_str().unwrap()]).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    shown.push(String::from_utf8(refused.stderr).unwrap());
    assert!(shown[0].contains("TRACE"), "it is loud");
    for (what, secret) in [("mesh key", secret(&code)), ("identity", identity.try_into().unwrap())] {
        let base32 = data_encoding::BASE32_NOPAD.encode(&secret);
        let bytes: Vec<String> = secret.iter().map(u8::to_string).collect();
        for written in [
            data_encoding::HEXLOWER.encode(&secret)[..16].to_string(),
            data_encoding::BASE64.encode(&secret)[..16].to_string(),
            base32[..16].to_string(),
            base32[..16].to_lowercase(),
            bytes[..8].join(", "),
        ] {
            assert!(!shown.iter().any(|text| text.contains(&written)), "the {what} is shown as {written}");
        }
    }
    assert!(!shown.iter().any(|text| text.contains(&code[9..23])), "the code is shown");
}

/// More than this only comes to who was accepted: the second message of the handshake, and the proof of the node's name.
const ACCEPTED_BYTES: usize = 2 + 96 + 2 + 80;

/// What was said, and how many bytes came back until the node hung up or went on to speak.
struct Attempt {
    said: Vec<u8>,
    came: usize,
}

/// Somebody who calls a node, made of bytes.
struct Caller {
    noise: &'static str,
    secret: [u8; 32],
    prologue: &'static [u8],
    /// As whom it presents itself, if not as itself.
    claims: Option<u64>,
}

impl Caller {
    fn new(noise: &'static str) -> Caller {
        Caller { noise, secret: [0; 32], prologue: PROLOGUE, claims: None }
    }

    /// Goes through the handshake as far as it is let, and says who it is.
    fn call(&self, address: SocketAddr) -> Attempt {
        let mut wire = TcpStream::connect(address).unwrap();
        wire.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut attempt = Attempt { said: Vec::new(), came: 0 };
        // Whoever is hung up on has come so far.
        let _ = self.talk(&mut wire, &mut attempt);
        attempt
    }

    fn talk(&self, wire: &mut TcpStream, attempt: &mut Attempt) -> std::io::Result<()> {
        let builder = snow::Builder::new(self.noise.parse().unwrap());
        let pair = builder.generate_keypair().unwrap();
        let builder = builder.prologue(self.prologue).unwrap().local_private_key(&pair.private).unwrap();
        let mut noise = builder.psk(0, &self.secret).unwrap().build_initiator().unwrap();
        let mut buffer = [0; 65535];
        let say = |attempt: &mut Attempt, wire: &mut TcpStream, bytes: &[u8]| {
            let record = [&(bytes.len() as u16).to_be_bytes()[..], bytes].concat();
            attempt.said.extend_from_slice(&record);
            wire.write_all(&record)
        };
        let hear = |attempt: &mut Attempt, wire: &mut TcpStream| {
            let mut head = [0; 2];
            wire.read_exact(&mut head)?;
            let mut record = vec![0; u16::from_be_bytes(head).into()];
            wire.read_exact(&mut record)?;
            attempt.came += 2 + record.len();
            Ok::<_, std::io::Error>(record)
        };
        let lost = |_| std::io::Error::other("not understood");
        let len = noise.write_message(&[], &mut buffer).unwrap();
        say(attempt, wire, &buffer[..len])?;
        let record = hear(attempt, wire)?;
        noise.read_message(&record, &mut buffer).map_err(lost)?;
        let len = noise.write_message(&[], &mut buffer).unwrap();
        say(attempt, wire, &buffer[..len])?;
        let hash = noise.get_handshake_hash().to_vec();
        let mut noise = noise.into_transport_mode().unwrap();
        let signed = [b"hubless link\n", &b"caller\n"[..], &hash].concat();
        let run = raw::run(self.claims.unwrap_or(1));
        for plain in [&raw::key(1).sign(&signed)[..], &Raw::opening("SUB", &Face { run, mesh: "default", port: 9 })] {
            let len = noise.write_message(plain, &mut buffer).unwrap();
            say(attempt, wire, &buffer[..len])?;
        }
        while attempt.came <= ACCEPTED_BYTES {
            hear(attempt, wire)?;
        }
        Ok(())
    }
}

/// Says these bytes, and no more.
fn say(address: SocketAddr, bytes: &[u8]) -> Attempt {
    let mut wire = TcpStream::connect(address).unwrap();
    wire.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Who has nothing more to say stays: the node takes nobody's call who has hung up.
    let _ = wire.write_all(bytes); // It may be hung up on already.
    let mut came = Vec::new();
    let _ = wire.read_to_end(&mut came); // As above.
    Attempt { said: bytes.to_vec(), came: came.len() }
}

/// Gives a node's bytes back to it. It speaks second, so the first ones are made up.
fn mirror(address: SocketAddr) -> Attempt {
    let mut wire = TcpStream::connect(address).unwrap();
    wire.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let _ = wire.write_all(&[&[0, 48][..], &[7; 48]].concat());
    let mut attempt = Attempt { said: Vec::new(), came: 0 };
    let mut bytes = [0; 4096];
    while let Ok(read @ 1..) = wire.read(&mut bytes) {
        attempt.came += read;
        let _ = wire.write_all(&bytes[..read]);
    }
    attempt
}

fn random(dice: &mut Dice) -> [u8; 32] {
    std::array::from_fn(|_| dice.below(256) as u8)
}

/// The bytes of a key, from its code.
fn secret(code: &str) -> [u8; 32] {
    let text: String = code.trim().trim_start_matches("HUBLESS1").chars().filter(|c| *c != '-').collect();
    data_encoding::BASE32_NOPAD.decode(text.as_bytes()).unwrap()[..32].try_into().unwrap()
}

fn cut(node: &Hubless, reason: &str) -> u64 {
    let begin = format!("hubless_cut_total{{reason=\"{reason}\"}} ");
    let metrics = node.get("/metrics");
    let text = metrics.as_str().expect("text");
    text.lines().find_map(|line| line.strip_prefix(&begin)).map_or(0, |count| count.parse().unwrap())
}

/// A new key in this home.
fn new_key(home: &Home) -> PathBuf {
    let made = key(home, &["new"]);
    assert!(made.status.success(), "{made:?}");
    home.find("mesh.key").unwrap()
}

fn key(home: &Home, args: &[&str]) -> Output {
    home.hubless(&Place::Here, &[&["key"], args].concat()).output().unwrap()
}

fn add(file: &Path, code: &str, args: &[&str]) {
    let args = [&["add", code, "--key-file", file.to_str().unwrap()], args].concat();
    let added = key(&Home::new(), &args);
    assert!(added.status.success(), "{added:?}");
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// Writes down every frame that passes a LAN's switch.
struct Wire {
    tap: Child,
    file: tempfile::NamedTempFile,
}

impl Wire {
    fn tap(lan: &Lan) -> Wire {
        let file = tempfile::NamedTempFile::new().unwrap();
        let script = "import socket, sys\n\
                      tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))\n\
                      tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)\n\
                      out = open(sys.argv[1], 'wb', 0)\n\
                      out.write(b'tapped')\n\
                      while True: out.write(tap.recv(1 << 16))\n";
        let mut command = lan.switch().command("python3");
        let tap = command.args(["-c", script]).arg(file.path()).stdin(Stdio::null()).spawn().unwrap();
        eventually_some(PATIENCE, "the tap is open", || {
            std::fs::read(file.path()).ok().filter(|bytes| !bytes.is_empty())
        });
        Wire { tap, file }
    }

    fn end(mut self) -> Vec<u8> {
        self.tap.kill().unwrap();
        self.tap.wait().unwrap();
        std::fs::read(self.file.path()).unwrap()
    }
}
