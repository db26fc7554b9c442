// Package shimtest drives the shim with containerd's conformance suite, without a daemon. It needs a machine
// on which Monohull is installed; `make shimtest` runs it in the test host.
package shimtest

import (
	"os"
	"os/exec"
	"strconv"
	"testing"

	"github.com/containerd/shimtest"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// The client library of containerd registers this type; the suite relies on it.
func TestMain(m *testing.M) {
	major := strconv.Itoa(specs.VersionMajor)
	typeurl.Register(&specs.Process{}, "types.containerd.io", "opencontainers/runtime-spec", major, "Process")
	os.Exit(m.Run())
}

// config names the shim under test; SHIM_BINARY and SHIM_HOST_ROOTFS select runc's, which proves the test host.
// The suite finds leaked shims only by an absolute path.
func config(tb testing.TB) shimtest.Config {
	shim := os.Getenv("SHIM_BINARY")
	if shim == "" {
		shim = "containerd-shim-monohull-v2"
	}
	shim, err := exec.LookPath(shim)
	if err != nil {
		tb.Fatal(err)
	}
	return shimtest.Config{ShimBinary: shim, FormatMounts: os.Getenv("SHIM_HOST_ROOTFS") == ""}
}

func TestRun(t *testing.T)    { shimtest.NewRunSuite(config(t)).Run(t) }
func TestExec(t *testing.T)   { shimtest.NewExecSuite(config(t)).Run(t) }
func TestOOM(t *testing.T)    { shimtest.NewOOMSuite(config(t)).Run(t) }
func TestLayers(t *testing.T) { shimtest.NewLayersSuite(config(t)).Run(t) }

func TestNetwork(t *testing.T) { shimtest.NewNetworkSuite(config(t)).Run(t) }

// Under load until a minute before the deadline.
func TestStress(t *testing.T) {
	shimtest.NewStressSuite(config(t), shimtest.StressOptions{}).Run(t)
}

func BenchmarkRun(b *testing.B)    { shimtest.NewRunSuite(config(b)).Bench(b) }
func BenchmarkExec(b *testing.B)   { shimtest.NewExecSuite(config(b)).Bench(b) }
func BenchmarkLayers(b *testing.B) { shimtest.NewLayersSuite(config(b)).Bench(b) }
