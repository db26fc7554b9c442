package main

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strings"
)

// Where Debian's loader looks for shared libraries on amd64.
var libraries = []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"}

// text adds a small file.
func (l layer) text(name, content string) { l[name] = file{mode: 0o644, content: []byte(content)} }

// program adds a program of this machine under a name, and the loader and the libraries it needs.
func (l layer) program(name, source string, mode int64) error {
	content, err := os.ReadFile(source)
	if err != nil {
		return err
	}
	l[name] = file{mode: mode, content: content}
	binary, err := elf.Open(source)
	if err != nil {
		return fmt.Errorf("reading %s: %w", source, err)
	}
	defer binary.Close()
	for _, segment := range binary.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		loader := make([]byte, segment.Filesz)
		if _, err := segment.ReadAt(loader, 0); err != nil {
			return fmt.Errorf("reading the loader of %s: %w", source, err)
		}
		if err := l.dependency(strings.TrimRight(string(loader), "\x00")); err != nil {
			return err
		}
	}
	needed, err := binary.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("reading the libraries of %s: %w", source, err)
	}
	for _, library := range needed {
		if err := l.library(library); err != nil {
			return fmt.Errorf("%s needs %w", source, err)
		}
	}
	return nil
}

func (l layer) library(name string) error {
	for _, directory := range libraries {
		if _, err := os.Stat(path.Join(directory, name)); err == nil {
			return l.dependency(path.Join(directory, name))
		}
	}
	return fmt.Errorf("%s, which is not on this machine", name)
}

func (l layer) dependency(name string) error {
	if _, there := l[name]; there {
		return nil
	}
	return l.program(name, name, 0o755)
}

// busybox is a root file system of the dynamically linked busybox. Its applets are hard links, as in busybox's own
// image: critest masks one of them and expects the others to stay. Debian's lacks two that critest calls.
func busybox(source string) (layer, error) {
	root := layer{}
	for _, directory := range []string{"/dev", "/home", "/proc", "/root", "/sys", "/usr/bin", "/var"} {
		root[directory] = file{mode: 0o755, dir: true}
	}
	root["/tmp"] = file{mode: 0o1777, dir: true}
	if err := root.program("/bin/busybox", source, 0o755); err != nil {
		return nil, err
	}
	applets, err := exec.Command(source, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("asking %s for its applets: %w", source, err)
	}
	for _, applet := range strings.Fields(string(applets)) {
		root["/bin/"+applet] = file{mode: 0o755, hardLink: "/bin/busybox"}
	}
	for _, name := range []string{"ipcs", "pgrep"} {
		if err := root.program("/bin/"+name, "/usr/bin/"+name, 0o755); err != nil {
			return nil, err
		}
	}
	root.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n"+
		"default-user:x:1000:1000::/home:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")
	root.text("/etc/group", "root:x:0:\nwww-data:x:33:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"+
		"nogroup:x:65534:\n")
	return root, nil
}

// nginx is Debian's nginx, configured as critest's images have it.
func nginx(root layer, port int) error {
	if err := root.program("/usr/sbin/nginx", "/usr/sbin/nginx", 0o755); err != nil {
		return err
	}
	for _, directory := range []string{"/run", "/var/lib/nginx", "/var/log/nginx"} {
		root[directory] = file{mode: 0o755, dir: true}
	}
	root["/var/run"] = file{mode: 0o777, symlink: "/run"}
	root.text("/usr/share/nginx/html/index.html", "<title>nginx</title>\n")
	root.text("/etc/nginx/nginx.conf", fmt.Sprintf(`user nobody nogroup;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr;
events {}
http {
    access_log off;
    server {
        listen %d;
        root /usr/share/nginx/html;
    }
}
`, port))
	return nil
}
