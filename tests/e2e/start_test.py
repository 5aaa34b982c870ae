#!/usr/bin/env python3
"""What keeps a server from starting: exit status 1 and one clear line; and the help of the programs."""

import os
import pathlib
import re
import shutil
import socket
import tempfile
import unittest

from harness import BIN, MODEL, ROOT, run, server_command


class StartTest(unittest.TestCase):

    def refused(self, command, *expected):
        result = run(command)
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        for text in expected:
            self.assertIn(text, result.stderr)
        self.assertEqual(result.stderr.count('\n'), 1, 'one line says it: ' + result.stderr)

    def copy_of_the_model(self, *left_out):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        directory = pathlib.Path(temporary.name) / 'model'
        directory.mkdir()
        for file in MODEL.iterdir():
            if file.is_file() and file.name not in left_out:
                (directory / file.name).symlink_to(file)
        return directory

    def test_a_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(('127.0.0.1', 0))
            taken.listen()
            port = taken.getsockname()[1]
            for flag in ('--port', '--metrics_port'):
                with self.subTest(flag):
                    self.refused(server_command(f'{flag}={port}'), str(port), 'the port is taken')

    def test_no_model(self):
        self.refused([BIN / 'fewbit-server', '--port=0', '--metrics_port=0'], '--model')
        self.refused(server_command(model='/nonexistent/model'), '/nonexistent/model')

    def test_a_model_without_tokenizer(self):
        directory = self.copy_of_the_model('tokenizer.model')
        self.refused(server_command(model=directory), str(directory), 'tokenizer.model')

    def test_a_model_with_a_broken_config(self):
        directory = self.copy_of_the_model('config.json')
        (directory / 'config.json').write_text('{"architectures": ["NoSuchModel"]')
        self.refused(server_command(model=directory), 'config.json')

    def test_a_model_directory_that_may_not_be_read(self):
        directory = self.copy_of_the_model()
        directory.chmod(0)
        self.addCleanup(directory.chmod, 0o755)
        command = server_command(model=directory)
        if os.geteuid() == 0:  # root without the right to ignore permissions
            self.assertIsNotNone(shutil.which('setpriv'), 'util-linux has setpriv')
            command = ['setpriv', '--bounding-set=-dac_override,-dac_read_search', '--inh-caps=-all', *command]
        self.refused(command, str(directory), 'ermission denied')

    def test_flags_that_make_no_sense(self):
        self.refused(server_command('--max_running=0'), 'max_running', '0')
        self.assertNotEqual(run(server_command('--no_such_flag')).returncode, 0)
        self.assertNotEqual(run(server_command('--threads=many')).returncode, 0)

    def test_help_and_version(self):
        version = next(line.split()[2] for line in (ROOT / 'CMakeLists.txt').read_text().splitlines() if line.startswith('project('))
        for program in ('fewbit-server', 'fewbit-client', 'fewbit-quantize', 'fewbit-tune', 'fewbit-eval', 'fewbit-plan'):
            with self.subTest(program):
                text = run([BIN / program, '--help'])
                self.assertEqual(text.returncode, 0, text.stderr)
                self.assertIn(program, text.stdout)
                self.assertLessEqual(max(map(len, text.stdout.splitlines())), 100)
                shown = run([BIN / program, '--version'])
                self.assertEqual(shown.returncode, 0, shown.stderr)
                first, build = shown.stdout.splitlines()
                self.assertEqual(first, f'{program} {version}')
                self.assertRegex(build, r'^commit (unknown|[0-9a-f]{12}(-dirty)?), compiler \w+ [\d.]+, CUDA (none|[\d.]+)$')

    def test_the_documentation_names_flags_that_exist(self):
        known = {'help', 'version', 'only', 'no_install', 'once', 'dsc', 'dest', 'component'}  # of the scripts and CMake
        for program in ('fewbit-server', 'fewbit-client', 'fewbit-quantize', 'fewbit-tune', 'fewbit-eval', 'fewbit-plan'):
            known.update(re.findall(r'^  --(\w+)', run([BIN / program, '--help']).stdout, re.MULTILINE))
        for page in ('README.md', 'deploy/README.md', 'runtime/quantize/README.md', 'runtime/tune/README.md', 'runtime/eval/README.md'):
            for line in (ROOT / page).read_text().splitlines():
                if re.search(r'docker|cmake|protoc|ctest|apt-get|systemctl', line, re.IGNORECASE):
                    continue  # flags of others
                for flag in re.findall(r'(?<![\w-])--(\w+)', line):
                    self.assertIn(flag, known, f'{page}: {line}')


if __name__ == '__main__':
    unittest.main()
