// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where metrics are to be had.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A Unix socket, or a port that only this host reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// Text that is no such place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum InvalidAddress {
    Form,
    NotLoopback(SocketAddr),
}

impl fmt::Display for InvalidAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Form => {
                f.write_str("a place for metrics is unix:PATH, 127.0.0.1:PORT or [::1]:PORT")
            }
            Self::NotLoopback(address) => write!(
                f,
                "{address} can be reached from other hosts, and nobody who asks for metrics is \
                 authenticated; use 127.0.0.1:PORT, [::1]:PORT or unix:PATH, and a proxy that knows \
                 who may ask"
            ),
        }
    }
}

impl std::error::Error for InvalidAddress {}

impl FromStr for Address {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        match text.strip_prefix("unix:") {
            Some("") => Err(InvalidAddress::Form),
            Some(path) => Ok(Self::Unix(path.into())),
            None => match text.parse::<SocketAddr>() {
                Ok(address) if address.ip().is_loopback() => Ok(Self::Tcp(address)),
                Ok(address) => Err(InvalidAddress::NotLoopback(address)),
                Err(_) => Err(InvalidAddress::Form),
            },
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_a_path_or_a_port_of_this_host_alone() {
        for text in
            ["unix:/run/metrics", "unix:metrics", "127.0.0.1:9100", "127.1.2.3:1", "[::1]:2"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["0.0.0.0:9100", "[::]:9100", "192.0.2.1:80", "[::ffff:127.0.0.1]:80"] {
            let refused = text.parse::<Address>();
            assert!(matches!(refused, Err(InvalidAddress::NotLoopback(_))), "{text}");
        }
        for text in ["", "unix:", "9100", ":9100", "localhost:9100", "127.0.0.1", "127.0.0.1:99999"]
        {
            assert_eq!(text.parse::<Address>(), Err(InvalidAddress::Form), "{text}");
        }
    }
}
