#!/usr/bin/env python3
"""fewbit-plan as an operator runs it."""

import json
import pathlib
import re
import tempfile
import unittest

from harness import BIN, MODEL, ROOT, run

PLAN = str(BIN / 'fewbit-plan')
RATES = """gpu,date,commit,shape,batch,context,kv,tokens_per_s,gpu_busy_pct
NVIDIA H200,2026-01-01,abc,llama-2-7b,64,2048,f16,5000,95
"""


class PlanTest(unittest.TestCase):

    def plan(self, *arguments):
        result = run([PLAN, '--json', *arguments])
        self.assertEqual(result.returncode, 0, result.stderr)
        return json.loads(result.stdout)

    def refused(self, *arguments):
        result = run([PLAN, *arguments])
        self.assertEqual(result.returncode, 1)
        return result.stderr

    def test_a_checkpoint_is_planned_from_its_files(self):
        plan = self.plan(f'--model={MODEL}', '--gpu=l4')
        files = sum(file.stat().st_size for file in MODEL.glob('*.safetensors'))
        self.assertLess(abs(plan['weight_bytes'] - files), 0.02 * files)
        self.assertEqual(plan['kv_bytes_per_token'], 2 * 8 * 4 * 64 * 2)
        self.assertEqual(plan['smallest_gpu'], 'l4')

    def test_rates_become_dollars(self):
        with tempfile.TemporaryDirectory() as folder:
            rates = pathlib.Path(folder) / 'decode.csv'
            rates.write_text(RATES)
            arguments = ('--shape=llama-2-7b', '--concurrency=64', '--gpu=h200', f'--rates={rates}', '--gpu_hour_usd=3.6')
            plan = self.plan(*arguments)
            self.assertEqual((plan['replicas'], plan['batch'], plan['tokens_per_second']), (1, 64, 5000))
            self.assertAlmostEqual(plan['usd_per_million_tokens'], 0.2)
            text = run([PLAN, *arguments]).stdout
            self.assertIn('$0.200 per million generated tokens', text)
            self.assertIn('nothing measured for prompts', run([PLAN, *arguments, '--prompt_tokens=1000']).stdout)
            rates.write_text(RATES + 'NVIDIA H200,2026-01-01,abc,llama-2-7b,0,1024,f16,20000,95\n')
            plan = self.plan(*arguments, '--prompt_tokens=1048')
            self.assertAlmostEqual(plan['tokens_per_second'], 1000 / (1000 / 5000 + 1048 / 20000))
            rates.write_text(RATES.replace('5000', 'fast'))
            self.assertIn(f"{rates}: line 2: tokens_per_s is 'fast'", self.refused(*arguments))

    def test_a_load_that_one_gpu_cannot_hold_is_spread(self):
        plan = self.plan('--shape=llama-2-70b', '--gpu=l40s', '--concurrency=100')
        self.assertEqual(plan['replicas'], -(-100 // plan['sequences']))
        self.assertGreaterEqual(plan['batch'] * plan['replicas'], 100)
        self.assertEqual(self.plan('--shape=llama-2-70b', '--gpu=l4')['replicas'], 0)

    def test_the_guides_table_is_what_the_program_says(self):
        rows = [line for line in (ROOT / 'deploy/kubernetes/README.md').read_text().splitlines() if re.search(r'^\|.*\(`', line)]
        gpus = re.findall(r'`([\w-]+)`', rows[0])
        self.assertEqual(gpus, ['l4', 'l40s', 'h100', 'h200'])
        self.assertGreaterEqual(len(rows), 5)
        for row in rows[1:]:
            _, model, weights, kv, *fits, _ = [cell.strip() for cell in row.split('|')]
            shape = '--shape=' + re.search(r'`(.*)`', model).group(1)
            for i, bits in enumerate(('--bits=16', '--bits=2.9')):
                for gpu, cell in zip(gpus, fits):
                    with self.subTest(row=model, gpu=gpu, bits=bits):
                        plan = self.plan(shape, bits, f'--gpu={gpu}')
                        tokens = plan['tokens_in_flight']
                        self.assertEqual(cell.split(' / ')[i], str(round(tokens / 1000)) if tokens else '–')
                        self.assertEqual(weights.split(' / ')[i], f"{plan['weight_bytes'] / 1e9:.1f}")
                        self.assertEqual(kv, f"{plan['kv_bytes_per_token'] / 1024:.0f}")

    def test_what_makes_no_sense_is_refused(self):
        self.assertIn('either --model or --shape', self.refused())
        self.assertIn("no GPU 'h300'", self.refused('--shape=llama-2-7b', '--gpu=h300'))
        self.assertIn('--context is 0', self.refused('--shape=llama-2-7b', '--context=0'))
        self.assertIn('--prompt_tokens is 2048', self.refused('--shape=llama-2-7b', '--prompt_tokens=2048'))
        self.assertIn('missing.csv', self.refused('--shape=llama-2-7b', '--rates=missing.csv'))


if __name__ == '__main__':
    unittest.main()
