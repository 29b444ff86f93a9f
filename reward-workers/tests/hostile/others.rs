//! Reaching others: over the network, by sockets, signals and system calls.
use crate::attack::{Attack, can_confine, confiner, refused, still_grades};
use std::io::ErrorKind;
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

#[tokio::test]
async fn nobody_is_reached_over_a_network() {
    if !can_confine() {
        return;
    }
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let tcp = format!("socket.create_connection(('127.0.0.1', {}), 5)\nreturn 1", listener.local_addr().unwrap().port());
    assert_eq!(Attack::body(&tcp).unconfined().await, 1.0);
    listener.accept().unwrap();
    listener.set_nonblocking(true).unwrap();
    let outcome = Attack::body(&tcp).grade(|_| {}).await;
    assert!(outcome.error().contains("Operation not permitted"), "{}", outcome.error());
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "nobody came");
    assert_eq!(Attack::body(&tcp).grade(|c| c.network = true).await.score(), 1.0, "unless it may");
    listener.accept().unwrap();

    let receiver = UdpSocket::bind(("127.0.0.1", 0)).unwrap();
    receiver.set_nonblocking(true).unwrap();
    let port = receiver.local_addr().unwrap().port();
    let udp = format!("return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port}))");
    assert_eq!(Attack::body(&udp).unconfined().await, 1.0);
    receiver.recv(&mut [0; 8]).unwrap();
    let outcome = Attack::body(&udp).grade(|_| {}).await;
    assert!(outcome.error().contains("Operation not permitted"), "{}", outcome.error());
    assert_eq!(receiver.recv(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    still_grades().await;
}

#[tokio::test]
async fn nobody_is_reached_by_a_socket_of_the_host() {
    if !can_confine() {
        return;
    }
    let name = format!("cohort-test-{}", std::process::id());
    let abstracted = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let named = UnixListener::bind(&path).unwrap();
    let connect = "s = socket.socket(socket.AF_UNIX); s.connect(";
    for (body, listener) in
        [(format!("{connect}'\\0{name}')\nreturn 1"), &abstracted), (format!("{connect}'{}')\nreturn 1", path.display()), &named)]
    {
        assert_eq!(Attack::body(&body).unconfined().await, 1.0);
        listener.accept().unwrap();
        listener.set_nonblocking(true).unwrap();
        for network in [false, true] {
            let outcome = Attack::body(&body).grade(|c| c.network = network).await;
            assert!(outcome.error().contains("Operation not permitted"), "{}", outcome.error());
        }
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    let raw = "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nreturn 1";
    assert!(Attack::body(raw).grade(|c| c.network = true).await.error().contains("Operation not permitted"));
    let pair = "a, b = socket.socketpair(); a.send(b'xy')\nreturn len(b.recv(8))";
    assert_eq!(Attack::body(pair).grade(|_| {}).await.score(), 2.0, "pairs reach nobody else");
}

#[tokio::test]
async fn the_host_is_not_signalled_traced_or_limited() {
    // Nothing that would harm this process where it is not refused.
    refused(&[
        ("os.kill(HOST, 0)\nreturn 1", "PermissionError", true),
        ("os.kill(os.getppid(), 0)\nreturn 1", "PermissionError", true),
        ("resource.prlimit(HOST, resource.RLIMIT_NOFILE)\nreturn 1", "PermissionError", true),
        (
            "was = os.getpriority(os.PRIO_PROCESS, HOST); os.setpriority(os.PRIO_PROCESS, HOST, was)\nreturn 1",
            "PermissionError",
            true,
        ),
        ("os.sched_setaffinity(HOST, os.sched_getaffinity(HOST))\nreturn 1", "PermissionError", true),
        ("os.kill(-1, 0)\nreturn 1", "PermissionError", false),
        ("if libc.ptrace(16, HOST, 0, 0) < 0: raise OSError(ctypes.get_errno(), 'ptrace')\nreturn 1", "PermissionError", false),
        ("import fcntl\nr, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, HOST)\nreturn 1", "PermissionError", true),
    ])
    .await;
}

#[tokio::test]
async fn the_doors_of_the_kernel_are_shut() {
    if !can_confine() || cfg!(not(target_arch = "x86_64")) {
        return;
    }
    // By number, with arguments that would fail otherwise: EPERM says that the filter saw it, not the call.
    let attack = Attack::body(
        "calls = dict(unshare=(272, 0x10000000), setns=(308, -1, 0), mount=(165, 0, 0, 0, 0, 0), ptrace=(101, 99, 0, 0, 0),\n\
         \x20   process_vm_readv=(310, -1, 0, 0, 0, 0, 0), process_vm_writev=(311, -1, 0, 0, 0, 0, 0), bpf=(321, -1, 0, 0),\n\
         \x20   perf_event_open=(298, 0, 0, -1, -1, 0), keyctl=(250, -1), io_uring_setup=(425, 0, 0), userfaultfd=(323, -1),\n\
         \x20   init_module=(175, 0, 0, 0), kexec_load=(246, 0, 0, 0, 0), reboot=(169, 0, 0, 0, 0), shmget=(29, 0, 0, 0),\n\
         \x20   memfd_create=(319, 0, -1), setsid=(112,), setpgid=(109, 0, 0), clone_newuser=(56, 0x10000000, 0, 0, 0, 0),\n\
         \x20   pidfd_getfd=(438, -1, 0, 0), name_to_handle_at=(303, -1, 0, 0, 0, 0), fsopen=(430, 0, 0), tkill=(200, -1, 0))\n\
         open_doors = []\n\
         for name, call in calls.items():\n\
         \x20   ctypes.set_errno(0)\n\
         \x20   if libc.syscall(*[ctypes.c_long(a) for a in call]) != -1 or ctypes.get_errno() != 1: open_doors.append(name)\n\
         assert not open_doors, open_doors\n\
         assert libc.syscall(435, 0, 0) == -1 and ctypes.get_errno() == 38, 'clone3'\n\
         status = dict(line.split(':\\t') for line in open('/proc/self/status').read().splitlines() if ':\\t' in line)\n\
         assert int(status['CapEff'], 16) == int(status['CapPrm'], 16) == int(status['CapInh'], 16) == 0, status\n\
         assert (status['NoNewPrivs'], status['Seccomp']) == ('1', '2'), status\n\
         return len(calls)",
    );
    assert_eq!(attack.grade(|_| {}).await.score(), 23.0);
}

#[tokio::test]
async fn the_hosts_environment_is_not_handed_on() {
    if !can_confine() {
        return;
    }
    let body = "return len(os.environ.get('CARGO_MANIFEST_DIR', '')) + 0.5";
    assert!(Attack::body(body).unconfined().await > 1.0);
    assert_eq!(Attack::body(body).grade(|_| {}).await.score(), 0.5);
    assert!(Attack::body(body).grade(|c| c.pass_env = vec!["CARGO_MANIFEST_DIR".into()]).await.score() > 1.0);
}

#[tokio::test]
async fn on_an_older_kernel_the_filter_stands_in_for_landlock() {
    if !can_confine() {
        return;
    }
    for abi in [1, 3, 5] {
        let old = confiner().with_landlock_at_most(abi);
        for body in [
            "os.kill(HOST, 0)\nreturn 1",
            "os.kill(os.getppid(), 0)\nreturn 1",
            "os.truncate(OUT + '/secret', 0)\nreturn 1",
            "os.close(os.open(OUT + '/secret', os.O_RDONLY | os.O_TRUNC))\nreturn 1",
            "return len(open(OUT + '/secret').read())",
        ] {
            let outcome = Attack::body(body).grade_by(&old, |_| {}).await;
            assert!(outcome.error().contains("PermissionError"), "Landlock {abi}: {body}: {}", outcome.error());
        }
        let honest = "open(TMP + '/a', 'w').write('x'); open(TMP + '/a', 'w').write('')\n\
                      return len(subprocess.check_output(['echo', 'four']))";
        assert_eq!(Attack::body(honest).grade_by(&old, |_| {}).await.score(), 5.0, "Landlock {abi}");
    }
}
