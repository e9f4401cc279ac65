//! Settings of this run: file, environment, flags. And the log.

use std::{env, io::IsTerminal, path::Path};

use anyhow::Context;
use chiral::config::{ConfigError, Layers, Settings, default_file};
use tracing_subscriber::EnvFilter;

use crate::{
    cli::{Global, MountArgs},
    exit::Usage,
};

/// What is logged unless somebody asks for more. The libraries named here warn of what a stranger did wrong, of routers
/// that forward nothing, of interfaces without multicast and, every minute, of networks that are not there, none of which
/// is anybody's fault here.
const LOG: &str = "warn,libp2p_autonat=error,libp2p_relay=error,libp2p_dcutr=error,libp2p_upnp=error,libp2p_mdns=off,quinn_udp=error";

/// Starts logging to stderr.
pub(crate) fn start_log(flag: Option<&str>) -> anyhow::Result<()> {
    let environment = env::var("RUST_LOG").ok();
    let text = flag.or(environment.as_deref()).filter(|text| !text.is_empty()).unwrap_or(LOG);
    let filter = EnvFilter::try_new(text)
        .map_err(|error| Usage(format!("`{text}` is not a log filter: {error}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

/// Settings of a command that has no flags of its own for them.
pub(crate) fn load(global: &Global) -> Result<Settings, ConfigError> {
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
    let mut settings = layers.finish();
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
    // Variables that are not UTF-8 are none of ours.
    let variables = env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    layers = layers.environment(variables)?;
    if let Some(dir) = &global.data_dir {
        layers = layers.set("--data-dir", "data_dir", &[text(dir)?])?;
    }
    Ok(layers)
}

fn text(path: &Path) -> Result<String, ConfigError> {
    path.to_str().map(ToOwned::to_owned).ok_or_else(|| ConfigError::Value {
        origin: "--data-dir".to_owned(),
        message: format!("{} is not UTF-8", path.display()),
    })
}
