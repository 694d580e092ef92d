// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is served, and what is known of each file that it is made of.

use std::cmp::Ordering;
use std::ffi::OsString;
use std::fs;

use crate::model::{Content, PAGES};
use crate::record::PAGE;
use crate::world::{BYTES, World};

const SECTORS: usize = BYTES / 512;
/// A header, and a map of all regions.
const LOG_BYTES: usize = 16 * PAGE;
/// Sectors of a mirror's region.
const REGION: usize = 64;
/// Bytes of a chunk.
pub(crate) const CHUNK: usize = 4 * PAGE;

/// Layers, the lowest first, over what stands on disks.
#[derive(Debug, Clone)]
pub(crate) struct Stack {
    pub(crate) bottom: Bottom,
    pub(crate) layers: Vec<Layer>,
}

/// A file, or the legs of a mirror.
#[derive(Debug, Clone)]
pub(crate) struct Bottom {
    pub(crate) legs: Vec<Leg>,
    pub(crate) log: Log,
    /// What those of its legs hold that are current.
    pub(crate) content: Content,
    /// The last epoch: it was written, by others than in the one before.
    epoch: u32,
    /// The COW store that its files say is over them, if it is none of the layers.
    pub(crate) strange_mark: Option<String>,
    /// Whether an operator has accepted it beneath the layers.
    pub(crate) is_mark_accepted: bool,
    /// Whether the log is another mirror's.
    pub(crate) is_log_strange: bool,
    /// Whether a power cut may have left some legs with newer labels than others.
    pub(crate) is_half_told: bool,
    /// Whether it is a copy that was put back; and whether its mark is another file's.
    pub(crate) is_restored: bool,
    pub(crate) is_moved: bool,
    /// The longest history that any leg has had.
    pub(crate) newest: History,
    /// Whether they don't say that there are layers.
    pub(crate) is_unmarked: bool,
}

#[derive(Debug, Clone)]
pub(crate) struct Leg {
    pub(crate) name: String,
    pub(crate) is: State,
    pub(crate) history: History,
    /// Whether it is a copy of another leg, with all that says which one that is.
    pub(crate) is_copy: bool,
}

/// The epochs in which a leg was flushed, and whether something was written in each.
pub(crate) type History = Vec<(u32, bool)>;

/// What a leg holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// All that was written.
    Current,
    /// What the device was when this leg was left behind.
    Behind(Content),
    /// Something between that and all: it is being copied to.
    Mixed,
    /// Nothing: it is a new file.
    Blank,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Log {
    /// There is none: it is no mirror.
    None,
    Core,
    Disk,
}

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) cow: String,
    /// What the device holds with this as its uppermost layer.
    pub(crate) content: Content,
    /// If it may be gone: what the device holds without.
    pub(crate) without: Option<Content>,
    /// The history of what all layers stand on, when this one was made.
    pub(crate) over: History,
    /// Whether it was moved away.
    pub(crate) is_lost: bool,
    /// Whether a part of it may be merged.
    pub(crate) is_merging: bool,
    /// Whether something was written to it, and whether that was flushed.
    pub(crate) is_written: bool,
    pub(crate) is_kept: bool,
}

/// What a mirror that is started must do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Serve what this leg holds.
    Leg(usize),
    /// Refuse: these legs went on without each other.
    Split(usize, usize),
    /// Refuse, or serve zeroes: no leg holds anything.
    Nothing,
}

impl Layer {
    /// A new one, over what holds `content` and has that history.
    pub(crate) fn new(cow: String, content: Content, over: History) -> Self {
        let (without, is_lost, is_merging, is_written, is_kept) = Default::default();
        Self { cow, content, without, over, is_lost, is_merging, is_written, is_kept }
    }
}

impl Stack {
    /// One over so many files that hold this write everywhere.
    pub(crate) fn make(world: &World, legs: usize, log: Log, number: u32) -> Self {
        let bytes: Vec<_> = (0..PAGES).flat_map(|page| crate::model::bytes(number, page)).collect();
        let leg = |name: &str| {
            let name = format!("{name}.img");
            world.make(&name, &bytes);
            Leg { name, is: State::Current, history: Vec::new(), is_copy: false }
        };
        let legs = ["a", "b", "c"][..legs].iter().map(|name| leg(name)).collect();
        if log == Log::Disk {
            world.make_blank("log", LOG_BYTES);
        }
        let content = Content::of(number);
        let (strange_mark, newest) = Default::default();
        let (is_mark_accepted, is_log_strange, is_half_told) = Default::default();
        let (is_restored, is_moved, is_unmarked) = Default::default();
        let bottom = Bottom {
            legs,
            log,
            content,
            epoch: 0,
            strange_mark,
            is_mark_accepted,
            is_log_strange,
            is_half_told,
            is_restored,
            is_moved,
            newest,
            is_unmarked,
        };
        Self { bottom, layers: Vec::new() }
    }

    pub(crate) fn is_mirror(&self) -> bool {
        self.bottom.log != Log::None
    }

    /// What the device holds.
    pub(crate) fn content(&mut self) -> &mut Content {
        match self.layers.last_mut() {
            Some(layer) => &mut layer.content,
            None => &mut self.bottom.content,
        }
    }

    /// The last layer is gone; what the device holds now is this.
    pub(crate) fn pop(&mut self, content: Content) {
        let gone = self.layers.pop().expect("a layer");
        if let Some(below) = self.layers.last_mut() {
            below.is_written |= gone.is_written;
            below.is_kept |= gone.is_kept;
        }
        *self.content() = content;
    }

    /// What is given to the daemon, with so many layers; without layers, and in a table if `table`.
    pub(crate) fn arguments(&self, world: &World, plan: &Plan) -> Vec<OsString> {
        let mut arguments = self.what(world, plan);
        if plan.accept {
            arguments.push("--accept-base".into());
        }
        arguments
    }

    fn what(&self, world: &World, plan: &Plan) -> Vec<OsString> {
        let layers = &self.layers[..plan.layers];
        if let Some(leg) = plan.alone {
            return vec!["--file".into(), world.path(&self.bottom.legs[leg].name).into()];
        }
        if !self.is_mirror() && layers.len() < 2 && !plan.table {
            let mut arguments = vec!["--file".into(), world.path(&self.bottom.legs[0].name).into()];
            if let Some(layer) = layers.first() {
                arguments.extend(["--overlay".into(), world.path(&layer.cow).into()]);
            }
            return arguments;
        }
        let mut lines = vec![self.bottom_line(world, plan)];
        for (index, layer) in layers.iter().enumerate() {
            lines[index].insert_str(0, &format!("s{index}: "));
            let cow = world.shown(&layer.cow);
            lines.push(format!("0 {SECTORS} snapshot s{index} {cow} P {}", CHUNK / 512));
        }
        let path = world.medium("table");
        fs::write(&path, lines.join("\n") + "\n").unwrap();
        vec!["--table".into(), path.into()]
    }

    fn bottom_line(&self, world: &World, plan: &Plan) -> String {
        let shown = |leg: &usize| format!("{} 0", world.shown(&self.bottom.legs[*leg].name));
        let legs: Vec<_> = plan.legs.iter().map(shown).collect();
        let (count, legs) = (legs.len(), legs.join(" "));
        let (more, sync) = if plan.sync { (1, "sync ") } else { (0, "") };
        match self.bottom.log {
            Log::None => format!("0 {SECTORS} linear {legs}"),
            Log::Core => {
                format!("0 {SECTORS} mirror core {} {REGION} {sync}{count} {legs}", 1 + more)
            }
            Log::Disk => {
                let log = world.shown("log");
                format!("0 {SECTORS} mirror disk {} {log} {REGION} {sync}{count} {legs}", 2 + more)
            }
        }
    }

    /// A log that knows nothing.
    pub(crate) fn lose_log(world: &World) {
        world.remove("log");
        world.make_blank("log", LOG_BYTES);
    }
}

impl Bottom {
    /// It is written, by the legs that are current.
    pub(crate) fn written(&mut self) {
        self.began(true);
    }

    /// An epoch begins, in which it is written or isn't.
    pub(crate) fn began(&mut self, is_written: bool) {
        self.epoch += 1;
        for leg in self.legs.iter_mut().filter(|leg| leg.is == State::Current) {
            leg.history.push((self.epoch, is_written));
        }
        self.newest = self.history();
    }

    /// The same, for all legs but one.
    pub(crate) fn began_without(&mut self, leg: usize) {
        self.epoch += 1;
        for (index, other) in self.legs.iter_mut().enumerate() {
            if index != leg && other.is == State::Current {
                other.history.push((self.epoch, false));
                self.newest.clone_from(&other.history);
            }
        }
    }

    /// A leg is a new file, or counts as one.
    pub(crate) fn replaced(&mut self, leg: usize) {
        let leg = &mut self.legs[leg];
        (leg.is, leg.history, leg.is_copy) = (State::Blank, Vec::new(), false);
        // No other one is its copy any more.
        self.legs.iter_mut().for_each(|leg| leg.is_copy = false);
    }

    pub(crate) fn current(&self) -> usize {
        self.legs.iter().filter(|leg| leg.is == State::Current).count()
    }

    /// The history of those of its legs that are current.
    pub(crate) fn history(&self) -> History {
        let current = self.legs.iter().find(|leg| leg.is == State::Current);
        current.map(|leg| leg.history.clone()).unwrap_or_default()
    }

    /// A leg is left behind, when it held this.
    pub(crate) fn leave_behind(&mut self, leg: usize, content: Content) {
        self.legs[leg].is = State::Behind(content);
        self.written();
    }

    /// What is to be served of these legs.
    pub(crate) fn expected(&self, legs: &[usize]) -> Expected {
        let is_source = |leg: &&usize| !matches!(self.legs[**leg].is, State::Mixed | State::Blank);
        let mut sources = legs.iter().filter(is_source);
        let Some(mut newest) = sources.next() else { return Expected::Nothing };
        for leg in sources {
            match compare(&self.legs[*newest].history, &self.legs[*leg].history) {
                Some(Ordering::Less) => newest = leg,
                Some(_) => {}
                None => return Expected::Split(*newest, *leg),
            }
        }
        Expected::Leg(*newest)
    }

    /// It is served as this leg holds it.
    pub(crate) fn believe(&mut self, leg: usize) {
        if let State::Behind(content) = &self.legs[leg].is {
            let content = std::mem::replace(&mut self.content, content.clone());
            let history = self.legs[leg].history.clone();
            for leg in &mut self.legs {
                if leg.is == State::Current {
                    leg.is = State::Behind(content.clone());
                } else if matches!(leg.is, State::Behind(_)) && leg.history == history {
                    leg.is = State::Current;
                }
            }
        }
    }

    /// All have failed, and how they were before is what they are still.
    pub(crate) fn failed_together(&mut self, before: &[Leg]) {
        let mut current: Vec<_> = self
            .legs
            .iter_mut()
            .zip(before)
            .filter_map(|(leg, before)| (before.is == State::Current).then_some(leg))
            .collect();
        let longest = current.iter().map(|leg| &leg.history).max_by_key(|history| history.len());
        let Some(history) = longest.cloned() else { return };
        for leg in &mut current {
            leg.is = State::Current;
            leg.history.clone_from(&history);
        }
    }

    /// The daemon tells how each of these legs is. When something went wrong the device held
    /// `before`.
    pub(crate) fn told(&mut self, legs: &[usize], states: &[String], before: Option<&Content>) {
        let history = self.history();
        for (index, state) in legs.iter().zip(states) {
            let leg = &mut self.legs[*index];
            match (state.as_str(), &leg.is) {
                ("healthy", State::Current) => {}
                ("healthy", _) => {
                    leg.is = State::Current;
                    leg.history.clone_from(&history);
                }
                ("recovering", State::Behind(_) | State::Blank) => leg.is = State::Mixed,
                ("failed" | "missing", State::Current) => {
                    let mut content = self.content.clone();
                    before.into_iter().for_each(|before| content.or(before));
                    content.crashed();
                    self.leave_behind(*index, content);
                }
                _ => {}
            }
        }
    }
}

/// Which history went on, if it isn't both: what went on without a write holds nothing new.
fn compare(one: &History, other: &History) -> Option<Ordering> {
    let went_on =
        |one: &History, other: &History| one.iter().any(|epoch| epoch.1 && !other.contains(epoch));
    match (went_on(one, other), went_on(other, one)) {
        (true, true) => None,
        (true, false) => Some(Ordering::Greater),
        (false, true) => Some(Ordering::Less),
        (false, false) => Some(one.len().cmp(&other.len())),
    }
}

/// Whether what has this history holds what it did when it had that one.
pub(crate) fn is_same(one: &History, other: &History) -> bool {
    let written = |history: &History| -> Vec<u32> {
        history.iter().filter(|(_, is_written)| *is_written).map(|(epoch, _)| *epoch).collect()
    };
    written(one) == written(other)
}

/// What is given to the daemon.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// Of the mirror, in the table's order.
    pub(crate) legs: Vec<usize>,
    /// How many layers are named.
    pub(crate) layers: usize,
    /// A leg by itself.
    pub(crate) alone: Option<usize>,
    /// Whether it is a table that could be done without.
    pub(crate) table: bool,
    /// Whether the log says `sync`.
    pub(crate) sync: bool,
    /// Whether what has changed beneath the layers is right as it is.
    pub(crate) accept: bool,
}

impl Plan {
    /// All that is known to be there, in order.
    pub(crate) fn of(stack: &Stack) -> Self {
        let legs = (0..stack.bottom.legs.len()).collect();
        let layers = stack.layers.iter().filter(|layer| layer.without.is_none()).count();
        Self { legs, layers, alone: None, table: false, sync: false, accept: false }
    }
}
