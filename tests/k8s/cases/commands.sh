# shellcheck shell=bash
# What kubectl shows of a pod's program, and does in it.

case_logs_exit_code_and_termination_message() {
    pod p << 'YAML'
restartPolicy: Never, containers: [{name: main, image: IMAGE, command: [sh, -c, "echo out; echo err >&2; printf bye > /dev/termination-log; exit 3"]}]
YAML
    ended p 3
    is log $'out\nerr' k logs p
    is phase Failed field p '{.status.phase}'
    is message bye field p '{.status.containerStatuses[0].state.terminated.message}'
    is reason Error field p '{.status.containerStatuses[0].state.terminated.reason}'
}
