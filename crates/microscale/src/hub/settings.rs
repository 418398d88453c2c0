//! Where to fetch from, where to keep, and as whom.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use super::HubError;

/// How to reach the hub, and where its files are kept.
#[derive(Clone)]
pub struct Settings {
    /// The hub's address without a slash at the end; `None` is the public hub.
    pub endpoint: Option<String>,
    /// The folder that holds `models--owner--name` and `datasets--owner--name`.
    pub cache: PathBuf,
    /// The access token that gated and private repositories ask for.
    pub token: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
    /// How often a file's download is taken up again after the connection broke, before giving up.
    pub retries: u32,
}

impl Settings {
    /// The settings that the environment asks for.
    ///
    /// # Errors
    /// Neither a variable nor a home folder says where the cache is.
    pub fn from_env() -> Result<Settings, HubError> {
        Settings::from_variables(|name| std::env::var_os(name), std::env::home_dir())
    }

    /// The settings from variables, as Python's `huggingface_hub` reads them.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<OsString>,
        home: Option<PathBuf>,
    ) -> Result<Settings, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let text = |name: &str| set(name).and_then(|value| value.into_string().ok()).map(|text| text.trim().to_owned());
        let path = |name: &str| set(name).map(|value| expand(value.into(), home.as_ref()));
        let user_cache = || path("XDG_CACHE_HOME").or_else(|| home.as_ref().map(|home| home.join(".cache")));
        let hf_home = path("HF_HOME").or_else(|| user_cache().map(|folder| folder.join("huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| hf_home.as_ref().map(|folder| folder.join("hub")))
            .ok_or(HubError::NoCache)?;
        let token_file = path("HF_TOKEN_PATH").or_else(|| hf_home.as_ref().map(|folder| folder.join("token")));
        let token = text("HF_TOKEN")
            .or_else(|| text("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| token_file.and_then(|file| std::fs::read_to_string(file).ok()))
            .map(|token| token.split_whitespace().collect::<String>())
            .filter(|token| !token.is_empty());
        let yes = |name: &str| text(name).is_some_and(|value| means_yes(&value));
        Ok(Settings {
            endpoint: text("HF_ENDPOINT")
                .map(|endpoint| endpoint.trim_end_matches('/').to_owned())
                .filter(|endpoint| !endpoint.is_empty()),
            cache,
            token,
            offline: yes("HF_HUB_OFFLINE") || yes("TRANSFORMERS_OFFLINE"),
            retries: 4,
        })
    }
}

/// The token must not reach a log.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .field("retries", &self.retries)
            .finish()
    }
}

/// A path with `~` replaced, which no shell has done where the variable comes from a file.
fn expand(path: PathBuf, home: Option<&PathBuf>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(below), Some(home)) => home.join(below),
        _ => path,
    }
}

fn means_yes(value: &str) -> bool {
    ["1", "on", "yes", "true"].contains(&value.to_ascii_lowercase().as_str())
}
