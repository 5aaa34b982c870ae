#!/usr/bin/env python3
"""Checks deploy/observability without a server: rules by promtool, what is derived, the runbook, that every metric exists. What
Prometheus makes of it under load is tests/e2e/observability_test.py.

    tests/deploy/observability/observability_test.py [CLASS...]

Exit status 77: what it needs is not installed; the text says what.
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

MISSING = 77
try:
    import yaml
except ImportError:
    print(f'not run: yaml is not installed for {sys.executable} (Debian: python3-yaml)')
    sys.exit(MISSING)

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[2]
FOLDER = ROOT / 'deploy' / 'observability'
RULES = [rule for group in yaml.safe_load((FOLDER / 'rules.yaml').read_text(encoding='utf-8'))['groups'] for rule in group['rules']]
ALERTS = {rule['alert']: rule for rule in RULES if 'alert' in rule}
DASHBOARDS = {path.stem: json.loads(path.read_text(encoding='utf-8')) for path in sorted((FOLDER / 'dashboards').glob('*.json'))}
UNIT_TEST = yaml.safe_load((HERE / 'rules_test.yaml').read_text(encoding='utf-8'))
METRIC = re.compile(r'\bfewbit_[a-z0-9_]+\b')


def promtool(*arguments, folder=HERE):
    return subprocess.run(['promtool', *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=120)


def table():
    """{name: type} of the server's table of metrics."""
    text = (ROOT / 'server' / 'metric_table.cc').read_text(encoding='utf-8')
    return dict(re.findall(r'\{Metric::k\w+,\s*"([^"]+)",\s*MetricType::(\w+)', text))


def unknown_metrics(expression, known):
    """Names that no family and no series of a histogram has. `fewbit:` begins what is recorded."""
    found = set()
    for name in METRIC.findall(re.sub(r'"[^"]*"', '""', expression)):
        stem = re.sub(r'_(bucket|sum|count)$', '', name)
        if name not in known and known.get(stem) != 'Histogram':
            found.add(name)
    return found


def anchors(text):
    """What the headings of a Markdown file are called in links."""
    headings = re.findall(r'^#+ +(.+)$', text, flags=re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


class Rules(unittest.TestCase):

    def test_promtool_accepts_them(self):
        result = promtool('check', 'rules', str(FOLDER / 'rules.yaml'))
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn(f'{len(RULES)} rules found', result.stdout)

    def test_unit_tests(self):
        result = promtool('test', 'rules', 'rules_test.yaml')
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_every_alert_fires_somewhere_and_somewhere_not(self):
        cases = [case for test in UNIT_TEST['tests'] for case in test['alert_rule_test']]
        self.assertEqual({case['alertname'] for case in cases}, set(ALERTS))
        for name in ALERTS:
            fires = {bool(case['exp_alerts']) for case in cases if case['alertname'] == name}
            self.assertEqual(fires, {True, False}, name)

    def test_the_unit_tests_notice_an_alert_that_never_fires_and_one_that_always_does(self):
        text = (FOLDER / 'rules.yaml').read_text(encoding='utf-8')
        for wrong in (text.replace('fewbit_device_ecc_errors > 0', 'fewbit_device_ecc_errors > 9'),
                      text.replace('fewbit_device_temperature_celsius > 85', 'fewbit_device_temperature_celsius > 5')):
            self.assertNotEqual(wrong, text)
            with tempfile.TemporaryDirectory() as temporary:
                folder = pathlib.Path(temporary)
                (folder / 'rules.yaml').write_text(wrong, encoding='utf-8')
                (folder / 'test.yaml').write_text(yaml.safe_dump({**UNIT_TEST, 'rule_files': ['rules.yaml']}), encoding='utf-8')
                self.assertNotEqual(promtool('test', 'rules', 'test.yaml', folder=folder).returncode, 0)


class Contents(unittest.TestCase):

    def test_what_is_derived_is_up_to_date(self):
        result = subprocess.run([sys.executable, str(FOLDER / 'make.py'), '--check'], capture_output=True, text=True, check=False)
        self.assertEqual((result.returncode, result.stdout), (0, ''), result.stderr)

    def test_every_metric_exists(self):
        known = table()
        self.assertEqual(known.get('fewbit_step_seconds'), 'Histogram')
        recorded = {rule['record'] for rule in RULES if 'record' in rule}
        expressions = {f"rule {rule.get('record') or rule['alert']}": rule['expr'] for rule in RULES}
        for where, dashboard in DASHBOARDS.items():
            for panel in dashboard['panels']:
                expressions |= {f"{where}: {panel['title']} {target['refId']}": target['expr'] for target in panel['targets']}
        for where, expression in expressions.items():
            with self.subTest(where):
                self.assertEqual(unknown_metrics(expression, known), set())
                self.assertLessEqual(set(re.findall(r'\bfewbit:[a-z0-9_:]+', expression)), recorded)
        self.assertEqual(unknown_metrics('rate(fewbit_nothing_total[5m]) + fewbit_step_seconds', known), {'fewbit_nothing_total'})

    def test_documents_name_metrics_that_exist(self):
        known = table()
        builds = [path.read_text(encoding='utf-8') for path in (ROOT / 'server').rglob('*') if path.name == 'CMakeLists.txt' or
                  path.suffix == '.cmake']
        libraries = set(re.findall(r'add_library\((\w+)', ' '.join(builds)))
        for path in (ROOT / 'README.md', *sorted((ROOT / 'deploy').rglob('*.md')), *sorted((ROOT / 'server').rglob('*.md'))):
            named = set(re.findall(r'`(fewbit_[a-z0-9_]+)(?:[{`]|\[)', path.read_text(encoding='utf-8')))
            named |= set(re.findall(r'\((fewbit_[a-z0-9_]+)[{\[]', path.read_text(encoding='utf-8')))
            self.assertEqual({name for name in named - libraries if unknown_metrics(name, known)}, set(), path.name)

    def test_counters_are_used_as_counters_and_gauges_as_gauges(self):
        known = table()
        for rule in RULES:
            for function, name in re.findall(r'\b(rate|increase|changes|avg_over_time|last_over_time)\((fewbit_\w+)', rule['expr']):
                kind = known.get(re.sub(r'_(bucket|sum|count)$', '', name), known.get(name))
                expected = 'Gauge' if function in ('changes', 'avg_over_time', 'last_over_time') else ('Counter', 'Histogram')
                self.assertIn(kind, expected, f"{rule.get('record') or rule['alert']}: {function}({name})")

    def test_alerts_say_what_is_wrong_and_where_to_read_on(self):
        readme = (ROOT / 'deploy' / 'README.md').read_text(encoding='utf-8')
        known = anchors(readme)
        for name, alert in ALERTS.items():
            with self.subTest(name):
                self.assertIn(alert['labels']['severity'], ('critical', 'warning', 'info'))
                self.assertTrue(alert['annotations']['summary'])
                path, anchor = alert['annotations']['runbook_url'].split('#')
                self.assertEqual((path, anchor), ('deploy/README.md', name.lower()))
                self.assertIn(anchor, known)
                self.assertGreater(len(readme.split(f'### {name}\n')[1].split('\n#')[0].split()), 25, 'what to look at, what to do')
        self.assertEqual(set(re.findall(r'^### (Fewbit\w+)$', readme, flags=re.MULTILINE)), set(ALERTS))

    def test_dashboards_are_well_formed(self):
        self.assertEqual(set(DASHBOARDS), {'overview', 'cost', 'overload', 'device'})
        for where, dashboard in DASHBOARDS.items():
            taken = set()
            self.assertEqual(dashboard['uid'], f'fewbit-{where}')
            self.assertEqual(len({panel['id'] for panel in dashboard['panels']}), len(dashboard['panels']))
            for panel in dashboard['panels']:
                with self.subTest(where, panel=panel['title']):
                    self.assertTrue(panel['title'] and panel['description'] and panel['fieldConfig']['defaults']['unit'])
                    place = panel['gridPos']
                    cells = {(x, y) for x in range(place['x'], place['x'] + place['w']) for y in range(place['y'], place['y'] + place['h'])}
                    self.assertFalse(cells & taken, 'overlaps')
                    self.assertLessEqual(place['x'] + place['w'], 24)
                    taken |= cells
                    for target in panel['targets']:
                        self.assertTrue('$instance' in target['expr'] or 'ALERTS' in target['expr'], 'the choice of replicas has no effect')


if __name__ == '__main__':
    if 'Rules' in sys.argv[1:] and shutil.which('promtool') is None:
        print('not run: promtool is not installed (Debian: prometheus)')
        sys.exit(MISSING)
    unittest.main(verbosity=2)
