#!/usr/bin/env python3
"""Every panel of every dashboard and every rule of deploy/observability, asked of a real Prometheus that scrapes two replicas under
load: fewbit-server with the bundled model, and one with an imaginary GPU. Each must parse and return data; EXCEPTIONS says what need not.

Exit status 77: Prometheus is not installed; the text says so.
"""

import math
import re
import sys
import time
import unittest

import observability
from harness import Server
from observability import NAMESPACE, WINDOW, FakeGpuServer, Load, Prometheus, filled_in

SECONDS = 2 * WINDOW  # of load
# What is empty here, and why. An entry that is not empty any more fails.
EXCEPTIONS = {
    ('rules', 'FewbitGpuSilent'): 'it asks for replicas without something: none of them is',
}


def has_data(series):
    return any(math.isfinite(value) for _, values in series for _, value in values)


def always_answering(expression):
    """An alert's condition as 0 or 1 instead of nothing or something."""
    return re.sub(r' (==|!=|<=|>=|<|>) ', r' \1 bool ', expression)


class ObservabilityTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        cls.replica = Server('--max_running=3', '--max_waiting=2', '--gpu_hour_usd=0.4', '--slo_ttft_ms=300', '--slo_tpot_ms=20')
        cls.addClassCleanup(cls.replica.stop)
        cls.gpu = FakeGpuServer()
        cls.addClassCleanup(cls.gpu.stop)
        cls.prometheus = Prometheus([(f'127.0.0.1:{cls.replica.metrics_port}', {}),
                                     (f'127.0.0.1:{cls.gpu.metrics_port}', {'namespace': NAMESPACE})])
        cls.addClassCleanup(cls.prometheus.stop)
        cls.prometheus.wait_for('count(fewbit_build_info)', lambda result: result and result[0][1] == 2)
        cls.start = time.time()
        cls.loads = {cls.replica: Load(cls.replica.address, SECONDS, ['acme', 'globex'], concurrency=4),
                     cls.gpu: Load(cls.gpu.address, SECONDS, ['acme'], concurrency=6)}
        for load in cls.loads.values():
            load.join()
        cls.end = time.time()

    def answer(self, expression):
        return self.prometheus.range(filled_in(expression, self.end - self.start), self.start, self.end)

    def check(self, where, name, expression, series):
        if (where, name) in EXCEPTIONS:
            self.assertFalse(has_data(series), f'{where}: {name} has data: it is no exception any more')
        else:
            self.assertTrue(has_data(series), f'{where}: {name} is empty: {expression}')

    def test_what_is_wrong_would_be_found(self):
        self.assertFalse(has_data(self.answer('fewbit_no_such_metric{model=~"$model"}')))
        self.assertFalse(has_data(self.answer('fewbit_requests_running / 0 * 0')), 'not a number is no data')
        for wrong in ('sum(fewbit_requests_total', 'rate(fewbit_requests_total)', '$nobody'):
            with self.assertRaises(ValueError):
                self.answer(wrong)

    def test_every_panel_has_data(self):
        for where, dashboard in observability.dashboards().items():
            for panel in dashboard['panels']:
                for target in panel['targets']:
                    name = f"{panel['title']} {target['refId']}"
                    with self.subTest(dashboard=where, panel=name):
                        self.check(where, name, target['expr'], self.answer(target['expr']))

    def test_every_choice_has_values(self):
        for where, dashboard in observability.dashboards().items():
            for choice in dashboard['templating']['list']:
                if choice['type'] != 'query':
                    continue
                with self.subTest(dashboard=where, choice=choice['name']):
                    metric, label = re.fullmatch(r'label_values\((.*), (\w+)\)', choice['query']['query']).groups()
                    values = self.prometheus.get(f'label/{label}/values', **{'match[]': filled_in(metric, 60)})
                    self.assertNotEqual(values, [])

    def test_every_rule_has_data(self):
        names = [rule.get('record') or rule['alert'] for rule in observability.rules()]
        for rule, name in zip(observability.rules(), names):
            with self.subTest(rule=name):
                expression = rule['expr'] if 'record' in rule else always_answering(rule['expr'])
                self.check('rules', name, expression, self.answer(expression))
        known = {name for where, name in EXCEPTIONS if where == 'rules'}
        self.assertLessEqual(known, set(names))

    def test_prometheus_evaluates_the_rules_without_errors(self):
        groups = self.prometheus.get('rules')['groups']
        found = [rule for group in groups for rule in group['rules']]
        self.assertEqual(len(found), len(observability.rules()))
        self.assertEqual([(rule['name'], rule.get('lastError')) for rule in found if rule['health'] != 'ok'], [])

    def test_what_prometheus_knows_is_what_the_clients_were_told(self):
        for server, load in self.loads.items():
            where = f'instance="127.0.0.1:{server.metrics_port}"'
            told = dict(load.told)
            # Which of the two a call that runs out of time is for the server depends on who looks at the clock first.
            told['CANCELLED|DEADLINE_EXCEEDED'] = told.pop('CANCELLED', 0) + told.pop('DEADLINE_EXCEEDED', 0)
            for code, number in told.items():
                with self.subTest(where, code=code):  # a client may know the end before the server has counted it
                    self.prometheus.wait_for(f'sum(fewbit_requests_total{{{where}, code=~"{code}"}})',
                                             lambda result, number=number: result and result[0][1] == number)
        self.assertEqual({code for load in self.loads.values() for code in load.told},
                         {'OK', 'RESOURCE_EXHAUSTED', 'CANCELLED', 'DEADLINE_EXCEEDED', 'INVALID_ARGUMENT', 'NOT_FOUND'})

    def test_the_dashboards_tell_the_truth_about_this_run(self):
        def panel(where, title, number=0):
            (found,) = [one for one in observability.dashboards()[where]['panels'] if one['title'] == title]
            return filled_in(found['targets'][number]['expr'], self.end - self.start)

        def last(where, title):
            return self.prometheus.now(panel(where, title), at=self.end)

        self.assertEqual(last('overview', 'Replicas')[0][1], 2)
        reserved, used = last('cost', 'Spent')[0][1], self.prometheus.now('sum(fewbit_cost_usd_total{basis="used"})')[0][1]
        self.assertGreater(reserved, 0)
        self.assertGreater(used, 0)
        tenants = {labels['tenant'] for labels, _ in last('cost', 'Dollars by tenant, in the time shown')}
        self.assertLessEqual({'acme', 'globex'}, tenants)
        idle = last('cost', 'Idle')[0][1]
        self.assertTrue(0 < idle < 1, idle)
        phases = [self.prometheus.now(panel('cost', 'Device time', number), at=self.end)[0][1] for number in range(3)]
        self.assertTrue(all(0 < share < 1 for share in phases), phases)
        self.assertAlmostEqual(sum(phases), 1, places=6)
        # Over all of the run: the last refusal may lie longer back than the panel's rates reach.
        reasons = {labels['reason'] for labels, _ in self.answer(panel('overload', 'Refused requests'))}
        self.assertIn('queue_full', reasons)
        wasted = {labels.get('reason') for labels, _ in self.answer(panel('overload', 'Wasted tokens'))}
        self.assertLessEqual({'client_left', 'deadline'}, wasted)


if __name__ == '__main__':
    reason = observability.why_not()
    if reason:
        print(f'not run: {reason}')
        sys.exit(77)
    unittest.main()
