"""Checks objects against schemas: the published OpenAPI definitions of Kubernetes where they are at hand, and our own for the custom
resources, reduced to the fields that we use. Unknown fields are errors.
"""

import copy
import json
import os
import pathlib

import jsonschema

ROOT = pathlib.Path(__file__).resolve().parents[3]
PREFIX = '#/definitions/'
INT_OR_STRING = {'type': ['integer', 'string']}
QUANTITY = {'type': ['integer', 'number', 'string'], 'pattern': r'^[0-9.]+([eE][-+]?[0-9]+|m|[kMGTPE]|[KMGTPE]i)?$'}


def openapi_path():
    """The file that FEWBIT_KUBERNETES_OPENAPI names (made by `kubectl get --raw /openapi/v2`), or the one in a folder beside the
    checkout; None where there is neither."""
    named = os.environ.get('FEWBIT_KUBERNETES_OPENAPI')
    path = pathlib.Path(named) if named else ROOT.parent / 'shared' / 'kubernetes' / 'openapi-v2.json'
    return path if named or path.exists() else None


class Kubernetes:
    """Validates built-in kinds against an OpenAPI v2 document."""

    def __init__(self, path):
        definitions = copy.deepcopy(json.loads(pathlib.Path(path).read_text(encoding='utf-8'))['definitions'])
        self._kinds = {}
        for name, schema in definitions.items():
            for kind in schema.get('x-kubernetes-group-version-kind', []):
                version = '/'.join(part for part in (kind['group'], kind['version']) if part)
                self._kinds[version, kind['kind']] = name
            if name.endswith('.IntOrString'):
                definitions[name] = INT_OR_STRING
            elif name.endswith('.Quantity'):
                definitions[name] = QUANTITY
            elif 'properties' in schema:
                schema['additionalProperties'] = False
        self._document = {'definitions': definitions}

    def errors(self, item):
        name = self._kinds.get((item.get('apiVersion'), item.get('kind')))
        if name is None:
            return [f"{item.get('apiVersion')} {item.get('kind')}: not in the OpenAPI document"]
        return messages({'$ref': PREFIX + name, **self._document}, item)


def messages(schema, item):
    name = f"{item['kind']} {item['metadata'].get('name')}"
    errors = jsonschema.Draft4Validator(schema).iter_errors(item)
    return [f"{name}: {'.'.join(map(str, error.absolute_path))}: {error.message}" for error in errors]


def record(properties, required=()):
    schema = {'type': 'object', 'properties': properties, 'additionalProperties': False}
    return {**schema, 'required': list(required)} if required else schema


def array(items, least=1):
    return {'type': 'array', 'items': items, 'minItems': least}


TEXT = {'type': 'string', 'minLength': 1}
SECONDS = {'type': 'integer', 'minimum': 0}
PORT = {'type': 'integer', 'minimum': 1, 'maximum': 65535}
DURATION = {'type': 'string', 'pattern': '^([0-9]+(ms|s|m|h))+$'}
MAP = {'type': 'object', 'additionalProperties': {'type': 'string'}}
LABELS = record({'matchLabels': MAP}, ['matchLabels'])
METADATA = record({'name': TEXT, 'namespace': TEXT, 'labels': MAP, 'annotations': MAP}, ['name'])
POLICY = record({'type': {'enum': ['Pods', 'Percent']}, 'value': {'type': 'integer', 'minimum': 1},
                 'periodSeconds': {'type': 'integer', 'minimum': 1, 'maximum': 1800}}, ['type', 'value', 'periodSeconds'])
RULES = record({'stabilizationWindowSeconds': {'type': 'integer', 'minimum': 0, 'maximum': 3600}, 'policies': array(POLICY)})

# The specs, by version and kind.
CUSTOM = {
    ('monitoring.coreos.com/v1', 'ServiceMonitor'): record({
        'selector': LABELS,
        'endpoints': array(record({'port': TEXT, 'path': TEXT, 'interval': DURATION, 'scrapeTimeout': DURATION}, ['port'])),
    }, ['selector', 'endpoints']),
    ('monitoring.coreos.com/v1', 'PrometheusRule'): record({
        'groups': array(record({
            'name': TEXT, 'interval': DURATION,
            'rules': array({'oneOf': [
                record({'record': TEXT, 'expr': TEXT, 'labels': MAP}, ['record', 'expr']),
                record({'alert': TEXT, 'expr': TEXT, 'for': DURATION, 'labels': MAP, 'annotations': MAP}, ['alert', 'expr'])]})},
            ['name', 'rules'])),
    }, ['groups']),
    ('keda.sh/v1alpha1', 'ScaledObject'): record({
        'scaleTargetRef': record({'apiVersion': TEXT, 'kind': TEXT, 'name': TEXT}, ['name']),
        'pollingInterval': SECONDS, 'cooldownPeriod': SECONDS,
        'minReplicaCount': SECONDS, 'maxReplicaCount': SECONDS,
        'advanced': record({'horizontalPodAutoscalerConfig': record({
            'behavior': record({'scaleUp': RULES, 'scaleDown': RULES})})}),
        # All metadata of a trigger are strings.
        'triggers': array(record({'type': {'enum': ['prometheus']}, 'name': TEXT, 'metricType': {'enum': ['AverageValue', 'Value']},
                                  'metadata': {**record({'serverAddress': TEXT, 'query': TEXT, 'threshold': TEXT},
                                                        ['serverAddress', 'query', 'threshold'])}}, ['type', 'metadata'])),
    }, ['scaleTargetRef', 'triggers']),
    ('inference.networking.k8s.io/v1', 'InferencePool'): record({
        'selector': LABELS,
        'targetPorts': {**array(record({'number': PORT}, ['number'])), 'maxItems': 8},
        'appProtocol': {'enum': ['http', 'kubernetes.io/h2c']},
        'endpointPickerRef': record({'name': TEXT, 'port': record({'number': PORT}, ['number']),
                                     'failureMode': {'enum': ['FailOpen', 'FailClose']}}, ['name', 'port']),
    }, ['selector', 'targetPorts', 'endpointPickerRef']),
    ('gateway.networking.k8s.io/v1', 'HTTPRoute'): record({
        'parentRefs': array(record({'name': TEXT, 'namespace': TEXT}, ['name'])),
        'hostnames': array(TEXT),
        'rules': array(record({
            'matches': array(record({'path': record({'type': {'enum': ['Exact', 'PathPrefix']}, 'value': TEXT}, ['type', 'value'])})),
            'backendRefs': array(record({'group': {'type': 'string'}, 'kind': TEXT, 'name': TEXT, 'port': PORT}, ['name'])),
            'timeouts': record({'request': DURATION})})),
    }, ['parentRefs', 'rules']),
    ('gateway.networking.k8s.io/v1', 'BackendTLSPolicy'): record({
        'targetRefs': array(record({'group': {'type': 'string'}, 'kind': TEXT, 'name': TEXT}, ['group', 'kind', 'name'])),
        'validation': record({'hostname': TEXT, 'caCertificateRefs': array(
            record({'group': {'type': 'string'}, 'kind': TEXT, 'name': TEXT}, ['group', 'kind', 'name']))}, ['hostname']),
    }, ['targetRefs', 'validation']),
}


def is_custom(item):
    """Custom resources live in groups with a dot that are not Kubernetes' own."""
    group = item['apiVersion'].rpartition('/')[0]
    return '.' in group and group not in ('networking.k8s.io', 'rbac.authorization.k8s.io')


def custom_errors(item):
    spec = CUSTOM.get((item['apiVersion'], item['kind']))
    if spec is None:
        return [f"{item['apiVersion']} {item['kind']}: no schema; add one to schemas.py"]
    return messages(record({'apiVersion': TEXT, 'kind': TEXT, 'metadata': METADATA, 'spec': spec},
                           ['apiVersion', 'kind', 'metadata', 'spec']), item)
