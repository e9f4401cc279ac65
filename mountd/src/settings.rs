//! Settings of this run: file, environment, flags.

use std::{env, ffi::OsString, path::PathBuf};

use anyhow::Context;
use chiral::config::{ConfigError, Layers, Settings, default_file};

use crate::{
    cli::{Global, MountArgs},
    printable::printable_name,
};

/// Prefix of the environment variables of this program.
const OURS: &str = "CHIRAL_";

/// The variable of the data folder.
const DATA_DIR: &str = "CHIRAL_DATA_DIR";

/// Settings of a command that has no flags of its own for them.
pub(crate) fn load(global: &Global) -> Result<Settings, ConfigError> {
    layers(global)?.finish().with_data_dir()
}

/// The same of a command that touches no data folder: there need be none.
pub(crate) fn load_without_data_dir(global: &Global) -> Result<Settings, ConfigError> {
    Ok(layers(global)?.finish())
}

/// Settings of a daemon.
pub(crate) fn load_for_mount(global: &Global, args: &MountArgs) -> anyhow::Result<Settings> {
    let mut layers = layers(global)?;
    for (flag, key, given) in [
        ("--private", "network.private", args.private),
        ("--offline", "network.offline", args.offline),
        ("--allow-other", "mount.allow_other", args.allow_other),
        ("--read-only", "upload.read_only", args.read_only),
    ] {
        if given {
            layers = layers.set(flag, key, &["true".to_owned()])?;
        }
    }
    for (flag, key, values) in [
        ("--listen", "network.listen", &args.listen),
        ("--peer", "network.peers", &args.peer),
        ("--gateway", "http.gateways", &args.gateway),
    ] {
        if !values.is_empty() {
            layers = layers.set(flag, key, values)?;
        }
    }
    if args.no_gateway {
        layers = layers.set("--no-gateway", "gateway.enabled", &["false".to_owned()])?;
    }
    if let Some(address) = &args.gateway_listen {
        let address = std::slice::from_ref(address);
        layers = layers.set("--gateway-listen", "gateway.listen", address)?;
        layers = layers.set("--gateway-listen", "gateway.enabled", &["true".to_owned()])?;
    }
    let mut settings = layers.finish().with_data_dir()?;
    settings.data_dir = std::path::absolute(&settings.data_dir).context("the data folder")?;
    Ok(settings)
}

fn layers(global: &Global) -> Result<Layers, ConfigError> {
    let mut layers = Layers::new()?;
    let usual = || default_file().filter(|file| file.exists());
    // A variable that is set to nothing names no file.
    let named = global.config.clone().filter(|file| !file.as_os_str().is_empty());
    if let Some(file) = named.or_else(usual) {
        layers = layers.file(&file)?;
    }
    layers = layers.environment(texts(env::vars_os())?)?;
    // Its path need not be text.
    let dir = global.data_dir.clone().or_else(|| env::var_os(DATA_DIR).map(PathBuf::from));
    Ok(match dir {
        Some(dir) => layers.data_dir(&dir),
        None => layers,
    })
}

/// Variables with their values. One of ours whose value is no text is refused, since it would count as not set.
fn texts(
    variables: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut texts = Vec::new();
    for (name, value) in variables {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => texts.push((name, value)),
            Err(value) if name.starts_with(OURS) && name != DATA_DIR => {
                let message = format!("{} is not UTF-8", printable_name(&value));
                return Err(ConfigError::Value { origin: name, message });
            }
            Err(_) => {}
        }
    }
    Ok(texts)
}
