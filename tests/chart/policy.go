package main

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/cel-go/cel"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
)

// node is what a policy sees of a node.
type node = map[string]any

// change is a request to change a node, and whether the policy should let it pass.
type change struct {
	what        string
	account     string
	extra       map[string]any
	before, now node
	passes      bool
}

// nodeWith is a node with these labels and taint.
func nodeWith(name, taint string, labels, annotations map[string]any) node {
	metadata := map[string]any{"name": name}
	if labels != nil {
		metadata["labels"] = labels
	}
	if annotations != nil {
		metadata["annotations"] = annotations
	}
	return node{"metadata": metadata, "spec": map[string]any{"taint": taint}}
}

// changes are what accounts might try.
func changes() []change {
	on := func(name string) map[string]any {
		return map[string]any{"authentication.kubernetes.io/node-name": []string{name}}
	}
	runtime := func(value string) map[string]any {
		return map[string]any{"zone": "a", "monohull.dev/runtime": value}
	}
	zone := map[string]any{"zone": "a"}
	plain := nodeWith("n1", "", zone, nil)
	ready := nodeWith("n1", "", runtime("ready"), nil)
	return []change{
		{"label its own node", "node", on("n1"), plain, ready, true},
		{"label a node that has no labels", "node", on("n1"), nodeWith("n1", "", nil, nil),
			nodeWith("n1", "", map[string]any{"monohull.dev/runtime": "ready"}, nil), true},
		{"label another node", "node", on("n2"), plain, ready, false},
		{"label with a token that is bound to no node", "node", map[string]any{}, plain, ready, false},
		{"change another label", "node", on("n1"), plain, nodeWith("n1", "", map[string]any{"zone": "b"}, nil), false},
		{"add another label", "node", on("n1"), plain, nodeWith("n1", "", map[string]any{"zone": "a", "x": "y"}, nil), false},
		{"remove another label", "node", on("n1"), plain, nodeWith("n1", "", nil, nil), false},
		{"taint its node", "node", on("n1"), plain, nodeWith("n1", "x", runtime("ready"), nil), false},
		{"annotate its node", "node", on("n1"), plain, nodeWith("n1", "", runtime("ready"), map[string]any{"x": "y"}), false},
		{"label all nodes at the removal", "uninstall", map[string]any{}, ready, nodeWith("n1", "", runtime("removing"), nil), true},
		{"unlabel all nodes at the removal", "uninstall", map[string]any{}, ready, plain, true},
		{"taint a node at the removal", "uninstall", map[string]any{}, ready, nodeWith("n1", "x", runtime("removing"), nil), false},
	}
}

// policy tries each change with the chart's ValidatingAdmissionPolicy.
func policy(manifests []byte) error {
	policy := new(admissionv1.ValidatingAdmissionPolicy)
	for _, object := range objects(manifests) {
		if bytes.Contains(object, []byte("\nkind: ValidatingAdmissionPolicy\n")) {
			if err := runtime.DecodeInto(scheme.Codecs.UniversalDeserializer(), object, policy); err != nil {
				return err
			}
		}
	}
	environment, err := cel.NewEnv(cel.Variable("request", cel.DynType), cel.Variable("object", cel.DynType),
		cel.Variable("oldObject", cel.DynType), cel.Variable("variables", cel.DynType))
	if err != nil {
		return err
	}
	var found []error
	for _, change := range changes() {
		passes, err := change.passed(environment, policy)
		if err != nil || passes != change.passes {
			found = append(found, fmt.Errorf("the policy: to %s passes: %v (%v)", change.what, passes, err))
		}
	}
	return errors.Join(found...)
}

// passed evaluates the policy as an API server does: an expression that fails is one that says no.
func (c change) passed(environment *cel.Env, policy *admissionv1.ValidatingAdmissionPolicy) (bool, error) {
	variables := map[string]any{}
	input := map[string]any{"object": c.now, "oldObject": c.before, "variables": variables, "request": map[string]any{
		"userInfo": map[string]any{"username": "system:serviceaccount:monohull:monohull-" + c.account, "extra": c.extra},
	}}
	evaluate := func(expression string) (any, error) {
		ast, issues := environment.Compile(expression)
		if issues.Err() != nil {
			return nil, issues.Err()
		}
		program, err := environment.Program(ast)
		if err != nil {
			return nil, err
		}
		value, _, err := program.Eval(input)
		if err != nil {
			return false, nil
		}
		return value.Value(), nil
	}
	for _, condition := range policy.Spec.MatchConditions {
		if value, err := evaluate(condition.Expression); err != nil || value != true {
			return false, errors.Join(err, errors.New("the policy is not for this account"))
		}
	}
	for _, variable := range policy.Spec.Variables {
		value, err := evaluate(variable.Expression)
		if err != nil {
			return false, err
		}
		variables[variable.Name] = value
	}
	if len(policy.Spec.Validations) == 0 {
		return false, errors.New("the chart makes no policy")
	}
	for _, validation := range policy.Spec.Validations {
		if value, err := evaluate(validation.Expression); err != nil || value != true {
			return false, err
		}
	}
	return true, nil
}
