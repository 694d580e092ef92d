// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the daemon refuses, whether it is right, and the ways out that it names.

use std::path::Path;

use crate::life::{Life, Outcome};
use crate::stack::{Expected, Leg, Plan, Stack, State};
use crate::world::BYTES;

/// Something that the daemon says instead of serving.
struct Refusal {
    says: &'static str,
    /// Whether there is a reason for it.
    agrees: fn(&Life, &Plan, &str) -> bool,
    ways_out: &'static [WayOut],
}

struct WayOut {
    /// What the refusal says of it: one of these, if there are any.
    named: &'static [&'static str],
    /// Whether it is of use here.
    can: fn(&Life, &Plan) -> bool,
    go: fn(&mut Life, &mut Plan, &str) -> Outcome,
}

const REFUSALS: &[Refusal] = &[
    // Layers.
    Refusal {
        says: "a snapshot was taken of",
        agrees: |life, plan, _| {
            plan.layers < life.stack.layers.len()
                || life.stack.bottom.strange_mark.is_some()
                || any_layer_is_lost(life)
                || life.stack.bottom.is_moved
        },
        ways_out: &[
            WayOut {
                named: &[
                    "serve it with that as its --overlay",
                    "put a snapshot of it with that",
                    "serve a file that was moved with that as its --overlay",
                ],
                can: |life, plan| are_layers_there(life) && plan.layers < life.stack.layers.len(),
                go: name_layers,
            },
            WayOut { named: &["merge"], can: can_merge, go: merge },
            WayOut {
                named: &["bring it back"],
                can: |life, _| any_layer_is_lost(life) && !life.stack.bottom.is_moved,
                go: bring_layers_back,
            },
            WayOut {
                named: &["vhost-pmemd unmark"],
                can: |life, _| life.stack.bottom.is_moved || !are_layers_there(life),
                go: give_layers_up,
            },
        ],
    },
    Refusal {
        says: "the file beneath isn't what it was when the changes were made",
        // A copy may be older also if it holds the same.
        agrees: |life, plan, _| life.may_be_orphaned(plan) || life.stack.bottom.is_restored,
        ways_out: &[
            WayOut { named: &["give --accept-base"], can: always, go: accept },
            WayOut {
                named: &["vhost-pmemd unmark"],
                can: |life, plan| plan.layers == 0 && !life.stack.is_mirror(),
                go: give_layers_up,
            },
        ],
    },
    // Of a COW store in a table.
    Refusal {
        says: "no such file; create it, with the size it is to have",
        agrees: |life, _, _| any_layer_is_lost(life),
        ways_out: &[
            WayOut { named: &["create it"], can: |_, plan| !plan.accept, go: create_layers },
            WayOut { named: &[], can: always, go: bring_layers_back },
        ],
    },
    // Mirrors.
    Refusal {
        says: "were each written without the other",
        agrees: |life, plan, text| {
            let bottom = &life.stack.bottom;
            let history = |leg: usize| &bottom.legs[leg].history;
            let legs = split(text, plan);
            legs.is_some_and(|[one, other]| bottom.is_half_told || history(one) != history(other))
        },
        ways_out: &[WayOut { named: &["vhost-pmemd unmark"], can: always, go: give_leg_up }],
    },
    Refusal {
        says: ", or an older one; run",
        agrees: |life, _, _| life.stack.bottom.legs.iter().any(|leg| leg.is_copy),
        ways_out: &[WayOut { named: &["vhost-pmemd unmark"], can: always, go: give_copy_up }],
    },
    Refusal {
        says: "the log is another mirror's",
        agrees: |life, _, _| life.stack.bottom.is_log_strange,
        ways_out: &[WayOut { named: &["fill this one with zeroes"], can: always, go: blank_log }],
    },
    Refusal {
        says: "the log is newer than all of them",
        agrees: |life, plan, _| match expected(life, plan) {
            Expected::Leg(leg) => life.stack.bottom.legs[leg].history != life.stack.bottom.newest,
            _ => false,
        },
        ways_out: &[
            WayOut { named: &["fill the log with zeroes"], can: always, go: blank_log },
            WayOut {
                named: &["bring one of those"],
                can: |life, _| any_leg_is_away(life),
                go: bring_legs_back,
            },
        ],
    },
    Refusal {
        says: "no leg that is there has all that was written",
        agrees: |life, plan, _| is_newest_away(life, plan),
        ways_out: &[WayOut {
            named: &["bring one of those"],
            can: |life, _| any_leg_is_away(life),
            go: bring_legs_back,
        }],
    },
    Refusal {
        says: "and no other leg says that it belongs to this mirror",
        agrees: |life, plan, _| is_newest_away(life, plan),
        ways_out: &[WayOut {
            named: &[],
            can: |life, _| any_leg_is_away(life),
            go: bring_legs_back,
        }],
    },
];

fn always(_: &Life, _: &Plan) -> bool {
    true
}

fn expected(life: &Life, plan: &Plan) -> Expected {
    life.stack.bottom.expected(&life.legs_there(plan))
}

// Layers.

fn any_layer_is_lost(life: &Life) -> bool {
    life.stack.layers.iter().any(|layer| layer.is_lost)
}

/// Whether they are where the marks say.
fn are_layers_there(life: &Life) -> bool {
    !life.stack.layers.is_empty()
        && !any_layer_is_lost(life)
        && life.stack.bottom.strange_mark.is_none()
}

fn can_merge(life: &Life, _: &Plan) -> bool {
    !life.stack.is_mirror()
        && are_layers_there(life)
        && !life.stack.bottom.is_moved
        && !life.is_orphaned(&Plan { layers: life.stack.layers.len(), ..Plan::of(&life.stack) })
}

/// With all layers, also those that may be gone: this one says that they aren't.
fn name_layers(life: &mut Life, plan: &mut Plan, _: &str) -> Outcome {
    plan.layers = life.stack.layers.len();
    life.stack.layers.iter_mut().for_each(|layer| layer.without = None);
    Ok(())
}

/// Merges the last layer, while nobody serves it.
pub(crate) fn merge(life: &mut Life, plan: &mut Plan, _: &str) -> Outcome {
    life.will_merge();
    let layer = life.stack.layers.last().expect("a layer").clone();
    let file = match life.stack.layers.len() {
        1 => life.stack.bottom.legs[0].name.clone(),
        many => life.stack.layers[many - 2].cow.clone(),
    };
    let file = life.world.shown(&file);
    let cow = life.world.shown(&layer.cow);
    life.note(format!("merge {} offline", layer.cow));
    life.world.run(&["merge", "--file", &file, "--overlay", &cow])?;
    life.stack.pop(layer.content);
    plan.layers = plan.layers.min(life.stack.layers.len());
    Ok(())
}

fn bring_layers_back(life: &mut Life, _: &mut Plan, _: &str) -> Outcome {
    life.make_durable();
    for layer in life.stack.layers.iter_mut().filter(|layer| layer.is_lost) {
        layer.is_lost = false;
        life.world.rename(&format!("{}.away", layer.cow), &layer.cow);
    }
    life.note("the COW stores are back");
    Ok(())
}

/// New ones, in their place.
fn create_layers(life: &mut Life, _: &mut Plan, _: &str) -> Outcome {
    life.make_durable();
    for layer in life.stack.layers.iter().filter(|layer| layer.is_lost) {
        life.world.make_blank(&layer.cow, 2 * BYTES);
    }
    life.note("COW stores are made in the place of the lost ones");
    Ok(())
}

/// What was written since the snapshot of a file is given up.
fn give_layers_up(life: &mut Life, plan: &mut Plan, text: &str) -> Outcome {
    let path = run_unmark(life, text)?;
    let is_path = |name: &String| life.world.path(name) == Path::new(&path);
    match life.stack.layers.iter().position(|layer| is_path(&layer.cow)) {
        Some(layer) => life.stack.layers.truncate(layer + 1),
        None => {
            life.stack.layers.clear();
            unmark_other_legs(life)?;
        }
    }
    (life.stack.bottom.strange_mark, life.stack.bottom.is_moved) = (None, false);
    plan.layers = life.stack.layers.len();
    Ok(())
}

/// Removes the marks of the other legs, which would be refused one after another.
fn unmark_other_legs(life: &mut Life) -> Outcome {
    let names: Vec<_> = life.stack.bottom.legs.iter().map(|leg| leg.name.clone()).collect();
    for name in names.iter().flat_map(|name| [name.clone(), format!("{name}.away")]) {
        if life.world.has(&name) && is_marked(&life.world.path(&name)) {
            let path = life.world.shown(&name);
            life.note(format!("unmark {path}"));
            life.world.run(&["unmark", &path])?;
        }
    }
    Ok(())
}

/// Whether a file is marked as an origin.
fn is_marked(path: &Path) -> bool {
    rustix::fs::getxattr(path, "user.pfn-blk.changes", &mut [0; 8192]).is_ok()
}

/// Does what is said: unmarks the file that is named. Returns which.
fn run_unmark(life: &mut Life, text: &str) -> Result<String, String> {
    const COMMAND: &str = "vhost-pmemd unmark ";
    let (_, rest) = text.rsplit_once(COMMAND).ok_or("no command")?;
    let path = rest.split(['"', ';', ' ', '\n']).next().unwrap_or_default();
    let path = life.world.real(path);
    life.note(format!("unmark {path}"));
    life.make_durable();
    life.world.run(&["unmark", &path])?;
    Ok(path)
}

fn accept(_: &mut Life, plan: &mut Plan, _: &str) -> Outcome {
    plan.accept = true;
    Ok(())
}

// Mirrors.

fn any_leg_is_away(life: &Life) -> bool {
    let is_away = |leg: &Leg| life.world.has(&format!("{}.away", leg.name));
    life.stack.bottom.legs.iter().any(is_away)
}

/// Whether a leg that isn't there has more than those that are.
fn is_newest_away(life: &Life, plan: &Plan) -> bool {
    let all: Vec<_> = (0..life.stack.bottom.legs.len()).collect();
    let history = |leg: usize| &life.stack.bottom.legs[leg].history;
    match (expected(life, plan), life.stack.bottom.expected(&all)) {
        (Expected::Leg(there), Expected::Leg(newest)) => history(there) != history(newest),
        (Expected::Nothing, _) => true,
        _ => false,
    }
}

fn bring_legs_back(life: &mut Life, _: &mut Plan, _: &str) -> Outcome {
    life.make_durable();
    for leg in &life.stack.bottom.legs {
        let away = format!("{}.away", leg.name);
        if life.world.has(&away) {
            life.world.rename(&away, &leg.name);
        }
    }
    life.note("the legs are back");
    Ok(())
}

fn give_copy_up(life: &mut Life, plan: &mut Plan, _: &str) -> Outcome {
    let copy = life.stack.bottom.legs.iter().position(|leg| leg.is_copy).ok_or("no copy")?;
    unmark_leg(life, plan, copy)
}

/// What is on a leg is given up: it is to be copied to.
fn unmark_leg(life: &mut Life, plan: &mut Plan, leg: usize) -> Outcome {
    let path = life.world.shown(&life.stack.bottom.legs[leg].name);
    life.note(format!("unmark {path}"));
    life.make_durable();
    let was_marked = is_marked(&life.world.path(&life.stack.bottom.legs[leg].name));
    life.world.run(&["unmark", &path])?;
    if was_marked {
        // That took the mark away only.
        life.world.run(&["unmark", &path])?;
        // The others may have been away when the snapshot was taken: its changes are given up, too.
        let legs = &life.stack.bottom.legs;
        if !legs.iter().any(|leg| is_marked(&life.world.path(&leg.name))) {
            unmark_other_legs(life)?;
            life.stack.layers.clear();
            plan.layers = 0;
        }
    }
    life.stack.bottom.replaced(leg);
    Ok(())
}

fn blank_log(life: &mut Life, _: &mut Plan, _: &str) -> Outcome {
    life.make_durable();
    life.note("the log is filled with zeroes");
    Stack::lose_log(&life.world);
    life.stack.bottom.is_log_strange = false;
    Ok(())
}

/// The legs that a refusal names.
fn split(text: &str, plan: &Plan) -> Option<[usize; 2]> {
    let mut numbers = text.lines().last()?.split("leg ").skip(1).map_while(|rest| {
        rest.split(|it: char| !it.is_ascii_digit()).next()?.parse::<usize>().ok()
    });
    let mut leg = || plan.legs.get(numbers.next()?).copied();
    Some([leg()?, leg()?])
}

/// One of two that went on without each other.
fn give_leg_up(life: &mut Life, plan: &mut Plan, text: &str) -> Outcome {
    let [one, other] = split(text, plan).ok_or("which legs?")?;
    let is_mixed = |leg: usize| life.stack.bottom.legs[leg].is == State::Mixed;
    let leg = match (is_mixed(one), is_mixed(other)) {
        // Nobody gives the whole one up.
        (true, false) => one,
        (false, true) => other,
        _ if life.random.one_in(2) => one,
        _ => other,
    };
    unmark_leg(life, plan, leg)
}

/// Checks that there is a reason for what the daemon has said, and goes a way out that it names.
pub(crate) fn follow(life: &mut Life, plan: &mut Plan, text: &str) -> Outcome {
    let said = text.lines().last().unwrap_or_default().to_owned();
    life.note(format!("refused: {said}"));
    let Some(refusal) = REFUSALS.iter().find(|refusal| text.contains(refusal.says)) else {
        return Err(format!("a refusal that the test doesn't know: {text}"));
    };
    if !(refusal.agrees)(life, plan, text) {
        return Err(format!("refused without a reason: {text}"));
    }
    let mut ways = Vec::new();
    for way in refusal.ways_out.iter().filter(|way| (way.can)(life, plan)) {
        if !way.named.is_empty() && !way.named.iter().any(|named| text.contains(named)) {
            return Err(format!("doesn't name the way out {:?}: {text}", way.named));
        }
        ways.push(way);
    }
    if ways.is_empty() {
        return Err(format!("no way out: {text}"));
    }
    let way = life.below(ways.len());
    (ways[way].go)(life, plan, text)
}
