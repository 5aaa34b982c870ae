"""What every installation must keep, checked on the rendered objects. Each rule is a function that yields what breaks it; which rules
apply follows from the objects (a GPU limit, a TLS flag), and from Traits, which says what an overlay must have.
"""

import dataclasses
import pathlib
import re

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
SERVICE = 'fewbit.v1.GenerationService'
GRACE_SECONDS = 10  # after the drain: the last reads (2 s) and the end of the metrics thread (up to 4 s)
KUBERNETES_VOLUMES = {'configMap', 'csi', 'downwardAPI', 'emptyDir', 'ephemeral', 'persistentVolumeClaim', 'projected', 'secret'}
MIN_SCALE_DOWN_SECONDS = 300
OBSERVABILITY = ROOT / 'deploy' / 'observability'
MAX_APPLY_BYTES = 240_000  # of annotations Kubernetes takes 256 KiB


@dataclasses.dataclass
class Traits:
    gpu: bool = False
    tls: bool = False
    client_ca: bool = False
    api_keys: bool = False
    monitoring: bool = False
    autoscaling: bool = False
    gateway: bool = False
    model: str = 'image'  # image, pvc, init


class Installation:
    """The objects of one installation, with what the rules need of them at hand."""

    def __init__(self, items):
        self.items = items
        deployment = self.one('Deployment')
        self.spec = deployment['spec']
        self.labels = self.spec['template']['metadata']['labels']
        self.pod = self.spec['template']['spec']
        self.container = self.pod['containers'][0]
        self.args = self.container.get('args', [])
        self.volumes = {volume['name']: volume for volume in self.pod.get('volumes', [])}
        self.mounts = {mount['mountPath']: mount for mount in self.container.get('volumeMounts', [])}

    def all(self, kind):
        return [item for item in self.items if item['kind'] == kind]

    def one(self, kind):
        found = self.all(kind)
        if len(found) != 1:
            raise ValueError(f'{len(found)} objects of kind {kind}, not one')
        return found[0]

    def flag(self, name):
        """The value of --name=value, '' for --name, None if it is not there."""
        for argument in self.args:
            key, _, value = argument.partition('=')
            if key == '--' + name:
                return value
        return None

    def port(self, name):
        ports = {port['name']: port['containerPort'] for port in self.container.get('ports', [])}
        return ports.get(name)

    def volume_at(self, path):
        """The volume whose mount holds `path`, and the mount."""
        for mount_path, mount in self.mounts.items():
            if path == mount_path or path.startswith(mount_path + '/'):
                return self.volumes.get(mount['name']), mount
        return None, None


def kinds(install, traits):
    expected = {'ServiceAccount', 'Deployment', 'Service', 'NetworkPolicy', 'PodDisruptionBudget'}
    expected |= {'ServiceMonitor', 'PrometheusRule', 'ConfigMap'} if traits.monitoring else set()
    expected |= {'ScaledObject'} if traits.autoscaling else set()
    expected |= {'InferencePool', 'HTTPRoute'} if traits.gateway else set()
    expected |= {'BackendTLSPolicy'} if traits.gateway and traits.tls else set()
    actual = {item['kind'] for item in install.items}
    if actual != expected:
        yield f'kinds are {sorted(actual)}, not {sorted(expected)}'
    if len({item['metadata'].get('namespace') for item in install.items}) != 1:
        yield 'not all objects are in one namespace'


def selectors(install, traits):
    """Everything that selects pods selects these, and nothing names a port that is not there."""
    def selects(what, selector, labels):
        if not selector or not selector.items() <= labels.items():
            yield f'{what} selects {selector}, the labels are {labels}'
    yield from selects('the Deployment', install.spec['selector']['matchLabels'], install.labels)
    for kind, path in (('Service', ('selector',)), ('PodDisruptionBudget', ('selector', 'matchLabels')),
                       ('NetworkPolicy', ('podSelector', 'matchLabels')), ('InferencePool', ('selector', 'matchLabels'))):
        for item in install.all(kind):
            selector = item['spec']
            for key in path:
                selector = selector.get(key) or {}
            yield from selects(f'the {kind}', selector, install.labels)
    service = install.one('Service')
    ports = {port['name'] for port in service['spec']['ports']}
    for port in service['spec']['ports']:
        if install.port(port['targetPort']) != port['port']:
            yield f"the Service's port {port['name']} leads to {port['targetPort']}, which is not {port['port']}"
    for item in install.all('ServiceMonitor'):
        yield from selects('the ServiceMonitor', item['spec']['selector']['matchLabels'], service['metadata']['labels'])
        if not {endpoint['port'] for endpoint in item['spec']['endpoints']} <= ports:
            yield 'the ServiceMonitor names a port that the Service does not have'


def addresses(install, traits):
    for name, flag in (('grpc', 'port'), ('metrics', 'metrics_port'), ('health', 'health_port')):
        value = install.flag(flag)
        if (None if value is None else int(value)) != install.port(name):
            yield f'--{flag} is {value}, the container port {name} {install.port(name)}'
    if install.flag('host') != '0.0.0.0':
        yield 'the server must listen on the address of the pod: --host=0.0.0.0'


def probes(install, traits):
    """Native gRPC: liveness on "", the others on the service; on the plain health port where gRPC has TLS."""
    port = install.port('health' if traits.tls else 'grpc')
    for name, service in (('startupProbe', SERVICE), ('readinessProbe', SERVICE), ('livenessProbe', '')):
        grpc = install.container.get(name, {}).get('grpc')
        if grpc is None:
            yield f'{name} is not a gRPC probe'
            continue
        if (grpc.get('service') or '') != service:
            yield f"{name} asks for {grpc.get('service')!r}, not {service!r}"
        if grpc.get('port') != port:
            yield f"{name} asks port {grpc.get('port')}, not {port}"
    startup = install.container.get('startupProbe', {})
    seconds = startup.get('periodSeconds', 10) * startup.get('failureThreshold', 3)
    if seconds < 60:
        yield f'startupProbe gives up after {seconds} s'
    if install.spec.get('progressDeadlineSeconds', 600) <= seconds:
        yield 'progressDeadlineSeconds ends before startupProbe does'


def drain(install, traits):
    """Enough time for clients to leave, for the drain, and to end."""
    sleep = install.container.get('lifecycle', {}).get('preStop', {}).get('sleep', {}).get('seconds', 0)
    if sleep < 5:
        yield f'preStop waits {sleep} s: too short for endpoints to be updated'
    seconds = float(install.flag('drain_seconds') or 'nan')
    grace = install.pod.get('terminationGracePeriodSeconds', 30)
    if not grace >= sleep + seconds + GRACE_SECONDS:
        yield f'terminationGracePeriodSeconds {grace} < preStop {sleep} + --drain_seconds {seconds:g} + {GRACE_SECONDS}'
    rolling = install.spec.get('strategy', {}).get('rollingUpdate', {})
    if rolling.get('maxUnavailable') not in (0, 1):
        yield 'a rollout may take more than one replica away'


def security(install, traits):
    """Pod Security Standard "restricted", and a read-only root."""
    context = install.pod.get('securityContext', {})
    if context.get('runAsNonRoot') is not True or not context.get('runAsUser'):
        yield 'runAsNonRoot is not true with a user'
    if context.get('seccompProfile', {}).get('type') != 'RuntimeDefault':
        yield 'seccompProfile is not RuntimeDefault'
    for container in install.pod.get('initContainers', []) + install.pod['containers']:
        name, own = container['name'], container.get('securityContext', {})
        if own.get('readOnlyRootFilesystem') is not True:
            yield f'{name}: readOnlyRootFilesystem is not true'
        if own.get('allowPrivilegeEscalation') is not False:
            yield f'{name}: allowPrivilegeEscalation is not false'
        if own.get('capabilities') != {'drop': ['ALL']}:
            yield f'{name}: capabilities are not just dropped'
        if own.get('privileged') or own.get('runAsNonRoot') is False or own.get('runAsUser') == 0:
            yield f'{name}: privileged or root'
        if not re.fullmatch(r'\S+:\S+', container['image']) or container['image'].endswith(':latest'):
            yield f"{name}: the image {container['image']} has no version"
    for key in ('hostNetwork', 'hostPID', 'hostIPC'):
        if install.pod.get(key):
            yield f'{key} is set'
    for volume in install.volumes.values():
        if not set(volume) - {'name'} <= KUBERNETES_VOLUMES:
            yield f"volume {volume['name']} is of a kind that restricted pods may not have"


def token(install, traits):
    account = install.one('ServiceAccount')
    if install.pod.get('serviceAccountName') != account['metadata']['name']:
        yield 'the pod does not run under the ServiceAccount'
    if account.get('automountServiceAccountToken') is not False or install.pod.get('automountServiceAccountToken') is not False:
        yield 'a token is mounted'


def network(install, traits):
    spec = install.one('NetworkPolicy')['spec']
    if set(spec.get('policyTypes', [])) != {'Ingress', 'Egress'}:
        yield 'the NetworkPolicy does not cover both directions'
    if spec.get('egress'):
        yield 'the server may call out'
    opened = set()
    for rule in spec.get('ingress', []):
        if not rule.get('from') or not all(peer.get('podSelector') or peer.get('namespaceSelector') for peer in rule['from']):
            yield 'an ingress rule is open to everybody'
        if not rule.get('ports'):
            yield 'an ingress rule is open to every port'
        opened |= {port['port'] for port in rule.get('ports', [])}
    if opened != {'grpc', 'metrics'}:
        yield f'the NetworkPolicy opens {sorted(opened)}, not grpc and metrics'


def availability(install, traits):
    if install.one('Service')['spec'].get('clusterIP') != 'None':
        yield 'the Service is not headless'
    budget = install.one('PodDisruptionBudget')['spec']
    if budget.get('maxUnavailable') != 1 or 'minAvailable' in budget:
        yield 'the PodDisruptionBudget does not say maxUnavailable: 1'
    spread = {item['topologyKey']: item for item in install.pod.get('topologySpreadConstraints', [])}
    for key in ('topology.kubernetes.io/zone', 'kubernetes.io/hostname'):
        constraint = spread.get(key, {})
        if constraint.get('labelSelector', {}).get('matchLabels') != install.spec['selector']['matchLabels']:
            yield f'replicas are not spread over {key}'


def devices(install, traits):
    resources = install.container.get('resources', {})
    requests, limits = resources.get('requests', {}), resources.get('limits', {})
    if 'memory' not in limits or not {'cpu', 'memory'} <= set(requests):
        yield 'no requests for cpu and memory, or no memory limit'
    expected = '1' if traits.gpu else None
    if limits.get('nvidia.com/gpu') != expected or requests.get('nvidia.com/gpu') != expected:
        yield f'nvidia.com/gpu is not {expected} in requests and limits'
    if install.flag('device') != ('cuda' if traits.gpu else 'cpu'):
        yield f"--device={install.flag('device')} does not fit the GPU limit"
    tolerated = any(item.get('key') == 'nvidia.com/gpu' for item in install.pod.get('tolerations', []))
    if traits.gpu and not tolerated:
        yield 'the taint of GPU nodes is not tolerated'
    if not traits.gpu and str(install.flag('threads')) != str(limits.get('cpu')):
        yield f"--threads={install.flag('threads')} is not the CPU limit {limits.get('cpu')}"


def model(install, traits):
    path = install.flag('model') or ''
    volume, mount = install.volume_at(path)
    if not path.startswith('/models/'):
        yield f'--model={path} is not below /models'
    if traits.model != 'image' and not (mount and mount.get('readOnly')):
        yield 'the server may write to the models'
    source = {'image': None, 'pvc': 'persistentVolumeClaim', 'init': 'emptyDir'}[traits.model]
    actual = next(iter(set(volume) - {'name'}), None) if volume else None
    if actual != source:
        yield f'the model comes from {actual}, not {source}'
    if traits.model == 'init':
        filled = [mount['name'] for init in install.pod.get('initContainers', []) for mount in init.get('volumeMounts', [])]
        if not volume or volume['name'] not in filled:
            yield 'no init container fills the model volume'


def encryption(install, traits):
    """TLS and keys from Secrets, mounted so that a rotation arrives; plain text only as such."""
    plain = install.flag('insecure_bind') is not None
    if plain == traits.tls:
        yield f'--insecure_bind is {"set" if plain else "not set"}, TLS {"expected" if traits.tls else "not expected"}'
    for present, flags in ((traits.tls, ('tls_cert', 'tls_key')), (traits.client_ca, ('tls_client_ca',)),
                           (traits.api_keys, ('api_keys_file',))):
        for flag in flags:
            path = install.flag(flag)
            if (path is not None) != present:
                yield f'--{flag} is {path}'
            if not path:
                continue
            volume, mount = install.volume_at(path)
            if not volume or 'secret' not in volume:
                yield f'--{flag}={path} is not in a Secret'
            elif 'subPath' in mount or not mount.get('readOnly'):
                yield f'--{flag}: mounted by subPath, which is never updated, or writable'
            elif volume['secret'].get('defaultMode') != 0o440 or not install.pod['securityContext'].get('fsGroup'):
                yield f'--{flag}: not readable by the group alone'


def scaling(install, traits):
    if not traits.autoscaling:
        if 'replicas' not in install.spec:
            yield 'nobody says how many replicas'
        return
    if 'replicas' in install.spec:
        yield 'the Deployment has replicas, which every apply would reset'
    spec = install.one('ScaledObject')['spec']
    if spec['scaleTargetRef'].get('name') != install.one('Deployment')['metadata']['name']:
        yield 'the ScaledObject scales something else'
    if not 1 <= spec.get('minReplicaCount', 0) <= spec.get('maxReplicaCount', 0):
        yield 'the ScaledObject scales to zero or has its bounds the wrong way round'
    behavior = spec.get('advanced', {}).get('horizontalPodAutoscalerConfig', {}).get('behavior', {})
    if behavior.get('scaleDown', {}).get('stabilizationWindowSeconds', 0) < MIN_SCALE_DOWN_SECONDS:
        yield f'scale-down is not stabilised for {MIN_SCALE_DOWN_SECONDS} s'
    metrics = {(metric, trigger.get('metricType')) for trigger in spec['triggers']
               for metric in re.findall(r'fewbit_\w+', trigger['metadata']['query'])}
    if metrics != {('fewbit_requests_waiting', 'AverageValue'), ('fewbit_kv_usage_ratio', 'Value')}:
        yield f'the triggers are {sorted(metrics)}'
    namespace = install.one('Deployment')['metadata']['namespace']
    for trigger in spec['triggers']:
        if f'namespace="{namespace}"' not in trigger['metadata']['query']:
            yield 'a trigger counts other namespaces'


def monitoring(install, traits):
    """The rules and dashboards of deploy/observability, where their readers look for them."""
    if not traits.monitoring:
        return
    name = install.one('Deployment')['metadata']['name']
    rule, dashboards = install.one('PrometheusRule'), install.one('ConfigMap')
    if rule['spec'] != yaml.safe_load((OBSERVABILITY / 'rules.yaml').read_text(encoding='utf-8')):
        yield 'the PrometheusRule is not rules.yaml'
    if dashboards['metadata']['name'] != f'{name}-dashboards':
        yield f"the dashboards are called {dashboards['metadata']['name']}"
    if dashboards['metadata'].get('labels', {}).get('grafana_dashboard') != '1':
        yield 'the dashboards lack the label that Grafana looks for'
    expected = {path.name: path.read_text(encoding='utf-8') for path in (OBSERVABILITY / 'dashboards').glob('*.json')}
    if dashboards.get('data') != expected:
        yield f"the dashboards {sorted(dashboards.get('data', {}))} are not those of deploy/observability"
    if sum(map(len, expected.values())) > MAX_APPLY_BYTES:
        yield 'the dashboards are too large for kubectl apply, which keeps a copy in an annotation'


def gateway(install, traits):
    if not traits.gateway:
        return
    pool = install.one('InferencePool')
    name = pool['metadata']['name']
    if [port['number'] for port in pool['spec']['targetPorts']] != [install.port('grpc')]:
        yield 'the InferencePool does not lead to the gRPC port'
    if (pool['spec'].get('appProtocol') == 'kubernetes.io/h2c') == traits.tls:
        yield 'the InferencePool must say h2c without TLS, and only then'
    backends = [(backend.get('kind'), backend['name']) for route in install.all('HTTPRoute') for rule in route['spec']['rules']
                for backend in rule['backendRefs']]
    if backends != [('InferencePool', name)]:
        yield f'the HTTPRoute leads to {backends}'
    for policy in install.all('BackendTLSPolicy'):
        if [(target['kind'], target['name']) for target in policy['spec']['targetRefs']] != [('InferencePool', name)]:
            yield 'the BackendTLSPolicy is about something else'


RULES = (kinds, selectors, addresses, probes, drain, security, token, network, availability, devices, model, encryption, scaling,
         monitoring, gateway)


def violations(items, traits):
    """All that is wrong, each as `rule: text`."""
    try:
        install = Installation(items)
        return [f'{rule.__name__}: {text}' for rule in RULES for text in rule(install, traits)]
    except (KeyError, ValueError, TypeError, IndexError) as error:
        return [f'structure: {error!r}']


def flags_in_use(items):
    return {re.match(r'--(\w+)', argument).group(1) for argument in Installation(items).args}


def flags_of_source():
    """The flags that the sources of the server define."""
    found = set()
    for path in (ROOT / 'server').glob('*.cc'):
        found |= set(re.findall(r'ABSL_FLAG\(\s*[\w:<>]+\s*,\s*(\w+)\s*,', path.read_text(encoding='utf-8')))
    return found


def flags_of_help(text):
    """The flags that --help lists."""
    return set(re.findall(r'^\s+--(\w+)', text, flags=re.MULTILINE))


def metrics_of_source():
    """Every quoted name in the sources of the server, with the prefix that all families get."""
    found = set()
    for path in (ROOT / 'server').glob('*.cc'):
        found |= {f'fewbit_{name}' for name in re.findall(r'"(?:fewbit_)?([a-z][a-z0-9_]+)"', path.read_text(encoding='utf-8'))}
    return found
