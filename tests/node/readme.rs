//! What README.md and config/vault/README.md tell people to write and to run, line by line.

use crate::cluster::Cluster;
use testbed::project;

/// The folder that is applied, where a user has none of his own.
const CONFIG: &str = "config/";

/// What is to be put in the place of something that has `<` and `>` around it.
pub type Filling<'a> = &'a [(&'a str, &'a str)];

/// What stands in a document between two pieces of it.
pub fn part(file: &str, from: &str, to: &str) -> String {
    let text = std::fs::read_to_string(project::root().join(file)).expect("a document");
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("{file} has no {from:?}"));
    rest.split_once(to).unwrap_or_else(|| panic!("{file} has no {to:?} after {from:?}")).0.to_owned()
}

/// The commands in it. One goes on in the next line after a backslash, and ends before a remark.
pub fn commands(text: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines().filter(|line| line.starts_with("    ")) {
        let line = line.trim().split("    #").next().unwrap_or_default().trim_end();
        let (words, more) = line.strip_suffix('\\').map_or((line, false), |words| (words, true));
        match commands.last_mut() {
            Some(command) if goes_on => command.push_str(words),
            _ if ["kubectl ", "vault ", "helm "].iter().any(|tool| words.starts_with(tool)) => {
                commands.push(words.to_owned())
            }
            _ => continue,
        }
        goes_on = more;
    }
    commands
}

/// The file that begins with these words: all that is indented as far, and its own indentation taken away.
pub fn file(text: &str, begins: &str, filling: Filling<'_>) -> String {
    let first = text.lines().position(|line| line.trim_start().starts_with(begins)).expect("a file");
    let mut lines = text.lines().skip(first).peekable();
    let indentation = lines.peek().map_or(0, |line| line.len() - line.trim_start().len());
    let inside = |line: &&str| line.is_empty() || line.len() - line.trim_start().len() >= indentation;
    let lines: Vec<_> = lines.take_while(inside).map(|line| line.get(indentation..).unwrap_or_default()).collect();
    filled(&lines.join("\n"), filling)
}

/// With all of them put in. What has several lines is indented as the line is where it belongs.
fn filled(text: &str, filling: Filling<'_>) -> String {
    let line = |line: &str| {
        let indentation = format!("\n{}", &line[..line.len() - line.trim_start().len()]);
        let fill = |line: String, (name, value): &(&str, &str)| line.replace(name, &value.replace('\n', &indentation));
        filling.iter().fold(line.to_owned(), fill)
    };
    let text = text.lines().map(line).collect::<Vec<_>>().join("\n");
    assert!(!text.contains('<'), "what is to be put in here? {text}");
    text
}

/// Runs commands in the project's folder. A folder of the user's own has what he wrote himself, and stands in the place of `config/` where
/// the whole folder is meant.
pub async fn run(cluster: &Cluster, commands: &[String], own: &str, filling: Filling<'_>) {
    for command in commands {
        let command = filled(command, filling);
        let here = |word: &str| match word.strip_prefix('@').unwrap_or(word) {
            CONFIG => own.to_owned(),
            name if name.ends_with(".yaml") && !name.contains('/') => format!("{own}/{name}"),
            path if [CONFIG, "crds/", "charts/"].iter().any(|folder| path.starts_with(folder)) => {
                word.replace(path, &project::root().join(path).to_string_lossy())
            }
            _ => word.to_owned(),
        };
        let words: Vec<_> = command.split_whitespace().map(here).collect();
        let words: Vec<_> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["kubectl", ref words @ ..] => drop(cluster.must(words).await),
            ["helm", ref words @ ..] => cluster.helm(words).await,
            ["vault", ref words @ ..] => cluster.tell_vault(words).await,
            _ => panic!("who runs {command}?"),
        }
    }
}
