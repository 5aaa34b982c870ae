#!/usr/bin/env python3
"""Takes the pictures of the dashboards: two replicas under load for a while (fewbit-server with the bundled model, and one whose GPU is
imaginary), a Prometheus that scrapes them, its answers drawn as pages, the pages photographed by a headless Chromium.

    FEWBIT_BIN=DIR PYTHONPATH=STUBS tests/e2e/pictures.py [--seconds=180] [--recording=FILE] OUT_DIR

--recording keeps Prometheus' answers in FILE or, if it is there, draws them again without a new run.
"""

import argparse
import json
import math
import pathlib
import shutil
import subprocess
import sys
import time

import draw
import observability
from harness import Server
from observability import NAMESPACE, WINDOW, FakeGpuServer, Load, Prometheus, filled_in

NOTE = 'Recorded: the bundled model on two cores, and a replica whose GPU is imaginary.'


def busier_in_the_middle(quiet, busy):
    return lambda share: busy if 0.4 < share < 0.75 else quiet


def record(seconds):
    """{dashboard: {start, end, step, answers}} of a run of so many seconds."""
    replica = Server('--max_running=6', '--max_waiting=6', '--gpu_hour_usd=0.4', '--slo_ttft_ms=300', '--slo_tpot_ms=10')
    gpu = FakeGpuServer()
    prometheus = Prometheus([(f'127.0.0.1:{replica.metrics_port}', {}), (f'127.0.0.1:{gpu.metrics_port}', {'namespace': NAMESPACE})])
    try:
        begin = time.time()
        loads = [Load(replica.address, seconds, ['acme', 'globex'], 6, busier_in_the_middle(2.0, 16.0), new_tokens=64),
                 Load(gpu.address, seconds, ['acme', 'initech'], 16, busier_in_the_middle(3.0, 20.0), new_tokens=96)]
        for load in loads:
            load.join()
        start, end = begin + 1.5 * WINDOW, begin + seconds  # without the edges, where rates see half of their window
        step = max(1, math.ceil(seconds / 240))
        ask = lambda target: (prometheus.range(filled_in(target['expr'], end - start), start, end, step) if target['range'] else
                              [(labels, [(end, value)]) for labels, value in prometheus.now(filled_in(target['expr'], end - start), end)])
        return {name: {'start': start, 'end': end, 'step': step,
                       'answers': {str(panel['id']): [ask(target) for target in panel['targets']] for panel in dashboard['panels']}}
                for name, dashboard in observability.dashboards().items()}
    finally:
        prometheus.stop()
        gpu.stop()
        replica.stop()


def photograph(page, picture, width, height):
    """Chromium's picture, with at most 256 colours: a third of the size."""
    command = ['chromium', '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-background-networking', '--hide-scrollbars',
               f'--window-size={width},{height}', f'--screenshot={picture}', page.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    subprocess.run(['pngquant', '--force', '--output', picture, '256', picture], check=True, timeout=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seconds', type=float, default=180)
    parser.add_argument('--recording', type=pathlib.Path)
    parser.add_argument('out', type=pathlib.Path)
    arguments = parser.parse_args()
    for program in ('prometheus', 'chromium', 'pngquant'):
        if shutil.which(program) is None:
            sys.exit(f'{program} is not installed (Debian: {program})')
    if arguments.recording and arguments.recording.exists():
        recording = json.loads(arguments.recording.read_text(encoding='utf-8'))
    else:
        recording = record(arguments.seconds)
        if arguments.recording:
            arguments.recording.write_text(json.dumps(recording), encoding='utf-8')
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, dashboard in observability.dashboards().items():
        text, width, height = draw.page(dashboard, recording[name], NOTE)
        page = (arguments.out / f'{name}.html').resolve()
        page.write_text(text, encoding='utf-8')
        picture = page.with_suffix('.png')
        photograph(page, picture, width, height)
        print(f'{picture}: {picture.stat().st_size / 1000:.0f} KB')


if __name__ == '__main__':
    main()
