// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernel modules and the order to load them in.
//!
//! Debian's kernel packages bring no `modules.dep`: that is made where they are installed. But each
//! module names what it needs in its own `.modinfo` section.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The modules of one kernel release. Names have underscores, as under `/sys/module`.
#[derive(Debug)]
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module as `insmod` takes it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Module {
    pub(crate) name: String,
    pub(crate) object: Vec<u8>,
}

impl Modules {
    /// Reads the lists in `dir`, a `/lib/modules/RELEASE`.
    pub(crate) fn read(dir: &Path) -> Result<Self> {
        let list = |name| {
            fs::read_to_string(dir.join(name)).with_context(|| format!("cannot read {name}"))
        };
        let files = list("modules.order")?
            .lines()
            .map(|line| (module_name(line), dir.join(line)))
            .collect();
        let builtin = list("modules.builtin")?.lines().map(module_name).collect();
        Ok(Self { files, builtin })
    }

    /// Whether there is the module `name`, or it is built in.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.builtin.contains(name) || self.files.contains_key(name)
    }

    /// The modules `wanted` and all they need, each after what it needs; what is built in is left
    /// out. `read` returns the object file of a module, given its path without a compressor's
    /// suffix.
    pub(crate) fn closure(
        &self,
        wanted: &[impl AsRef<str>],
        read: impl Fn(&Path) -> Result<Vec<u8>>,
    ) -> Result<Vec<Module>> {
        let mut ordered = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.visit(&name.as_ref().replace('-', "_"), &read, &mut seen, &mut ordered)?;
        }
        Ok(ordered)
    }

    fn visit(
        &self,
        name: &str,
        read: &impl Fn(&Path) -> Result<Vec<u8>>,
        seen: &mut BTreeSet<String>,
        ordered: &mut Vec<Module>,
    ) -> Result<()> {
        if self.builtin.contains(name) || !seen.insert(name.to_owned()) {
            return Ok(());
        }
        let path =
            self.files.get(name).with_context(|| format!("this kernel has no module {name}"))?;
        let object = read(path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(object.starts_with(b"\x7fELF"), "{} is no ELF file", path.display());
        for needed in modinfo_depends(&object) {
            self.visit(&needed, read, seen, ordered)?;
        }
        ordered.push(Module { name: name.to_owned(), object });
        Ok(())
    }
}

/// `kernel/fs/foo/foo-bar.ko` is the module `foo_bar`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// The names in a module's `depends=` string.
fn modinfo_depends(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"depends=";
    // The strings of `.modinfo` end in a NUL, and the section before it may not.
    let strings = object.split(|&byte| byte == 0);
    let value = strings.filter_map(|string| string.strip_prefix(KEY)).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modules() -> Modules {
        let files = ["libnvdimm", "nd_btt", "nd_pmem", "virtio_pmem", "nd_virtio"];
        Modules {
            files: files.iter().map(|&name| (name.to_owned(), PathBuf::from(name))).collect(),
            builtin: ["dax".to_owned()].into(),
        }
    }

    fn object(path: &Path) -> Result<Vec<u8>> {
        let depends = match path.to_str().unwrap() {
            "nd_pmem" => "libnvdimm,nd-btt,dax",
            "nd_btt" => "libnvdimm",
            "virtio_pmem" => "nd_virtio,libnvdimm",
            "nd_virtio" => "libnvdimm",
            _ => "",
        };
        Ok(format!("\x7fELF\0junk\0license=GPL\0depends={depends}\0name=x\0").into_bytes())
    }

    #[test]
    fn module_name_of_path_has_underscores() {
        assert_eq!(module_name("kernel/arch/x86/crypto/crc32c-intel.ko"), "crc32c_intel");
    }

    #[test]
    fn closure_of_two_modules_is_ordered_and_without_repeats() {
        let closure = modules().closure(&["virtio-pmem", "nd_pmem", "dax"], object).unwrap();
        let names: Vec<_> = closure.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["libnvdimm", "nd_virtio", "virtio_pmem", "nd_btt", "nd_pmem"]);
    }

    #[test]
    fn closure_of_unknown_module_is_refused() {
        let error = modules().closure(&["xfs"], object).unwrap_err();
        assert_eq!(error.to_string(), "this kernel has no module xfs");
    }

    #[test]
    fn modinfo_with_empty_depends_needs_nothing() {
        assert!(modinfo_depends(b"\x7fELF\0depends=\0").is_empty());
    }
}
