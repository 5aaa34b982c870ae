"""Starts the real fewbit-server on free ports and speaks to it. FEWBIT_BIN names the folder of the programs; FEWBIT_TEST_MODEL another
model than the bundled one, FEWBIT_TEST_DEVICE another --device than the CPU."""

import os
import pathlib
import queue
import re
import signal
import subprocess
import threading
import time
import unittest
import urllib.request

import grpc

from fewbit.v1 import generation_pb2 as pb
from fewbit.v1 import generation_pb2_grpc as rpc

BIN = pathlib.Path(os.environ['FEWBIT_BIN'])
ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = pathlib.Path(os.environ.get('FEWBIT_TEST_MODEL', ROOT / 'deploy/models/fewbit-demo-29m'))
DEVICE = os.environ.get('FEWBIT_TEST_DEVICE', 'cpu')
SERVICE = 'fewbit.v1.GenerationService'
TIMEOUT = 60  # seconds; generous, because sanitizer builds on a busy machine are slow

# One request at a time may use no name twice, so prompts are told apart by their text.
PROMPTS = [
    'It was a bright cold morning when the old captain', 'My dear sir,', 'The history of the town begins',
    '"Pray, what is the matter?" said', 'She closed the book and', 'In the year 1794', 'Of all the animals of the forest',
    'There was once a king who'
]


def server_command(*flags, model=MODEL):
    return [str(BIN / 'fewbit-server'), f'--model={model}', f'--device={DEVICE}', '--port=0', '--metrics_port=0', '--threads=2',
            '--kv_memory=64M', *flags]


def run(command, **options):
    """A program to its end, with its output as text."""
    options.setdefault('timeout', TIMEOUT)
    return subprocess.run(command, stdin=options.pop('stdin', subprocess.DEVNULL), capture_output=True, text=True, check=False,
                          **options)


class Server:
    """A running fewbit-server. The log is read as it comes, so that the server never waits for us."""

    def __init__(self, *flags, model=MODEL, command=None, stdin=subprocess.DEVNULL):
        """`command`: another program than fewbit-server that says its ports like it."""
        self.process = subprocess.Popen(command or server_command(*flags, model=model), stdin=stdin, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)
        self.log = []
        self._ports = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.port, self.metrics_port = self._ports.get(timeout=TIMEOUT)
        if self.port is None:
            raise RuntimeError('fewbit-server did not start:\n' + ''.join(self.log))
        self.channel = grpc.insecure_channel(f'127.0.0.1:{self.port}', options=[('grpc.enable_retries', 0)])
        self.stub = rpc.GenerationServiceStub(self.channel)

    def _read(self):
        port = None
        for line in self.process.stdout:
            self.log.append(line)
            if match := re.search(r'gRPC on [^ ]*:(\d+)', line):
                port = int(match[1])
            if match := re.search(r'metrics on http://[^ ]*:(\d+)/metrics', line):
                self._ports.put((port, int(match[1])))
        self._ports.put((None, None))

    @property
    def address(self):
        return f'127.0.0.1:{self.port}'

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def wait(self):
        """The exit status, after all output has been read."""
        status = self.process.wait(timeout=TIMEOUT)
        self._reader.join()
        self.process.stdout.close()
        return status

    def stop(self):
        self.channel.close()
        if self.process.poll() is None:
            self.signal()
        return self.wait()

    def metrics(self):
        with urllib.request.urlopen(f'http://127.0.0.1:{self.metrics_port}/metrics', timeout=TIMEOUT) as answer:
            return answer.read().decode()

    def metric(self, name):
        """The sum of the samples of `name`, which may end with labels that they must carry: name{kind="prompt"}."""
        name, _, labels = name.rstrip('}').partition('{')
        labels = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        total = None
        for line in self.metrics().splitlines():
            match = re.fullmatch(r'(\w[\w:]*)(?:\{(.*)\})? (\S+)', line)
            if match and match[1] == name:
                found = dict(re.findall(r'(\w+)="([^"]*)"', match[2] or ''))
                if labels.items() <= found.items():
                    total = (total or 0) + float(match[3])
        if total is None:
            raise AssertionError(f'/metrics has no {name} with {labels}')
        return total

    def wait_for_metrics(self, expected):
        """Scrapes until the samples have these values: counters may follow the last message of a stream by a moment."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            found = {name: self.metric(name) for name in expected}
            if found == expected:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f'{found} instead of {expected}')

    def health(self, service):
        """Check of grpc.health.v1: 1 serving, 2 not serving."""
        check = self.channel.unary_unary('/grpc.health.v1.Health/Check', request_serializer=_health_request,
                                         response_deserializer=_health_status)
        return check(service, timeout=TIMEOUT)

    def watch_health(self, service):
        watch = self.channel.unary_stream('/grpc.health.v1.Health/Watch', request_serializer=_health_request,
                                          response_deserializer=_health_status)
        return watch(service, timeout=TIMEOUT)

    def services(self):
        """What reflection lists, as raw bytes: the v1alpha protocol has no stubs in Debian."""
        call = self.channel.stream_stream('/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo',
                                          request_serializer=bytes, response_deserializer=bytes)
        return next(call(iter([b'\x3a\x00']), timeout=TIMEOUT))


def _health_request(service):
    return b'\x0a' + bytes([len(service)]) + service.encode() if service else b''


def _health_status(message):
    return message[1] if message else 0


def request(prompt, max_new_tokens=16, seed=None, **fields):
    """A greedy request, or a sampled one if there is a seed."""
    sampling = pb.SamplingParameters(temperature=0 if seed is None else 0.9)
    if seed is not None:
        sampling.seed = seed
    stopping = fields.pop('stopping', pb.StoppingParameters())
    stopping.max_new_tokens = max_new_tokens
    return pb.GenerateRequest(text=prompt, sampling=fields.pop('sampling', sampling), stopping=stopping, **fields)


class Answer:
    """All messages of one stream."""

    def __init__(self, messages):
        self.messages = list(messages)
        self.text = ''.join(message.text for message in self.messages)
        self.ids = [token for message in self.messages for token in message.token_ids]
        self.details = [detail for message in self.messages for detail in message.details]
        self.prompt_details = [detail for message in self.messages for detail in message.prompt_details]
        self.first, self.last = self.messages[0], self.messages[-1]


class ServerTest(unittest.TestCase):
    """Tests that share one server."""

    FLAGS = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.FLAGS)
        cls.stub = cls.server.stub

    @classmethod
    def tearDownClass(cls):
        status = cls.server.stop()
        if status != 0:
            raise AssertionError(f'fewbit-server ended with {status}:\n' + ''.join(cls.server.log))

    def stream(self, *arguments, **fields):
        return Answer(self.stub.GenerateStream(request(*arguments, **fields), timeout=TIMEOUT))

    def fails(self, code, call):
        with self.assertRaises(grpc.RpcError) as caught:
            call()
        self.assertEqual(caught.exception.code(), code, caught.exception.details())
        return caught.exception.details()
