# shellcheck shell=bash disable=SC2154
# What pods outlive, and how many there may be.

case_pods_outlive_a_restart_of_the_kubelet_and_of_containerd() {
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sh, -c, "while true; do echo tick; sleep 1; done"]}]
YAML
    ready p
    local before what
    before=$(field p '{.status.containerStatuses[0].containerID} {.status.podIP}')
    for what in kubelet containerd; do
        on_node "/opt/tests/k8s/node restart $what"
        # The first call that succeeds is one that both have served again.
        timeout 200 bash -c "until $kubectl --namespace $namespace exec p -- true; do sleep 2; done" > /dev/null 2>&1 || fail "no exec after the restart of $what"
        has "log after the restart of $what" tick k logs p --since 5s
        is "the container after the restart of $what" "$before" field p '{.status.containerStatuses[0].containerID} {.status.podIP}'
    done
    is restarts 0 field p '{.status.containerStatuses[0].restartCount}'
}

# deployment COUNT: so many pods, and how long they take.
deployment() {
    local start=$EPOCHREALTIME
    apply << YAML
apiVersion: apps/v1
kind: Deployment
metadata: {name: d$1}
spec: {replicas: $1, selector: {matchLabels: {app: d$1}}, template: {metadata: {labels: {app: d$1}}, spec: {runtimeClassName: CLASS,
  terminationGracePeriodSeconds: 1, containers: [{name: main, image: IMAGE, command: [sleep, "3600"]}]}}}
YAML
    k rollout status "deployment/d$1" --timeout 900s > /dev/null || stuck "d$1"
    figure "a deployment of $1" "$(seconds_since "$start")"
    k delete deployment "d$1" --cascade=foreground --timeout 900s > /dev/null
}
case_a_deployment_of_one_pod() {
    deployment 1
}

case_a_deployment_of_20_pods() {
    deployment 20
}
alone+=(case_pods_outlive_a_restart_of_the_kubelet_and_of_containerd case_a_deployment_of_one_pod case_a_deployment_of_20_pods)
