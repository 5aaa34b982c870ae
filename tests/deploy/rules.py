#!/usr/bin/env python3
"""The rules of the tree that no compiler checks: who may include whom, how long a file may be, what may lie at the top.

    tests/deploy/rules.py [--root DIR] [RULE...]

Prints every violation as file:line: text and exits 1 if there is one. rules_test.py proves that each rule can fail.
"""

import argparse
import datetime
import pathlib
import re
import subprocess
import sys

SOURCE = {'.h', '.cc', '.cu', '.cuh', '.inc'}
TEXT = SOURCE | {'.py', '.sh', '.cmake', '.proto', '.md'}
SKIPPED = {'build', '__pycache__'}  # and what begins with a dot at the top: it is for tools
MAX_LINES = 600
MAX_FUNCTION_LINES = 69

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
    'runtime/products': ['runtime/', 'scheduler/', 'kernels/', 'dnnl'],
    'runtime/cuda': ['runtime/', 'scheduler/', 'kernels/', 'absl/', 'cuda'],
    'server': ['server/', 'runtime/', 'scheduler/', 'absl/', 'nlohmann/', 'fewbit/', 'grpc/', 'grpcpp/', 'google/protobuf/',
               'prometheus/', 'spdlog/', 'sentencepiece'],
    'server/client': ['server/client/', 'server/flag_help.h', 'server/build_info.h', 'absl/', 'fewbit/', 'grpc/', 'grpcpp/',
                      'google/protobuf/'],
}
# Libraries: an include that begins so must be allowed above even in angle brackets.
LIBRARIES = ('absl/', 'nlohmann/', 'fewbit/', 'grpc/', 'grpcpp/', 'google/', 'prometheus/', 'spdlog/', 'sentencepiece', 'cuda',
             'cublas', 'dnnl', 'nccl', 'nvml')
# SentencePiece's header cannot stand beside Abseil's; one file sees it.
SENTENCEPIECE_USERS = {'server/sentence_piece.cc', 'tests/server/sentence_piece_oracle.cc'}

NO_FUNCTION = re.compile(r'(if|for|while|switch|do|else|try|case|default|namespace|class|struct|enum|union|extern)\b')
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
CLOCK = re.compile(r'\babsl::Now\s*\(|\b(steady_clock|system_clock|high_resolution_clock)\b|\bclock_gettime\b|\btime\s*\(\s*(0|NULL|nullptr)')
VERSION = re.compile(r'^project\(fewbit VERSION (\d+\.\d+\.\d+)', re.MULTILINE)
SECTION = re.compile(r'## \[(?:Unreleased\]|(\d+\.\d+\.\d+)\] - (\d{4}-\d\d-\d\d))')
CHANGES = ('Added', 'Changed', 'Deprecated', 'Removed', 'Fixed', 'Security')
# appVersion and version of the chart, tags of our images.
REPEATED = re.compile(r'(?:^(?:appV|v)ersion: |newTag: )(\d+\.\d+\.\d+)\b')
LINK = re.compile(r'\]\(([^)#\s]+)(?:#[^)]*)?\)')
# In pieces, so that this file does not break the rule it states.
MARKER = re.compile(r'\b(' + 'TO' + 'DO|FIX' + 'ME|XX' + 'X)\\b')
LOCAL_PATH = re.compile(r'/' + r'work/|\.\./sha' + 'red')


def files(root, suffixes):
    for path in sorted(root.rglob('*')):
        parts = path.relative_to(root).parts
        if parts[0].startswith('.') or SKIPPED.intersection(parts):
            continue
        if path.suffix in suffixes and path.is_file():
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


def functions(root):
    """So do functions. As clang-format leaves them: the brace that ends one stands alone, below its first line."""
    for path, name in files(root, SOURCE):
        heads = {}  # by indentation: number and text of the line that the next brace there would end
        for number, line in enumerate(lines(path), 1):
            text = line.lstrip()
            indent = len(line) - len(text)
            if text == '}':
                start, head = heads.get(indent, (number, '{'))
                if number - start >= MAX_FUNCTION_LINES and '(' in head and not NO_FUNCTION.match(head):
                    yield f'{name}:{start}: {number - start + 1} lines are more than {MAX_FUNCTION_LINES} for a function'
            elif text and not text.startswith(('}', '//', '#')):
                heads[indent] = (number, text)


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


def project_version(root):
    """The one place that says it: project() of the top CMakeLists.txt."""
    path = root / 'CMakeLists.txt'
    match = VERSION.search(path.read_text(encoding='utf-8')) if path.exists() else None
    return match.group(1) if match else None


def changelog(root):
    """CHANGELOG.md is as Keep a Changelog wants it, and every version in it that is out left its protocol behind."""
    name = 'CHANGELOG.md'
    found, section, filled, groups = [], None, True, 0
    for number, line in enumerate(lines(root / name), 1):
        if line.startswith('## '):
            if not filled:
                yield f'{name}:{number}: the section before says nothing'
            match = SECTION.fullmatch(line)
            section, filled, groups = line, False, 0
            if not match:
                yield f'{name}:{number}: not "## [Unreleased]" or "## [1.2.3] - 2026-01-31"'
            elif match.group(1):
                found.append((tuple(map(int, match.group(1).split('.'))), match.group(1)))
                try:
                    datetime.date.fromisoformat(match.group(2))
                except ValueError:
                    yield f'{name}:{number}: {match.group(2)} is no date'
            elif found:
                yield f'{name}:{number}: what is unreleased comes first'
        elif line.startswith('### '):
            groups += 1
            if line[4:] not in CHANGES:
                yield f'{name}:{number}: "{line[4:]}" is not one of {", ".join(CHANGES)}'
        elif line.startswith('- '):
            filled = True
            if section is None or groups == 0:
                yield f'{name}:{number}: an entry outside of {", ".join(CHANGES)}'
    if not filled:
        yield f'{name}: the last section says nothing'
    if [numbers for numbers, _ in found] != sorted({numbers for numbers, _ in found}, reverse=True):
        yield f'{name}: the versions do not descend'
    version = project_version(root)
    if version not in [text for _, text in found[:1]]:
        yield f'{name}: the newest version is not {version}, the one of CMakeLists.txt'
    for _, text in found:
        if not (root / 'proto' / 'released' / f'fewbit-{text}.binpb').is_file():
            yield f'{name}: {text} has no proto/released/fewbit-{text}.binpb (a copy of the proto/fewbit.binpb that its build made)'


def version(root):
    """The version is in CMakeLists.txt. Where a manifest has to repeat it, it is the same; nothing else spells it out."""
    expected = project_version(root)
    if expected is None:
        yield 'CMakeLists.txt: no project(fewbit VERSION 1.2.3)'
        return
    for path, name in files(root, SOURCE | {'.yaml', '.yml', '.cmake', '.sh', '.py'}):
        manifest = name.startswith('deploy/kubernetes/')
        for number, line in enumerate(lines(path), 1):
            for spelled in REPEATED.findall(line) if manifest else []:
                if spelled != expected:
                    yield f'{name}:{number}: says {spelled}, CMakeLists.txt {expected}'
            if not manifest and not name.startswith('tests/') and expected in re.findall(r'(?<![\w.])\d+\.\d+\.\d+(?![\w.])', line):
                yield f'{name}:{number}: repeats the version {expected}'


RULES = {rule.__name__: rule for rule in (includes, clock, length, functions, markers, top_level, links, shell, changelog, version)}


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
