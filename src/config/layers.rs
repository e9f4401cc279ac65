//! Laying environment and flags over the file, with errors that name where a value came from.

use std::{
    env,
    ops::Range,
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::Settings;

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file has a mistake.
    #[error("{}:{line}:{column}: {message}\n    {text}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Line of the mistake, from 1.
        line: usize,
        /// Column of the mistake, from 1.
        column: usize,
        /// What is wrong.
        message: String,
        /// The line.
        text: String,
    },
    /// A variable or flag has a mistake.
    #[error("{origin}: {message}")]
    Value {
        /// Name of the variable or flag.
        origin: String,
        /// What is wrong.
        message: String,
    },
    /// The user has no home, and has named no data folder.
    #[error(
        "no data folder: neither XDG_DATA_HOME nor HOME is set to an absolute path; name a folder with --data-dir or in CHIRAL_DATA_DIR"
    )]
    NoDataDir,
    /// The settings cannot be written as TOML.
    #[error("cannot write the configuration: {0}")]
    Write(#[from] toml::ser::Error),
}

/// The key of the data folder.
const DATA_DIR: &str = "data_dir";

/// Settings under construction: each layer is checked as it is laid on.
#[derive(Clone, Debug)]
pub struct Layers {
    /// All settings but a data folder whose path is no text, of which TOML knows nothing.
    table: Table,
    settings: Settings,
    data_dir: PathBuf,
}

/// Where the file is looked for when none is named: `$XDG_CONFIG_HOME/chiral/chiral.toml` or the same in `~/.config`.
pub fn default_file() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let base = absolute("XDG_CONFIG_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".config")))?;
    Some(base.join("chiral/chiral.toml"))
}

impl Layers {
    /// Defaults alone.
    ///
    /// # Errors
    /// When a default cannot be written in TOML.
    pub fn new() -> Result<Self, ConfigError> {
        let settings = Settings::default();
        let data_dir = settings.data_dir.clone();
        let table = Table::try_from(Settings { data_dir: PathBuf::new(), ..settings.clone() })?;
        Ok(Self { table, settings, data_dir })
    }

    /// Lays a file on top.
    ///
    /// # Errors
    /// When it cannot be read, or has a mistake; the message names line and key.
    pub fn file(self, path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        self.text(path, &text)
    }

    /// Lays the text of a file on top; `path` is for messages.
    ///
    /// # Errors
    /// As [`Layers::file`].
    pub fn text(mut self, path: &Path, text: &str) -> Result<Self, ConfigError> {
        let wrong = |e: &toml::de::Error| located(path, text, e.span(), e.message());
        // Read as settings first: only that reading knows the places of unknown keys and wrong values.
        toml::from_str::<Settings>(text).map_err(|e| wrong(&e))?;
        let over: Table = toml::from_str(text).map_err(|e| wrong(&e))?;
        if let Some(dir) = over.get(DATA_DIR).and_then(Value::as_str)
            && !dir.is_empty()
            && !Path::new(dir).is_absolute()
        {
            // It would be another folder with each folder that a command is started in. A `~` is none of a home here.
            let message = format!("{DATA_DIR} is not an absolute path");
            return Err(located(path, text, place_of(text, DATA_DIR), &message));
        }
        lay_over(&mut self.table, over);
        self.check(&path.display().to_string())?;
        Ok(self)
    }

    /// Lays `CHIRAL_SECTION_KEY` variables on top; lists are separated by commas. A variable that begins like a
    /// section or ends like a key, but is none, is refused; others are somebody else's. An empty one counts as not set, except
    /// for a list, which it empties.
    ///
    /// # Errors
    /// When a variable has a mistake.
    pub fn environment(
        mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        for (variable, value) in variables {
            let Some(key) = self.key_of(&variable)? else { continue };
            let values: Vec<String> = value
                .split(',')
                .map(|part| part.trim().to_owned())
                .filter(|part| !part.is_empty())
                .collect();
            let is_list = self.slot(&key).is_some_and(|slot| slot.is_array());
            if value.is_empty() && !is_list {
                continue;
            }
            let values = if is_list { values } else { vec![value] };
            self = self.set(&variable, &key, &values)?;
        }
        Ok(self)
    }

    /// Sets one key (`section.key`) because of `origin`, the name of a flag. Lists take all values, others the last.
    ///
    /// # Errors
    /// When the key is unknown or a value does not fit it.
    pub fn set(mut self, origin: &str, key: &str, values: &[String]) -> Result<Self, ConfigError> {
        let wrong = |message: String| ConfigError::Value { origin: origin.to_owned(), message };
        let slot = self.slot(key).ok_or_else(|| wrong(format!("unknown key `{key}`")))?;
        *slot = parsed(slot, values).map_err(wrong)?;
        self.check(origin)?;
        Ok(self)
    }

    /// Sets the data folder; its path need not be text. An empty one counts as not set.
    pub fn data_dir(mut self, dir: &Path) -> Self {
        if !dir.as_os_str().is_empty() {
            dir.clone_into(&mut self.data_dir);
            dir.clone_into(&mut self.settings.data_dir);
            self.table.insert(DATA_DIR.to_owned(), Value::String(String::new()));
        }
        self
    }

    /// The settings.
    pub fn finish(self) -> Settings {
        self.settings
    }

    fn check(&mut self, origin: &str) -> Result<(), ConfigError> {
        self.settings = self.table.clone().try_into().map_err(|e: toml::de::Error| {
            ConfigError::Value { origin: origin.to_owned(), message: e.message().to_owned() }
        })?;
        if self.settings.data_dir.as_os_str().is_empty() {
            self.settings.data_dir.clone_from(&self.data_dir);
        }
        Ok(())
    }

    fn slot(&mut self, key: &str) -> Option<&mut Value> {
        match key.split_once('.') {
            Some((section, key)) => self.table.get_mut(section)?.get_mut(key),
            None => self.table.get_mut(key).filter(|value| !value.is_table()),
        }
    }

    /// The key that a variable sets.
    fn key_of(&self, variable: &str) -> Result<Option<String>, ConfigError> {
        let Some(name) = variable.strip_prefix("CHIRAL_").map(str::to_lowercase) else {
            return Ok(None);
        };
        if self.table.get(&name).is_some_and(|value| !value.is_table()) {
            return Ok(Some(name));
        }
        let sections =
            self.table.iter().filter_map(|(name, value)| Some((name, value.as_table()?)));
        for (section, keys) in sections {
            let Some(key) = name.strip_prefix(section).and_then(|rest| rest.strip_prefix('_'))
            else {
                continue;
            };
            if !keys.contains_key(key) {
                let message = format!("section [{section}] has no key `{key}`");
                return Err(ConfigError::Value { origin: variable.to_owned(), message });
            }
            return Ok(Some(format!("{section}.{key}")));
        }
        match self.meant_by(&name) {
            Some(meant) => Err(ConfigError::Value {
                origin: variable.to_owned(),
                message: format!("no setting has this name; did you mean {meant}?"),
            }),
            None => Ok(None),
        }
    }

    /// The variable that `name` was meant for, if it ends with a key: somebody who left the section out of
    /// `CHIRAL_NETWORK_PRIVATE` must not find himself in the public network.
    fn meant_by(&self, name: &str) -> Option<String> {
        let mut keys = self.table.iter().flat_map(|(section, value)| {
            value.as_table().into_iter().flat_map(Table::keys).map(move |key| (section, key))
        });
        let (section, key) = keys.find(|(_, key)| {
            let before = name.strip_suffix(key.as_str());
            before.is_some_and(|before| before.is_empty() || before.ends_with('_'))
        })?;
        Some(format!("CHIRAL_{}_{}", section.to_uppercase(), key.to_uppercase()))
    }
}

/// A text as a value of the same type as the one that it replaces.
fn parsed(old: &Value, values: &[String]) -> Result<Value, String> {
    let text = values.last().map_or("", String::as_str);
    match old {
        Value::Array(_) => Ok(values.iter().cloned().map(Value::String).collect::<Vec<_>>().into()),
        Value::Boolean(_) => match text {
            "true" | "1" | "yes" => Ok(true.into()),
            "false" | "0" | "no" => Ok(false.into()),
            _ => Err(format!("`{text}` is neither true nor false")),
        },
        Value::Integer(_) => text
            .parse::<i64>()
            .map(Value::Integer)
            .map_err(|_| format!("`{text}` is not a whole number")),
        Value::Float(_) => {
            text.parse::<f64>().map(Value::Float).map_err(|_| format!("`{text}` is not a number"))
        }
        _ => Ok(Value::String(text.to_owned())),
    }
}

fn lay_over(table: &mut Table, over: Table) {
    for (key, value) in over {
        match (table.get_mut(&key), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => lay_over(inner, value),
            (_, value) => {
                table.insert(key, value);
            }
        }
    }
}

/// Place of a key of the top level.
fn place_of(text: &str, key: &str) -> Option<Range<usize>> {
    let begins = |line: &str| {
        line.trim_start().strip_prefix(key).is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        if begins(line) {
            return Some(at..at + line.len());
        }
        at += line.len();
    }
    None
}

fn located(path: &Path, text: &str, span: Option<Range<usize>>, message: &str) -> ConfigError {
    let at = span.map_or(0, |span| span.start).min(text.len());
    let before = &text.as_bytes()[..at];
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    ConfigError::File {
        path: path.to_owned(),
        line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
        column: at - start + 1,
        message: message.to_owned(),
        text: text[start..].lines().next().unwrap_or_default().trim().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn laid(text: &str) -> Result<Settings, ConfigError> {
        Layers::new().unwrap().text(Path::new("chiral.toml"), text).map(Layers::finish)
    }

    fn variables(pairs: &[(&str, &str)]) -> Result<Settings, ConfigError> {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Layers::new().unwrap().environment(pairs).map(Layers::finish)
    }

    #[test]
    fn a_mistake_is_shown_with_its_line_its_column_and_its_key() {
        for (text, place, word) in [
            ("data_dir = \"/x\"\ncolour = 3\n", ":2:1:", "`colour`"),
            ("[store]\n\nlimit = \"1 GiB\"\n", ":3:1:", "`limit`"),
            ("[store]\nmin_free = \"1 gib\"\n", ":2:12:", "`1 gib`"),
            ("[download]\nchunks_per_peer = 0\n", ":2:19:", "chunks_per_peer = 0"),
            ("[download]\nbackoff_multiplier = 0.5\n", ":2:22:", "at least 1"),
            ("[network]\nlisten = [\"/ip4/1.2.3\"]\n", ":2:1", "/ip4/1.2.3"),
            ("[storage]\n", ":1:", "`storage`"),
            ("[mount\n", ":1:", "[mount"),
        ] {
            let message = laid(text).unwrap_err().to_string();
            assert!(message.starts_with("chiral.toml"), "{message}");
            assert!(message.contains(place) && message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn a_relative_data_folder_in_a_file_is_refused() {
        for dir in ["data", "./data", "~/data"] {
            let text = format!("# mine\ndata_dir = \"{dir}\"\n");
            let message = laid(&text).unwrap_err().to_string();
            assert!(message.starts_with("chiral.toml:2:1: data_dir is not"), "{message}");
        }
        assert_eq!(laid("data_dir = \"\"\n").unwrap(), Settings::default());
        assert_eq!(laid("data_dir = \"/x\"\n").unwrap().data_dir, Path::new("/x"));
    }

    #[test]
    fn a_data_folder_that_is_no_text_is_kept() {
        use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

        let dir = Path::new(OsStr::from_bytes(b"/data\xff"));
        let layers = Layers::new().unwrap().data_dir(dir).data_dir(Path::new(""));
        let settings = layers.clone().finish();
        assert_eq!(settings.data_dir, dir);
        let set = layers.set("--private", "network.private", &["true".to_owned()]).unwrap();
        assert_eq!(set.clone().finish().data_dir, dir);
        // What is named later goes before.
        assert_eq!(set.data_dir(Path::new("/later")).finish().data_dir, Path::new("/later"));
    }

    #[test]
    fn settings_without_a_data_folder_are_refused() {
        let nowhere = Settings { data_dir: PathBuf::new(), ..Settings::default() };
        let message = nowhere.with_data_dir().unwrap_err().to_string();
        assert!(message.contains("--data-dir"), "{message}");
        let named = Settings { data_dir: "/x".into(), ..Settings::default() };
        assert_eq!(named.clone().with_data_dir().unwrap(), named);
    }

    #[test]
    fn what_is_not_in_the_file_keeps_its_default() {
        let settings = laid("[download]\nlookup_timeout = \"5s\"\n").unwrap();
        let mut expected = Settings::default();
        expected.download.lookup_timeout = "5s".parse().unwrap();
        assert_eq!(settings, expected);
    }

    #[test]
    fn flags_lie_over_the_environment_and_that_over_the_file() {
        let file =
            "[network]\nserve_cached = false\nlisten = [\"/ip4/127.0.0.1/tcp/1\"]\npeers = []\n";
        let settings = Layers::new()
            .unwrap()
            .text(Path::new("f"), file)
            .unwrap()
            .environment([
                (
                    "CHIRAL_NETWORK_LISTEN".to_owned(),
                    "/ip4/127.0.0.1/tcp/2, /ip4/127.0.0.1/tcp/3".to_owned(),
                ),
                ("CHIRAL_NETWORK_PRIVATE".to_owned(), "true".to_owned()),
                ("CHIRAL_DATA_DIR".to_owned(), "/env".to_owned()),
            ])
            .unwrap()
            .set("--data-dir", "data_dir", &["/flag".to_owned()])
            .unwrap()
            .finish();
        assert_eq!(settings.data_dir, Path::new("/flag"));
        assert!(settings.network.private);
        assert!(!settings.network.serve_cached);
        let listen: Vec<_> = settings.network.listen.iter().map(ToString::to_string).collect();
        assert_eq!(listen, ["/ip4/127.0.0.1/tcp/2", "/ip4/127.0.0.1/tcp/3"]);
    }

    #[test]
    fn a_variable_with_a_mistake_is_named() {
        for (name, value) in [
            ("CHIRAL_STORE_LIMIT", "1 GiB"),
            ("CHIRAL_STORE_MIN_FREE", "much"),
            ("CHIRAL_NETWORK_PRIVATE", "maybe"),
            ("CHIRAL_DOWNLOAD_CHUNKS_PER_PEER", "-1"),
            ("CHIRAL_PRIVATE", "true"),
            ("CHIRAL_NETWROK_PRIVATE", "true"),
        ] {
            assert!(variables(&[(name, value)]).unwrap_err().to_string().starts_with(name));
        }
        let left_out = variables(&[("CHIRAL_PRIVATE", "1")]).unwrap_err().to_string();
        assert!(left_out.ends_with("did you mean CHIRAL_NETWORK_PRIVATE?"), "{left_out}");
        let none = [
            ("CHIRAL_LOG", "debug"),
            ("CHIRAL_NONPRIVATE", "x"),
            ("HOME", "x"),
            ("CHIRAL_DATA_DIR", ""),
            ("CHIRAL_STORE_MIN_FREE", ""),
        ];
        assert_eq!(variables(&none).unwrap(), Settings::default());
        assert!(variables(&[("CHIRAL_NETWORK_LISTEN", "")]).unwrap().network.listen.is_empty());
    }
}
