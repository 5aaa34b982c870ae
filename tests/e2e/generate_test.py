#!/usr/bin/env python3
"""Text out of the real server: streams, determinism, stops, details."""

import concurrent.futures
import unittest

from harness import PROMPTS, TIMEOUT, ServerTest, pb, request


class GenerateTest(ServerTest):

    def test_a_stream_has_counts_first_and_usage_last(self):
        answer = self.stream(PROMPTS[0], 24, request_id='mine')
        prompt = answer.first.prompt
        self.assertEqual(prompt.prompt_tokens, len(self.stub.Tokenize(pb.TokenizeRequest(text=PROMPTS[0])).ids))
        self.assertEqual(prompt.request_id, 'mine')
        self.assertEqual(len(answer.ids), 24)
        self.assertGreater(len(answer.messages), 2, 'it came in one piece')
        self.assertTrue(all(not message.finish_reason for message in answer.messages[:-1]))
        self.assertEqual(answer.last.finish_reason, pb.FINISH_REASON_LENGTH)
        self.assertEqual(answer.last.usage.prompt_tokens, prompt.prompt_tokens)
        self.assertEqual(answer.last.usage.generated_tokens, 24)
        self.assertGreater(answer.last.usage.decode_ms, 0)
        self.assertGreater(answer.last.usage.device_seconds, 0)
        self.assertFalse(answer.last.usage.HasField('cost_usd'), 'nobody stated a price')

    def test_the_text_is_that_of_the_ids(self):
        prompt = list(self.stub.Tokenize(pb.TokenizeRequest(text=PROMPTS[1])).ids)
        answer = self.stream(PROMPTS[1], 32)
        whole = self.stub.Detokenize(pb.DetokenizeRequest(ids=prompt + answer.ids)).text
        self.assertEqual(PROMPTS[1] + answer.text, whole)
        by_ids = pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=pb.SamplingParameters(temperature=0),
                                    stopping=pb.StoppingParameters(max_new_tokens=32))
        self.assertEqual(self.stub.Generate(by_ids, timeout=TIMEOUT).text, answer.text)

    def test_greedy_is_the_same_every_time_and_by_both_calls(self):
        first, second = (self.stream(PROMPTS[2], 40) for _ in range(2))
        self.assertEqual(first.ids, second.ids)
        unary = self.stub.Generate(request(PROMPTS[2], 40), timeout=TIMEOUT)
        self.assertEqual(list(unary.token_ids), first.ids)
        self.assertEqual(unary.text, first.text)
        self.assertEqual(unary.usage.generated_tokens, 40)

    def test_a_seed_repeats_a_sample_and_is_reported(self):
        drawn = self.stream(PROMPTS[3], 30, sampling=pb.SamplingParameters(temperature=0.9))
        again = self.stream(PROMPTS[3], 30, seed=drawn.first.prompt.seed)
        self.assertEqual(drawn.ids, again.ids)
        others = {tuple(self.stream(PROMPTS[3], 30, seed=seed).ids) for seed in range(5)}
        self.assertEqual(len(others), 5, 'different seeds, the same text')

    def test_eight_streams_at_once_say_what_each_says_alone(self):
        for seed in (None, 5):
            alone = [self.stream(prompt, 32, seed=seed).ids for prompt in PROMPTS]
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                together = list(pool.map(lambda prompt: self.stream(prompt, 32, seed=seed).ids, PROMPTS))
            self.assertEqual(together, alone)

    def test_a_stop_string_ends_the_text_before_itself(self):
        free = self.stream(PROMPTS[4], 40)
        word = free.text.split()[5]
        expected = free.text[:free.text.index(word)]
        stopping = {'stop_strings': ['never said', word]}
        answer = self.stream(PROMPTS[4], 40, stopping=pb.StoppingParameters(**stopping))
        self.assertEqual(answer.text, expected)
        self.assertEqual(answer.last.finish_reason, pb.FINISH_REASON_STOP_STRING)
        self.assertEqual(answer.last.matched_stop_string, word)
        kept = self.stream(PROMPTS[4], 40, stopping=pb.StoppingParameters(include_stop_string=True, **stopping))
        self.assertEqual(kept.text, expected + word)

    def test_a_stop_token_ends_the_tokens(self):
        free = self.stream(PROMPTS[5], 20)
        stop = free.ids[7]
        first = free.ids.index(stop)
        answer = self.stream(PROMPTS[5], 20, stopping=pb.StoppingParameters(stop_token_ids=[stop]))
        self.assertEqual(answer.last.finish_reason, pb.FINISH_REASON_STOP_TOKEN)
        self.assertEqual(answer.last.matched_stop_token_id, stop)
        self.assertEqual(answer.ids[:first], free.ids[:first])
        self.assertLessEqual(len(answer.ids), first + 1)
        later = self.stream(PROMPTS[5], 20, stopping=pb.StoppingParameters(stop_token_ids=[stop], min_new_tokens=15))
        self.assertGreaterEqual(len(later.ids), 15)

    def test_echo_repeats_the_prompt(self):
        plain = self.stream(PROMPTS[6], 8)
        echoed = self.stream(PROMPTS[6], 8, response=pb.ResponseOptions(echo=True))
        self.assertEqual(echoed.text, PROMPTS[6] + plain.text)

    def test_logprobs_describe_every_token(self):
        answer = self.stream(PROMPTS[7], 12, response=pb.ResponseOptions(top_logprobs=3, prompt_logprobs=True))
        self.assertEqual([detail.token_id for detail in answer.details], answer.ids)
        for detail in answer.details:
            self.assertEqual(detail.rank, 1, 'greedy takes the likeliest')
            self.assertLessEqual(detail.logprob, 0)
            self.assertEqual(len(detail.top), 3)
            self.assertEqual(detail.top[0].token_id, detail.token_id)
            self.assertGreaterEqual(detail.top[0].logprob, detail.top[1].logprob)
        tokens = self.stub.Tokenize(pb.TokenizeRequest(text=PROMPTS[7])).ids
        self.assertEqual([detail.token_id for detail in answer.prompt_details], list(tokens)[1:])

    def test_a_banned_token_does_not_come(self):
        free = self.stream(PROMPTS[0], 20)
        sampling = pb.SamplingParameters(temperature=0, logit_bias={free.ids[0]: -100})
        self.assertNotEqual(self.stream(PROMPTS[0], 20, sampling=sampling).ids[0], free.ids[0])

    def test_tokenize_and_back(self):
        text = 'Na\u00efve \u20ac 5 \u4e16\u754c, "quoted"'
        answer = self.stub.Tokenize(pb.TokenizeRequest(text=text))
        self.assertEqual(len(answer.ids), len(answer.pieces))
        self.assertEqual(answer.pieces[0], '<s>')
        self.assertIn('<0xE2>', answer.pieces)
        self.assertEqual(self.stub.Detokenize(pb.DetokenizeRequest(ids=answer.ids)).text, text)
        without = self.stub.Tokenize(pb.TokenizeRequest(text=text, add_bos=False))
        self.assertEqual(list(without.ids), list(answer.ids)[1:])

    def test_the_model_describes_itself(self):
        info = self.stub.GetModelInfo(pb.GetModelInfoRequest())
        self.assertEqual(info.vocab_size, 8192)
        self.assertEqual(info.num_layers, 8)
        self.assertGreater(info.kv_blocks, 0)
        self.assertTrue(info.device and info.server_version)


if __name__ == '__main__':
    unittest.main()
