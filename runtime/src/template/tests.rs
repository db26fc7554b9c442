//! Templates against a fake VMM.

use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::fake::{Host, Mode};
use crate::pod::Pod;
use crate::pod::tests::pod_config;
use crate::state::PodState;

fn templates(host: &Host) -> PathBuf {
    host.path().join("state").join(DIR)
}

#[tokio::test]
async fn the_templates_of_all_pods_are_saved_with_what_is_known_of_them() {
    let host = Host::new(Mode::Good);
    let settings = host.settings();
    assert!(is_wanted(&settings));
    let made = build(&settings).await.unwrap();
    let mut keys: Vec<_> = made.iter().map(|info| info.key.clone()).collect();
    keys.reverse();
    assert_eq!(keys, current_keys(&settings).unwrap(), "most pods' comes first");
    for info in &made {
        let dir = templates(&host).join(&info.key);
        assert_eq!(fs::read(dir.join(STATE)).unwrap(), b"saved");
        assert_eq!(fs::read(dir.join(MEMORY)).unwrap(), b"saved");
        assert_eq!(fs::metadata(dir.join(MEMORY)).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir).unwrap().count(), 3, "no socket is left");
    }
    let expected = [
        format!("boot template nics=3 cpus={}", made[0].cpus),
        "prepare template".into(),
        "await reports 96".into(),
        "Pause".into(),
        "snapshot".into(),
    ];
    assert_eq!(host.calls()[..5], expected);
    assert!(!is_wanted(&settings));
    assert_eq!(list(&settings).unwrap().len(), 2);
    assert_eq!(crate::state::list(&settings.state_dir).unwrap(), [], "a template is no pod");
}

#[tokio::test]
async fn a_pod_is_forked_and_one_with_a_console_or_another_setting_boots() {
    let host = Host::new(Mode::Good);
    let made = build(&host.settings()).await.unwrap();
    let template = async |config| {
        let pod = Pod::start(config).await.unwrap();
        let state = PodState::read(&host.path().join("state/n/p1")).unwrap();
        pod.shutdown().await.unwrap();
        state.template
    };
    let config = pod_config(&host);
    assert_eq!(template(config.clone()).await.as_ref(), Some(&made[0].key));
    assert_eq!(
        template(pod::PodConfig { console: Some(host.path().join("c")), ..config.clone() }).await,
        None
    );
    let mut off = config.clone();
    off.settings.templates = Templates::Off;
    assert_eq!(template(off.clone()).await, None);
    assert!(matches!(build(&off.settings).await, Err(TemplateError::Off)));
    fs::write(host.path().join("kernel"), "another").unwrap();
    assert_eq!(template(config).await, None, "the kernel has changed");
}

#[tokio::test]
async fn a_template_that_no_pod_uses_can_go_and_one_that_is_used_stays() {
    let host = Host::new(Mode::Good);
    let made = build(&host.settings()).await.unwrap();
    let pod = Pod::start(pod_config(&host)).await.unwrap();
    spare::remove_unused(&host.settings()).unwrap();
    assert_eq!(list(&host.settings()).unwrap(), [made[0].clone()]);
    pod.shutdown().await.unwrap();
    spare::remove_unused(&host.settings()).unwrap();
    assert_eq!(list(&host.settings()).unwrap(), []);
    spare::remove_unused(&host.settings()).unwrap();
    assert!(is_wanted(&host.settings()), "the next pod makes them anew");
}

#[tokio::test]
async fn a_pod_whose_template_fails_boots_and_the_template_goes() {
    let host = Host::new(Mode::ForksPanic);
    let made = build(&host.settings()).await.unwrap();
    let config = pod_config(&host);
    let timeline = config.timeline.clone();
    let pod = Pod::start(config).await.unwrap();
    assert!(timeline.marks().iter().any(|mark| mark.step == "fork failed"));
    assert_eq!(PodState::read(&host.path().join("state/n/p1")).unwrap().template, None);
    assert!(!templates(&host).join(&made[0].key).exists());
    assert!(templates(&host).join(&made[1].key).exists());
    pod.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_template_stays_when_the_vmm_of_a_fork_is_killed() {
    let host = Host::new(Mode::IsKilled);
    let made = build(&host.settings()).await.unwrap();
    let error = Pod::start(pod_config(&host)).await.unwrap_err();
    assert!(error.to_string().contains("killed by SIGKILL"), "{error}");
    assert!(templates(&host).join(&made[0].key).exists());
}

#[tokio::test]
async fn a_failure_is_told_and_not_repeated_at_once() {
    let host = Host::new(Mode::Panics);
    let settings = host.settings();
    let error = build(&settings).await.unwrap_err();
    assert!(error.to_string().contains("kernel panic"), "{error}");
    assert!(last_failure(&settings).unwrap().contains("kernel panic"));
    assert!(!is_wanted(&settings));
    assert!(!templates(&host).join(BUILDING).exists());
    assert_eq!(list(&settings).unwrap(), []);
}

#[tokio::test]
async fn what_is_replaced_goes_and_what_others_need_stays() {
    let host = Host::new(Mode::Good);
    let settings = host.settings();
    let before = build(&settings).await.unwrap();
    let again = build(&settings).await.unwrap();
    assert_eq!(again[0].key, before[0].key, "one takes the place of the other");
    let other = Settings { max_cpus: 1, overhead_memory_mib: 200, ..settings.clone() };
    build(&other).await.unwrap();
    assert_eq!(list(&settings).unwrap().len(), 4);
    fs::write(&settings.initramfs, "another").unwrap();
    build(&settings).await.unwrap();
    assert_eq!(list(&settings).unwrap().len(), 2);
}

#[test]
fn only_one_is_made_at_a_time() {
    let host = Host::new(Mode::Good);
    let settings = host.settings();
    fs::create_dir_all(templates(&host)).unwrap();
    let lock = File::create(templates(&host).join(LOCK)).unwrap();
    let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert!(matches!(runtime.block_on(build(&settings)), Err(TemplateError::Busy)));
}

#[test]
fn all_are_removed_once_nobody_makes_one() {
    let host = Host::new(Mode::Good);
    let settings = host.settings();
    remove_all(&settings).unwrap();
    fs::create_dir_all(templates(&host).join("key")).unwrap();
    let lock = File::create(templates(&host).join(LOCK)).unwrap();
    let held = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| remove_all(&settings));
        // What the one who makes it does last: it must be removed with the rest.
        fs::create_dir(templates(&host).join("made")).unwrap();
        drop(held);
        removal.join().unwrap().unwrap();
    });
    assert!(!templates(&host).exists());
}

#[tokio::test]
async fn a_template_is_removed_by_the_beginning_of_its_key() {
    let host = Host::new(Mode::Good);
    let settings = host.settings();
    let made = build(&settings).await.unwrap();
    assert_eq!(remove(&settings, &made[0].key[..8]).unwrap(), made[0]);
    assert!(matches!(remove(&settings, &made[0].key), Err(TemplateError::Unknown(_))));
    assert!(matches!(remove(&settings, ""), Err(TemplateError::Unknown(_))));
    assert_eq!(list(&settings).unwrap(), [made[1].clone()]);
}
