//! What a container is given: its own kernel, root, environment, user, limits.

use monohull_tests::engine::{Client, Engine, Run, unique};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("a_container_has_a_kernel_of_its_own", own_kernel),
    ("environment_user_and_directory_reach_the_container", environment),
    ("a_read_only_root_rejects_writes", read_only_root),
    ("a_writable_root_keeps_writes_to_itself", writable_root),
    ("seccomp_and_no_new_privileges_are_on_when_asked_for", confinement),
    ("a_container_over_its_memory_limit_is_killed_with_137", memory_limit),
    ("a_read_only_bind_mount_shows_the_hosts_files", bind_mount),
];

pub(crate) fn id(prefix: &str) -> String {
    format!("{prefix}-{}", unique())
}

fn own_kernel(engine: &Engine) {
    let output = engine.run(&Run::new(&id("kernel"), &["uname", "-r"]));
    assert_eq!(output.code(), 0, "{}", output.stderr);
    let guest = output.text().trim().to_owned();
    let host = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    assert_ne!(guest, host.trim());
    assert!(guest.ends_with("-monohull"), "guest kernel is {guest}");
}

fn environment(engine: &Engine) {
    let mut run = Run::sh(&id("env"), "echo \"$GREETING|$(pwd)|$(id -u):$(id -g)\"");
    run.env.push("GREETING=hello there".into());
    run.cwd = Some("/tmp".into());
    // `ctr run` of 1.6 takes no user: there the image's counts.
    let user = if engine.client() == Client::Nerdctl { "1000:1001" } else { "0:0" };
    run.user = (user != "0:0").then(|| user.into());
    let output = engine.run(&run);
    assert_eq!(output.text().trim(), format!("hello there|/tmp|{user}"), "{}", output.stderr);

    let name = crate::processes::sleeper(engine, "env");
    let output = engine.exec_as(&name, "1000:1001", &["id"]);
    assert!(output.text().starts_with("uid=1000 gid=1001"), "{}{}", output.text(), output.stderr);
    engine.remove(&name);
}

fn read_only_root(engine: &Engine) {
    let mut run = Run::sh(&id("ro"), "touch /file; echo $?; mount -o remount,rw / ; touch /file2; echo $?");
    run.read_only = true;
    let output = engine.run(&run);
    assert_eq!(output.text().trim(), "1\n1", "{}", output.stderr);
    assert!(output.stderr.contains("Read-only file system"), "{}", output.stderr);
}

fn writable_root(engine: &Engine) {
    let write = Run::sh(&id("rw"), "echo secret > /file && cat /file && rm /bin/vi; ls /bin/vi 2>/dev/null");
    assert_eq!(engine.run(&write).text().trim(), "secret");
    let read = Run::sh(&id("rw"), "cat /file 2>/dev/null || ls /bin/vi");
    assert_eq!(engine.run(&read).text().trim(), "/bin/vi");
}

fn confinement(engine: &Engine) {
    let output =
        engine.run(&Run::new(&id("seccomp"), &["grep", "-E", "^(Seccomp|NoNewPrivs):", "/proc/self/status"]));
    let text = output.text();
    // nerdctl asks for its profile always and for no new privileges on request; `ctr` the other way round.
    if engine.client() == Client::Nerdctl {
        assert!(text.contains("Seccomp:\t2"), "{text}");
        let mut run = Run::new(&id("nnp"), &["grep", "^NoNewPrivs:", "/proc/self/status"]);
        run.extra = vec!["--security-opt".into(), "no-new-privileges".into()];
        let text = engine.run(&run).text();
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
    } else {
        assert!(text.contains("NoNewPrivs:\t1"), "{text}");
        let mut run = Run::new(&id("seccomp"), &["grep", "^Seccomp:", "/proc/self/status"]);
        run.extra.push("--seccomp".into());
        let text = engine.run(&run).text();
        assert!(text.contains("Seccomp:\t2"), "{text}");
    }
}

fn memory_limit(engine: &Engine) {
    let name = id("oom");
    let mut run = Run::new(&name, &["tail", "/dev/zero"]);
    run.memory_mib = Some(64);
    let output = engine.run(&run);
    assert_eq!(output.code(), 137, "{}", output.stderr);
}

fn bind_mount(engine: &Engine) {
    let directory = engine.scratch().join(id("volume"));
    std::fs::create_dir(&directory).expect("a directory for the volume");
    std::fs::write(directory.join("file"), "from the host").expect("a file in the volume");
    let mut run = Run::sh(&id("bind"), "cat /mnt/file && ! touch /mnt/new 2>/dev/null");
    let source = directory.display();
    run.extra = match engine.client() {
        Client::Ctr => {
            vec!["--mount".into(), format!("type=bind,src={source},dst=/mnt,options=rbind:ro")]
        }
        Client::Nerdctl => vec!["--volume".into(), format!("{source}:/mnt:ro")],
    };
    let output = engine.run(&run);
    assert_eq!((output.code(), output.text().as_str()), (0, "from the host"), "{}", output.stderr);
}
