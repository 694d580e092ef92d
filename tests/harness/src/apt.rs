// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Debian packages for a machine that doesn't exist: a private apt root.
//!
//! The root has its own sources, pins and an empty list of installed packages, so that apt resolves
//! every dependency and verifies every package as it would on a fresh machine, without root and
//! without a trace on the host. The host's own `apt.conf.d` still applies: that is where proxies
//! are set.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::progress::Step;
use crate::run;

pub(crate) const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR_VARIABLE: &str = "VHOST_PMEM_DEBIAN_MIRROR";

/// Trixie's own QEMU is too old for the vhost-user device; its backports' isn't. QEMU's packages
/// and these two firmware packages depend on each other's exact versions.
const PREFERENCES: &str = "\
Package: src:qemu seabios ipxe-qemu
Pin: release n=trixie-backports
Pin-Priority: 900
";

/// An apt root whose package index has been fetched.
pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// The apt root of `suites` in `dir`: as an earlier call left it, or new.
    pub(crate) fn open(dir: &Path, suites: &str) -> Result<Self> {
        let apt = Self { dir: dir.to_owned() };
        let ready = dir.join("ready");
        if ready.exists() {
            return Ok(apt);
        }
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing: install debian-archive-keyring"
        );
        let mirror = mirror()?;
        for sub in ["lists/partial", "archives/partial", "log"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        fs::write(dir.join("status"), "")?;
        fs::write(dir.join("preferences"), PREFERENCES)?;
        fs::write(dir.join("debian.sources"), sources(&mirror, suites))?;
        fs::write(dir.join("apt.conf"), configuration(dir))?;
        let _step = Step::spinner(&format!("fetching the package index of {suites}"));
        apt.get(["update"]).with_context(|| {
            format!("cannot fetch the index of {mirror}: {MIRROR_VARIABLE} may name another mirror")
        })?;
        fs::write(ready, "")?;
        Ok(apt)
    }

    /// The file that says which package comes from which suite.
    pub(crate) fn preferences(&self) -> PathBuf {
        self.dir.join("preferences").canonicalize().unwrap_or_else(|_| self.dir.join("preferences"))
    }

    /// Downloads `packages` and all they depend on.
    pub(crate) fn fetch_closure(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let _step =
            Step::spinner(&format!("downloading {} with dependencies", packages.join(", ")));
        self.clear_archives()?;
        self.get(["--download-only", "install"].iter().chain(packages))?;
        self.archives()
    }

    /// Downloads `packages` alone.
    pub(crate) fn fetch(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let _step = Step::spinner(&format!("downloading {}", packages.join(", ")));
        self.clear_archives()?;
        self.get(["download"].iter().chain(packages))?;
        let found = self.archives()?;
        ensure!(found.len() == packages.len(), "apt-get downloaded {found:?} for {packages:?}");
        Ok(found)
    }

    /// The package with a kernel's image that the metapackage `meta` stands for.
    pub(crate) fn resolve(&self, meta: &str) -> Result<String> {
        let listing = run::text(self.command("apt-cache").args(["--important", "depends", meta]))?;
        image_among(&listing).with_context(|| format!("{meta} depends on no image: {listing:?}"))
    }

    fn get<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Result<()> {
        let mut command = self.command("apt-get");
        // `download` puts packages into the working directory.
        command.args(["-q", "-y"]).args(args).current_dir(self.dir.join("archives"));
        run::output(&mut command).map(drop)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        // Read after the host's configuration, unlike $APT_CONFIG, so this one has the last word.
        command.arg("--config-file").arg(self.dir.join("apt.conf")).env("LC_ALL", "C");
        command
    }

    fn archives(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.dir.join("archives"))? {
            let path = entry?.path();
            if path.extension() == Some(OsStr::new("deb")) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    fn clear_archives(&self) -> Result<()> {
        for path in self.archives()? {
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

/// The name and version in the file name of a package.
pub(crate) fn name_and_version(deb: &Path) -> String {
    let stem = deb.file_stem().unwrap_or_default().to_string_lossy().replace("%3a", ":");
    let mut parts = stem.split('_');
    format!("{} {}", parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

fn sources(mirror: &str, suites: &str) -> String {
    // `Targets` keeps out the extra indices that desktop machines configure.
    format!(
        "Types: deb\nURIs: {mirror}\nSuites: {suites}\nComponents: main\nArchitectures: amd64\n\
         Targets: Packages\nSigned-By: {KEYRING}\n"
    )
}

fn configuration(dir: &Path) -> String {
    // Only what names a place is redirected. The host's hooks are cleared: they would act on the
    // host.
    let dir = dir.display();
    format!(
        r#"Dir::State "{dir}";
Dir::State::lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}";
Dir::Cache::archives "{dir}/archives";
Dir::Etc::sourcelist "{dir}/debian.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "{dir}/preferences";
Dir::Etc::preferencesparts "/dev/null";
Dir::Log "{dir}/log";
APT::Architecture "amd64";
#clear APT::Architectures;
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Post-Invoke;
#clear DPkg::Pre-Install-Pkgs;
Acquire::Languages "none";
"#
    )
}

/// The address of the Debian mirror in use.
pub(crate) fn mirror() -> Result<String> {
    if let Ok(mirror) = std::env::var(MIRROR_VARIABLE) {
        return Ok(mirror);
    }
    // Unlike `indextargets`, this knows the sources also before any update.
    let uris = run::text(Command::new("apt-get").args(["update", "--print-uris"]))?;
    match debian_mirror(&uris) {
        Some(mirror) => Ok(mirror.to_owned()),
        None => bail!(
            "the machine's apt sources name no Debian mirror: set {MIRROR_VARIABLE} to one's address"
        ),
    }
}

/// The first archive among these files of archives, one a quoted URI a line, that is Debian's main
/// one; `debian.list` is the mirror list of Debian's cloud images.
fn debian_mirror(uris: &str) -> Option<&str> {
    uris.lines()
        .filter_map(|line| Some(line.strip_prefix('\'')?.split_once("/dists/")?.0))
        .find(|archive| archive.ends_with("/debian") || archive.ends_with("/debian.list"))
}

fn image_among(listing: &str) -> Option<String> {
    let mut packages = listing.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    packages
        .find(|package| package.starts_with("linux-image-"))
        .map(|package| package.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirror_among_other_archives_is_found() {
        let security = "'http://a.example/debian-security/dists/t/InRelease' a 0";
        let main = "'http://a.example/x/debian/dists/t/InRelease' a 0";
        let cloud = "'mirror+file:/etc/apt/mirrors/debian.list/dists/t/InRelease' a 0";
        let found = |lines: &[&str]| debian_mirror(&lines.join("\n")).map(str::to_owned);
        assert_eq!(found(&[security, main]).unwrap(), "http://a.example/x/debian");
        assert_eq!(found(&[cloud]).unwrap(), "mirror+file:/etc/apt/mirrors/debian.list");
        assert_eq!(found(&[security]), None);
    }

    #[test]
    fn image_among_the_dependencies_is_found() {
        let listing = "linux-image-cloud-amd64\n  Depends: linux-base-cloud-amd64\n  \
                       Depends: linux-image-6.12.1-cloud-amd64\n";
        assert_eq!(image_among(listing).as_deref(), Some("linux-image-6.12.1-cloud-amd64"));
        assert_eq!(image_among("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn package_file_name_with_epoch_is_split() {
        let deb = Path::new("/x/qemu-system-x86_1%3a11.1.3+ds-1_amd64.deb");
        assert_eq!(name_and_version(deb), "qemu-system-x86 1:11.1.3+ds-1");
    }
}
