//! Reading and writing what is none of its business.
use crate::attack::{Attack, can_confine, confiner, refused, still_grades};
use std::os::unix::fs::PermissionsExt;

#[tokio::test]
async fn secrets_are_not_read() {
    refused(&[
        ("return len(open(OUT + '/secret').read())", "PermissionError", true),
        ("return len(open('runs/a/ledger.sqlite').read())", "PermissionError", true),
        ("return len(open('/proc/%d/environ' % HOST, 'rb').read())", "PermissionError", true),
        ("return len(open('/proc/%d/cmdline' % os.getppid(), 'rb').read())", "PermissionError", true),
        ("return 1 + len(open('/proc/%d/mem' % HOST, 'rb').read(0))", "PermissionError", false),
        ("return len(open('/etc/shadow').read())", "PermissionError", false),
        ("return len(os.listdir('/'))", "PermissionError", true),
        ("os.symlink(OUT + '/secret', TMP + '/link')\nreturn len(open(TMP + '/link').read())", "PermissionError", true),
        ("os.link(OUT + '/secret', TMP + '/link')\nreturn len(open(TMP + '/link').read())", "PermissionError|cross-device", true),
        ("os.chdir(OUT)\nreturn len(open('secret').read())", "PermissionError", true),
        ("return len(subprocess.check_output(['cat', OUT + '/secret']))", "returned non-zero exit status", true),
    ])
    .await;
}

#[tokio::test]
async fn nothing_is_written_outside_its_scratch_folder() {
    refused(&[
        ("open(OUT + '/mine', 'w').write('x'); os.remove(OUT + '/mine')\nreturn 1", "PermissionError", true),
        ("open('cohort_reward.py', 'a').write('# x')\nreturn 1", "PermissionError", true),
        ("os.rename(OUT + '/secret', TMP + '/mine')\nreturn 1", "PermissionError|cross-device", true),
        ("os.truncate(OUT + '/secret', 0)\nreturn 1", "PermissionError", true),
        ("os.close(os.open(OUT + '/secret', os.O_RDONLY | os.O_TRUNC))\nreturn 1", "PermissionError", true),
        ("os.chmod(OUT + '/secret', 0o777)\nreturn 1", "PermissionError", true),
        ("os.utime(OUT + '/secret', (1, 1))\nreturn 1", "PermissionError", true),
        ("os.setxattr(OUT + '/secret', 'user.mine', b'x')\nreturn 1", "PermissionError", false),
        ("os.mkdir(OUT + '/mine'); os.rmdir(OUT + '/mine')\nreturn 1", "PermissionError", true),
        ("os.remove(OUT + '/secret')\nreturn 1", "PermissionError", true),
        ("os.mkfifo(OUT + '/mine'); os.remove(OUT + '/mine')\nreturn 1", "PermissionError", true),
        ("open('/dev/shm/mine-%d' % HOST, 'w').close(); os.remove('/dev/shm/mine-%d' % HOST)\nreturn 1", "PermissionError", true),
    ])
    .await;
}

#[tokio::test]
async fn what_is_named_is_open_and_the_scratch_folder_works() {
    if !can_confine() {
        return;
    }
    let attack = Attack::body(
        "open(TMP + '/a', 'w').write('four'); os.mkdir(TMP + '/d'); os.rename(TMP + '/a', TMP + '/d/b')\n\
         assert os.environ['HOME'] == TMP and os.getcwd().endswith('plugin')\n\
         os.symlink('/bin/sh', TMP + '/sh'); os.mkdir(TMP + '/e', 0)\n\
         return len(open(TMP + '/d/b').read())",
    );
    assert_eq!(attack.grade(|_| {}).await.score(), 4.0);
    let attack = Attack::body("return len(open(OUT + '/secret').read())");
    assert_eq!(attack.grade(|c| c.read = vec![attack.out()]).await.score(), 6.0);
    let attack = Attack::body("return len(open(OUT + '/secret', 'r+').read()) + open(OUT + '/mine', 'w').write('x')");
    assert_eq!(attack.grade(|c| c.write = vec![attack.out()]).await.score(), 7.0);
    let attack = Attack::body("return open(OUT + '/mine', 'w').write('x')");
    assert!(attack.grade(|c| c.read = vec![attack.out()]).await.error().contains("it runs confined: read = [..]"));
}

#[tokio::test]
async fn a_run_directory_around_the_plug_in_refuses_its_start() {
    if !can_confine() {
        return;
    }
    let attack = Attack::body("return 1");
    let outcome = attack.grade_by(&confiner().hiding(&attack.folder()), |_| {}).await;
    let error = outcome.error();
    assert!(error.contains("could not be confined and was not started") && error.contains("stays hidden: move it"), "{error}");
    still_grades().await;
}

#[tokio::test]
async fn a_descriptor_of_the_host_is_not_inherited() {
    if !can_confine() {
        return;
    }
    let attack = Attack::program("");
    let file = std::fs::File::open(attack.out().join("secret")).unwrap();
    use std::os::fd::AsRawFd;
    let body = format!("return len(os.read({}, 6))", file.as_raw_fd());
    // For this process's other tests the leak is harmless: it is a file of this one.
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    assert_eq!(Attack::body(&body).unconfined().await, 6.0);
    let outcome = Attack::body(&body).grade(|_| {}).await;
    assert!(outcome.error().contains("Bad file descriptor"), "{}", outcome.error());
}

#[tokio::test]
async fn a_program_in_a_closed_home_is_found_and_its_secrets_are_not() {
    if !can_confine() {
        return;
    }
    // A virtual environment elsewhere: its own folder is not the plug-in's.
    let attack = Attack::program("");
    let venv = attack.out().join("home/.venv");
    let made = std::process::Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(&venv).status().unwrap();
    assert!(made.success());
    std::fs::write(venv.join("secret"), "secret").unwrap();
    std::fs::set_permissions(attack.out().join("home"), std::fs::Permissions::from_mode(0o700)).unwrap();
    let packages = std::fs::read_dir(venv.join("lib")).unwrap().next().unwrap().unwrap().path().join("site-packages");
    std::fs::write(packages.join("mine.py"), "worth = 3").unwrap();
    let python = venv.join("bin/python3").display().to_string();
    let run = |body: &'static str| {
        let python = python.clone();
        async move { Attack::body(body).grade(|c| c.command[0] = python).await }
    };
    assert_eq!(run("import mine\nreturn mine.worth").await.score(), 3.0);
    let outcome = run("return len(open(sys.prefix + '/secret').read())").await;
    assert!(outcome.error().contains("PermissionError"), "{}", outcome.error());
}
