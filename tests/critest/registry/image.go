package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar"
)

// A layer of an image: its files by absolute path.
type layer map[string]file

// A file of a layer. The mode's type bits are tar's: a regular file unless link or dir says otherwise.
type file struct {
	mode    int64
	content []byte
	// hardLink and symlink are absolute paths.
	hardLink, symlink string
	dir               bool
}

// runConfig is the part of an image's configuration that a runtime reads (OCI image-spec, config.md).
type runConfig struct {
	User       string            `json:",omitempty"`
	Env        []string          `json:",omitempty"`
	Entrypoint []string          `json:",omitempty"`
	Cmd        []string          `json:",omitempty"`
	Labels     map[string]string `json:",omitempty"`
}

// A blob is what a registry serves under its digest.
type blob struct {
	mediaType, digest string
	content           []byte
}

func newBlob(mediaType string, content []byte) blob {
	return blob{mediaType, fmt.Sprintf("sha256:%x", sha256.Sum256(content)), content}
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int    `json:"size"`
}

func (b blob) descriptor() descriptor { return descriptor{b.mediaType, b.digest, len(b.content)} }

// image makes an image's blobs from its layers, the lowest first; the first blob is its manifest.
func image(layers []blob, config runConfig) ([]blob, error) {
	var digests []string
	var descriptors []descriptor
	for _, l := range layers {
		digests = append(digests, l.digest)
		descriptors = append(descriptors, l.descriptor())
	}
	configuration, err := json.Marshal(map[string]any{
		"architecture": "amd64",
		"os":           "linux",
		"config":       config,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": digests},
	})
	if err != nil {
		return nil, err
	}
	configBlob := newBlob(configType, configuration)
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     manifestType,
		"config":        configBlob.descriptor(),
		"layers":        descriptors,
	})
	if err != nil {
		return nil, err
	}
	return append([]blob{newBlob(manifestType, manifest), configBlob}, layers...), nil
}

// pack writes a layer as an uncompressed archive; the same files give the same bytes, and each is there once, which
// containers/storage insists on. Parents come before their children, and what a hard link names before the link.
func (l layer) pack() (blob, error) {
	for _, name := range slices.Collect(maps.Keys(l)) {
		for parent := path.Dir(name); parent != "/"; parent = path.Dir(parent) {
			if _, there := l[parent]; !there {
				l[parent] = file{mode: 0o755, dir: true}
			}
		}
	}
	names := slices.Collect(maps.Keys(l))
	slices.SortFunc(names, func(a, b string) int {
		if linkA, linkB := l[a].hardLink != "", l[b].hardLink != ""; linkA != linkB {
			if linkA {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	for _, name := range names {
		entry := l[name]
		header := tar.Header{Name: name[1:], Mode: entry.mode, Typeflag: tar.TypeReg, Size: int64(len(entry.content))}
		switch {
		case entry.dir:
			header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
		case entry.hardLink != "":
			header.Typeflag, header.Linkname = tar.TypeLink, entry.hardLink[1:]
		case entry.symlink != "":
			header.Typeflag, header.Linkname = tar.TypeSymlink, entry.symlink
		}
		if err := writer.WriteHeader(&header); err != nil {
			return blob{}, fmt.Errorf("packing %s: %w", name, err)
		}
		if _, err := writer.Write(entry.content); err != nil {
			return blob{}, fmt.Errorf("packing %s: %w", name, err)
		}
	}
	if err := writer.Close(); err != nil {
		return blob{}, err
	}
	return newBlob(layerType, archive.Bytes()), nil
}
