# shellcheck shell=bash disable=SC2154
# How pods are reached, and what they reach.

# server NAME: a pod that answers HTTP on port 8080 with its name.
server() {
    pod "$1" << YAML
containers: [{name: main, image: IMAGE, command: [sh, -c, "mkdir /www; echo $1 > /www/index.html; exec httpd -f -p 8080 -h /www"],
  ports: [{containerPort: 8080, hostPort: $2}], readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, timeoutSeconds: 20}}]
YAML
}

# fetched URL: by the pod `client`, as fetched_here does.
fetched() { in_pod client timeout 120 sh -c 'until timeout 20 wget -q -O /tmp/page "$0" 2> /dev/null; do sleep 1; done; cat /tmp/page' "$1"; }

case_pods_services_and_ports_of_the_node() {
    local host_port=18081
    [ "$class" = runc ] || host_port=18082
    server web "$host_port"
    apply << 'YAML'
{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}}
YAML
    sleeper client
    ready web
    is 'from pod to pod' web in_pod client timeout 20 wget -q -O - "http://$(field web '{.status.podIP}'):8080/"
    is 'by the service' web fetched "http://$(k get service web -o 'jsonpath={.spec.clusterIP}')/"
    has "the service's variables" WEB_SERVICE_HOST in_pod client env
    is "by the node's port" web fetched_here "http://$node_address:$(k get service web -o 'jsonpath={.spec.ports[0].nodePort}')/"
    is "by the pod's port of the node" web fetched_here "http://$node_address:$host_port/"
}

case_a_pod_reaches_the_api_server_as_its_account() {
    sleeper p
    # kube-proxy may be slower than this pod: nothing else of the node has waited for it.
    in_pod p timeout 120 sh -c 'until nc -w 20 "$0" 443 -e true; do sleep 1; done' "$service_address" 2> /dev/null || fail "the API server is not reached"
    local token
    token=$(in_pod p cat /var/run/secrets/kubernetes.io/serviceaccount/token)
    has 'who the token is' "system:serviceaccount:$namespace:default" \
        "$work/programs/kubectl" --kubeconfig /dev/null --server "https://$control_address:6443" --certificate-authority "$work/pki/ca.crt" --token "$token" auth whoami
}
