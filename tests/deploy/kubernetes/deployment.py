#!/usr/bin/env python3
"""Prints the Deployment of an overlay as `podman play kube --network=host` can run it: with an image of this machine, other ports, and
without what only a cluster has. Everything else is as it is: flags, volumes, security context.

    deployment.py OVERLAY IMAGE PORT METRICS_PORT
"""

import sys

import kustomize
import yaml


def main():
    overlay, image, port, metrics_port = sys.argv[1:]
    root = kustomize.pathlib.Path(__file__).resolve().parents[3]
    items = kustomize.own_render(root / 'deploy/kubernetes/overlays' / overlay)
    (deployment,) = [item for item in items if item['kind'] == 'Deployment']
    (container,) = deployment['spec']['template']['spec']['containers']
    container['image'] = image
    container.pop('ports')  # podman maps ports only for networks of its own
    for old, new in (('--port=8033', f'--port={port}'), ('--metrics_port=8034', f'--metrics_port={metrics_port}')):
        container['args'][container['args'].index(old)] = new
    yaml.safe_dump(deployment, sys.stdout)


if __name__ == '__main__':
    main()
