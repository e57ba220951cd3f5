//! Kernel structure offsets. The agent resolves every field in the running kernel's BTF and writes the numbers into the
//! object's instructions before it loads; a field that is missing makes the probes that need it `unsupported`.

/// An offset that the running kernel does not have.
pub const MISSING: u32 = u32::MAX;
/// Stands for an offset in the object as it was compiled: this number plus the field's place in [`Offsets`]. No other
/// constant of the programs is near it. (An offset as data costs a load for each field that a program reads, which is a
/// quarter of what a context switch costs.)
pub const MARK: u32 = 0x7eba_0000;
/// Stands for an offset in the loads of the object as it was compiled, in the same way. No structure that the programs read
/// otherwise is that large.
pub const MARK_LOAD: i16 = 0x7000;
/// Stands for `bpf_rdonly_cast` in the calls of the object as it was compiled.
pub const MARK_CAST: u32 = 0x7ebb_0000;
/// Stands for the type of the saved registers.
pub const MARK_REGS: u32 = 0x7ebb_0001;
/// Stands for 1 where the kernel has `bpf_rdonly_cast`, else 0.
pub const MARK_CASTS: u32 = 0x7ebb_0002;
/// Stands for 1 where threads are in an array by their id, else 0.
pub const MARK_DIRECT: u32 = 0x7ebb_0003;
/// Stands for the mask of `in_iowait` in its byte.
pub const MARK_IOWAIT: u32 = 0x7ebb_0004;
/// Stands for the mask of `in_memstall` in its byte.
pub const MARK_MEMSTALL: u32 = 0x7ebb_0005;
/// Stands for the flags of maps that take memory for an element when it is added, where the kernel can do so; else they take
/// it for all of them at once. Nothing else in the object's type information is near it.
pub const MARK_FLAGS: usize = 0x7ebc_0000;

macro_rules! offsets {
    ($($(#[$meta:meta])* $field:ident : $variant:ident = $paths:expr,)+) => {
        /// One number a field, in bytes from the start of the structure that its path names first.
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub struct Offsets { $($(#[$meta])* pub $field: u32,)+ }

        impl Offsets {
            /// What the object holds until the agent fills it in.
            pub const UNSET: Self = Self { $($field: MISSING,)+ };

            /// The field at this place, counted in bytes.
            #[must_use]
            pub const fn at(&self, place: usize) -> Option<u32> {
                $(if place == core::mem::offset_of!(Self, $field) {
                    return Some(self.$field);
                })+
                None
            }

            /// Sets one field.
            pub fn set(&mut self, field: Field, offset: u32) {
                match field { $(Field::$variant => self.$field = offset,)+ }
            }
        }

        /// A kernel field that some probe reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Field { $($(#[$meta])* $variant,)+ }

        impl Field {
            /// Every field.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// Paths through BTF, the first that exists wins: `struct.member.member`; brackets after a member step into an
            /// array's element type, a `+N` at the end adds N bytes.
            #[must_use]
            pub const fn paths(self) -> &'static [&'static str] {
                match self { $(Self::$variant => &$paths,)+ }
            }
        }
    };
}

offsets! {
    /// Thread id.
    task_pid: TaskPid = ["task_struct.pid"],
    /// Process id.
    task_tgid: TaskTgid = ["task_struct.tgid"],
    /// What the scheduler may do with the thread (`TASK_*`).
    task_state: TaskState = ["task_struct.__state"],
    /// `PF_*` flags.
    task_flags: TaskFlags = ["task_struct.flags"],
    /// Name of the thread.
    task_comm: TaskComm = ["task_struct.comm"],
    /// Accumulated run queue delay (`CONFIG_SCHED_INFO`).
    task_run_delay: TaskRunDelay = ["task_struct.sched_info.run_delay"],
    /// When the thread was queued last, in the run queue's clock; 0 when it is not queued.
    task_last_queued: TaskLastQueued = ["task_struct.sched_info.last_queued"],
    /// Time on a CPU, without interrupts.
    task_ran: TaskRan = ["task_struct.se.sum_exec_runtime"],
    /// What that was when the thread got its CPU (threads of the fair class).
    task_ran_before: TaskRanBefore = ["task_struct.se.prev_sum_exec_runtime"],
    /// When that was updated last, in [`Field::RqClockTask`].
    task_exec_start: TaskExecStart = ["task_struct.se.exec_start"],
    /// Priority; below 100 for the real-time classes.
    task_prio: TaskPrio = ["task_struct.prio"],
    /// The thread's fair run queue, set for every scheduling class (`CONFIG_FAIR_GROUP_SCHED`).
    task_cfs_rq: TaskCfsRq = ["task_struct.se.cfs_rq"],
    /// Run queue of a fair run queue.
    cfs_rq_rq: CfsRqRq = ["cfs_rq.rq"],
    /// Clock of a run queue, updated before `sched_switch`.
    rq_clock: RqClock = ["rq.clock"],
    /// The same without what a hypervisor took, and without interrupts where the kernel accounts for them.
    rq_clock_task: RqClockTask = ["rq.clock_task"],
    /// The bit field that holds `in_iowait`: byte offset.
    task_iowait: TaskIowait = ["task_struct.in_iowait"],
    /// The bit field that holds `in_memstall`: byte offset (CONFIG_PSI).
    task_memstall: TaskMemstall = ["task_struct.in_memstall"],
    /// Open files.
    task_files: TaskFiles = ["task_struct.files"],
    /// Address space.
    task_mm: TaskMm = ["task_struct.mm"],
    /// Shared state of a process.
    task_signal: TaskSignal = ["task_struct.signal"],
    /// Thread pointer of the thread (x86-64), where the C library keeps what it knows of it.
    task_fsbase: TaskFsbase = ["task_struct.thread.fsbase"],
    /// User time of the thread.
    task_utime: TaskUtime = ["task_struct.utime"],
    /// System time of the thread.
    task_stime: TaskStime = ["task_struct.stime"],
    /// Minor faults of the thread.
    task_min_flt: TaskMinFlt = ["task_struct.min_flt"],
    /// Major faults of the thread.
    task_maj_flt: TaskMajFlt = ["task_struct.maj_flt"],
    /// Live threads of a process.
    signal_live: SignalLive = ["signal_struct.live"],
    /// Resource limits.
    signal_rlim: SignalRlim = ["signal_struct.rlim"],
    /// Resident pages: per-CPU counters since Linux 6.2, atomics before.
    mm_rss: MmRss = ["mm_struct.rss_stat[].count", "mm_struct.rss_stat.count"],
    /// Executable file of an address space.
    mm_exe_file: MmExeFile = ["mm_struct.exe_file"],
    /// Where the vDSO of an address space is.
    mm_vdso: MmVdso = ["mm_struct.context.vdso"],
    /// Root of the tree of mappings.
    mm_root: MmRoot = ["mm_struct.mm_mt.ma_root"],
    /// Upper bounds of the slots of a node of that tree, inner nodes aside.
    range_pivot: RangePivot = ["maple_range_64.pivot"],
    /// What is between these.
    range_slot: RangeSlot = ["maple_range_64.slot"],
    /// Upper bounds of the slots of an inner node.
    inner_pivot: InnerPivot = ["maple_arange_64.pivot"],
    /// What is between these.
    inner_slot: InnerSlot = ["maple_arange_64.slot"],
    /// First address of a mapping.
    vma_start: VmaStart = ["vm_area_struct.vm_start"],
    /// First address behind it.
    vma_end: VmaEnd = ["vm_area_struct.vm_end"],
    /// Whose it is.
    vma_mm: VmaMm = ["vm_area_struct.vm_mm"],
    /// `VM_*` flags.
    vma_flags: VmaFlags = ["vm_area_struct.vm_flags", "vm_area_struct.__vm_flags"],
    /// Offset in the file, in pages.
    vma_pgoff: VmaPgoff = ["vm_area_struct.vm_pgoff"],
    /// File.
    vma_file: VmaFile = ["vm_area_struct.vm_file"],
    /// Table of descriptors.
    files_fdt: FilesFdt = ["files_struct.fdt"],
    /// Size of the table.
    fdt_max: FdtMax = ["fdtable.max_fds"],
    /// The table's array.
    fdt_fd: FdtFd = ["fdtable.fd"],
    /// Inode of an open file.
    file_inode: FileInode = ["file.f_inode"],
    /// Private data of an open file: the socket, for sockets.
    file_private: FilePrivate = ["file.private_data"],
    /// Operations of an open file.
    file_op: FileOp = ["file.f_op"],
    /// Mode of an inode.
    inode_mode: InodeMode = ["inode.i_mode"],
    /// Number of an inode.
    inode_number: InodeNumber = ["inode.i_ino"],
    /// Size of a file.
    inode_size: InodeSize = ["inode.i_size"],
    /// When a file's content changed last.
    inode_mtime: InodeMtime = ["inode.i_mtime_sec", "inode.__i_mtime.tv_sec", "inode.i_mtime.tv_sec"],
    /// Nanoseconds of that.
    inode_mtime_nsec: InodeMtimeNsec =
        ["inode.i_mtime_nsec", "inode.__i_mtime.tv_nsec", "inode.i_mtime.tv_nsec"],
    /// Tells an inode from earlier ones with its number.
    inode_generation: InodeGeneration = ["inode.i_generation"],
    /// Superblock of an inode.
    inode_sb: InodeSb = ["inode.i_sb"],
    /// Device of a filesystem.
    sb_dev: SbDev = ["super_block.s_dev"],
    /// Magic of a filesystem.
    sb_magic: SbMagic = ["super_block.s_magic"],
    /// Protocol half of a socket.
    socket_sk: SocketSk = ["socket.sk"],
    /// Address family.
    sk_family: SkFamily = ["sock.__sk_common.skc_family"],
    /// Connection state.
    sk_state: SkState = ["sock.__sk_common.skc_state"],
    /// Local port, host order.
    sk_num: SkNum = ["sock.__sk_common.skc_num"],
    /// Remote port, network order.
    sk_dport: SkDport = ["sock.__sk_common.skc_dport"],
    /// Remote IPv4 address.
    sk_daddr: SkDaddr = ["sock.__sk_common.skc_daddr"],
    /// Local IPv4 address.
    sk_saddr: SkSaddr = ["sock.__sk_common.skc_rcv_saddr"],
    /// Remote IPv6 address.
    sk_daddr6: SkDaddr6 = ["sock.__sk_common.skc_v6_daddr"],
    /// Local IPv6 address.
    sk_saddr6: SkSaddr6 = ["sock.__sk_common.skc_v6_rcv_saddr"],
    /// Network namespace.
    sk_net: SkNet = ["sock.__sk_common.skc_net.net"],
    /// Inode number of a network namespace.
    net_inum: NetInum = ["net.ns.inum"],
    /// Pending error.
    sk_err: SkErr = ["sock.sk_err"],
    /// Connections that wait to be accepted.
    sk_ack_backlog: SkAckBacklog = ["sock.sk_ack_backlog"],
    /// How many may wait.
    sk_max_ack_backlog: SkMaxAckBacklog = ["sock.sk_max_ack_backlog"],
    /// What was dropped: by a listening socket, requests for connections.
    sk_drops: SkDrops = ["sock.sk_drops"],
    /// `SOCK_STREAM` and its kin.
    sk_type: SkType = ["sock.sk_type"],
    /// The other end of a Unix socket.
    unix_peer: UnixPeer = ["unix_sock.peer"],
    /// The name of a Unix socket, which a connection shares with the socket that it was accepted by.
    unix_addr: UnixAddr = ["unix_sock.addr"],
    /// How many Unix sockets have a name.
    unix_addr_refs: UnixAddrRefs = ["unix_address.refcnt"],
    /// Process at the other end of a Unix socket.
    sk_peer_pid: SkPeerPid = ["sock.sk_peer_pid"],
    /// Number of a process in the first namespace.
    pid_number: PidNumber = ["pid.numbers[].nr"],
    /// Protocol.
    sk_protocol: SkProtocol = ["sock.sk_protocol"],
    /// `SOCK_*` flags, by number of bit.
    sk_flags: SkFlags = ["sock.__sk_common.skc_flags"],
    /// Sequence numbers that the peer acknowledged: payload bytes, and the ends of the connection.
    tcp_bytes_acked: TcpBytesAcked = ["tcp_sock.bytes_acked"],
    /// Sequence numbers received.
    tcp_bytes_received: TcpBytesReceived = ["tcp_sock.bytes_received"],
    /// The sequence number behind all that is to be sent.
    tcp_write_seq: TcpWriteSeq = ["tcp_sock.write_seq"],
    /// Segments that were sent again.
    tcp_total_retrans: TcpTotalRetrans = ["tcp_sock.total_retrans"],
    /// Segments with data that were sent, and sent again.
    tcp_data_segs_out: TcpDataSegsOut = ["tcp_sock.data_segs_out"],
    /// Segments with data that were received.
    tcp_data_segs_in: TcpDataSegsIn = ["tcp_sock.data_segs_in"],
    /// When data was sent last, in jiffies.
    tcp_lsndtime: TcpLsndtime = ["tcp_sock.lsndtime"],
    /// When data was received last, in jiffies.
    icsk_lrcvtime: IcskLrcvtime = ["inet_connection_sock.icsk_ack.lrcvtime"],
    /// Next sequence number to receive.
    tcp_rcv_nxt: TcpRcvNxt = ["tcp_sock.rcv_nxt"],
    /// `rcv_nxt` when the last segment of any kind was sent.
    tcp_rcv_wup: TcpRcvWup = ["tcp_sock.rcv_wup"],
    /// Next sequence number to send.
    tcp_snd_nxt: TcpSndNxt = ["tcp_sock.snd_nxt"],
    /// First sequence number that is not acknowledged.
    tcp_snd_una: TcpSndUna = ["tcp_sock.snd_una"],
    /// When the last segment of any kind was sent, in nanoseconds of the clock of TCP.
    tcp_wstamp_ns: TcpWstampNs = ["tcp_sock.tcp_wstamp_ns"],
    /// When data was acknowledged last, in microseconds of the same clock.
    tcp_delivered_mstamp: TcpDeliveredMstamp = ["tcp_sock.delivered_mstamp"],
    /// Operation and flags of a block request.
    rq_cmd_flags: RqCmdFlags = ["request.cmd_flags"],
    /// Bytes left in a block request.
    rq_data_len: RqDataLen = ["request.__data_len"],
    /// System call number in the saved registers, negative outside of system calls.
    regs_nr: RegsNr = ["pt_regs.orig_ax", "pt_regs.syscallno"],
    /// First argument of a system call.
    regs_arg0: RegsArg0 = ["pt_regs.di", "pt_regs.orig_x0"],
    /// Second argument of a system call.
    regs_arg1: RegsArg1 = ["pt_regs.si", "pt_regs.regs+8"],
    /// Third argument of a system call.
    regs_arg2: RegsArg2 = ["pt_regs.dx", "pt_regs.regs+16"],
    /// Fourth argument of a system call.
    regs_arg3: RegsArg3 = ["pt_regs.r10", "pt_regs.regs+24"],
    /// User instruction pointer.
    regs_ip: RegsIp = ["pt_regs.ip", "pt_regs.pc"],
    /// User stack pointer.
    regs_sp: RegsSp = ["pt_regs.sp"],
    /// User frame pointer.
    regs_fp: RegsFp = ["pt_regs.bp", "pt_regs.regs+232"],
}
