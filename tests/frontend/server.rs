// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices to connect to.

use std::num::NonZeroU32;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use pfn_blk::{MemoryStore, NrPages, Pfn, PfnSpace, Region, StoreSet, Target, table};
use tempfile::TempDir;
use vhost_pmem::{Device, WindowChoice};

use crate::store::{Control, controlled_store};

/// A device served in this process, for as long as the test runs.
pub(crate) struct Server {
    dir: TempDir,
    pub(crate) device: Arc<Device>,
}

impl Server {
    fn new(dir: TempDir, target: Arc<dyn Target>) -> Self {
        Self::serve(dir, device(target))
    }

    fn serve(dir: TempDir, device: Device) -> Self {
        let device = Arc::new(device);
        let server = Self { dir, device: Arc::clone(&device) };
        let listener = UnixListener::bind(server.socket()).unwrap();
        thread::spawn(move || while device.serve_next(listener.try_clone().unwrap()).is_ok() {});
        server
    }

    /// Serves files, each of a size, joined.
    pub(crate) fn files(sizes: &[u64]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut text = String::new();
        let mut start = 0;
        for (index, size) in sizes.iter().enumerate() {
            let path = dir.path().join(index.to_string());
            std::fs::File::create(&path).unwrap().set_len(*size).unwrap();
            let sectors = size / 512;
            text += &format!("{start} {sectors} linear {} 0\n", path.display());
            start += sectors;
        }
        let table = StoreSet::default().open_table(&table::parse(&text).unwrap()).unwrap().table;
        Self::new(dir, Arc::new(table))
    }

    /// Serves a store that the test controls.
    pub(crate) fn controlled(size: u64) -> (Self, Arc<Control>) {
        let control = Arc::new(Control::default());
        let store = controlled_store(size, Arc::clone(&control));
        let pagemap = PfnSpace::new().add(store).unwrap();
        (Self::new(tempfile::tempdir().unwrap(), pagemap), control)
    }

    /// The same, synced at most so often a second.
    pub(crate) fn limited(size: u64, per_second: u32) -> (Self, Arc<Control>) {
        let control = Arc::new(Control::default());
        let store = controlled_store(size, Arc::clone(&control));
        let pagemap = PfnSpace::new().add(store).unwrap();
        let device = device(pagemap).with_limit(NonZeroU32::new(per_second).unwrap());
        (Self::serve(tempfile::tempdir().unwrap(), device), control)
    }

    /// Serves memory, and returns what disables it: its space and a pfn.
    pub(crate) fn disposable(size: u64) -> (Self, PfnSpace, Pfn) {
        Self::disposable_polling(size, Duration::ZERO)
    }

    /// The same, of a device that looks for requests before it sleeps.
    pub(crate) fn disposable_polling(size: u64, most: Duration) -> (Self, PfnSpace, Pfn) {
        let store = MemoryStore::new("disposable", NrPages::try_from_bytes(size).unwrap()).unwrap();
        let mut space = PfnSpace::new();
        let pagemap = space.add(Box::new(store)).unwrap();
        let pfn = pagemap.pfns().start();
        (Self::serve(tempfile::tempdir().unwrap(), device(pagemap).with_polling(most)), space, pfn)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// The bytes of a file that is served.
    pub(crate) fn file(&self, index: usize) -> Vec<u8> {
        std::fs::read(Path::new(self.dir.path()).join(index.to_string())).unwrap()
    }
}

fn device(target: Arc<dyn Target>) -> Device {
    Device::try_new(Region::try_new(target).unwrap(), WindowChoice::Auto).unwrap()
}
