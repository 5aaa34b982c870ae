#!/usr/bin/env python3
"""Writes what is derived here: dashboards/*.json from the panels in panels.py, prometheusrule.yaml from rules.yaml.

    deploy/observability/make.py [--check]      --check: write nothing, exit 1 if a file is not what it would be
"""

import json
import pathlib
import sys

import panels

HERE = pathlib.Path(__file__).resolve().parent
RULE_HEADER = '''# Written by make.py from rules.yaml: change that one. The Prometheus Operator loads this object; its Prometheus may select rules by a
# label: add it with a patch.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: fewbit
  labels:
    app.kubernetes.io/name: fewbit
    app.kubernetes.io/instance: fewbit
spec:
'''
SOURCE = {'type': 'prometheus', 'uid': '${source}'}
THRESHOLDS = ('green', 'orange', 'red')


def variable(name, label, metric):
    """A choice among the values of a label; all of them to begin with."""
    query = f'label_values({metric}, {name})'
    return {'name': name, 'label': label, 'type': 'query', 'datasource': SOURCE, 'query': {'query': query, 'refId': name},
            'definition': query, 'includeAll': True, 'allValue': '.*', 'multi': True, 'refresh': 2, 'sort': 1,
            'current': {'text': 'All', 'value': '$__all'}}


def thresholds(panel):
    """Green below the first limit, orange and red from the others on; the other way round if they fall."""
    limits = panel.get('limits')
    if not limits:
        return {'mode': 'absolute', 'steps': [{'color': 'blue' if panel['type'] == 'stat' else 'green', 'value': None}]}
    rising = limits[0] < limits[-1]
    colors = THRESHOLDS if rising else tuple(reversed(THRESHOLDS))
    values = [None, *sorted(limits)]
    return {'mode': 'absolute', 'steps': [{'color': color, 'value': value} for color, value in zip(colors, values)]}


def field(panel):
    custom = {}
    if panel['type'] == 'timeseries':
        custom = {'drawStyle': 'line', 'lineWidth': 1, 'fillOpacity': 25 if panel.get('stack') else 8, 'showPoints': 'never',
                  'spanNulls': False, 'stacking': {'mode': panel.get('stack', 'none'), 'group': 'A'},
                  'thresholdsStyle': {'mode': 'dashed' if panel.get('limits') else 'off'}}
    defaults = {'unit': panel['unit'], 'custom': custom, 'thresholds': thresholds(panel),
                'color': {'mode': 'palette-classic' if panel['type'] == 'timeseries' else 'thresholds'}}
    defaults |= {key: panel[key] for key in ('min', 'max', 'decimals') if key in panel}
    if 'empty' in panel:
        defaults['noValue'] = panel['empty']
    overrides = [{'matcher': {'id': 'byRegexp', 'options': f'/{names}/'},
                  'properties': [{'id': 'color', 'value': {'mode': 'fixed', 'fixedColor': color}}]}
                 for names, color in panel.get('colors', {}).items()]
    return {'defaults': defaults, 'overrides': overrides}


def options(panel):
    if panel['type'] == 'timeseries':
        return {'legend': {'displayMode': 'list', 'placement': 'bottom', 'showLegend': True},
                'tooltip': {'mode': 'multi', 'sort': 'desc'}}
    reduce = {'calcs': ['lastNotNull'], 'fields': '', 'values': False}
    if panel['type'] == 'bargauge':
        return {'reduceOptions': reduce, 'orientation': 'horizontal', 'displayMode': 'gradient', 'showUnfilled': True}
    return {'reduceOptions': reduce, 'orientation': 'auto', 'graphMode': 'none', 'justifyMode': 'auto',
            'colorMode': 'value', 'textMode': 'name' if panel.get('text') == 'name' else 'auto'}


def target(letter, expression, legend, instant):
    return {'refId': letter, 'datasource': SOURCE, 'expr': expression, 'legendFormat': legend, 'instant': instant, 'range': not instant}


def grafana_panel(number, panel, x, y):
    instant = panel['type'] != 'timeseries'
    return {'id': number, 'type': panel['type'], 'title': panel['title'], 'description': panel['about'], 'datasource': SOURCE,
            'gridPos': {'x': x, 'y': y, 'w': panel['w'], 'h': panel['h']}, 'fieldConfig': field(panel), 'options': options(panel),
            'targets': [target(chr(ord('A') + i), expression, legend, instant)
                        for i, (expression, legend) in enumerate(panel['queries'])]}


def layout(all_panels):
    """Left to right, a new row where the width of 24 is used up."""
    placed, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(all_panels, 1):
        if x + panel['w'] > 24:
            x, y, height = 0, y + height, 0
        placed.append(grafana_panel(number, panel, x, y))
        x, height = x + panel['w'], max(height, panel['h'])
    return placed


def dashboard(name, about):
    """One of panels.DASHBOARDS as Grafana's JSON."""
    source = {'name': 'source', 'label': 'Data source', 'type': 'datasource', 'query': 'prometheus', 'refresh': 1}
    choices = [variable('namespace', 'Namespace', 'fewbit_build_info'), variable('model', 'Model', 'fewbit_build_info'),
               variable('instance', 'Replica', 'fewbit_build_info{model=~"$model"}')]
    links = [{'type': 'dashboards', 'tags': ['fewbit'], 'title': 'fewbit', 'asDropdown': True, 'keepTime': True, 'includeVars': True}]
    return {'uid': f'fewbit-{name}', 'title': f'fewbit / {name}', 'description': about['about'], 'tags': ['fewbit'], 'editable': True,
            'schemaVersion': 39, 'version': 1, 'refresh': '30s', 'time': {'from': 'now-1h', 'to': 'now'}, 'timezone': 'browser',
            'graphTooltip': 1, 'links': links, 'templating': {'list': [source, *choices]}, 'panels': layout(about['panels'])}


def outputs():
    """{path: text} of everything that is derived."""
    files = {}
    for name, about in panels.DASHBOARDS.items():
        files[HERE / 'dashboards' / f'{name}.json'] = json.dumps(dashboard(name, about), indent=1, ensure_ascii=False) + '\n'
    rules = (HERE / 'rules.yaml').read_text(encoding='utf-8')
    groups = rules[rules.index('groups:\n'):]
    indented = ''.join('  ' + line if line.strip() else line for line in groups.splitlines(keepends=True))
    files[HERE / 'prometheusrule.yaml'] = RULE_HEADER + indented
    return files


def main():
    check = sys.argv[1:] == ['--check']
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    stale = [path for path, text in outputs().items() if not path.exists() or path.read_text(encoding='utf-8') != text]
    for path in stale:
        if check:
            print(f'{path.relative_to(HERE)} is not what make.py writes')
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(outputs()[path], encoding='utf-8')
    return 1 if check and stale else 0


if __name__ == '__main__':
    sys.exit(main())
