# shellcheck shell=bash disable=SC2154
# How much pods may use, and what is told of it.

# pod_cgroup POD: its directory on the node.
pod_cgroup() { on_node "find /sys/fs/cgroup/kubepods -maxdepth 2 -name 'pod$(field "$1" '{.metadata.uid}')'"; }

case_limits_and_their_overhead() {
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sleep, "3600"], resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 100m, memory: 64Mi}}}]
YAML
    ready p
    is class Guaranteed field p '{.status.qosClass}'
    is 'limits within' $'67108864\n10000 100000' in_pod p cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max
    local overhead=0
    if [ "$class" = monohull ]; then
        overhead=160
        explained "the pod's cgroup has room for the overhead of its class"
    fi
    is 'the limit on the node' $(((64 + overhead) << 20)) on_node "cat $(pod_cgroup p)/memory.max"
}

case_classes_of_service() {
    pod some << 'YAML'
containers: [{name: main, image: IMAGE, command: [sleep, "3600"], resources: {requests: {memory: 16Mi}}}]
YAML
    sleeper none
    ready some
    is 'with a request' Burstable field some '{.status.qosClass}'
    is 'without' BestEffort field none '{.status.qosClass}'
    has 'where the pod is' burstable pod_cgroup some
    has 'where the pod is' besteffort pod_cgroup none
}

case_a_container_that_takes_too_much_memory_is_killed_by_name() {
    pod p << 'YAML'
restartPolicy: Never, containers: [{name: main, image: IMAGE, command: [sh, -c, "tail /dev/zero"], resources: {limits: {memory: 32Mi}}}]
YAML
    becomes p '{.status.containerStatuses[0].state.terminated.reason}' OOMKilled
    is 'its exit code' 137 field p '{.status.containerStatuses[0].state.terminated.exitCode}'
}

case_a_running_container_is_resized() {
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sleep, "3600"], resources: {requests: {cpu: 50m, memory: 64Mi}, limits: {cpu: 100m, memory: 64Mi}}}]
YAML
    ready p
    # What is asked for stays little: both classes' pods are on the node at once.
    k patch pod p --subresource resize --patch '{"spec": {"containers": [{"name": "main", "resources": {
        "requests": {"cpu": "60m", "memory": "320Mi"}, "limits": {"cpu": "400m", "memory": "320Mi"}}}]}}' > /dev/null
    becomes p '{.status.containerStatuses[0].resources.limits.memory}' 320Mi
    is 'limits within' $'335544320\n40000 100000' in_pod p cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max
    is restarts 0 field p '{.status.containerStatuses[0].restartCount}'
    in_pod p sh -c 'head -c 200m /dev/zero | tail > /dev/null' || fail "there is no memory for what it may use"
}

case_figures_of_the_kubelet_are_those_of_the_node() {
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sh, -c, "head -c 60m /dev/zero > /dev/shm/file; exec sleep 3600"], resources: {limits: {memory: 128Mi}}}]
YAML
    ready p
    # The kubelet looks now and then: until it has looked after the file was there.
    local told host cgroup
    cgroup=$(pod_cgroup p)
    summary() {
        kubectl get --raw /api/v1/nodes/node/proxy/stats/summary |
            jq --arg namespace "$namespace" '.pods[] | select(.podRef.namespace == $namespace) | .memory.workingSetBytes // 0'
    }
    agree_on_much() {
        told=$(summary)
        host=$(on_node "echo \$((\$(cat $cgroup/memory.current) - \$(sed -n 's/^inactive_file //p' $cgroup/memory.stat)))")
        [ $((told > 60 << 20 && (told - host) * 20 < host && (host - told) * 20 < host)) = 1 ]
    }
    by_and_by agree_on_much || fail "the kubelet says $told, the cgroup $host"
}
