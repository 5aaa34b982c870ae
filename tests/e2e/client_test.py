#!/usr/bin/env python3
"""fewbit-client as a user runs it, against the real server."""

import json
import signal
import subprocess
import unittest

from harness import BIN, PROMPTS, TIMEOUT, ServerTest, run

CLIENT = str(BIN / 'fewbit-client')
GREEDY = ('--temperature=0', '--max_new_tokens=16')


class ClientTest(ServerTest):

    def client(self, *arguments, **options):
        return run([CLIENT, f'--address={self.server.address}', *arguments], **options)

    def test_it_prints_what_the_server_streams(self):
        expected = self.stream(PROMPTS[0], 16).text
        for extra in ((), ('--nostream',)):
            result = self.client(*GREEDY, *extra, PROMPTS[0])
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(result.stdout, expected if expected.endswith('\n') else expected + '\n')
            self.assertIn('16 generated, ended by length', result.stderr)

    def test_the_prompt_may_come_through_a_pipe(self):
        expected = self.client(*GREEDY, PROMPTS[1]).stdout
        piped = subprocess.run([CLIENT, f'--address={self.server.address}', *GREEDY], input=PROMPTS[1] + '\n', capture_output=True,
                               text=True, timeout=TIMEOUT, check=True)
        self.assertEqual(piped.stdout, expected)

    def test_json_is_one_message_per_line(self):
        result = self.client(*GREEDY, '--json', '--quiet', PROMPTS[2])
        messages = [json.loads(line) for line in result.stdout.splitlines()]
        self.assertEqual(''.join(message.get('text', '') for message in messages), self.stream(PROMPTS[2], 16).text)
        self.assertEqual(messages[-1]['finish_reason'], 'FINISH_REASON_LENGTH')
        self.assertEqual(result.stderr, '')

    def test_inspection(self):
        info = json.loads(self.client('--info', '--json').stdout)
        self.assertEqual(info['vocab_size'], 8192)
        tokens = self.client('--tokenize', 'Once upon').stdout.splitlines()
        self.assertEqual(tokens[0].split(), ['1', '<s>'])
        ids = ','.join(line.split()[0] for line in tokens)
        self.assertEqual(self.client(f'--detokenize={ids}').stdout, 'Once upon\n')
        self.assertEqual(self.client('--abort=nobody').stdout, 'no running request is called nobody\n')

    def test_waiting_for_a_server_that_is_ready(self):
        self.assertEqual(self.client('--wait_ready=30', '--info').returncode, 0)

    def test_health_as_a_probe_asks_for_it(self):
        self.assertEqual(self.client('--health').returncode, 0)
        nobody = run([CLIENT, '--address=127.0.0.1:1', '--health'])
        self.assertEqual(nobody.returncode, 1)
        self.assertIn('after 1 seconds', nobody.stderr)
        self.assertIn('exclude each other', self.client('--health', '--info').stderr)

    def test_ctrl_c_cancels_the_request(self):
        process = subprocess.Popen([CLIENT, f'--address={self.server.address}', '--max_new_tokens=1500', PROMPTS[3]],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.assertTrue(process.stdout.read(1))  # it streams
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
        self.assertEqual(process.returncode, 130)
        self.assertIn('cancelled', errors)
        self.server.wait_for_metrics({'fewbit_requests_running': 0})

    def test_failures_have_a_status_and_a_reason(self):
        result = self.client('--temperature=-1', 'x')
        self.assertEqual(result.returncode, 1)
        self.assertIn('INVALID_ARGUMENT', result.stderr)
        self.assertIn('temperature', result.stderr)
        nobody = run([CLIENT, '--address=127.0.0.1:1', 'x'])
        self.assertEqual(nobody.returncode, 1)
        self.assertIn('no server answers at 127.0.0.1:1', nobody.stderr)
        self.assertEqual(self.client('--info', '--tokenize').returncode, 2)

    def test_a_prompt_that_is_not_utf8_is_refused_in_one_line(self):
        result = subprocess.run([CLIENT, f'--address={self.server.address}'], input=b'caf\xe9', capture_output=True, timeout=TIMEOUT,
                                check=False)
        self.assertEqual(result.returncode, 1)
        self.assertEqual(result.stdout, b'')
        self.assertEqual(result.stderr, b'fewbit-client: INVALID_ARGUMENT: text is not valid UTF-8 at byte 3 of 4\n')

    def test_load(self):
        result = self.client('--concurrency=4', '--requests=12', '--prompt_tokens=20', '--max_new_tokens=8', '--json')
        self.assertEqual(result.returncode, 0, result.stderr)
        report = json.loads(result.stdout)
        self.assertEqual(report['finished'], 12)
        self.assertEqual(report['rejected'], 0)
        self.assertGreater(report['output_tokens_per_second'], 0)
        self.assertLessEqual(report['ttft_seconds']['p50'], report['ttft_seconds']['p99'])
        text = self.client('--concurrency=2', '--requests=4', '--max_new_tokens=4', '--rate=50', PROMPTS[4])
        self.assertIn('Poisson arrivals at 50/s', text.stdout)
        self.assertIn('TPOT', text.stdout)


if __name__ == '__main__':
    unittest.main()
