// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From the command line to a region.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Chain, Context, anyhow, bail};
use pfn_blk::table::{
    self, Line, OpenMirror, OpenTable, OpenTableError, OpenTableErrorKind, Position,
};
use pfn_blk::{
    Access, FileStore, InvalidPages, InvalidSnapshot, InvalidStore, NrPages, Pagemap, Region,
    Sizing, Snapshot, Store, StoreSet, Target, marked_stores,
};
use tracing::{info, warn};
use vhost_pmem::{Device, InvalidWindow, LayerError, Layered, Publish, Window, check_size};

use crate::chain;
use crate::cli::{BackingArgs, WindowArg};
use crate::image;
use crate::marks::{self, Changes};
use crate::overlay::{self, HINT_BASE, hint_overlay, origins};
use crate::size::ByteSize;
use crate::user::User;

/// What is to be served.
pub(crate) struct Backing {
    pub(crate) region: Region,
    pub(crate) stores: Vec<Arc<Pagemap>>,
    /// The targets that have something to tell, by the place of their lines.
    pub(crate) mirrors: Vec<OpenMirror>,
    pub(crate) snapshots: Vec<(Position, Arc<Snapshot>)>,
    /// What no table has.
    pub(crate) overlay: Option<Arc<Snapshot>>,
    /// The overlays that a process before has put over all that.
    pub(crate) cows: Vec<PathBuf>,
}

/// Whether what the user asked for may take a served window.
pub(crate) fn may_be_served(args: &BackingArgs) -> bool {
    if args.publish.is_some() {
        return true;
    }
    let is_marked = |path: &PathBuf| marks::of(path).is_ok_and(|mark| mark.is_some());
    let needs = args.table.is_some()
        || args.overlay.is_some()
        || args.read_only
        || args.file.as_ref().is_some_and(is_marked);
    match args.window {
        WindowArg::Auto => needs,
        WindowArg::Direct | WindowArg::Gpa(_) => false,
        WindowArg::Served => true,
    }
}

/// Opens what the user asked to serve.
pub(crate) fn open(args: &BackingArgs) -> anyhow::Result<Backing> {
    let backing = match (&args.file, &args.table) {
        (Some(path), _) => open_alone(path, args)?,
        (None, Some(path)) => {
            open_table(path, StoreSet::with_origins(origins(args.accept_base)))?.backing
        }
        (None, None) => return Err(anyhow!("nothing to serve: give --file or --table")),
    };
    if args.table.is_some() {
        warn_of_images(&backing.stores);
    }
    leave_mirrors(&backing.stores)?;
    if args.prefetch {
        backing.stores.iter().try_for_each(|pagemap| prefetch(pagemap.store()))?;
    }
    Ok(backing)
}

/// Notes on mirrors' legs among `stores` that they are written without the mirror.
pub(crate) fn leave_mirrors(stores: &[Arc<Pagemap>]) -> anyhow::Result<()> {
    pfn_blk::leave_mirrors(stores).map_err(|error| {
        anyhow!("{:#}; serve the mirror, or run vhost-pmemd unmark on it", anyhow!(error))
    })
}

/// Marks the legs that were away when a snapshot was taken whose changes are served.
pub(crate) fn mark_legs(mirrors: &[OpenMirror]) -> anyhow::Result<()> {
    let mark = |open: &OpenMirror| {
        let context = || format!("{}: cannot mark a leg as a snapshot's origin", open.position);
        open.mirror.mark_legs().with_context(context)
    };
    mirrors.iter().try_for_each(mark)
}

fn prefetch(store: &dyn Store) -> anyhow::Result<()> {
    let began = Instant::now();
    let name = store.name();
    pfn_blk::prefetch(store).with_context(|| format!("cannot prefetch {name}"))?;
    info!(store = name, took = ?began.elapsed(), "read into the page cache");
    Ok(())
}

/// A file that is no table's.
fn open_alone(path: &Path, args: &BackingArgs) -> anyhow::Result<Backing> {
    image::refuse(path)?;
    let context = || format!("cannot serve {}", path.display());
    let mut set = StoreSet::default().taking_marked();
    let origins = origins(args.accept_base);
    let overlay = args.overlay.as_ref();
    let overlay = overlay.map(|overlay| {
        let asked = overlay::Asked { base: path, overlay, size: args.size, origins };
        asked.open(&mut set)
    });
    let overlay = overlay.transpose().with_context(context)?;
    let target: Arc<dyn Target> = match &overlay {
        Some(snapshot) => Arc::clone(snapshot) as _,
        None if args.read_only => {
            marks::check_not_merging(path).with_context(context)?;
            set.open(path, Access::ReadOnly).with_context(context)?
        }
        None if marks::of(path).with_context(context)?.is_some() => {
            open_marked(&mut set, path, args).with_context(context)?
        }
        None => set.add(open_file(path, args)?).with_context(context)?,
    };
    let stores = set.stores().map(Arc::clone).collect();
    let cows = match args.read_only {
        // The file alone, as its snapshot has it.
        true => Vec::new(),
        false => chain::find(&marked_stores(&*target)?, Some(path)).with_context(context)?,
    };
    let region = Region::try_new(target)?;
    Ok(Backing { region, stores, mirrors: Vec::new(), snapshots: Vec::new(), overlay, cows })
}

/// A file that a snapshot was taken of, to be served with what was written since.
fn open_marked(
    set: &mut StoreSet,
    path: &Path,
    args: &BackingArgs,
) -> anyhow::Result<Arc<Pagemap>> {
    let pagemap = set.open(path, Access::ReadWrite)?;
    let is = pagemap.nr_pages().bytes();
    match args.size {
        Some(size) if size.0 != is => bail!(
            "a snapshot was taken of it, so it can't be given another size than {is} bytes; merge first"
        ),
        _ => Ok(pagemap),
    }
}

/// Adds to a refusal of a table what the user can do about its snapshots.
fn explain_table(error: &OpenTableError) -> anyhow::Error {
    let hint = match &error.kind {
        OpenTableErrorKind::Snapshot(error) => hint_overlay(error),
        _ => String::new(),
    };
    anyhow!("{error}{hint}")
}

fn open_file(path: &Path, args: &BackingArgs) -> anyhow::Result<FileStore> {
    let shown = path.display();
    let Some(size) = args.size else {
        return FileStore::open(path, Access::ReadWrite).map_err(|error| {
            let hint = match &error {
                InvalidStore::Missing => "; give --size SIZE to create it".to_owned(),
                InvalidStore::Size(InvalidPages::Empty) => {
                    "; give --size SIZE to grow it".to_owned()
                }
                InvalidStore::Size(_) => "; give --size SIZE to grow it to whole pages".to_owned(),
                InvalidStore::Origin(mark) => Changes::of(mark).advice(path),
                _ => String::new(),
            };
            anyhow!("{:#}{hint}", anyhow!(error).context(format!("cannot serve {shown}")))
        });
    };
    let pages = NrPages::try_from_bytes(size.0).with_context(|| format!("--size {}", size.0))?;
    // Before the file is made or grown for nothing.
    let is_bar = matches!(args.window, WindowArg::Auto | WindowArg::Direct);
    if is_bar && args.publish.is_none() {
        check_size(pages).map_err(|error| explain_size(size, &error))?;
    }
    let (store, sizing) =
        FileStore::open_sized(path, pages).with_context(|| format!("cannot serve {shown}"))?;
    match sizing {
        Sizing::Created => info!(path = %shown, %size, "created, sparse"),
        Sizing::Grown(from) => {
            info!(path = %shown, from = %ByteSize(from), to = %size, "grown, sparse");
        }
        Sizing::Kept => {}
    }
    Ok(store)
}

/// Adds to a refusal of a size what the user can do about it.
fn explain_size(size: ByteSize, error: &InvalidWindow) -> anyhow::Error {
    let hint = match error {
        InvalidWindow::NotPowerOfTwo { next, .. } => format!(
            "; give --size {next}, or --window served, which shows any size, with zeroes after its end"
        ),
        _ => String::new(),
    };
    anyhow!("--size {}: {error}{hint}", size.0)
}

/// Warns of files in a table that look like disk images: the guest sees the image's own bytes.
fn warn_of_images(stores: &[Arc<Pagemap>]) {
    for store in stores.iter().map(|pagemap| pagemap.store()) {
        if let Some(format) = image::of(store) {
            warn!(
                store = store.name(),
                format, "looks like a disk image; its bytes are served as they are"
            );
        }
    }
}

/// A table that was opened.
pub(crate) struct OpenedTable {
    pub(crate) lines: Vec<Line>,
    pub(crate) backing: Backing,
}

/// Opens a table and all that it names, in `set`.
pub(crate) fn open_table(path: &Path, set: StoreSet) -> anyhow::Result<OpenedTable> {
    let open = || {
        let lines = table::parse(&std::fs::read_to_string(path)?)?;
        let mut set = set.taking_marked();
        let OpenTable { table, mirrors, snapshots } =
            set.open_table(&lines).map_err(|error| explain_table(&error))?;
        let cows = chain::find(&marked_stores(&table)?, None)?;
        let region = Region::try_new(Arc::new(table))?;
        let stores = set.stores().map(Arc::clone).collect();
        let backing = Backing { region, stores, mirrors, snapshots, overlay: None, cows };
        anyhow::Ok(OpenedTable { lines, backing })
    };
    open().with_context(|| format!("table {}", path.display()))
}

/// Checks that what is asked for fits together, before anything is made.
pub(crate) fn check(args: &BackingArgs, has_socket: bool) -> anyhow::Result<()> {
    match (&args.publish, args.window) {
        (_, WindowArg::Gpa(_)) if !has_socket => bail!(
            "--window gpa=ADDR takes a socket, over which the guest's flushes come: give --socket-path"
        ),
        (Some(_), WindowArg::Direct) => {
            bail!(
                "--publish shows a served window, and never a direct one: give --window served, or none"
            )
        }
        _ => Ok(()),
    }
}

/// The device that shows `content` as asked for, of a process that may become `user`.
pub(crate) fn device(
    content: Layered,
    args: &BackingArgs,
    user: Option<User>,
) -> anyhow::Result<Device> {
    let publish = |path| Publish { path, owner: user.map(|user| user.user) };
    let device = match (args.publish.as_deref().map(publish), args.window) {
        (Some(publish), WindowArg::Gpa(start)) => {
            Device::try_new_published(content, publish, Some(start))
        }
        (Some(publish), _) => Device::try_new_published(content, publish, None),
        (None, choice) => Device::try_new(content, choice.into()),
    };
    device.map_err(|error| explain(error, args.file.as_deref()))
}

/// The window of a region of `size`, in words.
pub(crate) fn describe(window: &Window, size: NrPages) -> String {
    match window {
        Window::Direct { mappings } => format!("direct, in {mappings} mappings"),
        Window::Served { because, size: shown } => {
            let because = because.as_ref().map(|error| {
                let causes: Vec<_> = Chain::new(error).map(ToString::to_string).collect();
                format!(", because {}", causes.join(": "))
            });
            let tail = (*shown > size)
                .then(|| format!("; behind its end are zeroes, up to {}", ByteSize(shown.bytes())));
            format!("served{}{}", because.unwrap_or_default(), tail.unwrap_or_default())
        }
    }
}

/// Warns of a window that is larger than what it shows: a guest that grows its filesystem, as images
/// for clouds have it done when they are first started, writes there.
pub(crate) fn warn_of_tail(window: &Window, region: NrPages, args: &BackingArgs) {
    let Window::Served { size: shown, .. } = window else { return };
    if *shown <= region || args.read_only {
        return;
    }
    let next = ByteSize(shown.bytes());
    let hint = match (&args.file, &args.overlay) {
        (Some(_), Some(_)) => format!("give --size {} to keep what is written there", next.0),
        (Some(_), None) => format!("give --size {} to grow the file, sparsely", next.0),
        (None, _) => format!("let the table end at sector {}", next.0 / 512),
    };
    let size = ByteSize(region.bytes());
    warn!(%size, window = %next, hint, "what a guest writes after the end fails its flushes");
}

/// Linux makes pages of memory in sections of this size (`SUBSECTION_SIZE`), and no block device of less.
const LINUX_MIN: u64 = 2 << 20;

/// Warns of a window that is too small for Linux.
pub(crate) fn warn_of_size(window: &Window, region: NrPages) {
    let shown = match window {
        Window::Direct { .. } => region,
        Window::Served { size, .. } => *size,
    };
    if shown.bytes() < LINUX_MIN {
        let window = ByteSize(shown.bytes());
        warn!(%window, "Linux guests have no /dev/pmem0 for less than 2 MiB");
    }
}

/// Returns whether a layer was refused over a changed base.
fn is_base_changed(cause: &(dyn std::error::Error + 'static)) -> bool {
    matches!(cause.downcast_ref(), Some(LayerError::Snapshot(InvalidSnapshot::Base(_))))
}

/// Adds to a refusal what the user can do about it, to the file or else the table.
pub(crate) fn explain(error: InvalidWindow, file: Option<&Path>) -> anyhow::Error {
    let hint = match (&error, file) {
        (InvalidWindow::NotPowerOfTwo { next, .. }, Some(_)) => format!(
            "; give --size {next} to grow the file, sparsely and without touching what is in it, or \
             --window served, which shows zeroes behind its end"
        ),
        (InvalidWindow::NotPowerOfTwo { next, .. }, None) => format!(
            "; let the table end at sector {}, with a further file for what is missing, or give \
             --window served, which shows zeroes behind its end",
            next / 512
        ),
        (InvalidWindow::Scattered { .. }, _) => {
            "; join fewer and larger pieces, or give --window served".to_owned()
        }
        (InvalidWindow::NotMappable(_), _) => {
            "; give --publish PATH, and have the VMM map what is there then".to_owned()
        }
        (
            InvalidWindow::NotDirect(_)
            | InvalidWindow::ReadOnly { .. }
            | InvalidWindow::Layers
            | InvalidWindow::Misaligned { .. },
            _,
        ) => "; give --window served".to_owned(),
        (_, file) if Chain::new(&error).any(is_base_changed) => {
            let or = file.map(|file| {
                let file = file.display();
                format!(
                    "; or, to give up what was written since the snapshot, run \"vhost-pmemd unmark {file}\""
                )
            });
            format!("{HINT_BASE}{}", or.unwrap_or_default())
        }
        _ => String::new(),
    };
    anyhow!("{:#}{hint}", anyhow!(error))
}
