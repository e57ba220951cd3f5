//! Everything that is kept of one service between ticks.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::Limits;
use super::counters::{self, PeerBound};
use super::group::{self, CodeScope, FutexShares, Group, Rule};
use super::ledger::{Claim, Ledger};
use super::listeners::ListenerBound;
use super::live::{LiveStacks, LiveView};
use super::metric::MetricSet;
use super::net::NetGrowth;
use super::openers::Opener;
use super::pools::{PoolBound, RecentPools};
use super::ranking::{CodeKey, Ranking};
use super::snapshot::{CodeSeries, ServiceCode, ServiceSnapshot};
use super::window::{StackValue, WindowBuilder};
use crate::symbolize::{
    Cause, ConnFailure, Direction, Peer, Service, ServiceInfo, StackDetail, StackKind, SymbolizedSample,
    Totals,
};

/// Ticks for which exact amounts wait for their samples, and samples for them, where both come at the same moment: only the order of
/// reading can differ.
const HOLD: usize = 1;

/// The tick that is taken.
#[derive(Clone, Copy)]
pub(super) struct Now {
    /// Its number.
    pub(super) tick: u64,
    /// The aggregator's clock at its end.
    pub(super) clock_ns: u64,
    /// Its length.
    pub(super) length_ns: u64,
}

pub(super) struct ServiceState {
    /// Order of first sight.
    pub(super) sequence: u64,
    /// The aggregator's clock when it last had a process or news.
    pub(super) last_news_ns: u64,
    pub(super) info: Arc<ServiceInfo>,
    pub(super) totals: Arc<Totals>,
    last: Arc<Totals>,
    code: Arc<ServiceCode>,
    pub(super) net: Arc<NetGrowth>,
    peers: PeerBound,
    pools: PoolBound,
    listeners: ListenerBound,
    recent_pools: Arc<RecentPools>,
    live: LiveStacks,
    live_view: Arc<LiveView>,
    alloc_period: f64,
    retention_ns: u64,
    /// Ticks for which the time of waits waits for samples.
    wait_hold: usize,
    top: usize,
    pub(super) openers: Arc<Vec<Opener>>,
    ledgers: HashMap<Group, Ledger>,
    rankings: BTreeMap<StackKind, Ranking>,
}

impl ServiceState {
    pub(super) fn new(sequence: u64, now_ns: u64, limits: &Limits) -> Self {
        let retention_ns = u64::try_from(limits.retention.as_nanos()).unwrap_or(u64::MAX);
        Self {
            sequence,
            last_news_ns: now_ns,
            info: Arc::default(),
            totals: Arc::default(),
            last: Arc::default(),
            code: Arc::default(),
            net: Arc::default(),
            peers: PeerBound::new(limits.peers),
            pools: PoolBound::new(limits.peers, retention_ns),
            listeners: ListenerBound::new(limits.peers),
            recent_pools: Arc::default(),
            live: LiveStacks::default(),
            live_view: Arc::default(),
            alloc_period: f64::from(limits.alloc_period),
            retention_ns,
            wait_hold: limits.wait_hold,
            top: limits.top,
            openers: Arc::default(),
            ledgers: HashMap::new(),
            rankings: StackKind::ALL
                .iter()
                .map(|&kind| (kind, Ranking::new(limits.top)))
                .collect(),
        }
    }

    /// Takes a tick; returns how many samples were dropped for want of a total.
    pub(super) fn tick(
        &mut self,
        service: &Arc<Service>,
        mut tick: Totals,
        samples: Vec<SymbolizedSample>,
        now: Now,
        window: &mut WindowBuilder,
    ) -> u64 {
        let is_live = |sample: &SymbolizedSample| sample.kind == StackKind::AllocLive;
        let (live, mut samples): (Vec<_>, Vec<_>) = samples.into_iter().partition(is_live);
        let (retention, top) = (self.retention_ns, self.top);
        let view = self
            .live
            .tick(live, now.clock_ns, retention, self.alloc_period, top);
        self.live_view = Arc::new(view);
        let mut shares = FutexShares::default();
        for sample in &samples {
            shares.add(sample);
        }
        let idle_share = shares.idle_share();
        let moved = group::move_parked(&mut tick, idle_share);
        let exact = group::exact(&tick, moved, idle_share);
        let totals = Arc::make_mut(&mut self.totals);
        counters::add(totals, &tick, &mut self.peers, now.tick);
        for sample in &mut samples {
            if let StackDetail::Opened(peer) = &mut sample.detail {
                sample.weight *= opened_share(&tick, *peer);
                *peer = self.peers.name(&mut totals.conns, *peer, now.tick);
            }
        }
        let dropped = self.settle(service, exact, samples, now.tick, window);
        let totals = Arc::make_mut(&mut self.totals);
        let recent = self.pools.add(
            &mut totals.pools,
            &tick.pools,
            now.tick,
            now.clock_ns,
            now.length_ns,
        );
        self.listeners
            .add(&mut totals.listeners, &tick.listeners, now.tick);
        self.recent_pools = Arc::new(recent);
        self.last = Arc::new(tick);
        dropped
    }

    fn settle(
        &mut self,
        service: &Arc<Service>,
        exact: Vec<(Group, u64, Rule)>,
        samples: Vec<SymbolizedSample>,
        now: u64,
        window: &mut WindowBuilder,
    ) -> u64 {
        let mut exact: HashMap<Group, (u64, Rule)> =
            exact.into_iter().map(|(g, n, rule)| (g, (n, rule))).collect();
        let mut claims: HashMap<Group, Vec<Claim>> = HashMap::new();
        for sample in samples {
            let (group, detail) = group::of_sample(&sample);
            claims.entry(group).or_default().push(Claim {
                stack: sample.stack,
                detail,
                weight: sample.weight,
                own: sample.own,
            });
        }
        for group in exact.keys().chain(claims.keys()) {
            self.ledgers.entry(*group).or_default();
        }

        let mut credits: BTreeMap<StackKind, BTreeMap<CodeKey, u64>> = BTreeMap::new();
        let mut unsampled: BTreeMap<StackKind, BTreeMap<CodeScope, u64>> = BTreeMap::new();
        let mut dropped = 0;
        for (group, ledger) in &mut self.ledgers {
            let quiet = || (0, quiet_rule(group.kind, ledger.rule()));
            let (amount, rule) = exact.remove(group).unwrap_or_else(quiet);
            let settled = ledger.settle(
                amount,
                rule,
                claims.remove(group).unwrap_or_default(),
                hold(*group, self.wait_hold),
            );
            dropped += settled.dropped;
            if settled.unsampled > 0 {
                *unsampled
                    .entry(group.kind)
                    .or_default()
                    .entry(group.scope)
                    .or_default() += settled.unsampled;
            }
            for (claim, amount) in settled.credits {
                let key = CodeKey {
                    scope: group.scope,
                    owner: claim.owner(),
                };
                *credits.entry(group.kind).or_default().entry(key).or_default() += amount;
                let value = StackValue {
                    detail: claim.detail,
                    stack: claim.stack,
                    value: amount,
                };
                window.add(service, group.kind, value);
            }
        }
        self.ledgers.retain(|_, ledger| !ledger.is_empty());

        let changed = !credits.is_empty() || !unsampled.is_empty();
        for (kind, ranking) in &mut self.rankings {
            let credits = credits.remove(kind).unwrap_or_default();
            ranking.tick(now, credits, unsampled.get(kind).unwrap_or(&BTreeMap::new()));
        }
        if changed {
            self.code = Arc::new(
                self.rankings
                    .iter()
                    .map(|(&kind, ranking)| (kind, series(ranking)))
                    .collect(),
            );
        }
        dropped
    }

    pub(super) fn snapshot(&self, service: &Arc<Service>) -> ServiceSnapshot {
        ServiceSnapshot {
            service: Arc::clone(service),
            info: Arc::clone(&self.info),
            totals: Arc::clone(&self.totals),
            last: Arc::clone(&self.last),
            code: Arc::clone(&self.code),
            net: Arc::clone(&self.net),
            recent_pools: Arc::clone(&self.recent_pools),
            live: Arc::clone(&self.live_view),
            openers: Arc::clone(&self.openers),
            admitted: MetricSet::default(),
        }
    }
}

fn series(ranking: &Ranking) -> Vec<CodeSeries> {
    ranking
        .series()
        .map(|(scope, owner, value)| CodeSeries {
            scope,
            owner: owner.cloned(),
            value,
        })
        .collect()
}

/// Samples are of attempts to connect: of how many of a peer's in this tick something was opened. (An attempt that times out does so
/// in a later tick than its sample comes.)
fn opened_share(tick: &Totals, peer: Peer) -> f64 {
    let Some(conn) = tick.conns.get(&(Direction::Out, peer)) else {
        return 1.0;
    };
    // What is reset was open: an attempt is refused.
    let reset = conn.failures[ConnFailure::Reset.index()];
    let failed = conn.failures.iter().sum::<u64>() - reset;
    if failed == 0 {
        return 1.0;
    }
    conn.opened as f64 / (conn.opened + failed) as f64
}

/// How weights relate to the total in a tick in which nothing was counted: `last` is how they did in the last one with a rule.
fn quiet_rule(kind: StackKind, last: Option<Rule>) -> Rule {
    match kind {
        StackKind::Wait => Rule::Ended(0),
        // What was counted before the samples came is held, and they are of it.
        StackKind::Conn => last.unwrap_or(Rule::Claim),
        StackKind::Cpu
        | StackKind::Syscall
        | StackKind::Memory
        | StackKind::Fd
        | StackKind::Alloc
        | StackKind::AllocObjects
        | StackKind::AllocLive => Rule::Scale,
    }
}

/// Connecting takes its time too, and so does it to see that a descriptor stays open. Plain idleness is not sampled: nothing to wait for.
fn hold(group: Group, waits: usize) -> usize {
    match group {
        Group {
            scope: CodeScope::Cause(Cause::Idle),
            parked: false,
            ..
        } => 0,
        Group {
            kind: StackKind::Wait | StackKind::Conn | StackKind::Fd,
            ..
        } => waits,
        _ => HOLD,
    }
}
