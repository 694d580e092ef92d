// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that come and go while the guest runs.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};
use serde_json::{Value, json};

use crate::builder::{VmBuilder, escaped};
use crate::patience::patience;
use crate::vm::Vm;

/// How long a guest may take to let a device go.
const PATIENCE: Duration = Duration::from_secs(60);

impl VmBuilder<'_> {
    /// Attaches the vhost-user backend that listens on `socket` as a pmem device that
    /// [`Vm::unplug`] takes as `id`, on the machine `pc`: on `q35` the guest's kernel finds no room
    /// for such a device behind a port that takes plugs.
    #[must_use]
    pub fn pluggable_vhost_user_pmem(self, id: &str, socket: impl AsRef<Path>) -> Self {
        let path = escaped(socket.as_ref());
        let chardev = format!("socket,id={id}-chardev,path={}", path.to_string_lossy());
        let device = format!(
            "vhost-user-test-device-pci,virtio-id=27,num_vqs=1,config_size=16,chardev={id}-chardev,id={id}"
        );
        // The last machine named is the one.
        self.qemu_args(["-M", "pc", "-chardev", &chardev, "-device", &device])
    }
}

impl Vm {
    /// Asks the guest for the device `id`, and waits until QEMU has taken it apart. Its character
    /// device stays.
    ///
    /// # Errors
    ///
    /// When QEMU refuses, or the guest doesn't let it go.
    pub fn unplug(&self, id: &str) -> Result<()> {
        self.qmp("device_del", &json!({ "id": id }))?;
        let deadline = Instant::now() + patience(PATIENCE);
        while self.has_device(id)? {
            ensure!(Instant::now() < deadline, "the guest doesn't let {id} go");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn has_device(&self, id: &str) -> Result<bool> {
        let devices = self.qmp("qom-list", &json!({ "path": "/machine/peripheral" }))?;
        let is_it = |device: &Value| device["name"] == id;
        Ok(devices.as_array().is_some_and(|devices| devices.iter().any(is_it)))
    }

    /// Removes the character device of what was the device `id`, of which QEMU may hold a part for a
    /// moment after it is gone.
    ///
    /// # Errors
    ///
    /// When QEMU refuses, as where the device is there still.
    pub fn remove_chardev(&self, id: &str) -> Result<()> {
        let chardev = json!({ "id": format!("{id}-chardev") });
        let deadline = Instant::now() + patience(PATIENCE);
        loop {
            match self.qmp("chardev-remove", &chardev) {
                Err(error) if is_busy(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                removed => return removed.map(drop),
            }
        }
    }

    /// Adds a character device for [`Vm::plug_vhost_user_pmem`], connected to `socket`.
    ///
    /// # Errors
    ///
    /// When QEMU refuses, as where nobody listens.
    pub fn add_chardev(&self, id: &str, socket: &Path) -> Result<()> {
        let address = json!({ "type": "unix", "data": { "path": socket } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        let chardev = json!({ "id": format!("{id}-chardev"), "backend": backend });
        self.qmp("chardev-add", &chardev).map(drop)
    }

    /// Plugs a pmem device in, as `id`.
    ///
    /// # Errors
    ///
    /// When QEMU refuses.
    pub fn plug_vhost_user_pmem(&self, id: &str) -> Result<()> {
        let device = json!({
            "driver": "vhost-user-test-device-pci", "virtio-id": 27, "num_vqs": 1,
            "config_size": 16, "chardev": format!("{id}-chardev"), "id": id,
        });
        self.qmp("device_add", &device).map(drop)
    }
}

fn is_busy(error: &Error) -> bool {
    error.to_string().contains("is busy")
}
