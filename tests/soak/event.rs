// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can happen to a guest.

use guest_harness::Random;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// It reboots by itself, with its filesystem mounted.
    Reboot,
    /// Its reset button is pressed, at any moment.
    Reset,
    /// It flushes as fast as it can, on four CPUs' behalf.
    Flood,
    /// Its device is taken from it, once it has unmounted it, and given back.
    Replug,
    /// It powers off, with its filesystem mounted; the end of its QEMU.
    PowerOff,
    /// Its QEMU is killed, at any moment.
    Kill,
}

impl Event {
    /// All of them; those that end a session are the last two.
    pub(crate) const ALL: [Self; 6] =
        [Self::Reboot, Self::Reset, Self::Flood, Self::Replug, Self::PowerOff, Self::Kill];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reboot => "reboots",
            Self::Reset => "resets",
            Self::Flood => "floods",
            Self::Replug => "replugs",
            Self::PowerOff => "power-offs",
            Self::Kill => "kills",
        }
    }
}

/// What happens in a session: some of what a guest survives, in any order, and then an end. In a short
/// one it is one event and the end.
pub(crate) fn plan(random: &mut Random, short: bool) -> Vec<Event> {
    let (survived, last) = Event::ALL.split_at(4);
    let mut events = survived.to_vec();
    random.shuffle(&mut events);
    events.truncate(if short { 1 } else { 2 + usize::from(random.one_in(2)) * 2 });
    events.push(last[usize::from(random.one_in(2))]);
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_of_a_seed_ends_with_an_end_and_has_no_other() {
        for seed in 0..200 {
            for short in [true, false] {
                let plan = plan(&mut Random::new(seed), short);
                let ends = |event: &Event| matches!(event, Event::PowerOff | Event::Kill);
                assert_eq!(plan.iter().position(ends), Some(plan.len() - 1), "{plan:?}");
                assert_eq!(plan, super::plan(&mut Random::new(seed), short));
            }
        }
    }
}
