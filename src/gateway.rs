//! The node as an HTTP server: what is here, and what can be fetched, for whoever speaks HTTP.
//!
//! | route | gives |
//! |---|---|
//! | `/ipfs/{cid}[/{path}]` | a file with its type, the `index.html` of a directory, else a listing |
//! | the same with `?format=raw` or `Accept: application/vnd.ipld.raw` | the block |
//! | the same with `?format=car` or `Accept: application/vnd.ipld.car` | an archive (CAR version 1, depth first), of all or some of it |
//! | `/routing/v1/providers/{cid}` | who has it, this node first; with `Accept: application/x-ndjson` as they are found |
//! | `/routing/v1/peers/{peer id}` | where a peer is, if it is connected |
//!
//! The specifications are the path gateway, the trustless gateway and the delegated routing of
//! <https://specs.ipfs.tech>; the tests are named by their statements. What is asked for and not here is fetched, as by
//! any reader of the mount, unless the node is told to give only what it has.
//!
//! # Who may ask
//! A page in a browser that has its own name lead to this machine would be of the same origin as the gateway. So a name
//! in `Host` has to be one that is known to lead here; addresses are not subject to that.
//!
//! # Bounds
//! Bodies are streams: a request holds one read of a file (1 MiB) and what the connection has buffered. Connections and
//! requests are counted, requests beyond the limit wait for a while and are then refused. Who does not read is cut off.

mod body;
mod content;
mod etag;
mod format;
mod headers;
mod host;
mod kind;
mod listing;
mod refusal;
mod resolver;
mod routes;
mod routing;
mod server;
mod target;
#[cfg(test)]
mod tests;

pub use self::server::{Gateway, GatewayError, GatewayOptions};
