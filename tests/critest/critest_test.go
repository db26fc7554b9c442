// Package critest names what critest's own test binary imports, so that go.sum covers it:
// `go test -c sigs.k8s.io/cri-tools/cmd/critest` builds it from here.
package critest

import (
	_ "sigs.k8s.io/cri-tools/pkg/benchmark"
	_ "sigs.k8s.io/cri-tools/pkg/validate"
)
