//! What a full mesh costs, by the number of its nodes; see `hubless::sim::scale`.
//!
//! The large meshes take minutes: `make scale` plays them (`NODES="10 50"` others, `SEED=n` other starts), prints a table and
//! a chart, and writes `target/scale/scale.md` and `target/scale/scale.svg`.

// Helpers of tests fail as tests do.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;

use hubless::sim::{self, Phase, Scale, Sort};

/// A mesh that was played, and what processor time its phases took, by their names.
struct Played {
    scale: Scale,
    took: Vec<(&'static str, f64)>,
}

fn play(nodes: usize, seed: u64) -> Played {
    let (mut took, mut began) = (Vec::new(), processor_seconds());
    let scale = sim::scale(nodes, seed, &mut |phase| {
        let Phase { name, ms, done, .. } = phase;
        let seconds = processor_seconds() - began;
        let sorts: Vec<String> = Sort::ALL.iter().map(|sort| of_sort(phase, *sort)).collect();
        println!("{nodes} nodes, {name}: {ms} ms in {seconds:.1} s, done {done}: {}", sorts.join(", "));
        took.push((*name, seconds));
        began = processor_seconds();
    });
    Played { scale: scale.unwrap_or_else(|what| panic!("{nodes} nodes, seed {seed}: {what}")), took }
}

fn of_sort(phase: &Phase, sort: Sort) -> String {
    let traffic = phase.of(sort);
    let bytes = traffic.heard_bytes / traffic.heard.max(1);
    format!("{sort:?} {} said {} heard of {bytes} B", traffic.published, traffic.heard)
}

/// What this thread has taken of a processor, whoever else wants it.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    stat.split_whitespace().next().unwrap().parse::<f64>().unwrap() / 1e9
}

/// What each node of a mesh heard in a second, of a sum over the mesh.
fn each(scale: &Scale, phase: &Phase, sum: u64) -> f64 {
    sum as f64 / scale.nodes as f64 / (phase.ms as f64 / 1_000.0)
}

/// Bytes of all but chat that each node hears in a second while all talk. Hellos go out every 30 s, so they are taken from
/// where that was measured.
fn control(scale: &Scale) -> f64 {
    let talk = scale.talk.control().heard_bytes - scale.talk.of(Sort::Hello).heard_bytes;
    each(scale, &scale.talk, talk) + each(scale, &scale.idle, scale.idle.of(Sort::Hello).heard_bytes)
}

#[test]
fn small_meshes_cost_what_is_stated() {
    let mut beats = Vec::new();
    for nodes in [10, 50] {
        let Played { scale, .. } = play(nodes, 1);
        let peers = nodes as u64 - 1;
        let all = (nodes - 1, nodes - 1);
        assert_eq!((scale.known, scale.up), (all, all), "{nodes} nodes are no full mesh");
        assert!(scale.join.done && scale.join.ms <= 1_000, "{nodes} nodes: {:?}", scale.join);

        // A heartbeat of each peer a second, a hello in 30 s, and nothing is asked.
        let idle = &scale.idle;
        assert_eq!(idle.of(Sort::Heartbeat).heard, nodes as u64 * peers * idle.ms / 1_000);
        assert_eq!(idle.of(Sort::Hello).heard, nodes as u64 * peers);
        for sort in [Sort::Chat, Sort::Digest, Sort::Request, Sort::Repair] {
            assert_eq!(idle.of(sort).published, 0, "{nodes} nodes that say nothing: {sort:?}");
        }
        // It is awake two or three times a second, however many there are: to speak, and when others have spoken.
        let woken = each(&scale, idle, idle.woken);
        assert!(woken <= 2.5, "{nodes} nodes with nothing to do wake up {woken:.1} times a second");
        let heard = each(&scale, idle, idle.all().heard_bytes) / peers as f64;
        assert!((60.0..=250.0).contains(&heard), "{nodes} nodes hear {heard:.0} B a second of each peer");
        beats.push(each(&scale, idle, idle.of(Sort::Heartbeat).heard_bytes) / peers as f64);

        // What is said is heard by each other node once, and nothing of it is asked for.
        let talk = &scale.talk;
        assert_eq!(talk.said, nodes as u64 * talk.ms / 1_000);
        assert_eq!(talk.of(Sort::Chat).heard, talk.said * peers);
        assert_eq!(talk.of(Sort::Repair).heard, 0);
        let pace = each(&scale, talk, talk.of(Sort::Heartbeat).published);
        assert!((1.0..=21.0).contains(&pace), "{nodes} nodes beat {pace:.1} times a second");
        assert_eq!(scale.reach, (nodes, nodes), "of {nodes} nodes");

        let newcomer = scale.newcomer.as_ref().unwrap();
        assert!(newcomer.done && newcomer.ms <= 1_500, "{nodes} nodes: {newcomer:?}");

        let (repair, (bytes, again)) = (scale.repair.as_ref().unwrap(), scale.repaired_bytes);
        assert!(repair.done && repair.ms <= 5_000, "{nodes} nodes: {repair:?}");
        assert!(scale.missing >= 100 && repair.of(Sort::Request).heard > 0, "{nodes} nodes: {scale:?}");
        assert!(
            bytes > 64 * scale.missing && bytes * 10 <= (bytes - again) * 11,
            "{nodes} nodes: {bytes}, {again} again"
        );
    }
    assert!(beats[1] <= beats[0] * 1.2, "bytes of heartbeats that each peer costs a second: {beats:?}");
}

#[test]
fn nodes_that_all_know_one_of_them_learn_of_each_other() {
    // One after the other, in a crowd, and all at once.
    for (nodes, starts_ms) in [3, 10, 50, 100].into_iter().flat_map(|nodes| [(nodes, 2_000), (nodes, 200), (nodes, 0)])
    {
        let join = sim::gossip(nodes, 1, starts_ms).unwrap();
        println!("{nodes} nodes within {starts_ms} ms: full after {} ms", join.ms);
        assert!(join.done && join.ms <= 1_000, "{nodes} nodes within {starts_ms} ms: {join:?}");
    }
}

#[test]
fn equal_seeds_cost_equally() {
    let (one, same, other) = (play(10, 7).scale, play(10, 7).scale, play(10, 8).scale);
    assert_eq!(one, same);
    assert_ne!((one.join, one.repair), (other.join, other.repair));
}

/// Takes minutes.
#[test]
#[ignore = "make scale"]
fn table() {
    let seed = std::env::var("SEED").map_or(1, |seed| seed.parse().unwrap());
    let nodes = std::env::var("NODES").unwrap_or("10 50 200 1000".into());
    let played: Vec<Played> = nodes.split_whitespace().map(|nodes| play(nodes.parse().unwrap(), seed)).collect();
    let (table, chart, svg) = (table_of(&played), chart_of(&played), svg_of(&played));
    println!("\n{table}\n```text\n{chart}```");
    std::fs::create_dir_all("target/scale").unwrap();
    std::fs::write("target/scale/scale.md", format!("{table}\n```text\n{chart}```\n")).unwrap();
    std::fs::write("target/scale/scale.svg", svg).unwrap();
}

fn table_of(played: &[Played]) -> String {
    let mut text = String::new();
    let mut row = |what: &str, of: &dyn Fn(&Played) -> String| {
        let cells: Vec<String> = played.iter().map(of).collect();
        let _ = writeln!(text, "| {what} | {} |", cells.join(" | "));
    };
    row("nodes", &|played| thousands(played.scale.nodes as f64));
    row("---", &|_| "---".into());
    row("peers that a node knows; is up with; nodes up with nobody", &|Played { scale, .. }| {
        format!("{}; {}; {}", span(scale.known), span(scale.up), scale.alone)
    });
    row("all start within 1 s: until all are up with all", &|Played { scale, .. }| duration(&scale.join));
    row("… heard by each", &|Played { scale, .. }| {
        let (heard, nodes) = (scale.join.all(), scale.nodes as u64);
        counted(heard.heard / nodes, heard.heard_bytes / nodes)
    });
    let newcomer = |of: &dyn Fn(&Scale, &Phase) -> String, scale: &Scale| {
        scale.newcomer.as_ref().map_or("–".into(), |phase| of(scale, phase))
    };
    let by_it_and_others = |_: &Scale, phase: &Phase| {
        let ((messages, bytes), all) = (phase.heard_by_one, phase.all());
        let others = counted(all.heard - messages, all.heard_bytes - bytes);
        format!("{}; {others}", counted(messages, bytes))
    };
    row("one more joins: until up with all, its log complete", &|Played { scale, .. }| {
        newcomer(&|_, phase| duration(phase), scale)
    });
    row("… heard by it; by all others together", &|Played { scale, .. }| newcomer(&by_it_and_others, scale));
    row("idle, heard by each in a second", &|Played { scale, .. }| per_second(scale, &scale.idle, &Sort::ALL));
    row("… of these hellos", &|Played { scale, .. }| per_second(scale, &scale.idle, &[Sort::Hello]));
    row("… kbit/s; Mbit/s in the mesh", &|Played { scale, .. }| {
        let bits = 8.0 * each(scale, &scale.idle, scale.idle.all().heard_bytes);
        format!("{}; {}", thousands(bits / 1e3), thousands(bits * scale.nodes as f64 / 1e6))
    });
    row("… milliseconds in which each is awake in a second", &|Played { scale, .. }| {
        format!("{:.1}", each(scale, &scale.idle, scale.idle.woken))
    });
    row("talking: who says 64 B a second", &|Played { scale, .. }| format!("{}", scale.voices));
    row("… chat heard by each in a second", &|Played { scale, .. }| per_second(scale, &scale.talk, &[Sort::Chat]));
    row("… heartbeats heard by each in a second", &|Played { scale, .. }| {
        per_second(scale, &scale.talk, &[Sort::Heartbeat])
    });
    row("… heartbeats that each says in a second; their bytes", &|Played { scale, .. }| {
        let beats = scale.talk.of(Sort::Heartbeat);
        let bytes = beats.published_bytes / beats.published.max(1);
        format!("{:.1}; {bytes}", each(scale, &scale.talk, beats.published))
    });
    row("… with hellos, kbit/s; bytes of control for one of chat", &|Played { scale, .. }| {
        let (control, chat) = (control(scale), each(scale, &scale.talk, scale.talk.of(Sort::Chat).heard_bytes));
        format!("{}; {:.1}", thousands(8.0 * control / 1e3), control / chat)
    });
    row("… its core, of one processor; for each message heard", &|Played { scale, took }| {
        let took = took.iter().find(|(name, _)| *name == "talk").map_or(0.0, |(_, took)| *took);
        // The time before is played, too, and not measured.
        let played = (scale.talk.ms + sim::TALK_LEAD_MS) as f64 / scale.talk.ms as f64;
        let (heard, seconds) = (scale.talk.all().heard as f64 * played, scale.talk.ms as f64 * played / 1e3);
        format!("{:.2} %; {:.1} µs", 100.0 * took / seconds / scale.nodes as f64, took * 1e6 / heard)
    });
    row("logs that have all of one who talks", &|Played { scale, .. }| span(scale.reach));
    let repair = |of: &dyn Fn(&Scale, &Phase) -> String, scale: &Scale| {
        scale.repair.as_ref().map_or("–".into(), |phase| of(scale, phase))
    };
    row("one was cut off for 60 s: entries that logs lack", &|Played { scale, .. }| {
        repair(&|scale, _| thousands(scale.missing as f64), scale)
    });
    row("… until all logs are equal", &|Played { scale, .. }| repair(&|_, phase| duration(phase), scale));
    row("… requests; repairs; kB repaired; repaired/missing", &|Played { scale, .. }| {
        let of = |scale: &Scale, phase: &Phase| {
            let (requests, repairs) = (phase.of(Sort::Request).heard, phase.of(Sort::Repair).heard);
            let (bytes, again) = scale.repaired_bytes;
            let ratio = bytes as f64 / (bytes - again).max(1) as f64;
            format!("{requests}; {repairs}; {}; {ratio:.3}", thousands(bytes as f64 / 1e3))
        };
        repair(&of, scale)
    });
    row("… heard by it; by all others together", &|Played { scale, .. }| repair(&by_it_and_others, scale));
    text
}

fn span((least, most): (usize, usize)) -> String {
    if least == most { format!("{least}") } else { format!("{least} to {most}") }
}

fn duration(phase: &Phase) -> String {
    if phase.done { format!("{} ms", thousands(phase.ms as f64)) } else { "never".into() }
}

fn counted(messages: u64, bytes: u64) -> String {
    format!("{}, {} kB", thousands(messages as f64), thousands(bytes as f64 / 1e3))
}

fn per_second(scale: &Scale, phase: &Phase, sorts: &[Sort]) -> String {
    let sum = |of: fn(sim::Traffic) -> u64| sorts.iter().map(|sort| of(phase.of(*sort))).sum::<u64>();
    let (messages, bytes) = (sum(|traffic| traffic.heard), sum(|traffic| traffic.heard_bytes));
    format!("{}, {} B", thousands(each(scale, phase, messages)), thousands(each(scale, phase, bytes)))
}

/// Three digits and more are shown whole, with commas.
fn thousands(number: f64) -> String {
    if number < 99.95 {
        return format!("{number:.1}").trim_end_matches(".0").to_string();
    }
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// What each node hears, in bit/s: nodes, then idle, chat and control while all talk.
fn bars(played: &[Played]) -> Vec<(usize, [f64; 3])> {
    let bars = |Played { scale, .. }: &Played| {
        let idle = each(scale, &scale.idle, scale.idle.all().heard_bytes);
        let chat = each(scale, &scale.talk, scale.talk.of(Sort::Chat).heard_bytes);
        (scale.nodes, [idle, chat, control(scale)].map(|bytes| 8.0 * bytes))
    };
    played.iter().map(bars).collect()
}

const WHATS: [&str; 3] = ["idle", "chat", "control"];

/// Bars on a scale of powers of ten, 12 signs for each from 1 kbit/s on.
fn chart_of(played: &[Played]) -> String {
    let mut text = String::from("heard by each node            1 kbit/s    10          100         1 Mbit/s    10\n");
    for (nodes, values) in bars(played) {
        for (what, bits) in WHATS.iter().zip(values) {
            let length = (12.0 * (bits / 1e3).max(1.0).log10()).round() as usize + 1;
            let _ = writeln!(text, "{nodes:>5} nodes, {what:<8} {:>7} {}", human(bits), "#".repeat(length));
        }
    }
    text
}

fn human(bits: f64) -> String {
    if bits < 1e6 { format!("{:.0} k", bits / 1e3) } else { format!("{:.1} M", bits / 1e6) }
}

fn svg_of(played: &[Played]) -> String {
    const BAR: usize = 18;
    const TEN: f64 = 120.0;
    let bars = bars(played);
    let height = 50 + bars.len() * (3 * BAR + 10);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"860\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"16\">heard by each node: idle; chat and control while each says 64 B a second</text>\n"
    );
    for (power, label) in ["1 kbit/s", "10", "100", "1 Mbit/s", "10", "100"].iter().enumerate() {
        let x = 160.0 + TEN * power as f64;
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" x2=\"{x}\" y1=\"36\" y2=\"{height}\" stroke=\"#ddd\"/><text x=\"{x}\" y=\"32\">{label}</text>"
        );
    }
    let mut y = 42;
    for (nodes, values) in bars {
        for ((what, color), bits) in WHATS.iter().zip(["#888", "#3b6ea5", "#c33"]).zip(values) {
            let width = TEN * (bits / 1e3).max(1.0).log10() + 1.0;
            let (text, value) = (y + BAR - 6, human(bits));
            let _ = writeln!(
                svg,
                "<text x=\"10\" y=\"{text}\">{nodes} nodes, {what}</text><rect x=\"160\" y=\"{y}\" width=\"{width:.0}\" \
                 height=\"{}\" fill=\"{color}\"/><text x=\"{:.0}\" y=\"{text}\">{value}bit/s</text>",
                BAR - 4,
                166.0 + width,
            );
            y += BAR;
        }
        y += 10;
    }
    svg.push_str("</svg>\n");
    svg
}
