#!/usr/bin/env python3
"""Requests that fail, end early or are taken back: code and text of each, and nothing left behind."""

import subprocess
import threading
import unittest

import grpc

from harness import BIN, PROMPTS, TIMEOUT, Answer, ServerTest, pb, request, rpc

LONG = 1500  # tokens; far more than a test waits for


class RequestsTest(ServerTest):

    def invalid(self, message, **fields):
        details = self.fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: self.stub.Generate(pb.GenerateRequest(**fields), timeout=TIMEOUT))
        self.assertRegex(details, message)

    def test_fields_out_of_range_are_named_with_value_and_limit(self):
        nan = float('nan')
        for message, sampling in [
            (r'temperature.*-1', {'temperature': -1}),
            (r'temperature.*nan', {'temperature': nan}),
            (r'top_p.*1\.5', {'top_p': 1.5}),
            (r'min_p', {'min_p': -0.5}),
            (r'repetition_penalty', {'repetition_penalty': 0}),
            (r'presence_penalty', {'presence_penalty': 3}),
            (r'frequency_penalty', {'frequency_penalty': nan}),
            (r'logit_bias', {'logit_bias': {1: 1000}}),
        ]:
            with self.subTest(message):
                self.invalid(message, text='x', sampling=pb.SamplingParameters(**sampling))
        for message, stopping in [
            (r'stop_strings', {'stop_strings': ['x'] * 17}),
            (r'stop_strings', {'stop_strings': ['']}),
            (r'min_new_tokens', {'min_new_tokens': 10, 'max_new_tokens': 5}),
        ]:
            with self.subTest(message):
                self.invalid(message, text='x', stopping=pb.StoppingParameters(**stopping))
        self.invalid('top_logprobs.*21', text='x', response=pb.ResponseOptions(top_logprobs=21))

    def test_prompts_that_cannot_be_run(self):
        self.invalid('prompt')
        self.invalid('token_ids', token_ids=pb.TokenIds())
        self.invalid('8192', token_ids=pb.TokenIds(ids=[8192]))
        self.invalid('-1', token_ids=pb.TokenIds(ids=[-1]))
        self.invalid('3000.*2048|2048.*3000', token_ids=pb.TokenIds(ids=[400] * 3000))

    def test_a_long_prompt_is_cut_if_asked_and_that_is_reported(self):
        cut = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[400] * 3000), truncate_prompt_tokens=100,
                                 stopping=pb.StoppingParameters(max_new_tokens=2))
        answer = self.stub.Generate(cut, timeout=TIMEOUT)
        self.assertEqual(answer.prompt.prompt_tokens, 100)
        self.assertEqual(answer.prompt.truncated_tokens, 2900)

    def test_another_model_is_not_found(self):
        details = self.fails(grpc.StatusCode.NOT_FOUND, lambda: self.stub.Generate(request('x', model='another'), timeout=TIMEOUT))
        self.assertIn('another', details)

    def test_invalid_utf8_is_refused(self):
        generate = self.server.channel.unary_unary('/fewbit.v1.GenerationService/Generate', request_serializer=bytes,
                                                   response_deserializer=bytes)
        details = self.fails(grpc.StatusCode.INVALID_ARGUMENT, lambda: generate(b'\x0a\x02\xe2\x82', timeout=TIMEOUT))
        self.assertEqual(details, 'text is not valid UTF-8 at byte 0 of 2')
        self.stream('The server goes on', 2)

    def nothing_is_left(self):
        self.server.wait_for_metrics({'fewbit_requests_running': 0, 'fewbit_requests_waiting': 0, 'fewbit_kv_blocks_used': 0})
        self.stream('The server goes on', 2)

    def test_a_client_that_is_killed_leaves_nothing(self):
        command = [BIN / 'fewbit-client', f'--address={self.server.address}', f'--max_new_tokens={LONG}', PROMPTS[0]]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as client:
            self.assertTrue(client.stdout.read(1))  # it streams
            client.kill()
        self.nothing_is_left()

    def test_a_cancelled_stream_leaves_nothing(self):
        call = self.stub.GenerateStream(request(PROMPTS[1], LONG), timeout=TIMEOUT)
        next(call)
        call.cancel()
        self.nothing_is_left()

    def test_a_deadline_ends_the_call_and_leaves_nothing(self):
        call = lambda: list(self.stub.GenerateStream(request(PROMPTS[2], LONG), timeout=0.3))
        self.fails(grpc.StatusCode.DEADLINE_EXCEEDED, call)
        self.nothing_is_left()

    def test_a_time_limit_ends_with_what_there_is(self):
        answer = self.stream(PROMPTS[3], LONG, stopping=pb.StoppingParameters(time_limit_ms=300))
        self.assertEqual(answer.last.finish_reason, pb.FINISH_REASON_TIME_LIMIT)
        self.assertTrue(answer.text)
        self.assertEqual(answer.last.usage.generated_tokens, len(answer.ids))

    def test_an_abort_ends_with_what_there_is(self):
        call = self.stub.GenerateStream(request(PROMPTS[4], LONG, request_id='stop me'), timeout=TIMEOUT)
        first = next(call)
        self.assertTrue(self.stub.Abort(pb.AbortRequest(request_id='stop me')).aborted)
        answer = Answer([first, *call])
        self.assertEqual(answer.last.finish_reason, pb.FINISH_REASON_ABORTED)
        self.assertFalse(self.stub.Abort(pb.AbortRequest(request_id='stop me')).aborted)

    def test_a_name_in_use_is_refused(self):
        call = self.stub.GenerateStream(request(PROMPTS[5], LONG, request_id='twice'), timeout=TIMEOUT)
        next(call)
        again = lambda: self.stub.Generate(request('x', 1, request_id='twice'), timeout=TIMEOUT)
        self.assertIn('twice', self.fails(grpc.StatusCode.ALREADY_EXISTS, again))
        call.cancel()


class SlowReaderTest(ServerTest):
    FLAGS = ('--stream_buffer_kb=1', '--write_timeout_seconds=1')

    def test_a_client_that_never_reads_is_cut_off(self):
        options = [('grpc.http2.lookahead_bytes', 1024), ('grpc.http2.bdp_probe', 0)]
        with grpc.insecure_channel(self.server.address, options=options) as channel:
            call = rpc.GenerationServiceStub(channel).GenerateStream(
                request(PROMPTS[0], 1900, response=pb.ResponseOptions(top_logprobs=20)), timeout=TIMEOUT)
            self.server.wait_for_metrics({'fewbit_requests_total{code="CANCELLED",reason="slow_reader"}': 1})
            self.server.wait_for_metrics({'fewbit_requests_running': 0, 'fewbit_kv_blocks_used': 0})
            self.fails(grpc.StatusCode.CANCELLED, lambda: list(call))
        self.stream('The server goes on', 2)


class OverloadTest(ServerTest):
    FLAGS = ('--max_running=1', '--max_waiting=2')

    def test_a_full_queue_says_so_and_when_to_come_back(self):
        running = self.stub.GenerateStream(request(PROMPTS[0], LONG), timeout=TIMEOUT)
        next(running)
        waiting = [self.stub.GenerateStream(request(PROMPTS[1], 1), timeout=TIMEOUT) for _ in range(8)]
        outcomes = []
        lock = threading.Lock()

        def outcome(call):
            try:
                Answer(call)
                result = grpc.StatusCode.OK
            except grpc.RpcError as error:
                result = error.code()
                if result == grpc.StatusCode.RESOURCE_EXHAUSTED:
                    assert 'grpc-retry-pushback-ms' in dict(error.trailing_metadata()), error
            with lock:
                outcomes.append(result)
                if outcomes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 6:
                    running.cancel()  # now the two that wait may run

        threads = [threading.Thread(target=outcome, args=(call,)) for call in waiting]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(outcomes.count(grpc.StatusCode.RESOURCE_EXHAUSTED), 6, outcomes)
        self.assertEqual(outcomes.count(grpc.StatusCode.OK), 2, outcomes)


if __name__ == '__main__':
    unittest.main()
