//! Which names in `Host` lead here.

use std::{collections::HashSet, net::IpAddr};

/// The names that a request may come for.
#[derive(Clone, Debug)]
pub(super) struct Hosts {
    names: HashSet<String>,
    /// Whether addresses other than those of the loopback are meant for us.
    is_public: bool,
}

impl Hosts {
    /// `localhost`, addresses, and `names`. `listen` is the address that is listened on.
    pub(super) fn new(listen: IpAddr, names: &[String]) -> Self {
        let own = ["localhost".to_owned()];
        let names = names.iter().chain(&own).map(|name| normal(name)).collect();
        Self { names, is_public: !listen.is_loopback() }
    }

    /// Whether the value of a `Host` header, with or without a port, is one of them.
    pub(super) fn has(&self, host: &str) -> bool {
        let Some(name) = without_port(host) else { return false };
        let address = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        match address.unwrap_or(name).parse::<IpAddr>() {
            // No name was resolved, so none can have been made to lead here.
            Ok(address) => self.is_public || address.is_loopback(),
            Err(_) => self.names.contains(&normal(name)),
        }
    }
}

/// Names are the same in both cases, and with the dot that makes them absolute.
fn normal(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn without_port(host: &str) -> Option<&str> {
    let end = host.rfind(']').map_or(0, |at| at + 1);
    match host[end..].find(':').map(|at| at + end) {
        None => Some(host),
        Some(colon) => {
            host[colon + 1..].bytes().all(|b| b.is_ascii_digit()).then(|| &host[..colon])
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn names_that_somebody_else_made_lead_here_are_refused() {
        let own = Hosts::new("127.0.0.1".parse().unwrap(), &["Files.example".to_owned()]);
        for host in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:80",
            "[::1]",
            "files.example:443",
        ] {
            assert!(own.has(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "localhost:80@evil.example",
            "192.168.1.5",
            "[::2]",
            "localhost:x",
        ] {
            assert!(!own.has(host), "{host}");
        }
        let public = Hosts::new("0.0.0.0".parse().unwrap(), &[]);
        assert!(public.has("192.168.1.5:80") && !public.has("evil.example"));
    }
}
