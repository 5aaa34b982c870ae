"""Renders the kustomizations of deploy/kubernetes: with kubectl's kustomize, and with the small part of it that they use.

The latter works where there is no kubectl, or only one that is too old for components (Debian 12's is from 2020). Where both work, a test
compares them.
"""

import copy
import pathlib
import shutil
import subprocess

import yaml

FIELDS = {'apiVersion', 'kind', 'namespace', 'resources', 'components', 'patches', 'images', 'configMapGenerator'}
GENERATOR_FIELDS = {'name', 'files', 'options'}


def load(path):
    return [document for document in yaml.safe_load_all(path.read_text(encoding='utf-8')) if document is not None]


def json_patch(target, operations):
    """RFC 6902: add, remove and replace. A path that does not exist is an error."""
    for operation in operations:
        *parents, last = [part.replace('~1', '/').replace('~0', '~') for part in operation['path'].split('/')[1:]]
        node = target
        for part in parents:
            node = node[int(part)] if isinstance(node, list) else node[part]
        verb = operation['op']
        if isinstance(node, list):
            last = len(node) if last == '-' and verb == 'add' else int(last)
        elif verb != 'add' and last not in node:
            raise KeyError(operation['path'])
        if verb == 'remove':
            del node[last]
        elif verb == 'add' and isinstance(node, list):
            node.insert(last, copy.deepcopy(operation['value']))
        elif verb in ('add', 'replace'):
            node[last] = copy.deepcopy(operation['value'])
        else:
            raise ValueError(f'{verb}: unknown operation')


def pod_containers(item):
    pod = item.get('spec', {}).get('template', {}).get('spec', {}) if isinstance(item.get('spec'), dict) else {}
    return pod.get('initContainers', []) + pod.get('containers', [])


def config_map(folder, generator):
    """A ConfigMap of files without a hash in its name. As kustomize does, only files below the folder are taken."""
    options = generator.get('options', {})
    if set(generator) - GENERATOR_FIELDS or options.get('disableNameSuffixHash') is not True or set(options) - {'disableNameSuffixHash', 'labels'}:
        raise ValueError(f'{folder}: this reads generators of files without a hash only, not {generator}')
    data = {}
    for name in generator['files']:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise ValueError(f'{folder}: {name} is not below it')
        data[path.name] = path.read_text(encoding='utf-8')
    return {'apiVersion': 'v1', 'kind': 'ConfigMap', 'metadata': {'name': generator['name'], 'labels': dict(options.get('labels', {}))},
            'data': data}


def own_render(folder, inherited=()):
    """The objects of a kustomization; a component also changes the `inherited` ones, in place."""
    folder = pathlib.Path(folder)
    (kustomization,) = load(folder / 'kustomization.yaml')
    unknown = set(kustomization) - FIELDS
    if unknown:
        raise ValueError(f'{folder}: {sorted(unknown)} are not among the fields this reads')
    items = list(inherited)
    for resource in kustomization.get('resources', []):
        path = folder / resource
        items += own_render(path) if path.is_dir() else load(path)
    items += [config_map(folder, generator) for generator in kustomization.get('configMapGenerator', [])]
    for component in kustomization.get('components', []):
        items = own_render(folder / component, items)
    for patch in kustomization.get('patches', []):
        target = patch['target']
        matching = [item for item in items if item['kind'] == target['kind'] and item['metadata']['name'] == target['name']]
        if not matching:
            raise ValueError(f'{folder}: a patch for {target} finds nothing')
        for item in matching:
            json_patch(item, yaml.safe_load(patch['patch']))
    for image in kustomization.get('images', []):
        for item in items:
            for container in pod_containers(item):
                if container['image'] == image['name']:
                    container['image'] = f"{image.get('newName', image['name'])}:{image['newTag']}"
    if 'namespace' in kustomization:
        for item in items:
            item['metadata']['namespace'] = kustomization['namespace']
    return items


def kubectl_works():
    """Whether there is a kubectl whose kustomize knows components (kubectl 1.21 and later)."""
    if shutil.which('kubectl') is None:
        return False
    result = subprocess.run(['kubectl', 'version', '--client'], capture_output=True, text=True, check=False)
    return 'Kustomize Version: v' in result.stdout


def kubectl_render(folder):
    result = subprocess.run(['kubectl', 'kustomize', str(folder)], capture_output=True, text=True, check=False)
    if result.returncode != 0 or result.stderr:
        raise RuntimeError(f'kubectl kustomize {folder}: {result.stderr.strip()}')
    return [document for document in yaml.safe_load_all(result.stdout) if document is not None]


def by_name(items):
    """{(apiVersion, kind, namespace, name): object}; two of the same name are an error."""
    result = {}
    for item in items:
        key = (item['apiVersion'], item['kind'], item['metadata'].get('namespace'), item['metadata']['name'])
        if key in result:
            raise ValueError(f'{key} is there twice')
        result[key] = item
    return result
