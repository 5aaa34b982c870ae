#!/usr/bin/env python3
"""Health, reflection, metrics, and the end: SIGTERM and Ctrl-C let streams finish."""

import re
import signal
import unittest

import grpc

from harness import PROMPTS, SERVICE, TIMEOUT, Answer, Server, ServerTest, request

SERVING, NOT_SERVING = 1, 2


class WhileServingTest(ServerTest):

    def test_health_knows_the_server_and_the_service(self):
        self.assertEqual(self.server.health(''), SERVING)
        self.assertEqual(self.server.health(SERVICE), SERVING)
        self.fails(grpc.StatusCode.NOT_FOUND, lambda: self.server.health('no.such.Service'))

    def test_reflection_lists_the_services(self):
        listed = self.server.services()
        for name in (SERVICE, 'grpc.health.v1.Health'):
            self.assertIn(name.encode(), listed)

    def test_metrics_are_prometheus_text_and_count(self):
        sample = re.compile(r'[a-zA-Z_:][a-zA-Z0-9_:]*(\{[a-zA-Z_]\w*="[^"]*"(,[a-zA-Z_]\w*="[^"]*")*,?\})? [-+.0-9eEinfNa]+( \d+)?')
        for line in self.server.metrics().splitlines():
            self.assertTrue(line == '' or line.startswith(('# HELP ', '# TYPE ')) or sample.fullmatch(line), line)
        counters = {'fewbit_tokens_total{kind="generated",outcome="delivered"}': 10, 'fewbit_requests_total{code="OK",reason="length"}': 1}
        expected = {name: self.server.metric(name) + added for name, added in counters.items()}
        self.stream(PROMPTS[0], 10)
        self.server.wait_for_metrics(expected)
        self.assertGreater(self.server.metric('fewbit_kv_blocks'), 0)
        for name in ('time_to_first_token_seconds', 'inter_token_seconds', 'queue_seconds', 'step_tokens'):
            self.assertIn(f'fewbit_{name}_bucket', self.server.metrics())


class DrainTest(unittest.TestCase):

    def started(self, *flags, max_new_tokens=400):
        """A server with a stream on it that has begun."""
        server = Server(*flags)
        self.addCleanup(server.channel.close)
        self.addCleanup(lambda: server.process.poll() is None and server.process.kill())
        call = server.stub.GenerateStream(request(PROMPTS[0], max_new_tokens), timeout=TIMEOUT)
        return server, call, next(call)

    def drained(self, number):
        server, call, first = self.started()
        watch = server.watch_health(SERVICE)
        self.assertEqual(next(watch), SERVING)
        server.signal(number)
        self.assertEqual(next(watch), NOT_SERVING)
        with self.assertRaises(grpc.RpcError) as caught:
            server.stub.Generate(request('too late', 1), timeout=TIMEOUT)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        answer = Answer([first, *call])
        self.assertEqual(len(answer.ids), 400, 'the stream was cut')
        self.assertEqual(answer.last.usage.generated_tokens, 400)
        self.assertEqual(server.wait(), 0, ''.join(server.log))

    def test_sigterm_lets_a_stream_finish_and_exits_0(self):
        self.drained(signal.SIGTERM)

    def test_ctrl_c_does_the_same(self):
        self.drained(signal.SIGINT)

    def test_the_drain_has_a_deadline(self):
        server, call, first = self.started('--drain_seconds=0.3', max_new_tokens=1900)
        server.signal()
        answer = Answer([first, *call])
        self.assertEqual(answer.last.finish_reason, 7)  # FINISH_REASON_DRAINED
        self.assertLess(len(answer.ids), 1900)
        self.assertEqual(server.wait(), 0, ''.join(server.log))

    def test_an_idle_server_ends_at_once(self):
        server = Server()
        self.assertEqual(server.stop(), 0, ''.join(server.log))


if __name__ == '__main__':
    unittest.main()
