// Command chart checks deploy/chart with Helm's own code and Kubernetes' own types, without a cluster.
//
//	chart TREE            lints, and compares with the rest of the tree
//	chart TREE manifests  prints what the chart makes of its defaults: deploy/kubernetes.yaml
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"helm.sh/helm/v4/pkg/chart/common"
	chartutil "helm.sh/helm/v4/pkg/chart/common/util"
	chart "helm.sh/helm/v4/pkg/chart/v2"
	"helm.sh/helm/v4/pkg/chart/v2/lint"
	"helm.sh/helm/v4/pkg/chart/v2/lint/support"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	releaseutil "helm.sh/helm/v4/pkg/release/v1/util"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
)

const head = `# What deploy/chart makes of its defaults, without its hooks ('make chart' compares them): the installer's DaemonSets, their account, and
# the RuntimeClass. How it is used and removed: docs/kubernetes.md.
#
#   kubectl apply -f deploy/kubernetes.yaml
apiVersion: v1
kind: Namespace
metadata:
  name: monohull
  labels:
    # The installer has the nodes' root directory.
    pod-security.kubernetes.io/enforce: privileged
`

// Values that take each branch of the templates once.
const others = `
imagePullSecrets: [{name: registry}]
tolerations: [{key: kvm, operator: Exists, effect: NoSchedule}]
installArguments: [--engine, containerd, --containerd-config, /etc/other.toml]
restartEngines: false
runtimeClass: {name: vm}
`

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "chart:", err)
		os.Exit(1)
	}
}

func run(arguments []string) error {
	if len(arguments) == 0 {
		return errors.New("which tree?")
	}
	tree := arguments[0]
	folder := filepath.Join(tree, "deploy/chart")
	loaded, err := loader.LoadDir(folder)
	if err != nil {
		return err
	}
	_, defaults, err := render(loaded, "")
	if err != nil {
		return err
	}
	if len(arguments) > 1 && arguments[1] == "manifests" {
		_, err := os.Stdout.WriteString(defaults)
		return err
	}
	all, _, err := render(loaded, others)
	if err != nil {
		return err
	}
	plain, err := os.ReadFile(filepath.Join(tree, "deploy/kubernetes.yaml"))
	if err != nil {
		return err
	}
	if string(plain) != defaults {
		return errors.New("deploy/kubernetes.yaml is not what deploy/chart makes: 'tests/tools/chart manifests > deploy/kubernetes.yaml'")
	}
	if _, _, err := render(loaded, "imgae: x"); err == nil {
		return errors.New("the chart takes a value that it does not have")
	}
	return errors.Join(linted(folder), strict(plain), strict([]byte(all)), policy(plain), runtimeClass(tree, plain), version(tree, loaded))
}

// render returns all that the chart makes, and what is left of it without hooks, as one text each.
func render(loaded *chart.Chart, text string) (all, plain string, err error) {
	values, err := common.ReadValues([]byte(text))
	if err != nil {
		return "", "", err
	}
	release := common.ReleaseOptions{Name: "monohull", Namespace: "monohull", Revision: 1, IsInstall: true}
	values, err = chartutil.ToRenderValues(loaded, values, release, common.DefaultCapabilities)
	if err != nil {
		return "", "", err
	}
	files, err := engine.Engine{Strict: true}.Render(loaded, values)
	if err != nil {
		return "", "", err
	}
	for name := range files {
		if base := filepath.Base(name); strings.HasPrefix(base, "_") || base == "NOTES.txt" {
			delete(files, name)
		}
	}
	hooks, manifests, err := releaseutil.SortManifests(files, nil, releaseutil.InstallOrder)
	if err != nil {
		return "", "", err
	}
	var output strings.Builder
	output.WriteString(head)
	for _, manifest := range manifests {
		fmt.Fprintf(&output, "---\n%s\n", strings.TrimSpace(manifest.Content))
	}
	plain = output.String()
	for _, hook := range hooks {
		fmt.Fprintf(&output, "---\n%s\n", strings.TrimSpace(hook.Manifest))
	}
	return output.String(), plain, nil
}

// linted is `helm lint --strict`, but for the advice to have an icon.
func linted(folder string) error {
	var found []error
	for _, message := range lint.RunAll(folder, nil, "monohull").Messages {
		if message.Severity > support.InfoSev {
			found = append(found, message)
		}
	}
	return errors.Join(found...)
}

// strict reads each object as the type that it says it is, without a field that this does not have.
func strict(text []byte) error {
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var found []error
	for _, object := range objects(text) {
		if _, _, err := decoder.Decode(object, nil, nil); err != nil {
			found = append(found, fmt.Errorf("%w in\n%s", err, object))
		}
	}
	return errors.Join(found...)
}

func objects(text []byte) [][]byte {
	return bytes.Split(text, []byte("\n---\n"))
}

// runtimeClass compares the chart's with deploy/runtimeclass.yaml, which `monohull install --runtime-class` prints.
func runtimeClass(tree string, manifests []byte) error {
	text, err := os.ReadFile(filepath.Join(tree, "deploy/runtimeclass.yaml"))
	if err != nil {
		return err
	}
	decoder := scheme.Codecs.UniversalDeserializer()
	wanted := new(nodev1.RuntimeClass)
	if err := runtime.DecodeInto(decoder, text, wanted); err != nil {
		return err
	}
	for _, object := range objects(manifests) {
		class := new(nodev1.RuntimeClass)
		if !bytes.Contains(object, []byte("\nkind: RuntimeClass\n")) {
			continue
		}
		if err := runtime.DecodeInto(decoder, object, class); err != nil {
			return err
		}
		if class.Name != wanted.Name || class.Handler != wanted.Handler || !equality.Semantic.DeepEqual(class.Overhead, wanted.Overhead) {
			return errors.New("the chart's RuntimeClass is not that of deploy/runtimeclass.yaml")
		}
		return nil
	}
	return errors.New("the chart makes no RuntimeClass")
}

// version compares the chart's version and that of its image with the programs'.
func version(tree string, loaded *chart.Chart) error {
	cargo, err := os.ReadFile(filepath.Join(tree, "Cargo.toml"))
	if err != nil {
		return err
	}
	_, after, _ := strings.Cut(string(cargo), "[workspace.package]\nversion = \"")
	version, _, _ := strings.Cut(after, "\"")
	image, _ := loaded.Values["image"].(string)
	if loaded.Metadata.Version != version || loaded.Metadata.AppVersion != version || !strings.HasSuffix(image, ":"+version) {
		return fmt.Errorf("version, appVersion and the tag of image in deploy/chart must be %q, as in Cargo.toml", version)
	}
	return nil
}
