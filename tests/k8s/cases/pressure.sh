# shellcheck shell=bash disable=SC2154
# What becomes of pods that take too much of the node, and what is told of what they take.

case_an_empty_directory_that_outgrows_its_limit_evicts_its_pod() {
    pod p << 'YAML'
volumes: [{name: work, emptyDir: {sizeLimit: 8Mi}}], containers: [{name: main, image: IMAGE,
  command: [sh, -c, "dd if=/dev/zero of=/work/file bs=1M count=12; sleep 3600"], volumeMounts: [{name: work, mountPath: /work}]}]
YAML
    becomes p '{.status.reason}' Evicted
    has why 'Usage of EmptyDir volume "work" exceeds the limit "8Mi"' field p '{.status.message}'
}

case_a_container_that_outgrows_its_storage_evicts_its_pod() {
    pod p << 'YAML'
containers: [{name: main, image: IMAGE, command: [sh, -c, "dd if=/dev/zero of=/file bs=1M count=12; sleep 3600"],
  resources: {limits: {ephemeral-storage: 8Mi}}}]
YAML
    becomes p '{.status.reason}' Evicted
    has why 'ephemeral local storage usage exceeds the total limit of containers 8Mi' field p '{.status.message}'
}

# agree WHAT COMMAND COMMAND: both come to print numbers that differ by 5 % at most. Who tells them looks now and then.
agree() {
    local told known
    agrees() {
        told=$("$1") known=$("$2")
        awk -v a="${told:-0}" -v b="${known:-0}" 'BEGIN { exit !(b > 0 && a - b <= b / 20 && b - a <= b / 20) }'
    }
    by_and_by agrees "$2" "$3" || fail "$1: '$told' is told, '$known' it is"
}

case_what_kubectl_top_reads_of_containers() {
    # First it takes what it takes; then that stays.
    pod p << 'YAML'
volumes: [{name: memory, emptyDir: {medium: Memory}}], containers: [{name: main, image: IMAGE, resources: {limits: {memory: 128Mi}},
  command: [sh, -c, "head -c 60m /dev/zero > /memory/file; i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done; touch /tmp/done; exec sleep 3600"],
  volumeMounts: [{name: memory, mountPath: /memory}], readinessProbe: {exec: {command: [cat, /tmp/done]}, periodSeconds: 10, timeoutSeconds: 20, failureThreshold: 100}}]
YAML
    ready p
    # The metrics server, whom kubectl asks, reads these.
    resource() {
        kubectl get --raw /api/v1/nodes/node/proxy/metrics/resource |
            awk -v start="$1{container=\"main\",namespace=\"$namespace\"" 'index($1, start) == 1 { printf "%.3f\n", $2 }'
    }
    told_memory() { resource container_memory_working_set_bytes; }
    told_cpu() { resource container_cpu_usage_seconds_total; }
    memory() { in_pod p awk 'FNR == NR { current = $1; next } $1 == "inactive_file" { print current - $2 }' /sys/fs/cgroup/memory.current /sys/fs/cgroup/memory.stat; }
    cpu() { in_pod p awk '$1 == "usage_usec" { print $2 / 1000000 }' /sys/fs/cgroup/cpu.stat; }
    agree memory told_memory memory
    agree 'CPU time' told_cpu cpu
    [ "$class" = monohull ] || return 0
    # The exporter's figures are of the pod on its node.
    local cgroup
    cgroup=$(pod_cgroup p)
    exporter() {
        on_node "monohull metrics" | awk -v uid="kubernetes_uid=\"$(field p '{.metadata.uid}')\"" -v name="$1" '
            index($0, "monohull_pod_info{") == 1 && index($0, uid) { split($0, part, "\""); pod = part[2] }
            index($0, name "{") == 1 { split($0, part, "\""); value[part[2]] = $NF }
            END { printf "%.3f\n", value[pod] }'
    }
    exported_memory() { exporter monohull_pod_cgroup_memory_bytes; }
    exported_cpu() { exporter monohull_pod_cgroup_cpu_seconds_total; }
    node_memory() { on_node "cat $cgroup/memory.current"; }
    node_cpu() { on_node "awk '\$1 == \"usage_usec\" { print \$2 / 1000000 }' $cgroup/cpu.stat"; }
    agree 'memory of the exporter' exported_memory node_memory
    agree 'CPU time of the exporter' exported_cpu node_cpu
}

case_huge_pages() {
    # The emulated node has 8 of them; a machine that is a test host itself is left as it is.
    if [[ $(kubectl get node node -o 'jsonpath={.status.allocatable.hugepages-2Mi}') =~ ^0?$ ]]; then
        explained 'not tried: the node has none'
        return
    fi
    pod p << 'YAML'
restartPolicy: Never, volumes: [{name: huge, emptyDir: {medium: HugePages}}], containers: [{name: main, image: IMAGE,
  command: [sh, -c, "grep ' /huge ' /proc/mounts"], volumeMounts: [{name: huge, mountPath: /huge}],
  resources: {limits: {cpu: 50m, memory: 32Mi, hugepages-2Mi: 4Mi}}}]
YAML
    if [ "$class" = monohull ]; then
        becomes p '{.status.phase}' Failed
        has why 'the guest has no huge pages' field p '{.status.containerStatuses[0].state.terminated.message}'
        explained 'refused by name: the guest has only transparent ones'
    else
        becomes p '{.status.phase}' Succeeded
        has 'the mount' hugetlbfs k logs p
    fi
}
