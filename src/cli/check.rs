//! `hubless check`: what is at the brokers that `hubless run` would be joined to.

use std::io::Write;

use serde_json::json;

use super::options::Check;
use super::terminal::{Terminal, clean};
use super::{Failure, Outcome};

pub async fn check(options: Check) -> Outcome {
    let bridges = options.bridges.wanted().map_err(Failure::usage)?;
    if bridges.is_empty() {
        return Err(Failure::usage("no broker is configured").hint("give `--redis URL` or `--amqp URL`"));
    }
    let terminal = Terminal::new(&options.log);
    let mut failed = 0;
    for bridge in bridges {
        let found = bridge.target.check().await;
        let place = clean(&bridge.target.to_string());
        failed += u32::from(found.is_err());
        if options.json {
            let (ok, said) = (found.is_ok(), found.unwrap_or_else(|trouble| trouble.to_string()));
            let line = json!({ "target": place, "ok": ok, "said": said });
            writeln!(std::io::stdout().lock(), "{line}").map_err(Failure::output)?;
        } else {
            match found {
                Ok(there) => terminal.note(format_args!("{place}: {}", clean(&there))),
                Err(trouble) => terminal.note(format_args!("{place}: FAILED: {}", clean(&trouble.to_string()))),
            }
        }
    }
    if failed > 0 { Err(Failure::failed(format!("{failed} of the brokers cannot be used"))) } else { Ok(()) }
}
