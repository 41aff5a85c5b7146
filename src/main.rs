//! The binary `hubless`: a mesh node, and commands that talk to one.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
