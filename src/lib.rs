#![doc = include_str!("ARCHITECTURE.md")]

pub mod config;
pub mod content;
pub mod control;
pub mod download;
pub mod fs;
pub mod gateway;
pub mod net;
pub mod node;
pub mod publish;
pub mod sources;
pub mod store;
pub mod sys;
pub mod tasks;
pub mod torrent;
pub mod waits;
