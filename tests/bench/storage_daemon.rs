// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The peer: QEMU's storage daemon, which serves a file as a vhost-user-blk device.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How it opens the file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cache {
    /// Through the host's page cache, as ours does.
    Host,
    /// O_DIRECT, and the kernel's asynchronous I/O.
    None,
}

impl Cache {
    fn options(self) -> &'static str {
        match self {
            Self::Host => "cache.direct=off",
            Self::None => "cache.direct=on,aio=native",
        }
    }
}

/// A running one; dropping it kills it.
pub(crate) struct StorageDaemon {
    child: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl StorageDaemon {
    /// Serves `file`, and waits until frontends may connect.
    pub(crate) fn start(file: &Path, cache: Cache) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("storage-daemon-").tempdir()?;
        let socket = dir.path().join("socket");
        let mut command = guest_harness::host_program("qemu-utils", "qemu-storage-daemon")?;
        command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=f,filename={},{}", file.display(), cache.options()))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=e,node-name=f,addr.type=unix,addr.path={},writable=on",
                socket.display()
            ))
            .stdin(Stdio::null());
        let mut child = command.spawn().context("cannot start qemu-storage-daemon")?;
        let deadline = Instant::now() + Duration::from_secs(20);
        while !socket.exists() {
            ensure!(child.try_wait()?.is_none(), "qemu-storage-daemon has ended");
            ensure!(Instant::now() < deadline, "qemu-storage-daemon makes no socket");
            thread::sleep(Duration::from_millis(10));
        }
        Ok(Self { child, socket, _dir: dir })
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for StorageDaemon {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
