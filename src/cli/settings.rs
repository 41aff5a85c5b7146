//! From the command line, the environment and configuration files to options.
//!
//! Options are declared once, in [`options`](super::options); each gets an environment variable and a key here by rule.
//! What a file says becomes the *default* of the option it names, so option over environment over file over built-in
//! default is the parser's own order, and a value is read in one way wherever it stands.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, CommandFactory, FromArgMatches};
use etcetera::BaseStrategy;

use super::options::{self, Cli, Command};
use super::{Failure, plain};

/// Why nothing is to be done.
pub enum Stop {
    /// Help or version was asked for and shown.
    Shown,
    Failure(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failure(failure)
    }
}

/// What a file says: the option's long name, and its values as text.
type Settings = BTreeMap<String, Vec<String>>;

/// Reads all there is.
pub fn load(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    let arguments = Vec::from_iter(arguments);
    let parser = parser();
    let mut matches = parser.clone().try_get_matches_from(&arguments).map_err(refused)?;
    let given = deepest(&matches).get_one::<PathBuf>("config").cloned();
    let mut settings = Settings::new();
    for (path, must_exist) in files(given) {
        let Some(said) = read(&path, must_exist, &parser)? else { continue };
        settings.extend(said);
        matches = with_defaults(parser.clone(), &settings).try_get_matches_from(&arguments).map_err(|error| {
            // Without the file the same command line was fine.
            let Failure { exit, message, hint: _ } = failure(&error);
            Failure { exit, message: format!("{}: {message}", path.display()), hint: None }
        })?;
    }
    let mut cli = Cli::from_arg_matches(&matches).map_err(refused)?;
    settle(&mut cli, deepest(&matches))?;
    Ok(cli)
}

/// The options, each with its environment variable.
fn parser() -> clap::Command {
    fn with_environment(parser: clap::Command) -> clap::Command {
        let parser = parser.mut_args(|arg| {
            let Some(long) = arg.get_long() else { return arg };
            let variable = variable(long);
            // One that is set to nothing says nothing.
            let said = std::env::var_os(&variable).is_some_and(|value| !value.is_empty());
            let arg = if said { arg.env(variable).hide_env(true) } else { arg };
            match arg.get_action() {
                ArgAction::SetTrue => arg.value_parser(options::switch),
                ArgAction::Append => arg.value_delimiter(','),
                _ => arg,
            }
        });
        parser.mut_subcommands(with_environment)
    }
    with_environment(Cli::command())
}

fn variable(long: &str) -> String {
    format!("HUBLESS_{}", long.replace('-', "_").to_ascii_uppercase())
}

fn with_defaults(parser: clap::Command, settings: &Settings) -> clap::Command {
    let parser = parser.mut_args(|arg| match arg.get_long().and_then(|long| settings.get(long)) {
        Some(values) => arg.default_values(values.clone()),
        None => arg,
    });
    parser.mut_subcommands(|command| with_defaults(command, settings))
}

/// Long names of all options that a file may set.
fn keys(parser: &clap::Command) -> Vec<String> {
    let longs = parser.get_arguments().filter_map(clap::Arg::get_long);
    let mut keys = Vec::from_iter(longs.filter(|long| *long != "config").map(String::from));
    keys.extend(parser.get_subcommands().flat_map(self::keys));
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The options of the command that was asked for.
fn deepest(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, matches)| deepest(matches))
}

/// Files to read, the weakest first, and whether it is an error if one is not there.
fn files(given: Option<PathBuf>) -> Vec<(PathBuf, bool)> {
    let user = etcetera::choose_base_strategy().ok().map(|user| user.config_dir().join("hubless/hubless.toml"));
    let near = match given {
        Some(path) => (path, true),
        None => ("hubless.toml".into(), false),
    };
    user.map(|path| (path, false)).into_iter().chain([near]).collect()
}

fn read(path: &Path, must_exist: bool, parser: &clap::Command) -> Result<Option<Settings>, Failure> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !must_exist => return Ok(None),
        Err(error) => {
            return Err(Failure::usage(format!("cannot read the configuration {}: {}", path.display(), plain(&error))));
        }
    };
    let wrong = |message: String| Failure::usage(format!("{}: {message}", path.display()));
    let table = text.parse::<toml::Table>().map_err(|error| {
        let line = error.span().map(|span| text[..span.start.min(text.len())].lines().count().max(1));
        let place = line.map(|line| format!("line {line}: ")).unwrap_or_default();
        wrong(format!("{place}{}", error.message()))
    })?;
    let keys = keys(parser);
    let mut settings = Settings::new();
    for (key, value) in table {
        if !keys.contains(&key) {
            let meant = key.replace('_', "-").to_ascii_lowercase();
            let hint = if keys.contains(&meant) {
                format!("write `{meant}`")
            } else {
                format!("there are: {}", keys.join(", "))
            };
            return Err(wrong(format!("there is no option `{key}`")).hint(hint));
        }
        let values = texts(value).ok_or_else(|| wrong(format!("`{key}` is neither a value nor a list of values")))?;
        settings.insert(key, values);
    }
    Ok(Some(settings))
}

fn texts(value: toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::Table(_) => None,
        toml::Value::Array(values) => values.into_iter().map(text).collect(),
        value => Some(vec![text(value)?]),
    }
}

fn text(value: toml::Value) -> Option<String> {
    match value {
        toml::Value::Table(_) | toml::Value::Array(_) => None,
        toml::Value::String(text) => Some(text),
        value => Some(value.to_string()),
    }
}

/// What two options say about one thing is settled by where each was said.
fn settle(cli: &mut Cli, matches: &ArgMatches) -> Result<(), Failure> {
    let source = |option: &str| matches.value_source(option);
    match &mut cli.command {
        None => settle_http(&mut cli.run, source),
        Some(Command::Run(run)) => settle_http(run, source),
        Some(Command::History(_) | Command::Key(_) | Command::Check(_)) => Ok(()),
        Some(Command::HistoryService(service)) => {
            // What a file says of these is meant for the node.
            if source("http") == Some(ValueSource::DefaultValue) {
                service.http = None;
            }
            if source("data_dir") == Some(ValueSource::DefaultValue) {
                service.data_dir = None;
            }
            Ok(())
        }
        Some(Command::Pub(options::Publish { through, .. }))
        | Some(Command::Sub(options::Subscribe { through, .. }))
        | Some(Command::Peers(options::Peers { through, .. })) => {
            // The port that a file or the environment names is meant for the node that stays.
            if let Some(listen) = &mut through.node.listen
                && source("listen") != Some(ValueSource::CommandLine)
            {
                listen.set_port(0);
            }
            Ok(())
        }
    }
}

fn settle_http(run: &mut options::Run, source: impl Fn(&str) -> Option<ValueSource>) -> Result<(), Failure> {
    if run.http.is_none() || !run.no_http {
        return Ok(());
    }
    match source("http").cmp(&source("no_http")) {
        std::cmp::Ordering::Greater => run.no_http = false,
        std::cmp::Ordering::Less => run.http = None,
        std::cmp::Ordering::Equal => return Err(Failure::usage("`--http` and `--no-http` exclude each other")),
    }
    Ok(())
}

/// What the parser says, in the form of our own errors. Help and version are shown.
fn refused(error: clap::Error) -> Stop {
    if !error.use_stderr() {
        // Somebody who reads no further has seen enough.
        let _ = error.print();
        return Stop::Shown;
    }
    Stop::Failure(failure(&error))
}

/// The parser's text is a paragraph with the error, perhaps others with tips, and where to find help.
fn failure(error: &clap::Error) -> Failure {
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return Failure::usage("something is missing").hint("try 'hubless --help'");
    }
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n");
    let lines = paragraphs.next().unwrap_or_default().lines().map(str::trim);
    let mut message = lines.collect::<Vec<_>>().join(" ").trim_start_matches("error: ").to_string();
    if let Some((variable, value)) = from_environment(error) {
        // Writing into a string cannot fail.
        let _ = write!(message, " (the environment says {variable}={value})");
    }
    let rest = Vec::from_iter(text.lines().map(str::trim));
    let tip = rest.iter().find_map(|line| line.strip_prefix("tip: "));
    // How to pass an option as a value helps only where a value may be any text.
    let tip = tip.filter(|tip| !tip.starts_with("to pass ") || text.contains("Usage: hubless pub"));
    let help = rest.iter().find_map(|line| line.strip_prefix("For more information, "));
    let failure = Failure::usage(message);
    if error.kind() == ErrorKind::ArgumentConflict && error.get(ContextKind::InvalidSubcommand).is_some() {
        return failure.hint("options stand behind the command");
    }
    match tip.or(help) {
        Some(hint) => failure.hint(hint.trim_end_matches('.')),
        None => failure,
    }
}

/// The variable that said the refused value, if it was one.
fn from_environment(error: &clap::Error) -> Option<(String, &str)> {
    let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return None };
    let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else { return None };
    let long = arg.strip_prefix("--")?.split([' ', '=']).next()?;
    let on_line =
        std::env::args().any(|given| given == format!("--{long}") || given.starts_with(&format!("--{long}=")));
    let variable = variable(long);
    let said = std::env::var(&variable).is_ok_and(|said| said.split(',').any(|said| said == value));
    (said && !on_line).then_some((variable, value.as_str()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Exit;
    use super::*;

    fn parse(settings: &[(&str, &[&str])], arguments: &[&str]) -> Cli {
        let settings = settings.iter().map(|(key, values)| {
            let values = values.iter().map(|value| value.to_string()).collect();
            (key.to_string(), values)
        });
        let parser = with_defaults(Cli::command(), &settings.collect());
        let matches = parser.try_get_matches_from([&["hubless"], arguments].concat()).unwrap();
        Cli::from_arg_matches(&matches).unwrap()
    }

    #[test]
    fn the_parser_is_in_order() {
        parser().debug_assert();
        Cli::command().debug_assert();
    }

    #[test]
    fn an_option_beats_a_file() {
        let file: [(&str, &[&str]); 3] = [("mesh", &["lab"]), ("name", &["ada"]), ("connect", &["a", "b"])];
        let cli = parse(&file, &["--mesh", "home", "--connect", "c"]);
        assert_eq!(cli.run.node.mesh(), "home");
        assert_eq!(cli.run.node.name.as_deref(), Some("ada"));
        assert_eq!(Vec::from_iter(cli.run.node.connect.iter().map(|seed| seed.host.as_str())), ["c"]);
    }

    #[test]
    fn a_file_speaks_to_every_command() {
        let cli = parse(&[("mesh", &["lab"]), ("no-mdns", &["true"]), ("http", &["[::1]:1"])], &["pub", "hi"]);
        let Some(Command::Pub(publish)) = cli.command else { panic!("{cli:?}") };
        assert_eq!(publish.through.node.mesh(), "lab");
        assert!(publish.through.node.no_mdns);
    }

    #[test]
    fn run_is_what_is_done_when_nothing_is_said() {
        assert!(parse(&[], &[]).command.is_none());
        assert!(matches!(parse(&[], &["run", "-vv"]).command, Some(Command::Run(run)) if run.log.verbose == 2));
    }

    #[test]
    fn errors_of_the_parser_are_one_line_and_a_hint() {
        let error = parser().try_get_matches_from(["hubless", "--mehs", "x"]).unwrap_err();
        let Failure { message, hint, .. } = failure(&error);
        assert_eq!(message, "unexpected argument '--mehs' found");
        assert!(hint.unwrap().contains("--mesh"));
        let error = parser().try_get_matches_from(["hubless", "sub", "--forever", "x"]).unwrap_err();
        let Failure { message, hint, .. } = failure(&error);
        assert_eq!(message, "unexpected argument '--forever' found");
        assert_eq!(hint.as_deref(), Some("try '--help'"));
        let error = parser().try_get_matches_from(["hubless", "pub", "--hi"]).unwrap_err();
        assert!(failure(&error).hint.unwrap().contains("'-- --hi'"));
        let error = parser().try_get_matches_from(["hubless", "pub"]).unwrap_err();
        assert!(!failure(&error).message.contains('\n'));
    }

    /// A file that is sound, changed here and there.
    fn changed() -> impl Strategy<Value = String> {
        const SOUND: &str = "mesh = \"lab\"\nname = \"ada\"\nhttp = \"127.0.0.1:8080\"\nconnect = [\"a:1\", \"b\"]\n\
            no-mdns = true\nretain-days = 7\nfsync = \"group\"\nretain-bytes = \"1G\"\n";
        let edit = (0..SOUND.len(), 0usize..12, "[ -~\n\u{0}ä€😀\\\\\"'\\[\\]=]{0,6}");
        proptest::collection::vec(edit, 0..4).prop_map(|edits| {
            let mut text = SOUND.to_string();
            for (at, len, put) in edits {
                let border = |at: usize| (0..=at.min(text.len())).rfind(|at| text.is_char_boundary(*at)).unwrap_or(0);
                let from = border(at);
                let to = border(from + len).max(from);
                text.replace_range(from..to, &put);
            }
            text
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_500))]
        #[test]
        fn any_file_is_taken_or_refused_by_its_name(text in prop_oneof![changed(), ".{0,200}"]) {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("some.toml");
            std::fs::write(&path, &text).unwrap();
            let arguments = ["hubless", "run", "--config", path.to_str().unwrap()].map(OsString::from);
            match load(arguments) {
                Ok(_) => {}
                Err(Stop::Shown) => prop_assert!(false, "a file asks for no help"),
                Err(Stop::Failure(failure)) => {
                    prop_assert_eq!(failure.exit, Exit::Usage);
                    prop_assert!(failure.message.contains("some.toml"), "{}", failure.message);
                }
            }
        }
    }
}
