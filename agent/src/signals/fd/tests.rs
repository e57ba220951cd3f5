use super::*;
use crate::decode::model::{FdKind, ProcessFds, PythonStack, StackDetail, StackKind, UnwindResult};

const SLOT: SlotId = SlotId(5);

fn tick(open: u64) -> Tick {
    Tick {
        length_ns: 1_000_000_000,
        slots: vec![(SLOT, Box::default())],
        processes: vec![ProcessFds {
            pid: 7,
            slot: SLOT,
            open,
            limit: 100,
        }],
        ..Tick::default()
    }
}

fn sample() -> StackSample {
    StackSample {
        slot: SLOT,
        pid: 7,
        tid: 7,
        kind: StackKind::Fd,
        detail: StackDetail::None,
        weight: 0.0,
        own: 0.0,
        user: vec![1],
        interrupted: 0,
        unfolded: false,
        kernel: Vec::new(),
        python: PythonStack::default(),
        unwind: UnwindResult::Complete,
    }
}

fn fd(fd: u32, id: u64, ticks: u32) -> Sampled {
    Sampled {
        pid: 7,
        fd,
        slot: SLOT,
        id,
        at_ns: 1,
        kind: FdKind::File,
        every: 2,
        ticks,
    }
}

#[test]
fn growth_is_what_goes_beyond_the_most_there_was() {
    let mut fds = Descriptors::default();
    let grown: Vec<u64> = [10, 12, 9, 11, 15, 15]
        .into_iter()
        .map(|open| {
            let mut tick = tick(open);
            fds.count(&mut tick);
            tick.slots[0].1.fd_growth
        })
        .collect();
    assert_eq!(grown, [0, 2, 0, 0, 3, 0]);
}

#[test]
fn one_more_a_second_reaches_the_limit_when_the_forecast_says() {
    let mut fds = Descriptors::default();
    let mut last = None;
    for open in 10..30 {
        let mut tick = tick(open);
        fds.count(&mut tick);
        last = tick.slots[0].1.fd_forecast;
    }
    let forecast = last.unwrap();
    assert_eq!((forecast.open, forecast.each_ns / 1_000_000), (29, 1000));
    assert_eq!(forecast.left_ns / 1_000_000_000, 71);
    assert_eq!(fds.plan(true).watched[0], 7);
}

#[test]
fn stacks_are_told_once_and_only_of_descriptors_that_stay() {
    let mut fds = Descriptors::default();
    fds.count(&mut tick(1));
    for id in [1, 2, 3] {
        fds.opened(id, sample());
    }
    // The first has both ends of a pipe, the third was closed.
    let open = |ticks| vec![fd(3, 1, ticks), fd(4, 1, ticks), fd(5, 2, ticks)];
    for ticks in 0..SURVIVED {
        fds.count(&mut tick(1));
        let stayed = fds.open(open(ticks));
        assert!(stayed.stacks.is_empty() && stayed.open.is_empty());
    }
    assert_eq!(
        fds.stacks.len(),
        2,
        "a stack whose descriptors are gone is forgotten"
    );
    let stayed = fds.open(open(SURVIVED));
    let told: Vec<(u64, f64)> = stayed
        .stacks
        .iter()
        .map(|(id, sample)| (*id, sample.weight))
        .collect();
    assert_eq!((told, stayed.open.len()), (vec![(1, 4.0), (2, 2.0)], 3));
    let later = fds.open(open(SURVIVED + 1));
    assert!(later.stacks.is_empty() && later.open.len() == 3);
    assert_eq!(fds.open(Vec::new()).open.len(), 0);
    assert!(fds.told.is_empty() && fds.stacks.is_empty());
}

#[test]
fn another_program_of_the_same_process_starts_anew() {
    let mut fds = Descriptors::default();
    fds.count(&mut tick(3));
    let mut other = tick(50);
    other.processes[0].slot = SlotId(6);
    other.slots[0].0 = SlotId(6);
    fds.count(&mut other);
    assert_eq!(other.slots[0].1.fd_growth, 0);
}
