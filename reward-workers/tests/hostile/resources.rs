//! Memory, disk, descriptors: taking all there is.
use crate::attack::{Attack, can_confine, still_grades};

#[tokio::test]
async fn memory_is_capped_for_one_process_and_for_all_together() {
    if !can_confine() {
        return;
    }
    let outcome = Attack::body("return len(bytearray(2 << 30))").grade(|c| c.memory_mib = 512).await;
    assert!(outcome.error().contains("MemoryError") && outcome.error().contains("memory_mib = 512"), "{}", outcome.error());
    // None of these is over the cap; together they are.
    let many = "for _ in range(6):\n\
                \x20   if os.fork() == 0:\n\
                \x20       held = bytearray(b'x') * (64 << 20); time.sleep(300)\n\
                time.sleep(300)";
    let outcome = Attack::body(many).grade(|c| c.memory_mib = 256).await;
    assert!(outcome.error().contains("more than 256 MiB of memory"), "{}", outcome.error());
    // Memory that children share counts once.
    let shared = "held = bytearray(b'x') * (100 << 20)\n\
                  for _ in range(6):\n\
                  \x20   if os.fork() == 0: time.sleep(1); os._exit(0)\n\
                  for _ in range(6): os.wait()\n\
                  return 1";
    assert_eq!(Attack::body(shared).grade(|c| c.memory_mib = 256).await.score(), 1.0);
    for call in ["os.memfd_create('mine')", "os.posix_spawn('/bin/true', ['true'], {}, setsid=True)"] {
        let outcome = Attack::body(&format!("{call}\nreturn 1")).grade(|_| {}).await;
        assert!(outcome.error().contains("PermissionError"), "{}", outcome.error());
    }
    still_grades().await;
}

#[tokio::test]
async fn the_disk_is_not_filled() {
    if !can_confine() {
        return;
    }
    let fill = "data = bytes(4 << 20)\nfor n in range(1000): open('%s/%d' % (TMP, n), 'wb').write(data); time.sleep(0.01)\ntime.sleep(60)";
    let nameless = "kept, data = [], bytes(4 << 20)\n\
                    for n in range(200):\n\
                    \x20   f = open(TMP + '/x', 'wb', 0); os.remove(TMP + '/x'); f.write(data); kept.append(f); time.sleep(0.01)\n\
                    time.sleep(60)";
    for body in [fill, nameless] {
        let outcome = Attack::body(body).grade(|c| c.scratch_mib = 32).await;
        assert!(outcome.error().contains("more than 32 MiB in its scratch folder"), "{}", outcome.error());
        assert!(outcome.error().contains("scratch_mib = 32"), "{}", outcome.error());
    }
    let names = "os.chdir(TMP)\nfor n in range(20000): open(str(n), 'w').close()\ntime.sleep(60)";
    let outcome = Attack::body(names).grade(|_| {}).await;
    assert!(outcome.error().contains("more than 10000 files"), "{}", outcome.error());
    let one = "open(TMP + '/x', 'wb').write(bytes(8 << 20))\nreturn 1";
    let outcome = Attack::body(one).grade(|c| c.scratch_mib = 4).await;
    assert!(outcome.error().contains("File too large"), "{}", outcome.error());
    // What it leaves is removed however deep and closed: `grade` looks.
    let maze = "os.chdir(TMP)\nfor _ in range(60): os.mkdir('d' * 200); os.chdir('d' * 200)\nos.mkdir('closed', 0)\ntime.sleep(1)\nreturn 1";
    let outcome = Attack::body(maze).grade(|_| {}).await;
    assert!(outcome.error().contains("its scratch folder cannot be measured"), "{}", outcome.error());
    still_grades().await;
}

#[tokio::test]
async fn descriptors_run_out_in_it_and_a_crash_leaves_no_core() {
    if !can_confine() {
        return;
    }
    let outcome = Attack::body("kept = [open('/dev/null') for _ in range(10000)]\nreturn 1").grade(|_| {}).await;
    assert!(outcome.error().contains("Too many open files"), "{}", outcome.error());
    let attack = Attack::body("resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))\nreturn 1");
    assert!(attack.grade(|_| {}).await.error().contains("ValueError"), "a limit is not raised again");
    let attack = Attack::body("os.chdir(TMP)\nos.abort()");
    let outcome = attack.grade(|_| {}).await;
    assert!(outcome.error().contains("signal: 6 (SIGABRT)") && !outcome.error().contains("core dumped"), "{}", outcome.error());
    still_grades().await;
}
