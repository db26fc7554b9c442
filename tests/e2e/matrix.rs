//! The tests that every release of containerd has to pass (`make matrix`): one for each thing that an engine does to a task.

pub(crate) const NAMES: [&str; 8] = [
    "a_container_has_a_kernel_of_its_own",
    "exec_runs_in_the_container_and_passes_its_exit_code",
    "sigterm_and_sigkill_end_a_container_with_143_and_137",
    "a_paused_container_stands_still_and_goes_on",
    "statistics_come_from_the_container",
    "a_pod_outlives_a_crash_of_containerd",
    "an_exit_while_containerd_is_away_is_known_when_it_is_back",
    "a_dead_shim_is_cleaned_up_within_5_s",
];
