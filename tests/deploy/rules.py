#!/usr/bin/env python3
"""The rules of the tree that no compiler checks: who may include whom, how long a file may be, what may lie at the top.

    tests/deploy/rules.py [--root DIR] [RULE...]

Prints every violation as file:line: text and exits 1 if there is one. rules_test.py proves that each rule can fail.
"""

import argparse
import pathlib
import re
import subprocess
import sys

SOURCE = {'.h', '.cc', '.cu', '.cuh', '.inc'}
TEXT = SOURCE | {'.py', '.sh', '.cmake', '.proto', '.md'}
SKIPPED = {'.git', 'build', '__pycache__'}
MAX_LINES = 600

TOP_LEVEL = {
    'CMakeLists.txt', 'CMakePresets.json', 'Dockerfile', 'README.md', 'LICENSE', 'CHANGELOG.md', 'proto', 'server', 'scheduler',
    'runtime', 'kernels', 'deploy', 'tests', 'build'
}

# What a folder may name in #include, by prefix; the standard library and the system's headers are free to all but for FORBIDDEN.
# A longer folder wins over a shorter one.
ALLOWED = {
    'kernels': ['kernels/'],
    'kernels/cuda': ['kernels/', 'cuda', 'cublas', 'nccl'],
    'scheduler': ['scheduler/', 'absl/'],
    'runtime': ['runtime/', 'scheduler/', 'kernels/', 'absl/', 'nlohmann/'],
    'server': ['server/', 'runtime/', 'scheduler/', 'absl/', 'nlohmann/', 'fewbit/', 'grpc/', 'grpcpp/', 'google/protobuf/',
               'prometheus/', 'spdlog/', 'sentencepiece'],
    'server/client': ['server/client/', 'server/flag_help.h', 'server/build_info.h', 'absl/', 'fewbit/', 'grpc/', 'grpcpp/',
                      'google/protobuf/'],
}
# Libraries: an include that begins so must be allowed above even in angle brackets.
LIBRARIES = ('absl/', 'nlohmann/', 'fewbit/', 'grpc/', 'grpcpp/', 'google/', 'prometheus/', 'spdlog/', 'sentencepiece', 'cuda',
             'cublas', 'nccl', 'nvml')
# SentencePiece's header cannot stand beside Abseil's; one file sees it.
SENTENCEPIECE_USERS = {'server/sentence_piece.cc', 'tests/server/sentence_piece_oracle.cc'}

INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
CLOCK = re.compile(r'\babsl::Now\s*\(|\b(steady_clock|system_clock|high_resolution_clock)\b|\bclock_gettime\b|\btime\s*\(\s*(0|NULL|nullptr)')
LINK = re.compile(r'\]\(([^)#\s]+)(?:#[^)]*)?\)')
# In pieces, so that this file does not break the rule it states.
MARKER = re.compile(r'\b(' + 'TO' + 'DO|FIX' + 'ME|XX' + 'X)\\b')
LOCAL_PATH = re.compile(r'/' + r'work/|\.\./sha' + 'red')


def files(root, suffixes):
    for path in sorted(root.rglob('*')):
        parts = path.relative_to(root).parts
        if not SKIPPED.intersection(parts) and path.suffix in suffixes and path.is_file():
            yield path, path.relative_to(root).as_posix()


def lines(path):
    return path.read_text(encoding='utf-8', errors='replace').splitlines()


def room_of(name):
    rooms = [room for room in ALLOWED if name.startswith(room + '/')]
    return max(rooms, key=len) if rooms else None


def includes(root):
    """Who may include whom."""
    for path, name in files(root, SOURCE):
        room = room_of(name)
        for number, line in enumerate(lines(path), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            bracket, target = match.groups()
            if target.startswith('sentencepiece') and name not in SENTENCEPIECE_USERS:
                yield f'{name}:{number}: only server/sentence_piece.cc includes {target}'
            if room is None:
                continue
            if bracket == '<' and not target.startswith(LIBRARIES):
                continue
            if not target.startswith(tuple(ALLOWED[room])):
                yield f'{name}:{number}: {room}/ may not include {target}'


def clock(root):
    """The scheduler gets the time as an argument."""
    for path, name in files(root / 'scheduler', SOURCE):
        for number, line in enumerate(lines(path), 1):
            if CLOCK.search(line.split('//')[0]):
                yield f'scheduler/{name}:{number}: the scheduler has no clock of its own'


def length(root):
    """Files stay short enough to read."""
    for path, name in files(root, TEXT - {'.md'}):
        count = len(lines(path))
        if count > MAX_LINES:
            yield f'{name}:{count}: more than {MAX_LINES} lines'


def markers(root):
    """What is in the tree is finished, and names nobody's own paths."""
    for path, name in files(root, TEXT | {'.txt', '.json'}):
        if name.startswith('tests/golden/') or path.stat().st_size > 1 << 20:
            continue
        for number, line in enumerate(lines(path), 1):
            if MARKER.search(line):
                yield f'{name}:{number}: a note of unfinished work'
            if LOCAL_PATH.search(line):
                yield f'{name}:{number}: a path of one machine'


def top_level(root):
    """Nothing new at the top but what the architecture names and files that begin with a dot."""
    for path in sorted(root.iterdir()):
        if path.name not in TOP_LEVEL and not path.name.startswith('.'):
            yield f'{path.name}: does not belong at the top of the tree'


def links(root):
    """Relative links of the documentation lead somewhere."""
    for path, name in files(root, {'.md'}):
        for number, line in enumerate(lines(path), 1):
            for target in LINK.findall(line):
                if '://' not in target and not (path.parent / target).exists():
                    yield f'{name}:{number}: {target} does not exist'


def shell(root):
    """Shell scripts parse and are executable."""
    for path, name in files(root, {'.sh'}):
        result = subprocess.run(['bash', '-n', str(path)], capture_output=True, text=True, check=False)
        if result.returncode != 0:
            yield f'{name}: {result.stderr.strip()}'
        if not path.stat().st_mode & 0o100:
            yield f'{name}: not executable'


RULES = {rule.__name__: rule for rule in (includes, clock, length, markers, top_level, links, shell)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--root', type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument('rules', nargs='*', metavar='RULE', help=', '.join(RULES))
    arguments = parser.parse_args()
    unknown = set(arguments.rules) - set(RULES)
    if unknown:
        parser.error(f'no such rule: {", ".join(sorted(unknown))}')
    violations = [text for name in arguments.rules or RULES for text in RULES[name](arguments.root)]
    print('\n'.join(violations) if violations else 'every rule is kept')
    return 1 if violations else 0


if __name__ == '__main__':
    sys.exit(main())
