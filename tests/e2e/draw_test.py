#!/usr/bin/env python3
"""What draw.py makes of answers of Prometheus."""

import math
import unittest

import draw
import observability


def recording(dashboard, values):
    """The same answer to every question."""
    answer = [({'instance': 'a', 'phase': 'idle', 'reason': 'queue_full'}, values)] if values else []
    return {'start': 100.0, 'end': 160.0, 'step': 1,
            'answers': {str(panel['id']): [answer for _ in panel['targets']] for panel in dashboard['panels']}}


class DrawTest(unittest.TestCase):

    def test_values_are_written_as_grafana_does(self):
        for value, unit, decimals, expected in (
                (0.0123, 's', None, '12.3 ms'), (2.5e-5, 's', None, '25 µs'), (90, 's', None, '1.5 min'), (0, 's', None, '0 s'),
                (0.5, 'percentunit', 0, '50%'), (0.0123, 'percentunit', 1, '1.2%'), (1, 'percentunit', None, '100%'),
                (80 * 2**30, 'bytes', None, '80 GiB'), (1.98e9, 'hertz', None, '1.98 GHz'), (431.5, 'watt', 0, '432 W'),
                (1234, 'suffix: tok/s', 0, '1234 tok/s'), (1500, 'suffix: tok/s', None, '1.5 K tok/s'), (1.256, 'currencyUSD', 2, '$1.26'),
                (71, 'celsius', None, '71 °C'), (12.34, 'reqps', 1, '12.3 req/s'), (3, 'none', None, '3'), (math.nan, 's', None, '–')):
            self.assertEqual(draw.formatted(value, unit, decimals), expected, (value, unit))

    def test_a_stack_adds_what_is_below(self):
        (_, first, base), (_, second, below) = draw.stacked([('a', [(1, 1.0), (2, 2.0)]), ('b', [(2, 3.0)])])
        self.assertEqual((first, base), ([(1, 1.0), (2, 2.0)], [(1, 0.0), (2, 0.0)]))
        self.assertEqual((second, below), ([(1, 1.0), (2, 5.0)], first))

    def test_legends_take_labels_and_leave_out_what_is_not_there(self):
        self.assertEqual(draw.legend_of({'legendFormat': '{{pod}} {{instance}}'}, {'instance': 'a'}), 'a')
        self.assertEqual(draw.legend_of({'legendFormat': ''}, {'__name__': 'x', 'job': 'j'}), 'job=j')

    def test_thresholds_colour_values(self):
        dashboard = observability.dashboards()['overview']
        refused = next(panel for panel in dashboard['panels'] if panel['title'] == 'Refused or failed')
        self.assertEqual([draw.color_of(refused, value) for value in (0.0, 0.01, 0.2)],
                         [draw.COLORS[name] for name in ('green', 'orange', 'red')])
        targets = next(panel for panel in dashboard['panels'] if panel['title'] == 'Targets met')
        self.assertEqual([draw.color_of(targets, value) for value in (0.5, 0.96, 1.0)],
                         [draw.COLORS[name] for name in ('red', 'orange', 'green')])

    def test_every_panel_is_drawn_with_and_without_data(self):
        for name, dashboard in observability.dashboards().items():
            filled, width, height = draw.page(dashboard, recording(dashboard, [(100.0 + i, 0.25 + i / 100) for i in range(60)]))
            empty, _, _ = draw.page(dashboard, recording(dashboard, [(100.0, math.nan)]))
            self.assertGreater(min(width, height), 500, name)
            for panel in dashboard['panels']:
                self.assertIn(f">{panel['title']}<", filled)
            self.assertEqual(filled.count('class="panel"'), len(dashboard['panels']))
            self.assertNotIn('class="number empty"', filled)
            self.assertEqual(empty.count('class="number empty"'), len(dashboard['panels']))

    def test_a_colour_of_a_dashboard_is_one_that_is_known(self):
        for dashboard in observability.dashboards().values():
            for panel in dashboard['panels']:
                for rule in panel['fieldConfig']['overrides']:
                    color = rule['properties'][0]['value']['fixedColor']
                    self.assertTrue(color in draw.COLORS or color.startswith('#'), color)


if __name__ == '__main__':
    unittest.main()
