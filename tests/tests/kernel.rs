//! The table "What must hold": the agent on this kernel against workloads with known answers. Needs root.

#[path = "kernel/alloc.rs"]
mod alloc;
#[path = "kernel/alloc_live.rs"]
mod alloc_live;
#[path = "kernel/alloc_rates.rs"]
mod alloc_rates;
#[path = "kernel/basics.rs"]
mod basics;
#[path = "kernel/brief.rs"]
mod brief;
#[path = "kernel/chains.rs"]
mod chains;
#[path = "kernel/conn.rs"]
mod conn;
#[path = "kernel/crowd.rs"]
mod crowd;
#[path = "kernel/deploy.rs"]
mod deploy;
#[path = "kernel/descriptors.rs"]
mod descriptors;
#[path = "kernel/full.rs"]
mod full;
#[path = "kernel/go_heap.rs"]
mod go_heap;
#[path = "kernel/kernel_names.rs"]
mod kernel_names;
#[path = "kernel/life.rs"]
mod life;
#[path = "kernel/link.rs"]
mod link;
#[path = "kernel/listen.rs"]
mod listen;
#[path = "kernel/memory.rs"]
mod memory;
#[path = "kernel/net.rs"]
mod net;
#[path = "kernel/openers.rs"]
mod openers;
#[path = "kernel/pool.rs"]
mod pool;
#[path = "kernel/record.rs"]
mod record;
#[path = "kernel/rules.rs"]
mod rules;
#[path = "kernel/shapes.rs"]
mod shapes;
#[path = "kernel/stacks.rs"]
mod stacks;
#[path = "kernel/stall.rs"]
mod stall;
#[path = "kernel/subvolumes.rs"]
mod subvolumes;
#[path = "kernel/unix.rs"]
mod unix;
#[path = "kernel/wait.rs"]
mod wait;
