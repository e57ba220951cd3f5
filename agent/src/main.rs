//! The `tieback` command.

fn main() {
    let raw = std::fs::read("/sys/kernel/btf/vmlinux").unwrap();
    let btf = tieback::kernel::btf::Btf::parse(&raw).unwrap();
    let layout = tieback::kernel::layout(&btf, None);
    eprintln!("{layout:?}");
    let env = tieback::load::Environment { pid_max: 32768, cpus: vec![0, 1], layout, anon_fops: [0; 5], syscalls: tieback::decode::syscalls::TABLE.to_vec(), disabled: Default::default(), cpu_hz: 19 };
    tracing_subscriber::fmt().with_env_filter("debug").init();
    let mut l = tieback::load::Loaded::new(env).unwrap();
    for s in l.statuses() { println!("{} {:?} {}", s.probe, s.verdict, s.reason); }
    let it: Vec<_> = l.iterators().collect();
    for i in it { println!("{i} {:?}", l.visit(i)); }
    std::thread::sleep(std::time::Duration::from_secs(3));
}
