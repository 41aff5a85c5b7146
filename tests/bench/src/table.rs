//! Medians over repetitions, and the table that shows them.

use std::fmt::Write;

use crate::child::System;
use crate::{Outcome, Row, median};

/// What all runs measured.
#[derive(Debug, Default)]
pub struct Results(Vec<Result>);

#[derive(Debug)]
struct Result {
    repetition: usize,
    row: usize,
    system: System,
    outcome: Outcome,
}

impl Outcome {
    /// Messages a second, or microseconds.
    fn value(&self) -> f64 {
        match *self {
            Outcome::Flow { rate, .. } => rate,
            Outcome::Trip { p50_us, .. } => p50_us,
        }
    }

    fn wrong(&self) -> (u64, u64) {
        match *self {
            Outcome::Flow { lost, doubled, .. } => (lost, doubled),
            Outcome::Trip { lost, .. } => (lost, 0),
        }
    }
}

/// An outcome in a few words.
pub fn show(outcome: &Outcome) -> String {
    let (lost, doubled) = outcome.wrong();
    let mut shown = match *outcome {
        Outcome::Flow { rate, .. } => short(rate),
        Outcome::Trip { p50_us, p99_us, .. } => format!("{p50_us:.0} / {p99_us:.0} µs"),
    };
    for (count, what) in [(lost, "lost"), (doubled, "doubled")] {
        if count > 0 {
            let _ = write!(shown, ", {count} {what}");
        }
    }
    shown
}

impl Results {
    pub fn add(&mut self, repetition: usize, row: usize, system: System, outcome: Outcome) {
        self.0.push(Result { repetition, row, system, outcome });
    }

    fn of(&self, row: usize, system: System, repetition: usize) -> Option<&Outcome> {
        let matches = |result: &&Result| (result.row, result.system, result.repetition) == (row, system, repetition);
        self.0.iter().find(matches).map(|result| &result.outcome)
    }

    /// Repetitions in which the machine was not busy with something else.
    fn sound(&self, repeat: usize, floor: f64) -> Vec<usize> {
        // With hubless alone there is nothing to tell it by.
        let fit = |repetition: &usize| self.of(0, System::Libzmq, *repetition).is_none_or(|row| row.value() >= floor);
        (0..repeat).filter(fit).collect()
    }

    /// Whether the numbers mean something, and hubless kept its promise.
    pub fn is_sound(&self, repeat: usize, floor: f64) -> bool {
        let kept = |result: &Result| result.system != System::Hubless || result.outcome.wrong() == (0, 0);
        !self.sound(repeat, floor).is_empty() && self.0.iter().all(kept)
    }

    /// The table.
    pub fn markdown(&self, rows: &[Row], repeat: usize, floor: f64) -> String {
        let sound = self.sound(repeat, floor);
        let mut text = String::from(
            "| messages/s at each subscriber | hubless | libzmq | ratio | lost |\n|---|---|---|---|---|\n",
        );
        for (number, row) in rows.iter().enumerate() {
            let cell = |system| {
                let outcomes: Vec<&Outcome> = sound.iter().filter_map(|rep| self.of(number, system, *rep)).collect();
                match outcomes.first()? {
                    Outcome::Flow { .. } => Some(short(median(outcomes.iter().map(|o| o.value())))),
                    Outcome::Trip { .. } => {
                        let p99 = outcomes.iter().filter_map(|outcome| match outcome {
                            Outcome::Trip { p99_us, .. } => Some(*p99_us),
                            Outcome::Flow { .. } => None,
                        });
                        Some(format!("{:.0} / {:.0} µs", median(outcomes.iter().map(|o| o.value())), median(p99)))
                    }
                }
            };
            // Of each repetition by itself: what moves the machine moves both.
            let against = |row: usize, system| {
                let ratio = |rep: &usize| {
                    Some(self.of(number, System::Hubless, *rep)?.value() / self.of(row, system, *rep)?.value())
                };
                let ratios: Vec<f64> = sound.iter().filter_map(ratio).collect();
                (!ratios.is_empty()).then(|| format!("{:.2}×", median(ratios.into_iter())))
            };
            let ratio = if let Some((other, what)) = row.beside {
                against(other, System::Hubless).map(|ratio| format!("{ratio} of {what}"))
            } else if row.hubless_only {
                against(0, System::Libzmq)
            } else {
                against(number, System::Libzmq)
            };
            let wrong = |system| {
                let outcomes = self.0.iter().filter(|result| result.row == number && result.system == system);
                let (lost, doubled) = outcomes.map(|r| r.outcome.wrong()).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
                if doubled > 0 { format!("{lost} (+{doubled} doubled)") } else { lost.to_string() }
            };
            let lost = if row.hubless_only {
                wrong(System::Hubless)
            } else {
                format!("{} / {}", wrong(System::Hubless), wrong(System::Libzmq))
            };
            let dash = || "—".to_string();
            let (hubless, libzmq) = (cell(System::Hubless), cell(System::Libzmq));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {lost} |",
                if row.trips { format!("{}, p50 / p99 (less is better)", row.title) } else { row.title.to_string() },
                hubless.unwrap_or_else(dash),
                libzmq.unwrap_or_else(dash),
                ratio.unwrap_or_else(dash)
            );
        }
        let (major, minor, patch) = zmq::version();
        let cores = std::thread::available_parallelism().map_or(0, |cores| cores.get());
        let _ = write!(
            text,
            "\nMedians of {} repetitions on {cores} cores; libzmq {major}.{minor}.{patch}, no HWM, receiver credit.",
            sound.len()
        );
        if sound.len() < repeat {
            let _ = write!(
                text,
                "\nVOID: {} of {repeat} repetitions, libzmq was below {} at 64 B: the machine was busy.",
                repeat - sound.len(),
                short(floor)
            );
        }
        text
    }
}

/// Three digits.
fn short(rate: f64) -> String {
    match rate {
        rate if rate >= 1e7 => format!("{:.1} M", rate / 1e6),
        rate if rate >= 1e6 => format!("{:.2} M", rate / 1e6),
        rate => format!("{:.0} k", rate / 1e3),
    }
}
