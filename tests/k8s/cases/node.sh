# shellcheck shell=bash disable=SC2154
# What pods outlive, and how many there may be.

case_pods_outlive_a_restart_of_the_kubelet_and_of_containerd() {
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sh, -c, "while true; do echo tick; sleep 1; done"]}]
YAML
    ready p
    local before what since
    before=$(field p '{.status.containerStatuses[0].containerID} {.status.podIP}')
    for what in kubelet containerd; do
        on_node "/opt/tests/k8s/node restart $what"
        since=$(on_node 'date -u +%FT%TZ')
        # The first call that succeeds is one that both have served again.
        timeout 200 bash -c "until $kubectl --namespace $namespace exec p -- true; do sleep 2; done" > /dev/null 2>&1 || fail "no exec after the restart of $what"
        timeout 200 bash -c "until $kubectl --namespace $namespace logs p --since-time $since | grep -q tick; do sleep 2; done" 2> /dev/null ||
            fail "no log after the restart of $what"
        is "the container after the restart of $what" "$before" field p '{.status.containerStatuses[0].containerID} {.status.podIP}'
    done
    is restarts 0 field p '{.status.containerStatuses[0].restartCount}'
}

# held: what the node has for its pods.
held() {
    on_node 'echo "$(find /sys/fs/cgroup/kubepods -name cgroup.procs -exec cat {} + | wc -l) processes," \
        "$(find /sys/fs/cgroup/kubepods -type d -name "pod*" | wc -l) cgroups of pods, $(ls /run/netns | wc -l) networks," \
        "$(ip -o link | grep -c veth) links, $(grep -c " /run/containerd/" /proc/self/mounts) mounts," \
        "$(ls /run/containerd/io.containerd.runtime.v2.task/k8s.io | wc -l) tasks, $(monohull ps --json | jq length) VMs"'
}
# idle: returns when pods of earlier cases have gone.
idle() { kubectl wait --for delete pods --all --all-namespaces --timeout "$patience" > /dev/null 2>&1 || true; }

case_pods_come_back_after_a_power_loss() {
    idle
    # What a pod has had may go after it.
    holds_nothing() { [[ ! $(held) =~ [1-9] ]]; }
    by_and_by holds_nothing || fail "the node still holds $(held)"
    pod p << 'YAML'
volumes: [{name: work, emptyDir: {}}], containers: [{name: main, image: IMAGE,
  command: [sh, -c, "echo begun >> /work/log; exec sleep 3600"], volumeMounts: [{name: work, mountPath: /work}]}]
YAML
    ready p
    local before now
    before=$(held)
    on_node '/opt/tests/k8s/node lose-power'
    becomes p '{.status.containerStatuses[0].restartCount}' 1
    ready p
    is 'how the first container ended' 'Unknown 255' field p '{.status.containerStatuses[0].lastState.terminated.reason} {.status.containerStatuses[0].lastState.terminated.exitCode}'
    is 'what its volume has' $'begun\nbegun' in_pod p cat /work/log
    # What containerd still knows of the first ones goes by and by.
    holds_the_same() { now=$(held) && [ "$now" = "$before" ]; }
    by_and_by holds_the_same || fail "the node held $before; now $now"
}

# deployment COUNT [CLASS]: so many pods, and how long they take, by the clock of who waits for them: stamps of objects have whole seconds.
deployment() {
    local start pods=${2:-$class}
    idle
    start=$EPOCHREALTIME
    apply << YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: d$1}
spec: {replicas: $1, progressDeadlineSeconds: 1800, selector: {matchLabels: {app: d$1}}, template: {metadata: {labels: {app: d$1}}, spec: {runtimeClassName: $pods,
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: IMAGE, command: [sleep, "3600"]}]}}}
YAML
    k rollout status "deployment/d$1" --timeout 1800s > /dev/null || stuck "d$1"
    figure "a deployment of $1" "$(seconds_since "$start")"
    k get pods -o json > "$results/$namespace.json"
    k delete deployment "d$1" --cascade=foreground --timeout 1800s > /dev/null
}
case_a_deployment_of_one_pod() {
    deployment 1
}

case_a_deployment_of_20_pods() {
    deployment 20
}

case_a_deployment_of_50_pods() {
    # With the overhead of the class they would not fit: 50 idle pods take less (docs/kubernetes.md).
    kubectl apply -f - > /dev/null << YAML
{apiVersion: node.k8s.io/v1, kind: RuntimeClass, metadata: {name: $class-idle}, handler: $class, overhead: {podFixed: {memory: 40Mi, cpu: 10m}}}
YAML
    deployment 50 "$class-idle"
}
alone+=(case_pods_outlive_a_restart_of_the_kubelet_and_of_containerd case_pods_come_back_after_a_power_loss
    case_a_deployment_of_one_pod case_a_deployment_of_20_pods case_a_deployment_of_50_pods)
