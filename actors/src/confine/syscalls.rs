//! Seccomp on the calling thread: the doors of the kernel that Landlock does not watch, refused with `EPERM` so that a
//! program's own error names what it may not do.
//!
//! Refused in any case: namespaces, mounts, modules, other processes' memory, limits and priorities; leaving the process group
//! (C2); modes, owners, times and attributes of files, which Landlock leaves open; IPC objects and `memfd`, which outlive or
//! escape limits; sockets other than connected pairs (with `network`: other than the internet's). `clone3` and `openat2`,
//! whose flags a filter cannot read, do not exist (`ENOSYS`): libraries then use `clone` and `openat`.
use super::files::{SCOPES, TRUNCATES};
use libc::{ENOSYS, EPERM};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};
use std::collections::BTreeMap;

/// Calls with the same number on every architecture, newer than some headers.
mod new {
    pub(super) const PIDFD_SEND_SIGNAL: i64 = 424;
    pub(super) const IO_URING_SETUP: i64 = 425;
    pub(super) const IO_URING_ENTER: i64 = 426;
    pub(super) const IO_URING_REGISTER: i64 = 427;
    pub(super) const OPEN_TREE: i64 = 428;
    pub(super) const MOVE_MOUNT: i64 = 429;
    pub(super) const FSOPEN: i64 = 430;
    pub(super) const FSCONFIG: i64 = 431;
    pub(super) const FSMOUNT: i64 = 432;
    pub(super) const FSPICK: i64 = 433;
    pub(super) const CLONE3: i64 = 435;
    pub(super) const OPENAT2: i64 = 437;
    pub(super) const PIDFD_GETFD: i64 = 438;
    pub(super) const PROCESS_MADVISE: i64 = 440;
    pub(super) const MOUNT_SETATTR: i64 = 442;
    pub(super) const QUOTACTL_FD: i64 = 443;
    pub(super) const MEMFD_SECRET: i64 = 447;
    pub(super) const PROCESS_MRELEASE: i64 = 448;
    pub(super) const FCHMODAT2: i64 = 452;
    pub(super) const SETXATTRAT: i64 = 463;
    pub(super) const REMOVEXATTRAT: i64 = 466;
    pub(super) const OPEN_TREE_ATTR: i64 = 467;
    pub(super) const FILE_SETATTR: i64 = 469;
}

/// Refused whatever the arguments.
const NEVER: &[i64] = &[
    // Other processes: their memory, descriptors, memory placement.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    new::PIDFD_GETFD,
    new::PROCESS_MADVISE,
    new::PROCESS_MRELEASE,
    // Leaving the process group (C2); signals to one thread of anybody.
    libc::SYS_setpgid,
    libc::SYS_setsid,
    libc::SYS_tkill,
    // Namespaces and mounts.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    new::OPEN_TREE,
    new::OPEN_TREE_ATTR,
    new::MOVE_MOUNT,
    new::FSOPEN,
    new::FSCONFIG,
    new::FSMOUNT,
    new::FSPICK,
    new::MOUNT_SETATTR,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    // The kernel itself.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    new::QUOTACTL_FD,
    libc::SYS_syslog,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_vhangup,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_fanotify_init,
    libc::SYS_inotify_init1,
    new::IO_URING_SETUP,
    new::IO_URING_ENTER,
    new::IO_URING_REGISTER,
    // Keys, and objects that outlive their process or count as nobody's memory.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_semget,
    libc::SYS_semctl,
    libc::SYS_semtimedop,
    libc::SYS_semop,
    libc::SYS_msgget,
    libc::SYS_msgctl,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_mq_open,
    libc::SYS_mq_unlink,
    libc::SYS_memfd_create,
    new::MEMFD_SECRET,
    // What Landlock leaves open of files anywhere.
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    new::FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    new::SETXATTRAT,
    new::REMOVEXATTRAT,
    new::FILE_SETATTR,
    libc::SYS_ioprio_set,
];
/// The same, by calls that newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const NEVER_OLD: &[i64] = &[
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_inotify_init,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_kexec_file_load,
    libc::SYS_uselib,
    libc::SYS__sysctl,
];
#[cfg(not(target_arch = "x86_64"))]
const NEVER_OLD: &[i64] = &[];
/// Sockets that reach somebody. Without a network nothing needs them: a pair is connected from birth.
const MEETINGS: &[i64] =
    &[libc::SYS_socket, libc::SYS_connect, libc::SYS_bind, libc::SYS_listen, libc::SYS_accept, libc::SYS_accept4];

const NAMESPACES: [libc::c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];
/// Low bits of a socket's type.
const SOCKET_TYPE: u64 = 0xf;
/// A negative process id, as the 32 bits that a filter sees.
const LARGEST_PID: u64 = 0x7fff_ffff;
/// What names a process to be signalled about a descriptor: `F_SETOWN`, `F_SETSIG`, `F_SETOWN_EX`.
const FCNTL_OWNERS: &[u64] = &[8, 10, 15];
/// The same by `ioctl`: `FIOSETOWN`, `SIOCSPGRP`.
const IOCTL_OWNERS: &[u64] = &[0x8901, 0x8902];
/// Calls of the x32 kind, which a 64-bit process may make too.
#[cfg(target_arch = "x86_64")]
const X32: i64 = 0x4000_0000;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Restricts the calling thread and whatever it executes, for good.
pub(super) fn restrict(network: bool, landlock_abi: u32) -> Result<(), String> {
    let said = |e: &dyn std::fmt::Display| format!("seccomp refuses its filter: {e}");
    let absent = BTreeMap::from([(new::CLONE3, Vec::new()), (new::OPENAT2, Vec::new())]);
    let absent = program(absent, ENOSYS).map_err(|e| said(&e))?;
    let refused = program(refused(network, landlock_abi).map_err(|e| said(&e))?, EPERM).map_err(|e| said(&e))?;
    apply_filter(&absent).and_then(|()| apply_filter(&refused)).map_err(|e| said(&e))
}

fn program(rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::try_from(std::env::consts::ARCH)?)?.try_into()
}

/// Conditions that must all hold: (argument, comparison, value), of its low 32 bits.
fn when(conditions: &[(u8, Op, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = |(argument, op, value): &(u8, Op, u64)| SeccompCondition::new(*argument, Len::Dword, op.clone(), *value);
    SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
}

fn refused(network: bool, landlock_abi: u32) -> Result<Rules, seccompiler::BackendError> {
    let me = u64::from(std::process::id());
    let mut rules: Rules = NEVER.iter().chain(NEVER_OLD).map(|call| (*call, Vec::new())).collect();
    let number = |value: i32| u64::from(value.unsigned_abs());
    let flags = NAMESPACES.map(|flag| when(&[(0, Op::MaskedEq(number(flag)), number(flag))]));
    rules.insert(libc::SYS_clone, flags.into_iter().collect::<Result<_, _>>()?);
    // Limits and priorities of others: 0 is the caller.
    rules.insert(libc::SYS_prlimit64, vec![when(&[(0, Op::Ne, 0)])?]);
    rules.insert(
        libc::SYS_setpriority,
        vec![when(&[(1, Op::Ne, 0)])?, when(&[(0, Op::Ne, number(libc::PRIO_PROCESS.cast_signed()))])?],
    );
    for call in [libc::SYS_sched_setscheduler, libc::SYS_sched_setparam, libc::SYS_sched_setattr, libc::SYS_sched_setaffinity] {
        rules.insert(call, vec![when(&[(0, Op::Ne, 0)])?]);
    }
    // Its own end with its keeper, and being looked at.
    let dies = [(0, Op::Eq, number(libc::PR_SET_PDEATHSIG)), (1, Op::Ne, number(libc::SIGKILL))];
    rules.insert(libc::SYS_prctl, vec![when(&dies)?, when(&[(0, Op::Eq, number(libc::PR_SET_DUMPABLE))])?]);
    // Signals by way of a descriptor's owner.
    for (call, requests) in [(libc::SYS_fcntl, FCNTL_OWNERS), (libc::SYS_ioctl, IOCTL_OWNERS)] {
        rules.insert(call, requests.iter().map(|request| when(&[(1, Op::Eq, *request)])).collect::<Result<_, _>>()?);
    }
    // To a group is to everybody: there is one.
    let mut kill = vec![when(&[(0, Op::Eq, 0)])?, when(&[(0, Op::Gt, LARGEST_PID)])?];
    if landlock_abi < SCOPES {
        let others = vec![when(&[(0, Op::Ne, me)])?];
        kill.extend(others.clone());
        rules.extend([(libc::SYS_tgkill, others.clone()), (libc::SYS_rt_sigqueueinfo, others.clone())]);
        rules.extend([(libc::SYS_rt_tgsigqueueinfo, others), (new::PIDFD_SEND_SIGNAL, Vec::new())]);
    }
    rules.insert(libc::SYS_kill, kill);
    if landlock_abi < TRUNCATES {
        cutting(&mut rules)?;
    }
    sockets(network, &mut rules)?;
    #[cfg(target_arch = "x86_64")]
    {
        let calls: Vec<i64> = rules.keys().copied().chain(512..548).collect();
        rules.extend(calls.into_iter().map(|call| (call | X32, Vec::new())));
    }
    Ok(rules)
}

/// Cutting files short without opening them for writing.
fn cutting(rules: &mut Rules) -> Result<(), seccompiler::BackendError> {
    let (cut, how) = (libc::O_TRUNC.unsigned_abs().into(), (libc::O_TRUNC | libc::O_ACCMODE).unsigned_abs().into());
    rules.insert(libc::SYS_truncate, Vec::new());
    rules.insert(libc::SYS_openat, vec![when(&[(2, Op::MaskedEq(how), cut)])?]);
    #[cfg(target_arch = "x86_64")]
    rules.insert(libc::SYS_open, vec![when(&[(1, Op::MaskedEq(how), cut)])?]);
    Ok(())
}

fn sockets(network: bool, rules: &mut Rules) -> Result<(), seccompiler::BackendError> {
    let number = |value: i32| u64::from(value.unsigned_abs());
    // A datagram socket of a pair can be turned to somebody else.
    let datagram = when(&[(1, Op::MaskedEq(SOCKET_TYPE), number(libc::SOCK_DGRAM))])?;
    rules.insert(libc::SYS_socketpair, vec![datagram]);
    if !network {
        rules.extend(MEETINGS.iter().map(|call| (*call, Vec::new())));
        return Ok(());
    }
    let families = [libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];
    let mut socket = vec![when(&families.map(|family| (0, Op::Ne, number(family))))?];
    for family in [libc::AF_INET, libc::AF_INET6] {
        socket.push(when(&[(0, Op::Eq, number(family)), (1, Op::MaskedEq(SOCKET_TYPE), number(libc::SOCK_RAW))])?);
    }
    rules.insert(libc::SYS_socket, socket);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a thread of its own, which stays restricted.
    fn restricted<T: Send + 'static>(network: bool, abi: u32, look: impl FnOnce() -> T + Send + 'static) -> T {
        std::thread::spawn(move || {
            restrict(network, abi).unwrap();
            look()
        })
        .join()
        .unwrap()
    }

    fn kind<T>(result: std::io::Result<T>) -> Option<i32> {
        result.err().and_then(|e| e.raw_os_error())
    }

    #[test]
    fn sockets_are_refused_unless_there_is_a_network() {
        let bind = || kind(std::net::UdpSocket::bind(("127.0.0.1", 0)));
        assert_eq!(restricted(false, SCOPES, bind), Some(EPERM));
        assert_eq!(restricted(true, SCOPES, bind), None);
        let unix = || kind(std::os::unix::net::UnixListener::bind("/tmp/none/of/that"));
        assert_eq!(restricted(true, SCOPES, unix), Some(EPERM));
        assert_eq!(restricted(false, SCOPES, || kind(std::os::unix::net::UnixStream::pair())), None);
        assert_eq!(restricted(false, SCOPES, || kind(std::os::unix::net::UnixDatagram::pair())), Some(EPERM));
    }

    #[test]
    fn others_are_out_of_reach_and_threads_and_children_work() {
        use rustix::process::{Pid, Resource, getrlimit, prlimit, setpgid, setsid, test_kill_process};
        let ours = || {
            let child = std::process::Command::new("true").status().unwrap().success();
            child && std::thread::spawn(|| true).join().unwrap()
        };
        assert!(restricted(false, SCOPES, ours));
        assert_eq!(restricted(false, SCOPES, setsid), Err(rustix::io::Errno::PERM));
        assert_eq!(restricted(false, SCOPES, || setpgid(None, None)), Err(rustix::io::Errno::PERM));
        let limit = || prlimit(Some(Pid::INIT), Resource::Nofile, getrlimit(Resource::Nofile)).map(drop);
        assert_eq!(restricted(false, SCOPES, limit), Err(rustix::io::Errno::PERM));
        let probe = || test_kill_process(rustix::process::getppid().unwrap());
        assert_eq!(restricted(false, SCOPES, probe), Ok(()), "Landlock's affair here");
        assert_eq!(restricted(false, SCOPES - 1, probe), Err(rustix::io::Errno::PERM));
    }

    #[test]
    fn files_keep_their_modes_and_their_lengths() {
        use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "text").unwrap();
        let path = file.path().to_owned();
        let mode = move || kind(std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)));
        assert_eq!(restricted(false, SCOPES, mode), Some(EPERM));
        for (abi, want, left) in [(TRUNCATES - 1, Some(EPERM), "text"), (TRUNCATES, None, "")] {
            let path = file.path().to_owned();
            let cut = move || kind(std::fs::OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(path));
            assert_eq!(restricted(false, abi, cut), want);
            assert_eq!(std::fs::read_to_string(&file).unwrap(), left);
        }
    }
}
