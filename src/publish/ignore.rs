//! Rules of what is not published: patterns of the settings, and `.chiralignore` files, with the meaning that `.gitignore`
//! gives them.
//!
//! Pure, but for the reading of a rule file on the disk.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

/// Name of the files that hold the rules of their directory.
pub(super) const RULE_FILE: &str = ".chiralignore";
/// Longest rule file that is read: programs that write larger ones mean something else.
pub(super) const MAX_RULES: u64 = 1 << 20;
/// Names of skipped files that are kept for the user.
const MAX_NAMED: usize = 10;

/// Default patterns of the settings: hidden files, with the lock files of LibreOffice and the swap
/// files of vim among them; backups; swap files that are not hidden; lock files of Microsoft Office, which hold a name;
/// and what emacs saves by itself.
pub const IGNORED: [&str; 5] = [".*", "*~", "*.swp", "~$*", "\\#*#"];

/// A pattern that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{pattern}` is not a pattern of .gitignore: {reason}")]
pub struct PatternError {
    /// The line.
    pub pattern: String,
    /// The fault in it.
    pub reason: String,
}

/// The patterns of the settings.
#[derive(Clone, Debug)]
pub struct IgnorePatterns(Arc<Rules>);

impl IgnorePatterns {
    /// Patterns, the last of which that fits decides.
    ///
    /// # Errors
    /// [`PatternError`] of the first that cannot be used.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let (rules, mut wrong) = Rules::of(patterns);
        match wrong.pop() {
            Some(wrong) => Err(wrong),
            None => Ok(Self(Arc::new(rules))),
        }
    }
}

impl Default for IgnorePatterns {
    /// The patterns of [`IGNORED`].
    fn default() -> Self {
        Self(Arc::new(Rules::of(IGNORED).0))
    }
}

/// The rules of one file, or of the settings.
#[derive(Debug)]
pub(super) struct Rules {
    matcher: Gitignore,
    /// A rule names a place, so that what it says of a name changes with the directories above.
    anchored: bool,
}

impl Rules {
    /// The rules of a file, and its lines that are none.
    pub(super) fn parse(text: &[u8]) -> (Self, Vec<PatternError>) {
        let text = String::from_utf8_lossy(text);
        Self::of(text.strip_prefix('\u{feff}').unwrap_or(&text).lines())
    }

    fn of<'a>(lines: impl IntoIterator<Item = &'a str>) -> (Self, Vec<PatternError>) {
        // The paths that are asked for are relative to the directory of the rules.
        let mut builder = GitignoreBuilder::new("");
        let (mut wrong, mut anchored) = (Vec::new(), false);
        for line in lines {
            match builder.add_line(None, line) {
                Ok(_) => anchored |= line.trim_end().trim_end_matches('/').contains('/'),
                Err(error) => {
                    let (pattern, reason) = (line.to_owned(), error.to_string());
                    wrong.push(PatternError { pattern, reason });
                }
            }
        }
        let matcher = builder.build().unwrap_or_else(|error| {
            // Each line was tried by itself, so only their number can be too large.
            wrong.push(PatternError { pattern: "*".to_owned(), reason: error.to_string() });
            Gitignore::empty()
        });
        (Self { matcher, anchored }, wrong)
    }

    fn ignores(&self, path: &Path, is_dir: bool) -> Option<bool> {
        match self.matcher.matched(path, is_dir) {
            Match::None => None,
            Match::Ignore(_) => Some(true),
            Match::Whitelist(_) => Some(false),
        }
    }
}

/// Why a name is not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// A pattern of the settings fits it.
    BySettings,
    /// A rule file above it says so.
    ByRules,
}

/// The rules that hold for the names of one directory.
#[derive(Clone, Debug)]
pub struct IgnoreScope {
    /// None: hidden files are wanted.
    settings: Option<Arc<Rules>>,
    /// The directory, below the top of the tree.
    path: PathBuf,
    /// Rule files of the directory and of those above it, with the depth of each.
    files: Vec<(usize, Arc<Rules>)>,
}

impl IgnoreScope {
    /// The top of a tree.
    pub fn top(patterns: &IgnorePatterns) -> Self {
        Self { settings: Some(patterns.0.clone()), path: PathBuf::new(), files: Vec::new() }
    }

    /// The same without the patterns of the settings, for those who ask for hidden files.
    #[must_use]
    pub fn with_hidden(self) -> Self {
        Self { settings: None, ..self }
    }

    /// The directory `name` in this one.
    #[must_use]
    pub fn below(&self, name: &OsStr) -> Self {
        Self { path: self.path.join(name), ..self.clone() }
    }

    /// The same with the rule file of the directory itself.
    pub(super) fn with_rules(mut self, rules: Arc<Rules>) -> Self {
        self.files.push((self.path.components().count(), rules));
        self
    }

    /// Returns whether a name in the directory, which itself is published, is not.
    pub fn ignores(&self, name: &OsStr, is_dir: bool) -> Option<Ignored> {
        let path = self.path.join(name);
        for (depth, rules) in self.files.iter().rev() {
            let below: PathBuf = path.components().skip(*depth).collect();
            match rules.ignores(&below, is_dir) {
                Some(true) => return Some(Ignored::ByRules),
                Some(false) => return None,
                None => {}
            }
        }
        let by_settings = self.settings.as_ref().and_then(|rules| rules.ignores(&path, is_dir));
        (by_settings == Some(true)).then_some(Ignored::BySettings)
    }

    /// Returns whether the directory and `other` have the same rules, and none that names a place: what is published of a tree
    /// does not change when it moves from one to the other.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        let rules = |scope: &Self| {
            let files = scope.files.iter().map(|(_, rules)| rules.clone());
            scope.settings.iter().cloned().chain(files).collect::<Vec<_>>()
        };
        let (one, two) = (rules(self), rules(other));
        one.len() == two.len()
            && one.iter().zip(&two).all(|(a, b)| Arc::ptr_eq(a, b) && !a.anchored)
    }

    /// The names in a directory on the disk that are published, sorted, and the rules that hold for them. `shown` is
    /// the directory as the user knows it; what is left out goes to `skipped`.
    ///
    /// # Errors
    /// When the directory or its rule file cannot be read.
    pub(super) fn list(
        self,
        dir: &Path,
        shown: &Path,
        skipped: &mut Skipped,
    ) -> io::Result<(Self, Vec<std::ffi::OsString>)> {
        let scope = match rules_in(dir)? {
            Some(rules) => self.with_rules(Arc::new(rules)),
            None => self,
        };
        let mut kept = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name();
            match scope.ignores(&name, entry.file_type()?.is_dir()) {
                Some(why) => skipped.note(&shown.join(&name), why),
                None => kept.push(name),
            }
        }
        kept.sort_unstable();
        Ok((scope, kept))
    }
}

/// The rule file of a directory on the disk.
fn rules_in(dir: &Path) -> io::Result<Option<Rules>> {
    let path = dir.join(RULE_FILE);
    match fs::symlink_metadata(&path) {
        Ok(meta) if meta.is_file() => {}
        _ => return Ok(None),
    }
    let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let mut text = Vec::new();
    File::open(&path).and_then(|f| f.take(MAX_RULES).read_to_end(&mut text)).map_err(named)?;
    let (rules, wrong) = Rules::parse(&text);
    for error in wrong {
        tracing::warn!(file = %path.display(), %error, "a rule is passed over");
    }
    Ok(Some(rules))
}

/// Count of the names that were left out, and the first of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Files and directories; a directory counts once, with all that is in it.
    pub count: u64,
    /// How many of them rule files name: asking for hidden files does not publish those.
    pub by_rules: u64,
    /// The first of them, in the order in which they were found.
    pub first: Vec<PathBuf>,
}

impl Skipped {
    pub(super) fn note(&mut self, path: &Path, why: Ignored) {
        self.count += 1;
        self.by_rules += u64::from(why == Ignored::ByRules);
        if self.first.len() < MAX_NAMED {
            self.first.push(path.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    fn scope(rules: &[(&str, &str)], dir: &str) -> IgnoreScope {
        let mut scope = IgnoreScope::top(&IgnorePatterns::default());
        let find = |at: &Path| rules.iter().find(|(dir, _)| Path::new(dir) == at);
        let mut at = PathBuf::new();
        for part in std::iter::once(None).chain(Path::new(dir).components().map(Some)) {
            if let Some(part) = part {
                at.push(part);
                scope = scope.below(part.as_os_str());
            }
            if let Some((_, text)) = find(&at) {
                scope = scope.with_rules(Arc::new(Rules::parse(text.as_bytes()).0));
            }
        }
        scope
    }

    fn ignored(scope: &IgnoreScope, name: &str) -> bool {
        // A trailing slash says that it is a directory.
        scope.ignores(OsStr::new(name.trim_end_matches('/')), name.ends_with('/')).is_some()
    }

    #[test]
    fn hidden_lock_and_swap_files_are_ignored() {
        let top = scope(&[], "");
        let names = [
            ".env",
            ".git/",
            ".~lock.a.odt#",
            ".a.txt.swp",
            "a.swp",
            "a.txt~",
            "~$report.docx",
            "#draft#",
            ".chiralignore",
        ];
        for name in names {
            assert!(ignored(&top, name), "{name}");
            assert!(ignored(&top.below(OsStr::new("sub")), name), "{name} below a directory");
            assert!(!ignored(&top.clone().with_hidden(), name), "{name} where it is wanted");
        }
        for name in ["a", "a.env", "git/", "a~b", "#a", "a#", "~a", "swp", "ä"] {
            assert!(!ignored(&top, name), "{name}");
        }
    }

    #[test]
    fn deeper_rules_decide_before_those_above() {
        let rules = [("", "*.log\n!.keep\n"), ("a", "!x.log\n/only\nsub/deep\n"), ("a/b", "x.log")];
        assert!(ignored(&scope(&rules, ""), "x.log") && !ignored(&scope(&rules, ""), ".keep"));
        assert!(!ignored(&scope(&rules, "a"), "x.log") && ignored(&scope(&rules, "a"), "y.log"));
        assert!(ignored(&scope(&rules, "a/b"), "x.log"));
        assert!(ignored(&scope(&rules, "a"), "only") && !ignored(&scope(&rules, "a/b"), "only"));
        assert!(ignored(&scope(&rules, "a/sub"), "deep"));
        assert!(!ignored(&scope(&rules, "sub"), "deep"));
    }

    #[test]
    fn rules_of_directories_spare_files() {
        let rules = scope(&[("", "build/\n")], "");
        assert!(ignored(&rules, "build/") && !ignored(&rules, "build"));
    }

    #[test]
    fn rule_files_override_the_settings_and_say_so() {
        let rules = scope(&[("", "secret\n!.well-known\n")], "");
        assert_eq!(rules.ignores(OsStr::new("secret"), false), Some(Ignored::ByRules));
        assert_eq!(rules.ignores(OsStr::new(".env"), false), Some(Ignored::BySettings));
        assert_eq!(rules.ignores(OsStr::new(".well-known"), true), None);
        assert!(ignored(&rules.with_hidden(), "secret"), "-H asks for hidden files alone");
    }

    #[test]
    fn wrong_rules_are_named_and_the_others_hold() {
        let (rules, wrong) = Rules::parse(b"\xef\xbb\xbfa\r\n{b\n# c\n\n\xff*\n");
        assert_eq!(wrong.len(), 1);
        assert_eq!(wrong[0].pattern, "{b");
        assert_eq!(rules.ignores(Path::new("a"), false), Some(true));
        assert_eq!(rules.ignores(Path::new("c"), false), None);
        let error = IgnorePatterns::new([".*", "{b"]).unwrap_err().to_string();
        assert!(error.starts_with("`{b` is not a pattern of .gitignore: "), "{error}");
    }

    #[test]
    fn places_without_rules_that_name_one_are_alike() {
        let (top, anchored) = (scope(&[], ""), scope(&[("", "a/b")], ""));
        assert!(top.is_alike(&top.below(OsStr::new("a"))));
        assert!(!anchored.is_alike(&anchored.below(OsStr::new("a"))));
        assert!(!top.is_alike(&anchored));
    }

    #[test]
    fn listing_leaves_out_what_is_ignored_and_names_it() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b", "a", ".env", "x.log"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        fs::write(dir.path().join(RULE_FILE), "*.log\n").unwrap();
        let mut skipped = Skipped::default();
        let top = IgnoreScope::top(&IgnorePatterns::default());
        let (_, kept) = top.list(dir.path(), Path::new("d"), &mut skipped).unwrap();
        assert_eq!(kept, ["a", "b"]);
        assert_eq!((skipped.count, skipped.by_rules), (3, 1));
        assert!(skipped.first.contains(&PathBuf::from("d/.env")));
    }
}
