// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A life: files, the daemon that serves them again and again, and what becomes of both.

use std::ops::Range;

use guest_harness::{Fault, Random, VolatileDisks};

use serde_json::Value;

use crate::model::{Content, Number};
use crate::refusals;
use crate::stack::{Expected, History, Log, Plan, Stack, State, is_same};
use crate::world::{Window, World};

/// How many ways out are followed one after another.
const WAYS_OUT_MAX: usize = 8;

/// An error says how the promise is broken.
pub(crate) type Outcome = Result<(), String>;

/// A disk that doesn't do what it should.
pub(crate) struct Trouble {
    pub(crate) disk: String,
    pub(crate) fault: Fault,
    /// Whether what was written is nowhere else.
    pub(crate) is_fatal: bool,
    pub(crate) before: Content,
}

/// A file that was put aside.
pub(crate) struct Copy {
    pub(crate) content: Content,
    pub(crate) history: History,
    /// The COW store that it is marked with.
    pub(crate) mark: Option<String>,
}

pub(crate) struct Life {
    pub(crate) world: World,
    pub(crate) stack: Stack,
    pub(crate) random: Random,
    /// What has happened, for whoever has to find out why.
    history: Vec<String>,
    /// The number of the last write.
    number: Number,
    /// The number of the last file that was made.
    file: u32,
    pub(crate) window: Option<Window>,
    /// The legs of the mirror that is served, in the table's order.
    legs: Vec<usize>,
    /// Whether the files beneath all layers were written since the daemon started.
    has_written: bool,
    /// Whether a flush failed, and nobody has cleared that.
    pub(crate) has_failed: bool,
    /// What is wrong with a disk, and what the device held when that began.
    pub(crate) trouble: Option<Trouble>,
    /// The layers that can be merged while the daemon serves them.
    pub(crate) live_layers: usize,
    /// Whether a leg was replaced since the daemon started.
    pub(crate) has_replaced: bool,
    /// Whether a mirror's leg is served by itself.
    pub(crate) is_alone: bool,
    /// A copy of the only file, as it was once.
    pub(crate) copy: Option<Copy>,
    /// Whether something may have failed that nobody was told of yet.
    may_have_failed: bool,
    /// Whether legs of the mirror are being compared.
    pub(crate) is_recovering: bool,
    /// Whether what the kernel shows may be what it could not write.
    is_blind: bool,
    /// What the next start of the daemon is given, if that isn't simply all there is.
    pub(crate) plan: Option<Plan>,
    /// Disks that say that they have synced, and don't.
    pub(crate) lying: &'static [&'static str],
}

impl Life {
    /// One that stands on so many legs.
    pub(crate) fn new(legs: usize, log: Log, seed: u64) -> Self {
        let world = World::new();
        let stack = Stack::make(&world, legs, log, 1);
        let mut life = Self {
            world,
            stack,
            random: Random::new(seed),
            history: Vec::new(),
            number: 1,
            file: 0,
            window: None,
            legs: Vec::new(),
            has_written: false,
            has_failed: false,
            trouble: None,
            live_layers: 0,
            has_replaced: false,
            is_alone: false,
            copy: None,
            may_have_failed: false,
            is_recovering: false,
            is_blind: false,
            plan: None,
            lying: &[],
        };
        life.note(format!("{legs} files, log {log:?}"));
        life
    }

    /// One of any kind.
    pub(crate) fn any(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let (legs, log) = match random.below(6) {
            0 | 1 => (1, Log::None),
            kind => {
                let legs = if random.one_in(4) { 3 } else { 2 };
                (legs, if kind % 2 == 0 { Log::Core } else { Log::Disk })
            }
        };
        Self::new(legs, log, random.number())
    }

    pub(crate) fn note(&mut self, what: impl Into<String>) {
        self.history.push(what.into());
    }

    /// What has happened, a line each.
    pub(crate) fn story(&self) -> String {
        self.history.join("\n  ")
    }

    pub(crate) fn is_up(&self) -> bool {
        self.world.is_up()
    }

    pub(crate) fn new_number(&mut self) -> Number {
        self.number += 1;
        self.number
    }

    pub(crate) fn new_cow(&mut self) -> String {
        self.file += 1;
        format!("cow{}", self.file)
    }

    pub(crate) fn new_leg(&mut self) -> String {
        self.file += 1;
        format!("leg{}.img", self.file)
    }

    /// Any index of so many.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.random.below(end as u64)).expect("below a usize")
    }

    // Start and end.

    /// Puts the files on disks whose power can be cut.
    pub(crate) fn power_on(&mut self) {
        if !self.world.is_volatile() {
            let seed = self.random.number();
            if self.world.make_volatile(seed, self.lying) {
                self.note("on volatile disks");
            }
        }
    }

    /// Has the daemon serve, and follows its refusals' ways out until it does; then checks what it
    /// shows.
    pub(crate) fn start(&mut self) -> Outcome {
        let mut plan = self.plan.take().unwrap_or_else(|| self.any_plan());
        for _ in 0..WAYS_OUT_MAX {
            match self.try_start(&plan)? {
                None => return Ok(()),
                Some(refusal) => refusals::follow(self, &mut plan, &refusal)?,
            }
        }
        Err("refusals without an end".to_owned())
    }

    /// All there is, with layers by their names or by the marks.
    pub(crate) fn any_plan(&mut self) -> Plan {
        let mut plan = Plan::of(&self.stack);
        if self.random.one_in(2) {
            plan.layers = plan.layers.min(self.stack.bottom.is_unmarked.into());
        }
        plan
    }

    /// The same, but for the ways out. Returns a refusal.
    pub(crate) fn try_start(&mut self, plan: &Plan) -> Result<Option<String>, String> {
        let arguments = self.stack.arguments(&self.world, plan);
        match self.world.start(arguments) {
            Ok(()) => self.started(plan).map(|()| None),
            Err(refusal) => Ok(Some(refusal)),
        }
    }

    fn started(&mut self, plan: &Plan) -> Outcome {
        self.note(format!("serves {}", self.describe(plan)));
        (self.has_failed, self.may_have_failed) = (false, false);
        (self.is_blind, self.has_written) = (false, false);
        self.legs = plan.alone.map_or_else(|| plan.legs.clone(), |leg| vec![leg]);
        if let Some(why) = self.must_refuse(plan) {
            return Err(format!("serves, though {why}"));
        }
        let served = self.served_layers(plan)?;
        if self.leads_to(plan) == 0 {
            // Nothing can tell any more that there are layers.
            self.stack.layers.clear();
        }
        while let Some(layer) = self.stack.layers.last_mut() {
            if served.contains(&layer.cow) {
                break;
            }
            let cow = layer.cow.clone();
            let Some(without) = layer.without.take() else {
                return Err(format!("serves, without {cow}"));
            };
            self.note(format!("{cow} is gone"));
            self.stack.pop(without);
        }
        self.stack.layers.iter_mut().for_each(|layer| layer.without = None);
        self.believe(plan);
        self.stack.bottom.is_mark_accepted |= plan.accept;
        if self.may_be_orphaned(plan) {
            self.accept();
        }
        (self.is_alone, self.has_replaced) = (plan.alone.is_some(), false);
        if self.is_alone {
            self.stack.bottom.began(false);
        }
        self.window = Some(self.world.open().map_err(|error| format!("cannot open: {error}"))?);
        self.check("at its start")?;
        self.ask_legs()
    }

    fn describe(&self, plan: &Plan) -> String {
        let legs: Vec<_> =
            plan.legs.iter().map(|leg| self.stack.bottom.legs[*leg].name.as_str()).collect();
        match plan.alone {
            Some(leg) => format!("{} alone", self.stack.bottom.legs[leg].name),
            None => format!("{} with {} layers", legs.join(" and "), plan.layers),
        }
    }

    /// The legs of a plan that can be read.
    pub(crate) fn legs_there(&self, plan: &Plan) -> Vec<usize> {
        let mut legs = plan.alone.map_or_else(|| plan.legs.clone(), |leg| vec![leg]);
        legs.retain(|leg| {
            let name = &self.stack.bottom.legs[*leg].name;
            let is_broken = self.trouble.as_ref().is_some_and(|it| it.disk == *name);
            self.world.has(name) && !is_broken
        });
        legs
    }

    /// Whether the layers were made over something else than there is now, for certain.
    pub(crate) fn is_orphaned(&self, plan: &Plan) -> bool {
        // A merge that was cut has changed it itself, and that may hide other changes.
        let is_merging = self.stack.layers.first().is_some_and(|layer| layer.is_merging);
        self.may_be_orphaned(plan) && !is_merging
    }

    pub(crate) fn may_be_orphaned(&self, plan: &Plan) -> bool {
        let bottom = &self.stack.bottom;
        let is_over = |over: &History| match bottom.expected(&self.legs_there(plan)) {
            Expected::Leg(leg) => is_same(&bottom.legs[leg].history, over),
            Expected::Split(..) | Expected::Nothing => true,
        };
        self.leads_to(plan) > 0 && !is_over(&self.stack.layers[0].over)
    }

    /// How many layers are served by a plan: those that it names, and all that marks lead to.
    fn leads_to(&self, plan: &Plan) -> usize {
        match plan.layers {
            0 if self.stack.bottom.is_unmarked => 0,
            _ => self.stack.layers.len(),
        }
    }

    /// The COW stores of the layers that are served; and notes how many can be merged.
    fn served_layers(&mut self, plan: &Plan) -> Result<Vec<String>, String> {
        let status = self.world.status()?;
        let live = status["layers"].as_array().cloned().unwrap_or_default();
        self.live_layers = live.len();
        let name = |layer: &Value| {
            let path = layer["name"].as_str().unwrap_or_default();
            path.rsplit('/').next().unwrap_or_default().to_owned()
        };
        let named = self.stack.layers[..plan.layers].iter().map(|layer| layer.cow.clone());
        Ok(named.chain(live.iter().map(name)).collect())
    }

    /// Why this must not be served.
    pub(crate) fn must_refuse(&self, plan: &Plan) -> Option<String> {
        let legs = self.legs_there(plan);
        let is_copy = |leg: &usize| self.stack.bottom.legs[*leg].is_copy;
        if legs.contains(&0) && legs.iter().any(is_copy) {
            return Some("one leg is a copy of another".to_owned());
        }
        if self.stack.bottom.is_log_strange && plan.alone.is_none() {
            return Some("the log is another mirror's".to_owned());
        }
        let is_accepted = plan.accept || self.stack.bottom.is_mark_accepted;
        if let Some(cow) = self.stack.bottom.strange_mark.as_ref().filter(|_| !is_accepted) {
            return Some(format!("{cow} has its changes"));
        }
        // What keeps nothing is good for anything.
        let layers = &self.stack.layers[..self.leads_to(plan)];
        let is_kept = layers.iter().any(|layer| layer.is_kept);
        // That a leg is left behind counts as a write here, and changes nothing of what is beneath.
        let can_tell = !self.stack.is_mirror() && !plan.accept;
        if self.is_orphaned(plan) && is_kept && can_tell {
            return Some("what is beneath the layers has changed".to_owned());
        }
        if let Some(layer) = layers.iter().find(|it| it.is_lost) {
            return Some(format!("{} is lost", layer.cow));
        }
        match self.stack.bottom.expected(&self.legs_there(plan)) {
            Expected::Split(one, other) => {
                let name = |leg: usize| &self.stack.bottom.legs[leg].name;
                Some(format!("{} and {} have both gone on", name(one), name(other)))
            }
            Expected::Nothing => Some("no leg that is there has anything".to_owned()),
            Expected::Leg(_) => None,
        }
    }

    /// The layers are over what there is now from now on.
    fn accept(&mut self) {
        let mut content = self.stack.bottom.content.clone();
        content.crashed();
        let over = self.stack.bottom.history();
        for layer in &mut self.stack.layers {
            layer.content.or(&content);
            content = layer.content.clone();
            layer.over.clone_from(&over);
        }
    }

    /// Which legs are current, if the daemon is right.
    fn believe(&mut self, plan: &Plan) {
        let there = self.legs_there(plan);
        let bottom = &mut self.stack.bottom;
        if let Expected::Leg(leg) = bottom.expected(&there) {
            bottom.believe(leg);
        }
        let mut content = bottom.content.clone();
        content.crashed();
        for (index, leg) in bottom.legs.iter_mut().enumerate() {
            if leg.is == State::Current && !there.contains(&index) {
                leg.is = State::Behind(content.clone());
            }
        }
    }

    /// Ends it in order.
    pub(crate) fn stop(&mut self) -> Outcome {
        self.ask_legs()?;
        self.window = None;
        let stopped = self.world.stop();
        // What it couldn't write back it says.
        if !self.is_troubled() {
            stopped?;
        }
        self.ended();
        self.check_legs()
    }

    pub(crate) fn kill(&mut self) {
        self.window = None;
        self.world.kill();
        self.ended();
    }

    /// The daemon has ended, or the power has gone: what wasn't flushed may be lost.
    fn ended(&mut self) {
        self.stack.bottom.content.crashed();
        for layer in &mut self.stack.layers {
            layer.content.crashed();
            // Nothing may be left of what wasn't flushed.
            layer.is_written = layer.is_kept;
            layer.without.iter_mut().for_each(Content::crashed);
        }
    }

    /// The disks are no more, and what was wrong with one.
    fn disks_ended(&mut self) {
        self.trouble = None;
    }

    /// What was written comes to the media, and the disks' power is no matter any more.
    pub(crate) fn make_durable(&mut self) {
        self.repair();
        self.world.make_durable();
    }

    /// A disk does something else than it should from now on.
    pub(crate) fn break_disk(&mut self, disk: String, fault: Fault, is_fatal: bool) {
        self.note(format!("{disk} is {fault:?}"));
        self.world.set_fault(&disk, Some(fault));
        self.may_have_failed |= is_fatal;
        let before = self.stack.content().clone();
        self.trouble = Some(Trouble { disk, fault, is_fatal, before });
    }

    /// It works again.
    pub(crate) fn repair(&mut self) {
        if let Some(trouble) = self.trouble.take() {
            self.note(format!("{} works again", trouble.disk));
            self.world.set_fault(&trouble.disk, None);
        }
    }

    /// Whether writes and flushes may fail.
    pub(crate) fn is_troubled(&self) -> bool {
        self.has_failed
            || self.may_have_failed
            || self.trouble.as_ref().is_some_and(|trouble| trouble.is_fatal)
    }

    /// Does something in which the power is cut, or after which it is.
    pub(crate) fn cut_during(
        &mut self,
        mut disks: VolatileDisks,
        act: impl FnOnce(&mut Self) -> Outcome + Send,
    ) -> Outcome {
        match self.random.one_in(2) {
            true => disks.cut_after(self.random.below(40)).unwrap(),
            false => disks.cut_in_sync_after(self.random.below(6)).unwrap(),
        }
        self.cut(disks, act)
    }

    /// The same, where it was said already when that is.
    pub(crate) fn cut(
        &mut self,
        mut disks: VolatileDisks,
        act: impl FnOnce(&mut Self) -> Outcome + Send,
    ) -> Outcome {
        let legs = self.stack.bottom.legs.clone();
        let layers = self.stack.layers.clone();
        let done = disks.unless_cut(|| act(self)).unwrap();
        self.window = None;
        if done.is_none() {
            self.stack.bottom.is_half_told = true;
            if self.trouble.is_none() {
                // None has failed by itself.
                self.stack.bottom.failed_together(&legs);
            }
        }
        if done.is_none() && self.stack.layers.len() < layers.len() {
            // What was answered without power needn't be done.
            let mut layer = layers.last().expect("a layer").clone();
            layer.without = Some(self.stack.content().clone());
            // A merge has written beneath it.
            layer.over = self.stack.bottom.history();
            self.stack.layers.push(layer);
        }
        match done {
            Some(done) => {
                self.note("the power is cut, after that");
                self.world.lose_power(disks);
                self.disks_ended();
                self.ended();
                done
            }
            None => {
                self.note("the power is cut, in that");
                self.world.without_power(disks);
                self.disks_ended();
                self.ended();
                Ok(())
            }
        }
    }

    // What is there.

    /// Checks what the window shows.
    pub(crate) fn check(&mut self, when: &str) -> Outcome {
        if self.is_blind {
            return Ok(());
        }
        let bytes = match self.world.read() {
            Ok(bytes) => bytes,
            Err(_) if self.is_troubled() => return Ok(()),
            Err(error) => return Err(format!("{when}: cannot read the window: {error}")),
        };
        self.stack.content().check(&bytes).map_err(|wrong| format!("{when}: {wrong}"))
    }

    /// Asks how the legs are, and takes the daemon at its word: they are looked at later.
    pub(crate) fn ask_legs(&mut self) -> Outcome {
        if self.stack.is_mirror() && self.legs.len() > 1 {
            let states = self.world.legs()?;
            self.is_recovering = states.iter().any(|state| state == "recovering");
            let before = self.trouble.as_ref().map(|trouble| &trouble.before);
            self.stack.bottom.told(&self.legs, &states, before);
        }
        Ok(())
    }

    /// Checks what is in each leg that is current, while nobody serves it.
    fn check_legs(&mut self) -> Outcome {
        if !self.stack.is_mirror() || self.world.is_volatile() {
            return Ok(());
        }
        let bottom = &self.stack.bottom;
        for leg in bottom.legs.iter().filter(|leg| leg.is == State::Current) {
            if let Ok(bytes) = std::fs::read(self.world.medium(&leg.name)) {
                let mut content = bottom.content.clone();
                content
                    .check(&bytes)
                    .map_err(|wrong| format!("healthy leg {}: {wrong}", leg.name))?;
            }
        }
        Ok(())
    }

    /// A flush was answered for.
    pub(crate) fn flushed(&mut self) {
        if self.stack.layers.is_empty() && !self.has_written {
            self.stack.bottom.began(false);
        }
        self.stack.content().flushed();
        let bottom = &mut self.stack.bottom;
        let have_all = bottom.current() == self.legs.len();
        bottom.is_half_told &= !have_all || self.legs.len() < bottom.legs.len();
        if let Some(layer) = self.stack.layers.last_mut() {
            layer.is_kept |= layer.is_written;
        }
    }

    /// Notes that these pages were written, if the write is known to have succeeded.
    pub(crate) fn changed(&mut self, mut pages: Range<usize>, number: Number) {
        let is_new = pages.any(|page| self.stack.content().page(page) == Some(number));
        self.stack.layers.last_mut().into_iter().for_each(|layer| layer.is_written |= is_new);
    }

    /// The device is about to be written.
    pub(crate) fn will_write(&mut self) {
        if self.stack.layers.is_empty() {
            self.will_write_bottom();
        }
    }

    /// The files beneath all layers are about to be written.
    pub(crate) fn will_write_bottom(&mut self) {
        if !std::mem::replace(&mut self.has_written, true) {
            self.stack.bottom.written();
        }
    }

    /// The uppermost layer is about to be merged: it will be gone, now or when it is served again.
    pub(crate) fn will_merge(&mut self) {
        let content = self.stack.content().clone();
        match self.stack.layers.len() {
            1 => {
                self.stack.bottom.written();
                self.stack.bottom.content.or(&content);
            }
            many => self.stack.layers[many - 2].content.or(&content),
        }
        let over = self.stack.bottom.history();
        let layer = self.stack.layers.last_mut().expect("a layer");
        (layer.without, layer.over, layer.is_merging) = (Some(content), over, true);
    }

    /// A flush has failed.
    pub(crate) fn failed(&mut self, error: &std::io::Error) -> Outcome {
        if !self.is_troubled() {
            let log = self.world.log();
            return Err(format!("a flush failed, and nothing is wrong: {error}\n{log}"));
        }
        self.has_failed = true;
        Ok(())
    }

    /// An operator has cleared a failure: what the kernel shows isn't what is there.
    pub(crate) fn cleared(&mut self) {
        (self.has_failed, self.may_have_failed) = (false, false);
        self.is_blind = true;
        self.stack.content().crashed();
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- this life:\n  {}", self.story());
        }
    }
}
