// registry makes the images that critest and containerd's own tests pull out of programs of this machine, and serves
// them under the names that those know, whatever registry they are asked for.
//
//	registry [-listen ADDRESS] [-tls NAME,… -certificate FILE] -busybox PROGRAM -programs DIRECTORY
//
// It prints a line when it listens. DIRECTORY has the programs of ../nonewprivs and ../../pause.c. With -tls it serves HTTPS,
// for clients that no mirror can be named to: as those hosts, with a certificate that it leaves in FILE.
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"path"
	"strings"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:5000", "address")
	shell := flag.String("busybox", "/bin/busybox", "a dynamically linked busybox")
	programs := flag.String("programs", ".", "directory of nonewprivs and pause")
	names := flag.String("tls", "", "host names to serve HTTPS as")
	file := flag.String("certificate", "", "file for the certificate")
	flag.Parse()
	images, err := catalogue(*shell, *programs)
	if err != nil {
		log.Fatalf("making the images: %v", err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	if *names != "" {
		made, err := certificate(strings.Split(*names, ","), *file)
		if err != nil {
			log.Fatalf("making the certificate: %v", err)
		}
		listener = tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{made}})
	}
	fmt.Printf("serving %d images on %s\n", len(images), listener.Addr())
	log.Fatal(http.Serve(listener, newRegistry(images)))
}

// catalogue makes every image that critest names in pkg/validate/consts.go and pkg/framework/util.go, its sandboxes'
// one, and of those in containerd's integration/images the ones that its client's tests run. The key is
// REPOSITORY:TAG, without the registry.
func catalogue(shell, programs string) (map[string][]blob, error) {
	const e2e, staging = "e2e-test-images/", "k8s-staging-cri-tools/"
	images := map[string][]blob{}
	add := func(root []blob, config runConfig, names ...string) error {
		config.Env = []string{"PATH=/usr/sbin:/usr/bin:/bin"}
		blobs, err := image(root, config)
		for _, name := range names {
			images[name] = blobs
		}
		return err
	}
	base, err := busybox(shell)
	if err != nil {
		return nil, err
	}
	packed, err := base.pack()
	if err != nil {
		return nil, err
	}
	configs := map[string]runConfig{
		e2e + "busybox:1.29-2": {Cmd: []string{"sh"}},
		e2e + "httpd:2.4.39-4": {Cmd: []string{"sh", "-c", "mkdir -p /www && echo httpd | tee /www/index.html && exec httpd -f -p 80 -h /www"}},
	}
	for _, name := range []string{"latest:latest", "tag:test", "tag:all", "1:latest", "2:latest", "3:latest"} {
		configs[staging+"test-image-"+name] = runConfig{Cmd: []string{"sh"}, Labels: map[string]string{"name": name}}
	}
	for name, user := range map[string]string{
		"user-uid": "1002", "user-username": "www-data", "user-uid-group": "1003:users",
		"user-username-group": "www-data:100", "predefined-group": "1000",
	} {
		configs[staging+"test-image-"+name+":latest"] = runConfig{Cmd: []string{"sh"}, User: user}
	}
	for name, config := range configs {
		if err := add([]blob{packed}, config, name); err != nil {
			return nil, err
		}
	}
	tags := staging + "test-image-tags:"
	if err := add([]blob{packed}, runConfig{Cmd: []string{"sh"}, Labels: map[string]string{"name": "tags"}}, tags+"1", tags+"2", tags+"3"); err != nil {
		return nil, err
	}

	if err := containerds(packed, add); err != nil {
		return nil, err
	}

	for port, name := range map[int]string{80: e2e + "nginx:1.14-2", 12003: staging + "hostnet-nginx-amd64:latest"} {
		root := maps.Clone(base)
		if err := nginx(root, port); err != nil {
			return nil, err
		}
		packed, err := root.pack()
		if err != nil {
			return nil, err
		}
		if err := add([]blob{packed}, runConfig{Entrypoint: []string{"nginx", "-g", "daemon off;"}}, name); err != nil {
			return nil, err
		}
	}

	packed, err = single("/nnp", path.Join(programs, "nonewprivs"), 0o4755)
	if err != nil {
		return nil, err
	}
	if err := add([]blob{packed}, runConfig{Entrypoint: []string{"/nnp"}}, e2e+"nonewprivs:1.3"); err != nil {
		return nil, err
	}
	packed, err = single("/pause", path.Join(programs, "pause"), 0o755)
	if err != nil {
		return nil, err
	}
	// The sandboxes' image must stay while a test removes the other one: they differ.
	for _, name := range []string{"pause:3.9", "pause:3.10"} {
		config := runConfig{Entrypoint: []string{"/pause"}, User: "65535:65535", Labels: map[string]string{"name": name}}
		if err := add([]blob{packed}, config, name); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// Ends with 143 for SIGTERM, as nc of busybox's own image does. Debian's leaves the signal to its default, which the first
// process of a container does not see.
const netcat = `#!/bin/sh
trap 'kill $child; exit 143' TERM
busybox nc "$@" &
child=$!
wait $child
`

// containerds adds what the tests of containerd's client run: busybox, and the image of which TestIssue13030 expects that
// nothing deleted comes back.
func containerds(base blob, add func([]blob, runConfig, ...string) error) error {
	config := runConfig{Cmd: []string{"sh"}}
	// The users of busybox's own image: tests know their numbers, and that there is no user 1000.
	own := layer{"/bin/nc": {mode: 0o755, content: []byte(netcat)}}
	own.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n"+
		"bin:x:2:2:bin:/bin:/bin/false\nsys:x:3:3:sys:/dev:/bin/false\nwww-data:x:33:33:www-data:/var/www:/bin/false\n"+
		"nobody:x:65534:65534:nobody:/home:/bin/false\n")
	own.text("/etc/group", "root:x:0:\ndaemon:x:1:\nbin:x:2:\nsys:x:3:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n")
	packed, err := own.pack()
	if err != nil {
		return err
	}
	if err := add([]blob{base, packed}, config, "containerd/busybox:1.36"); err != nil {
		return err
	}
	layers := []blob{base}
	for _, files := range []layer{
		{"/file-to-delete": {mode: 0o644}, "/dir-to-delete/file": {mode: 0o644}},
		{"/.wh.file-to-delete": {mode: 0o644}, "/.wh.dir-to-delete": {mode: 0o644}},
	} {
		packed, err := files.pack()
		if err != nil {
			return err
		}
		layers = append(layers, packed)
	}
	return add(layers, config, "containerd/whiteout-test:1.0")
}

// single is a layer of one program.
func single(name, source string, mode int64) (blob, error) {
	root := layer{}
	if err := root.program(name, source, mode); err != nil {
		return blob{}, err
	}
	return root.pack()
}

// A registry serves blobs and manifests by the OCI distribution specification; pull only.
type registry struct {
	manifests map[string]blob
	blobs     map[string]blob
}

func newRegistry(images map[string][]blob) registry {
	r := registry{map[string]blob{}, map[string]blob{}}
	for name, blobs := range images {
		r.manifests[name] = blobs[0]
		for _, b := range blobs {
			r.blobs[b.digest] = b
		}
	}
	return r
}

func (r registry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	name, ok := strings.CutPrefix(request.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, request)
		return
	}
	var found blob
	repository, kind, reference := split(name)
	switch {
	case name == "":
		w.WriteHeader(http.StatusOK)
		return
	case strings.HasPrefix(reference, "sha256:"):
		found, ok = r.blobs[reference]
	case kind == "manifests":
		found, ok = r.manifests[repository+":"+reference]
	default:
		ok = false
	}
	if !ok {
		http.NotFound(w, request)
		return
	}
	w.Header().Set("Content-Type", found.mediaType)
	w.Header().Set("Content-Length", fmt.Sprint(len(found.content)))
	w.Header().Set("Docker-Content-Digest", found.digest)
	if request.Method == http.MethodGet {
		// A client that went away is no concern of ours.
		_, _ = w.Write(found.content)
	}
}

// split takes REPOSITORY/KIND/REFERENCE apart; a repository has slashes, too.
func split(name string) (repository, kind, reference string) {
	rest, reference := path.Split(name)
	repository, kind = path.Split(strings.TrimSuffix(rest, "/"))
	return strings.TrimSuffix(repository, "/"), kind, reference
}
