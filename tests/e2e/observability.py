"""A real Prometheus that scrapes real servers under load, and what deploy/observability asks of it."""

import json
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

try:
    import yaml
except ImportError:
    yaml = None

from harness import BIN, PROMPTS, ROOT, TIMEOUT, Server, run

FOLDER = ROOT / 'deploy' / 'observability'
CLIENT = str(BIN / 'fewbit-client')
INTERVAL = 1  # seconds between scrapes, and between evaluations of rules
WINDOW = 10  # seconds: Grafana's rate interval
NAMESPACE = 'fewbit'  # of the replica that is as if on Kubernetes; the other one has no such label


def why_not():
    """What is missing, or None."""
    if yaml is None:
        return 'yaml is not installed for Python (Debian: python3-yaml)'
    return None if shutil.which('prometheus') else 'prometheus is not installed (Debian: prometheus)'


class FakeGpuServer(Server):
    """A replica whose GPU is imaginary; it ends with its input."""

    def __init__(self):
        super().__init__(command=[str(BIN / 'fake-gpu-server'), '10'], stdin=subprocess.PIPE)

    def stop(self):
        self.channel.close()
        self.process.stdin.close()
        return self.wait()


def free_port():
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


class Prometheus:
    """Scrapes `targets`, [(host:port, labels)], as the job fewbit, and evaluates the rules. `retries` count ports that somebody took."""

    def __init__(self, targets, retries=3):
        self._folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self._folder.name)
        rules = yaml.safe_load((FOLDER / 'rules.yaml').read_text(encoding='utf-8'))
        for group in rules['groups']:
            group['interval'] = f'{INTERVAL}s'
        (folder / 'rules.yaml').write_text(yaml.safe_dump(rules), encoding='utf-8')
        (folder / 'prometheus.yaml').write_text(yaml.safe_dump({
            'global': {'scrape_interval': f'{INTERVAL}s', 'scrape_timeout': f'{INTERVAL}s', 'evaluation_interval': f'{INTERVAL}s'},
            'rule_files': ['rules.yaml'],
            'scrape_configs': [{'job_name': 'fewbit', 'static_configs': [{'targets': [address], 'labels': labels}
                                                                         for address, labels in targets]}],
        }), encoding='utf-8')
        for _ in range(retries):
            self.port = free_port()
            self.log = open(folder / 'log', 'w+', encoding='utf-8')  # closed by stop
            self.process = subprocess.Popen(
                ['prometheus', f'--config.file={folder}/prometheus.yaml', f'--storage.tsdb.path={folder}/data',
                 f'--web.listen-address=127.0.0.1:{self.port}', '--log.level=warn'], stdout=self.log, stderr=subprocess.STDOUT)
            if self._ready():
                return
            self.log.seek(0)
            said = self.log.read()
            self._end()
        self._folder.cleanup()
        raise RuntimeError(f'prometheus did not start:\n{said}')

    def _ready(self):
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f'http://127.0.0.1:{self.port}/-/ready', timeout=TIMEOUT):
                    return True
            except OSError:
                time.sleep(0.1)
        return False

    def _end(self):
        self.process.terminate()
        self.process.wait(timeout=TIMEOUT)
        self.log.close()

    def stop(self):
        self._end()
        self._folder.cleanup()

    def get(self, path, **parameters):
        """`data` of an answer of the HTTP API; ValueError with Prometheus' words where it refuses."""
        url = f'http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters, doseq=True)}'
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
                return json.load(answer)['data']
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)['error']) from error

    def now(self, expression, at=None):
        """[(labels, value)] of an instant query."""
        parameters = {} if at is None else {'time': at}
        return [(one['metric'], float(one['value'][1])) for one in self.get('query', query=expression, **parameters)['result']]

    def range(self, expression, start, end, step=INTERVAL):
        """[(labels, [(time, value)])]."""
        result = self.get('query_range', query=expression, start=start, end=end, step=step)['result']
        return [(one['metric'], [(when, float(value)) for when, value in one['values']]) for one in result]

    def wait_for(self, expression, condition):
        """Until `condition` of the instant query's result; returns the result."""
        deadline = time.monotonic() + TIMEOUT
        while not condition(result := self.now(expression)):
            if time.monotonic() > deadline:
                raise AssertionError(f'waited in vain for {expression}: {result}')
            time.sleep(INTERVAL / 4)
        return result


def dashboards():
    return {path.stem: json.loads(path.read_text(encoding='utf-8')) for path in sorted((FOLDER / 'dashboards').glob('*.json'))}


def rules():
    return [rule for group in yaml.safe_load((FOLDER / 'rules.yaml').read_text(encoding='utf-8'))['groups'] for rule in group['rules']]


def filled_in(expression, seconds):
    """As Grafana asks with everything chosen and a range of `seconds`."""
    for name, value in (('$__rate_interval', f'{WINDOW}s'), ('$__range', f'{int(seconds)}s'), ('$namespace', '.*'), ('$model', '.*'),
                        ('$instance', '.*')):
        expression = expression.replace(name, value)
    if '$' in expression:
        raise ValueError(f'a variable that is not known here: {expression}')
    return expression


class Load:
    """Clients of several tenants for some seconds: patient ones, ones that come too often, ones that give up, and wrong ones. After
    join(), `told` counts what the clients heard, by gRPC status."""

    def __init__(self, address, seconds, tenants, concurrency, rate=lambda share: 0.0, new_tokens=48):
        self.address, self.new_tokens, self.rate, self.concurrency = address, new_tokens, rate, concurrency
        self.start, self.end = time.monotonic(), time.monotonic() + seconds
        self.told = {}
        self._lock = threading.Lock()
        self._errors = []
        work = [(self._tenant, name) for name in tenants] + [(self._impatient,), (self._wrong,)]
        self._threads = [threading.Thread(target=self._run, args=one) for one in work]
        for thread in self._threads:
            thread.start()

    def _run(self, function, *arguments):
        try:
            function(*arguments)
        except Exception as error:  # whatever it is: join() raises it where the test sees it
            self._errors.append(error)

    def join(self):
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _client(self, *arguments):
        return [CLIENT, f'--address={self.address}', *arguments]

    def _count(self, code, number=1):
        with self._lock:
            self.told[code] = self.told.get(code, 0) + number

    def _tenant(self, name):
        while (now := time.monotonic()) < self.end:
            share = (now - self.start) / (self.end - self.start)
            rate = self.rate(share)
            result = run(self._client(f'--tenant={name}', f'--concurrency={self.concurrency}', '--requests=12', '--warmup=0', '--json',
                                      '--prompt_tokens=64', f'--max_new_tokens={self.new_tokens}', f'--rate={rate}', '--ignore_eos'))
            if not result.stdout:
                raise AssertionError(f'the client of {name} ended with {result.returncode} and no report: {result.stderr}')
            report = json.loads(result.stdout)  # also where all were refused, which ends with status 1
            self._count('OK', report['finished'])
            self._count('RESOURCE_EXHAUSTED', report['rejected'])
            for code, number in report['failed'].items():
                self._count(code, number)

    def _impatient(self):
        """One leaves in the middle, one has a deadline, one a stop string."""
        endless = ('--max_new_tokens=1500', '--ignore_eos', '--temperature=0.8', PROMPTS[0])
        while time.monotonic() < self.end:
            process = subprocess.Popen(self._client('--quiet', *endless), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True)
            process.stdout.read(1)
            process.send_signal(signal.SIGINT)
            self._ended(process.communicate(timeout=TIMEOUT)[1], process.returncode)
            for arguments in (('--timeout=1', *endless), ('--stop=e', '--max_new_tokens=64', PROMPTS[1])):
                result = run(self._client(*arguments))
                self._ended(result.stderr, result.returncode)

    def _wrong(self):
        while time.monotonic() < self.end:
            for flag in ('--temperature=-1', '--model=another'):
                result = run(self._client(flag, PROMPTS[2]))
                self._ended(result.stderr, result.returncode)
            time.sleep(1)

    def _ended(self, errors, status):
        known = re.search(r'fewbit-client: ([A-Z_]+):', errors)
        self._count('OK' if status == 0 else known[1] if known else 'CANCELLED')
