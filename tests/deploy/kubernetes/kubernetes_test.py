#!/usr/bin/env python3
"""Renders every overlay of deploy/kubernetes and its chart, and checks the objects.

    tests/deploy/kubernetes/kubernetes_test.py [CLASS...]

Exit status 77: what it needs is not installed; the text says what.
"""

import copy
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

MISSING = 77
try:
    import jsonschema  # noqa: F401  (chart.py and schemas.py need it)
    import yaml
except ImportError as error:
    print(f'not run: {error.name} is not installed for {sys.executable} (Debian: python3-yaml, python3-jsonschema)')
    sys.exit(MISSING)

import chart
import contract
import kustomize
import schemas
from contract import Traits

ROOT = pathlib.Path(__file__).resolve().parents[3]
DEPLOY = ROOT / 'deploy' / 'kubernetes'
OVERLAYS = {
    'cpu-demo': Traits(),
    'gpu': Traits(gpu=True, model='pvc'),
    'gpu-production': Traits(gpu=True, model='pvc', tls=True, api_keys=True, monitoring=True, autoscaling=True, gateway=True),
}
# More combinations of components, with the values that must give the same.
VARIANTS = {
    'mutual TLS, model from an image': (
        ['tls', 'mtls', 'gpu', 'model-init'],
        {'tls': {'clientCaSecretName': 'fewbit-client-ca'},
         'model': {'path': '/models/model', 'source': 'init', 'init': {'image': 'registry.example.com/llama-2bit:1'}}},
        Traits(gpu=True, model='init', tls=True, client_ca=True)),
    'monitored, in plain text': (
        ['plaintext', 'gpu', 'model-pvc', 'monitoring'],
        {'tls': {'enabled': False}, 'model': {'path': '/models/model'}, 'monitoring': {'enabled': True}},
        Traits(gpu=True, model='pvc', monitoring=True)),
}


GUIDE = (DEPLOY / 'README.md').read_text(encoding='utf-8')


def guide_objects():
    """What the guide shows as YAML."""
    blocks = re.findall(r'```yaml\n(.*?)```', GUIDE, flags=re.DOTALL)
    return [item for block in blocks for item in yaml.safe_load_all(block)]


def overlay(name):
    return kustomize.own_render(DEPLOY / 'overlays' / name)


def variant_folder(temporary, components):
    """An overlay of these components, in a copy of the tree."""
    shutil.copytree(DEPLOY, temporary / 'kubernetes')
    shutil.copytree(DEPLOY.parent / 'observability', temporary / 'observability')
    folder = temporary / 'kubernetes' / 'overlays' / 'variant'
    folder.mkdir()
    patch = '- op: add\n  path: /spec/template/spec/containers/0/args/-\n  value: --model=/models/model\n'
    (folder / 'kustomization.yaml').write_text(yaml.safe_dump({
        'apiVersion': 'kustomize.config.k8s.io/v1beta1', 'kind': 'Kustomization', 'namespace': 'fewbit',
        'resources': ['../../base'], 'components': [f'../../components/{name}' for name in components],
        'images': [{'name': 'fewbit', 'newTag': '0.1.0-cuda'},
                   {'name': 'fewbit-model', 'newName': 'registry.example.com/llama-2bit', 'newTag': '1'}],
        'patches': [{'target': {'kind': 'Deployment', 'name': 'fewbit'}, 'patch': patch}],
    }), encoding='utf-8')
    return folder


def with_variants():
    """(name, folder, traits) of every overlay, and of VARIANTS in folders that last for the one step."""
    for name, traits in OVERLAYS.items():
        yield name, DEPLOY / 'overlays' / name, traits
    for name, (components, _, traits) in VARIANTS.items():
        with tempfile.TemporaryDirectory() as temporary:
            yield name, variant_folder(pathlib.Path(temporary), components), traits


class Overlays(unittest.TestCase):
    """The contract, on every overlay."""

    def test_contract(self):
        for name, folder, traits in with_variants():
            with self.subTest(name):
                self.assertEqual(contract.violations(kustomize.own_render(folder), traits), [])

    def test_every_overlay_and_component_is_tested(self):
        self.assertEqual({path.name for path in (DEPLOY / 'overlays').iterdir()}, set(OVERLAYS))
        used = {name for components, _, _ in VARIANTS.values() for name in components}
        for name in OVERLAYS:
            (kustomization,) = kustomize.load(DEPLOY / 'overlays' / name / 'kustomization.yaml')
            used |= {pathlib.Path(path).name for path in kustomization['components']}
        self.assertEqual({path.name for path in (DEPLOY / 'components').iterdir()}, used)

    def test_custom_resources(self):
        for name, folder, _ in with_variants():
            for item in filter(schemas.is_custom, kustomize.own_render(folder)):
                with self.subTest(name, kind=item['kind']):
                    self.assertEqual(schemas.custom_errors(item), [])

    def test_metrics_exist(self):
        known = contract.metrics_of_source()
        for trigger in contract.Installation(overlay('gpu-production')).one('ScaledObject')['spec']['triggers']:
            for metric in re.findall(r'fewbit_\w+', trigger['metadata']['query']):
                self.assertIn(metric, known)

    def test_no_secret_is_in_the_tree(self):
        for path in DEPLOY.rglob('*.yaml'):
            self.assertNotRegex(path.read_text(encoding='utf-8'), r'(?m)^kind: Secret$', path)


class Kubectl(unittest.TestCase):
    """kubectl's kustomize gives the objects that the other tests look at, without warnings."""

    def test_same_objects(self):
        for name, folder, _ in with_variants():
            with self.subTest(name):
                self.assertEqual(kustomize.by_name(kustomize.kubectl_render(folder)),
                                 kustomize.by_name(kustomize.own_render(folder)))


class Openapi(unittest.TestCase):
    """Built-in kinds against the published schema of Kubernetes."""

    @classmethod
    def setUpClass(cls):
        cls.kubernetes = schemas.Kubernetes(schemas.openapi_path())

    def test_overlays(self):
        for name, folder, _ in with_variants():
            for item in kustomize.own_render(folder):
                if not schemas.is_custom(item):
                    with self.subTest(name, kind=item['kind']):
                        self.assertEqual(self.kubernetes.errors(item), [])

    def test_guide(self):
        checked = [item for item in guide_objects() if not schemas.is_custom(item)]
        self.assertEqual([item['kind'] for item in checked], ['PersistentVolumeClaim', 'Pod'])
        for item in checked:
            self.assertEqual(self.kubernetes.errors(item), [])

    def test_finds_unknown_fields_wrong_types_and_missing_ones(self):
        items = {item['kind']: item for item in overlay('cpu-demo')}
        for kind, change, expected in (
                ('Deployment', lambda spec: spec['template']['spec'].update(terminationGracePeriod=90), 'terminationGracePeriod'),
                ('Deployment', lambda spec: spec.update(replicas='1'), "'1' is not of type 'integer'"),
                ('Deployment', lambda spec: spec.pop('selector'), "'selector' is a required property"),
                ('Deployment', lambda spec: spec['template']['spec']['containers'][0]['readinessProbe']['grpc'].update(port='grpc'),
                 "'grpc' is not of type 'integer'"),
                ('Service', lambda spec: spec['ports'][0].update(portName='x'), 'portName')):
            broken = copy.deepcopy(items[kind])
            change(broken['spec'])
            with self.subTest(expected):
                self.assertIn(expected, ' '.join(self.kubernetes.errors(broken)))


class Broken(unittest.TestCase):
    """Every rule of the contract can fail: a change that breaks it, and what must be said."""

    CASES = (
        ('kinds', lambda i: i.items.remove(i.one('PodDisruptionBudget')), 'structure|PodDisruptionBudget'),
        ('kinds', lambda i: i.one('Service')['metadata'].update(namespace='other'), 'one namespace'),
        ('selectors', lambda i: i.one('Service')['spec']['selector'].update(x='y'), 'the Service selects'),
        ('selectors', lambda i: i.one('ServiceMonitor')['spec']['endpoints'][0].update(port='web'), 'ServiceMonitor names a port'),
        ('addresses', lambda i: i.args.remove('--port=8033'), '--port is None'),
        ('probes', lambda i: i.container.pop('livenessProbe'), 'livenessProbe is not a gRPC probe'),
        ('probes', lambda i: i.container['readinessProbe']['grpc'].update(service=''), 'readinessProbe asks'),
        ('probes', lambda i: i.container['livenessProbe']['grpc'].update(port=8033), 'livenessProbe asks port 8033'),
        ('probes', lambda i: i.spec.update(progressDeadlineSeconds=60), 'progressDeadlineSeconds'),
        ('drain', lambda i: i.pod.update(terminationGracePeriodSeconds=60), 'terminationGracePeriodSeconds 60 <'),
        ('drain', lambda i: i.container.pop('lifecycle'), 'preStop waits 0 s'),
        ('drain', lambda i: i.args.remove('--drain_seconds=60'), 'terminationGracePeriodSeconds'),
        ('security', lambda i: i.pod['securityContext'].update(runAsNonRoot=False), 'runAsNonRoot'),
        ('security', lambda i: i.pod['securityContext'].pop('seccompProfile'), 'seccompProfile'),
        ('security', lambda i: i.container['securityContext'].update(readOnlyRootFilesystem=False), 'readOnlyRootFilesystem'),
        ('security', lambda i: i.container['securityContext']['capabilities'].update(add=['SYS_ADMIN']), 'capabilities'),
        ('security', lambda i: i.volumes['tmp'].update(hostPath={'path': '/'}), 'volume tmp'),
        ('security', lambda i: i.container.update(image='fewbit:latest'), 'has no version'),
        ('token', lambda i: i.pod.pop('automountServiceAccountToken'), 'a token is mounted'),
        ('network', lambda i: i.one('NetworkPolicy')['spec']['ingress'].append({'ports': [{'port': 'grpc'}]}), 'open to everybody'),
        ('network', lambda i: i.one('NetworkPolicy')['spec'].update(egress=[{}]), 'call out'),
        ('network', lambda i: i.one('NetworkPolicy')['spec'].update(policyTypes=['Ingress']), 'both directions'),
        ('availability', lambda i: i.one('Service')['spec'].pop('clusterIP'), 'not headless'),
        ('availability', lambda i: i.one('PodDisruptionBudget')['spec'].update(maxUnavailable='50%'), 'PodDisruptionBudget'),
        ('availability', lambda i: i.pod['topologySpreadConstraints'].pop(), 'not spread over kubernetes.io/hostname'),
        ('devices', lambda i: i.container['resources']['limits'].pop('nvidia.com/gpu'), 'nvidia.com/gpu'),
        ('devices', lambda i: i.args.remove('--device=cuda'), '--device=None'),
        ('model', lambda i: i.mounts['/models'].pop('readOnly'), 'may write to the models'),
        ('model', lambda i: i.pod['volumes'].remove(i.volumes['models']), 'the model comes from None'),
        ('encryption', lambda i: i.args.append('--insecure_bind'), '--insecure_bind is set'),
        ('encryption', lambda i: i.mounts['/etc/fewbit/tls'].update(subPath='tls.crt'), 'mounted by subPath'),
        ('encryption', lambda i: i.args.remove('--api_keys_file=/etc/fewbit/api-keys/api-keys'), '--api_keys_file is None'),
        ('encryption', lambda i: i.volumes['tls']['secret'].update(defaultMode=0o444), 'not readable by the group alone'),
        ('scaling', lambda i: i.spec.update(replicas=1), 'every apply would reset'),
        ('scaling', lambda i: i.one('ScaledObject')['spec']['advanced']['horizontalPodAutoscalerConfig']['behavior']['scaleDown']
         .update(stabilizationWindowSeconds=60), 'not stabilised'),
        ('scaling', lambda i: i.one('ScaledObject')['spec']['triggers'].pop(), 'the triggers are'),
        ('monitoring', lambda i: i.one('PrometheusRule')['spec']['groups'].pop(), 'not rules.yaml'),
        ('monitoring', lambda i: i.one('ConfigMap')['metadata'].update(name='x'), 'are called x'),
        ('monitoring', lambda i: i.one('ConfigMap')['metadata']['labels'].pop('grafana_dashboard'), 'lack the label'),
        ('monitoring', lambda i: i.one('ConfigMap')['data'].pop('cost.json'), 'are not those'),
        ('gateway', lambda i: i.one('InferencePool')['spec']['targetPorts'][0].update(number=8034), 'gRPC port'),
        ('gateway', lambda i: i.one('HTTPRoute')['spec']['rules'][0]['backendRefs'][0].update(kind='Service'), 'HTTPRoute leads to'),
        ('gateway', lambda i: i.one('BackendTLSPolicy')['spec']['targetRefs'][0].update(name='x'), 'BackendTLSPolicy'),
    )

    def test_each_is_caught(self):
        for rule, change, expected in self.CASES:
            with self.subTest(rule, expected=expected):
                install = contract.Installation(overlay('gpu-production'))
                change(install)
                found = contract.violations(install.items, OVERLAYS['gpu-production'])
                self.assertTrue(any(re.search(expected, text) for text in found), found)

    def test_every_rule_has_a_case(self):
        self.assertEqual({rule for rule, _, _ in self.CASES}, {rule.__name__ for rule in contract.RULES})

    def test_custom_resources(self):
        production = {item['kind']: item for item in overlay('gpu-production')}
        for kind, change, expected in (
                ('ServiceMonitor', lambda spec: spec['endpoints'][0].update(portName='metrics'), 'portName'),
                ('PrometheusRule', lambda spec: spec['groups'][1]['rules'][0].update(runbook='x'), 'runbook'),
                ('PrometheusRule', lambda spec: spec['groups'][1]['rules'][0].update({'for': '3 min'}), '3 min'),
                ('ScaledObject', lambda spec: spec['triggers'][0]['metadata'].update(threshold=4), "4 is not of type 'string'"),
                ('ScaledObject', lambda spec: spec.pop('scaleTargetRef'), "'scaleTargetRef' is a required property"),
                ('InferencePool', lambda spec: spec.update(targetPortNumber=8033), 'targetPortNumber'),
                ('InferencePool', lambda spec: spec['endpointPickerRef'].pop('port'), "'port' is a required property"),
                ('HTTPRoute', lambda spec: spec.pop('parentRefs'), "'parentRefs' is a required property")):
            broken = copy.deepcopy(production[kind])
            change(broken['spec'])
            with self.subTest(kind, expected=expected):
                self.assertIn(expected, ' '.join(schemas.custom_errors(broken)))

    def test_unknown_kind(self):
        self.assertIn('no schema', schemas.custom_errors({'apiVersion': 'x.example.com/v1', 'kind': 'X', 'metadata': {}})[0])

    def test_kustomization_that_cannot_be_read(self):
        with tempfile.TemporaryDirectory() as temporary:
            folder = variant_folder(pathlib.Path(temporary), ['plaintext'])
            text = (folder / 'kustomization.yaml').read_text(encoding='utf-8')
            for change, error in ((text + 'namePrefix: x-\n', ValueError), (text.replace('name: fewbit\n', 'name: other\n'), ValueError),
                                  (text.replace('op: add', 'op: replace').replace('args/-', 'wrong'), KeyError)):
                (folder / 'kustomization.yaml').write_text(change, encoding='utf-8')
                with self.assertRaises(error):
                    kustomize.own_render(folder)


class Flags(unittest.TestCase):
    """Every flag in the manifests is one of the server's."""

    def known(self):
        program = pathlib.Path(os.environ.get('FEWBIT_BIN', ROOT / 'build' / 'release' / 'bin')) / 'fewbit-server'
        if not program.exists():
            return contract.flags_of_source(), 'server/*.cc'
        result = subprocess.run([str(program), '--help'], capture_output=True, text=True, check=True)
        return contract.flags_of_help(result.stdout), f'{program} --help'

    def test_manifests(self):
        flags, source = self.known()
        self.assertIn('model', flags)
        for name, folder, _ in with_variants():
            with self.subTest(name):
                unknown = contract.flags_in_use(kustomize.own_render(folder)) - flags
                self.assertEqual(unknown, set(), f'not in {source}')

    def test_guide(self):
        flags, source = self.known()
        named = set(re.findall(r'`--(\w+)[=`]', GUIDE))
        self.assertIn('drain_seconds', named)
        self.assertEqual(named - flags, set(), f'not in {source}')

    def test_finds_flags(self):
        self.assertEqual(contract.flags_of_help('A\n  --model   directory\n  --port  x; see --help\n'), {'model', 'port'})
        self.assertIn('drain_seconds', contract.flags_of_source())


class Guide(unittest.TestCase):
    """What README.md says holds. (Its table of GPUs: tests/e2e/plan_test.py.)"""

    def test_pod_is_restricted(self):
        pod = next(item for item in guide_objects() if item['kind'] == 'Pod')['spec']
        self.assertIs(pod['securityContext']['runAsNonRoot'], True)
        self.assertEqual(pod['securityContext']['seccompProfile']['type'], 'RuntimeDefault')
        self.assertEqual(pod['containers'][0]['securityContext'],
                         {'allowPrivilegeEscalation': False, 'capabilities': {'drop': ['ALL']}})

    def test_certificate_fits_the_overlay(self):
        certificate = next(item for item in guide_objects() if item['kind'] == 'Certificate')['spec']
        install = contract.Installation(overlay('gpu-production'))
        self.assertEqual(certificate['secretName'], install.volumes['tls']['secret']['secretName'])
        self.assertIn(install.one('BackendTLSPolicy')['spec']['validation']['hostname'], certificate['dnsNames'])

    def test_the_kv_cache_of_the_overlays_fits(self):
        for name in ('gpu', 'gpu-production'):
            value = contract.Installation(overlay(name)).flag('kv_memory')
            self.assertLessEqual(float(value.removesuffix('G')) * 2**30, (0.9 * 24 - 3.1 - 2) * 1e9)


class Chart(unittest.TestCase):
    """The chart renders what kustomize renders, and refuses values that make no sense."""

    @classmethod
    def setUpClass(cls):
        cls.chart = chart.Chart(DEPLOY / 'chart')

    @classmethod
    def tearDownClass(cls):
        cls.chart.close()

    def test_examples_are_the_overlays(self):
        for name in OVERLAYS:
            with self.subTest(name):
                self.assertEqual(kustomize.by_name(self.chart.render(self.chart.example(name))), kustomize.by_name(overlay(name)))

    def test_variants(self):
        for name, (components, values, _) in VARIANTS.items():
            with self.subTest(name), tempfile.TemporaryDirectory() as temporary:
                folder = variant_folder(pathlib.Path(temporary), components)
                self.assertEqual(kustomize.by_name(self.chart.render(values)), kustomize.by_name(kustomize.own_render(folder)))

    def test_helm_agrees(self):
        if shutil.which('helm') is None:
            return  # not to be had from Debian; where it is, it must say the same
        for name in OVERLAYS:
            with self.subTest(name):
                command = ['helm', 'template', 'fewbit', str(DEPLOY / 'chart'), '--namespace', 'fewbit', '--values',
                           str(DEPLOY / 'chart' / 'examples' / f'{name}.yaml')]
                text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                items = [item for item in yaml.safe_load_all(text) if item is not None]
                self.assertEqual(kustomize.by_name(items), kustomize.by_name(overlay(name)))

    def test_every_optional_value(self):
        """Values that no overlay sets reach the objects, which keep the contract."""
        values = {
            'imagePullSecrets': [{'name': 'registry'}], 'replicas': 3, 'model': {'path': '/models/m'},
            'image': {'repository': 'registry.example.com/fewbit', 'tag': '9'},
            'gpu': {'nodeSelector': {'nvidia.com/gpu.product': 'NVIDIA-H200'}, 'runtimeClassName': 'nvidia'},
            'server': {'drainSeconds': 300, 'kvMemory': '40G', 'extraArgs': ['--max_running=128']},
            'monitoring': {'enabled': True, 'labels': {'release': 'prometheus'}}, 'tls': {'enabled': False},
            'gateway': {'enabled': True},
        }
        items = self.chart.render(values, release='other', namespace='space')
        self.assertEqual(contract.violations(items, Traits(gpu=True, model='pvc', monitoring=True, gateway=True)), [])
        self.assertEqual([error for item in items if schemas.is_custom(item) for error in schemas.custom_errors(item)], [])
        install = contract.Installation(items)
        self.assertEqual({item['metadata']['name'] for item in items}, {'other', 'other-dashboards'})
        self.assertEqual(install.pod['imagePullSecrets'], [{'name': 'registry'}])
        self.assertEqual(install.pod['nodeSelector'], {'nvidia.com/gpu.product': 'NVIDIA-H200'})
        self.assertEqual(install.pod['runtimeClassName'], 'nvidia')
        self.assertEqual(install.pod['terminationGracePeriodSeconds'], 330)
        self.assertEqual(install.container['image'], 'registry.example.com/fewbit:9')
        self.assertEqual(install.spec['replicas'], 3)
        self.assertEqual(install.args[-2:], ['--kv_memory=40G', '--max_running=128'])
        for kind in ('ServiceMonitor', 'PrometheusRule'):
            self.assertEqual(install.one(kind)['metadata']['labels']['release'], 'prometheus')
        monitoring = {'enabled': True, 'dashboardLabels': {'dashboards': 'yes'}, 'runbookUrl': 'https://docs.example.com/fewbit'}
        other = contract.Installation(self.chart.render({**values, 'monitoring': monitoring}))
        self.assertEqual(other.one('ConfigMap')['metadata']['labels']['dashboards'], 'yes')
        urls = [rule['annotations']['runbook_url'] for group in other.one('PrometheusRule')['spec']['groups'] for rule in group['rules']
                if 'alert' in rule]
        self.assertIn('https://docs.example.com/fewbit#fewbitreplicadown', urls)
        self.assertEqual([url for url in urls if not url.startswith('https://docs.example.com/fewbit#')], [])

    def test_wrong_values_are_refused(self):
        model = {'path': '/models/m'}
        for values, expected in (
                ({}, "model.path: '' does not match"),
                ({'model': model, 'repilcas': 2}, "'repilcas' was unexpected"),
                ({'model': model, 'replicas': 'two'}, "replicas: 'two' is not of type 'integer'"),
                ({'model': model, 'gpu': {'count': 2}}, 'gpu.count: 2 is greater than the maximum of 1'),
                ({'model': {'path': '/models/m', 'source': 's3'}}, "model.source: 's3' is not one of"),
                ({'model': model, 'autoscaling': {'scaleDownStabilizationSeconds': 60}}, 'scaleDownStabilizationSeconds: 60 is less than'),
                ({'model': model, 'server': {'extraArgs': ['max_running=3']}}, "extraArgs.0: 'max_running=3' does not match"),
                ({'model': model, 'tls': {'secretName': ''}}, "tls.secretName: '' does not match"),
                ({'model': model, 'tls': {'enabled': False, 'clientCaSecretName': 'ca'}}, 'needs tls.enabled=true'),
                ({'model': {'path': '/models/m', 'source': 'init'}}, 'needs model.init.image'),
                ({'model': model, 'autoscaling': {'minReplicas': 9}}, 'maxReplicas is smaller than')):
            with self.subTest(expected), self.assertRaises(chart.Refused) as caught:
                self.chart.render(values)
            self.assertIn(expected, str(caught.exception))

    def test_broken_template_is_caught(self):
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary) / 'chart'
            shutil.copytree(DEPLOY / 'chart', folder)
            template = folder / 'templates' / '_helpers.tpl'
            text = template.read_text(encoding='utf-8')
            template.write_text(text.replace('readOnlyRootFilesystem: true', 'readOnlyRootFilesystem: false'), encoding='utf-8')
            broken = self.chart.render(self.chart.example('gpu'), folder=folder)
            self.assertNotEqual(kustomize.by_name(broken), kustomize.by_name(overlay('gpu')))
            self.assertEqual(contract.violations(broken, OVERLAYS['gpu']), ['security: fewbit: readOnlyRootFilesystem is not true'])
            template.write_text(text.replace('{{- end }}', '', 1), encoding='utf-8')
            with self.assertRaises(chart.Refused):
                self.chart.render(self.chart.example('gpu'), folder=folder)

    def test_schema_knows_every_value(self):
        """values.yaml and the schema name the same values."""
        def compare(values, schema, path):
            self.assertEqual(set(values), set(schema['properties']) - {'global'}, path)
            for key, value in values.items():
                if 'properties' in schema['properties'][key]:
                    compare(value, schema['properties'][key], f'{path}.{key}')
        jsonschema.Draft7Validator.check_schema(self.chart.schema)
        compare(self.chart.defaults, self.chart.schema, 'values')

    def test_version(self):
        (about,) = kustomize.load(DEPLOY / 'chart' / 'Chart.yaml')
        project = re.search(r'project\(fewbit VERSION (\S+)', (ROOT / 'CMakeLists.txt').read_text(encoding='utf-8')).group(1)
        self.assertEqual((about['version'], about['appVersion']), (project, project))
        for name in OVERLAYS:
            self.assertIn(f':{project}-', contract.Installation(overlay(name)).container['image'])


def why_not():
    """What the classes that were asked for lack, or None."""
    asked = set(sys.argv[1:])
    if 'Kubectl' in asked and not kustomize.kubectl_works():
        return 'there is no kubectl that knows components (1.24 or later); the other tests render without it'
    if 'Openapi' in asked and schemas.openapi_path() is None:
        return 'there is no OpenAPI document: `kubectl get --raw /openapi/v2 > FILE` and FEWBIT_KUBERNETES_OPENAPI=FILE'
    if 'Chart' in asked:
        return chart.why_not()
    return None


if __name__ == '__main__':
    reason = why_not()
    if reason:
        print(f'not run: {reason}')
        sys.exit(MISSING)
    unittest.main(verbosity=2)
