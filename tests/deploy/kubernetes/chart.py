"""Renders deploy/kubernetes/chart the way Helm does: values over the chart's own, checked against its schema, then the templates."""

import json
import os
import pathlib
import shutil
import subprocess
import tempfile

import jsonschema
import yaml

HERE = pathlib.Path(__file__).resolve().parent
# Where Debian's golang-*-dev packages put their sources.
GO_SOURCES = '/usr/share/gocode'
GO_PACKAGES = ('github.com/Masterminds/sprig', 'sigs.k8s.io/yaml')


class Refused(Exception):
    """The values or a template say no; the text tells why."""


def why_not():
    """What is missing for rendering, or None."""
    if shutil.which('go') is None:
        return 'Go is not installed (Debian: golang-go)'
    for package in GO_PACKAGES:
        if not (pathlib.Path(GO_SOURCES) / 'src' / package).is_dir():
            return f'{package} is not installed (Debian: golang-github-masterminds-sprig-dev, golang-k8s-sigs-yaml-dev)'
    return None


def merged(below, above):
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


class Chart:
    """Builds the renderer once; close() removes it."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.defaults = yaml.safe_load((self.folder / 'values.yaml').read_text(encoding='utf-8'))
        self.schema = json.loads((self.folder / 'values.schema.json').read_text(encoding='utf-8'))
        self._build = tempfile.TemporaryDirectory()
        self._program = pathlib.Path(self._build.name) / 'render_chart'
        environment = dict(os.environ, GO111MODULE='off', GOPATH=GO_SOURCES, GOFLAGS='')
        subprocess.run(['go', 'build', '-o', str(self._program), str(HERE / 'render_chart.go')], check=True, env=environment)

    def close(self):
        self._build.cleanup()

    def validate(self, values):
        """Refused with every violation, as `path: reason`."""
        errors = sorted(jsonschema.Draft7Validator(self.schema).iter_errors(values), key=lambda error: list(error.absolute_path))
        if errors:
            raise Refused('; '.join('.'.join(map(str, error.absolute_path)) + ': ' + error.message for error in errors))

    def render(self, values, release='fewbit', namespace='fewbit', folder=None):
        """The objects; `folder` holds other templates. Refused: by the schema or a template."""
        values = merged(self.defaults, values)
        self.validate(values)
        request = {'chart': str(folder or self.folder), 'values': values, 'release': release, 'namespace': namespace}
        result = subprocess.run([str(self._program)], input=json.dumps(request), capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise Refused(result.stderr.strip())
        return [document for document in yaml.safe_load_all(result.stdout) if document is not None]

    def example(self, name):
        return yaml.safe_load((self.folder / 'examples' / f'{name}.yaml').read_text(encoding='utf-8'))
