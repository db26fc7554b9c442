//! Every command line of ours that a page or a `--help` shows is one that the program takes.

use std::fs;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, Parser};

use crate::Cli;

/// The program's name.
const NAME: &str = "monohull";

/// The pages, with their names.
fn pages() -> Vec<(String, String)> {
    let top = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut paths = vec![top.join("README.md"), top.join("SECURITY.md")];
    for folder in ["docs", "docs/decisions"] {
        let entries = fs::read_dir(top.join(folder)).unwrap();
        paths.extend(
            entries
                .map(|entry| entry.unwrap().path())
                .filter(|path| path.extension().is_some_and(|e| e == "md")),
        );
    }
    paths.sort();
    paths.into_iter().map(|path| (path.display().to_string(), fs::read_to_string(path).unwrap())).collect()
}

/// The commands of a shell's line: words without their quotes, in one list for each command of a pipe or sequence.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut commands = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            ('#', None) if word.is_none() => break,
            (' ' | '|' | '&' | ';' | '>' | '<' | '(' | ')', None) => {
                commands.last_mut().unwrap().extend(word.take());
                if c != ' ' {
                    commands.push(Vec::new());
                }
            }
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    commands.last_mut().unwrap().extend(word);
    commands
}

/// What is wrong with the command lines in `line` that run this program; how many there are.
fn check(line: &str, wrong: &mut Vec<String>, page: &str) -> usize {
    let mut count = 0;
    for words in commands(line) {
        let Some(at) =
            words.iter().position(|word| word == NAME || word.ends_with("/usr/local/bin/monohull"))
        else {
            continue;
        };
        // Only what precedes a command may precede it here: variables.
        if !words.iter().take(at).all(|word| word.contains('=') || word == "sudo") {
            continue;
        }
        count += 1;
        match Cli::try_parse_from(words.iter().skip(at)) {
            Err(error) if !matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
                wrong.push(format!("{page}: {line}: {error}"));
            }
            _ => {}
        }
    }
    count
}

/// What is wrong with a command that a text mentions, perhaps in part: `template ls|build|rm`, `install --dry-run`.
fn mentioned(words: &str) -> Result<(), String> {
    let mut command = Cli::command();
    command.build();
    for word in words.split_whitespace() {
        if word == "--" {
            break;
        } else if let Some(option) = word.strip_prefix("--") {
            let option = option.split('=').next().unwrap_or_default();
            let has = |argument: &clap::Arg| argument.get_long() == Some(option);
            if !command.get_arguments().any(has) {
                return Err(format!("{} has no --{option}", command.get_name()));
            }
        } else if command.has_subcommands() {
            let mut found: Vec<Command> = Vec::new();
            for name in word.split('|') {
                let subcommand =
                    command.find_subcommand(name).ok_or_else(|| format!("there is no {name}"))?;
                found.push(subcommand.clone());
            }
            command = found.swap_remove(0);
        }
    }
    Ok(())
}

#[test]
fn every_command_line_in_the_pages_is_taken() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (page, text) in pages() {
        let mut in_console = false;
        for line in text.lines() {
            if let Some(language) = line.strip_prefix("```") {
                in_console = language == "console";
            } else if let Some(line) = line.strip_prefix("# ").or_else(|| line.strip_prefix("$ "))
                && in_console
            {
                count += check(line, &mut wrong, &page);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 30, "only {count} command lines were found");
}

#[test]
fn every_command_and_option_that_the_pages_mention_exists() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (page, text) in pages() {
        let mut in_block = false;
        for line in text.lines() {
            if line.starts_with("```") {
                in_block = !in_block;
            }
            if in_block {
                continue;
            }
            for span in line.split('`').skip(1).step_by(2) {
                if let Some(words) = span.strip_prefix("monohull ") {
                    count += 1;
                    wrong.extend(mentioned(words).err().map(|error| format!("{page}: `{span}`: {error}")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 30, "only {count} mentions were found");
}

#[test]
fn every_example_of_the_help_is_taken() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    let mut commands = vec![Cli::command()];
    while let Some(command) = commands.pop() {
        commands.extend(command.get_subcommands().cloned());
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        for line in help.lines().skip_while(|line| *line != "Examples:").skip(1) {
            count += check(line.trim(), &mut wrong, command.get_name());
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 20, "only {count} examples were found");
}

#[test]
fn a_line_is_read_as_a_shell_reads_it() {
    let line = "tar c . | A=b monohull run -- sh -c 'a | b' # and so on";
    assert_eq!(
        commands(line),
        [vec!["tar", "c", "."], vec!["A=b", "monohull", "run", "--", "sh", "-c", "a | b"]]
    );
    assert!(mentioned("template ls|build|rm").is_ok() && mentioned("run --no-such-option").is_err());
}
