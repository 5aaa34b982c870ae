// Renders the templates of a Helm chart as Helm does, where Helm itself is not to be had: text/template with the sprig functions and
// the few that Helm adds. On stdin a JSON object {chart, values, release, namespace}: chart is the folder, values are complete (the
// chart's own, overlaid with the user's). On stdout the YAML of all objects. Numbers are float64, as Helm's are.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/Masterminds/sprig"
	"sigs.k8s.io/yaml"
)

type request struct {
	Chart     string
	Values    map[string]interface{}
	Release   string
	Namespace string
}

func functions(root *template.Template) template.FuncMap {
	functions := sprig.TxtFuncMap()
	delete(functions, "env")
	delete(functions, "expandenv")
	functions["toYaml"] = func(value interface{}) (string, error) {
		text, err := yaml.Marshal(value)
		return strings.TrimSuffix(string(text), "\n"), err
	}
	functions["include"] = func(name string, data interface{}) (string, error) {
		var out bytes.Buffer
		err := root.ExecuteTemplate(&out, name, data)
		return out.String(), err
	}
	functions["required"] = func(message string, value interface{}) (interface{}, error) {
		if value == nil || value == "" {
			return nil, errors.New(message)
		}
		return value, nil
	}
	return functions
}

// The files of a chart beside its templates, as Helm's .Files: what is not there is empty.
type chartFiles struct{ folder string }

func (files chartFiles) Get(name string) string {
	text, err := os.ReadFile(filepath.Join(files.folder, name))
	if err != nil {
		return ""
	}
	return string(text)
}

func render(in request) error {
	var chart map[string]interface{}
	text, err := os.ReadFile(filepath.Join(in.Chart, "Chart.yaml"))
	if err != nil {
		return err
	}
	if err := yaml.Unmarshal(text, &chart); err != nil {
		return err
	}
	data := map[string]interface{}{
		"Values":  in.Values,
		"Files":   chartFiles{in.Chart},
		"Release": map[string]interface{}{"Name": in.Release, "Namespace": in.Namespace, "Service": "Helm"},
		// Helm writes the fields of Chart.yaml with a capital letter.
		"Chart": map[string]interface{}{"Name": chart["name"], "Version": chart["version"], "AppVersion": chart["appVersion"]},
	}
	root := template.New("chart").Option("missingkey=zero")
	root.Funcs(functions(root))
	files, err := filepath.Glob(filepath.Join(in.Chart, "templates", "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if _, err := root.New(filepath.Base(file)).Parse(string(text)); err != nil {
			return err
		}
	}
	for _, file := range files {
		name := filepath.Base(file)
		var out bytes.Buffer
		if err := root.ExecuteTemplate(&out, name, data); err != nil {
			return err
		}
		if filepath.Ext(name) == ".yaml" && strings.TrimSpace(out.String()) != "" {
			fmt.Printf("---\n# Source: %s\n%s\n", name, out.String())
		}
	}
	return nil
}

func main() {
	var in request
	err := json.NewDecoder(os.Stdin).Decode(&in)
	if err == nil {
		err = render(in)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
