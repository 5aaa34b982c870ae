#!/usr/bin/env python3
"""Each rule of rules.py finds what it is for, and nothing in a tree that keeps it."""

import pathlib
import tempfile
import unittest

import rules


class RulesTest(unittest.TestCase):

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.root = pathlib.Path(temporary.name)

    def write(self, name, text, executable=False):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755 if executable else 0o644)

    def found(self, rule):
        return list(rules.RULES[rule](self.root))

    def test_includes(self):
        for name, line, allowed in [
            ('kernels/a.h', '#include <vector>', True),
            ('kernels/a.h', '#include "kernels/b.h"', True),
            ('kernels/a.h', '#include "scheduler/ids.h"', False),
            ('kernels/a.h', '#include <absl/status/status.h>', False),
            ('kernels/cpu/a.h', '#include <cuda_fp16.h>', False),
            ('kernels/cuda/a.cuh', '#include <cuda_fp16.h>', True),
            ('kernels/cuda/a.cu', '#include "runtime/batch.h"', False),
            ('scheduler/a.h', '#include "absl/time/time.h"', True),
            ('scheduler/a.h', '#  include "runtime/batch.h"', False),
            ('runtime/models/a.cc', '#include "kernels/matrix.h"', True),
            ('runtime/models/a.cc', '#include "server/tokenizer.h"', False),
            ('runtime/models/a.cc', '#include <grpcpp/grpcpp.h>', False),
            ('runtime/models/a.cc', '#include <dnnl.hpp>', False),
            ('runtime/tune/a.cc', '#include <dnnl.hpp>', False),
            ('runtime/products/a.cc', '#include <dnnl.hpp>', True),
            ('server/a.cc', '#include "runtime/engine.h"', True),
            ('server/a.cc', '#include "kernels/matrix.h"', False),
            ('server/a.cc', '#include "tests/npy.h"', False),
            ('server/a.cc', '#include <cuda_runtime.h>', False),
            ('server/client/a.cc', '#include "server/tokenizer.h"', False),
            ('server/client/a.cc', '#include "fewbit/v1/generation.pb.h"', True),
            ('server/a.cc', '#include <sentencepiece_processor.h>', False),
            ('server/sentence_piece.cc', '#include <sentencepiece_processor.h>', True),
            ('tests/a.cc', '#include "kernels/matrix.h"', True),
        ]:
            with self.subTest(name=name, line=line):
                self.write(name, '// a comment\n' + line + '\n')
                found = self.found('includes')
                self.assertEqual(found == [], allowed, found)
                if not allowed:
                    self.assertTrue(found[0].startswith(name + ':2: '), found)
                (self.root / name).unlink()

    def test_clock(self):
        self.write('scheduler/a.cc', 'void Plan(absl::Time now);\n// absl::Now() belongs to the engine\n')
        self.write('runtime/a.cc', 'absl::Time now = absl::Now();\n')
        self.assertEqual(self.found('clock'), [])
        self.write('scheduler/a.cc', 'auto now = absl::Now();\n')
        self.assertEqual(len(self.found('clock')), 1)

    def test_length(self):
        self.write('server/a.cc', '\n' * 600)
        self.write('build/generated.cc', '\n' * 6000)
        self.assertEqual(self.found('length'), [])
        self.write('server/a.cc', '\n' * 601)
        self.assertEqual(self.found('length'), ['server/a.cc:601: more than 600 lines'])

    def test_functions(self):
        body = '  Call();\n' * 67
        for text, allowed in [
            ('int F(int a) {\n' + body + '}\n', True),
            ('int F(int a,\n      int b) {\n' + body + '}\n', False),
            ('F::F(int a)\n    : b_(a) {\n' + body + '}\n', False),
            ('struct S {\n' + body + body + '};\n', True),
            ('namespace n {\n' + body + body + '}  // namespace n\n', True),
            ('class C {\n  void F() {\n' + ('    Call();\n' * 68) + '  }\n};\n', False),
            ('class C {\n  void F() {\n' + ('    Call();\n' * 67) + '  }\n};\n', True),
        ]:
            with self.subTest(text=text[:40], lines=text.count('\n')):
                self.write('server/a.cc', text)
                self.assertEqual(self.found('functions') == [], allowed, self.found('functions'))

    def test_markers(self):
        self.write('server/a.cc', '// toDo and method names like DoTodoList are fine\n')
        self.assertEqual(self.found('markers'), [])
        self.write('server/a.cc', '// TO' + 'DO: later\n')
        self.write('README.md', 'see /wo' + 'rk/main\n')
        self.assertEqual(len(self.found('markers')), 2)

    def test_top_level(self):
        self.write('README.md', '')
        self.write('.gitignore', '')
        self.write('server/a.cc', '')
        self.assertEqual(self.found('top_level'), [])
        self.write('utils/a.cc', '')
        self.assertEqual(self.found('top_level'), ['utils: does not belong at the top of the tree'])

    def test_links(self):
        self.write('server/README.md', 'see [the code](a.cc), [above](../README.md#top), [there](https://example.org/x)\n')
        self.write('server/a.cc', '')
        self.write('README.md', '')
        self.assertEqual(self.found('links'), [])
        self.write('README.md', '\n[gone](server/b.cc)\n')
        self.assertEqual(self.found('links'), ['README.md:2: server/b.cc does not exist'])

    def test_shell(self):
        self.write('deploy/a.sh', 'if true; then echo; fi\n', executable=True)
        self.assertEqual(self.found('shell'), [])
        self.write('deploy/a.sh', 'if true; then echo\n', executable=True)
        self.write('deploy/b.sh', 'echo\n')
        self.assertEqual(len(self.found('shell')), 2)

    def tree_with_a_changelog(self, text, version='0.2.0'):
        self.write('CMakeLists.txt', f'cmake_minimum_required(VERSION 3.25)\nproject(fewbit VERSION {version} LANGUAGES CXX)\n')
        for released in ('0.1.0', '0.2.0'):
            self.write(f'proto/released/fewbit-{released}.binpb', '')
        self.write('CHANGELOG.md', text)
        return self.found('changelog')

    def test_changelog(self):
        good = ('# Changelog\n\n## [Unreleased]\n\n### Added\n\n- This.\n\n## [0.2.0] - 2026-02-28\n\n### Fixed\n\n- That.\n\n'
                '## [0.1.0] - 2026-01-31\n\nThe first.\n\n### Added\n\n- All.\n')
        self.assertEqual(self.tree_with_a_changelog(good), [])
        for before, after, expected in [
            ('[Unreleased]', 'Unreleased', 'not "## [Unreleased]"'),
            ('[0.2.0] - 2026-02-28', '[0.2.0]', 'not "## [Unreleased]"'),
            ('2026-02-28', '2026-02-30', '2026-02-30 is no date'),
            ('### Fixed', '### Repaired', '"Repaired" is not one of Added'),
            ('### Fixed\n\n', '', 'an entry outside of Added'),
            ('- That.\n', '', 'the section before says nothing'),
            ('- All.\n', '', 'the last section says nothing'),
            ('## [0.2.0] - 2026-02-28', '## [0.0.9] - 2026-02-28', 'the versions do not descend'),
            ('## [0.2.0] - 2026-02-28', '## [0.3.0] - 2026-02-28', 'the newest version is not 0.2.0'),
            ('## [0.2.0] - 2026-02-28', '## [0.3.0] - 2026-02-28', 'has no proto/released/fewbit-0.3.0.binpb'),
            ('## [0.2.0] - 2026-02-28', '## [0.2.0] - 2026-02-28\n\n### Added\n\n- It.\n\n## [Unreleased]', 'what is unreleased comes first'),
        ]:
            with self.subTest(after):
                self.assertIn(before, good)
                self.assertIn(expected, '\n'.join(self.tree_with_a_changelog(good.replace(before, after, 1))))

    def test_version(self):
        self.assertEqual(self.found('version'), ['CMakeLists.txt: no project(fewbit VERSION 1.2.3)'])
        self.write('CMakeLists.txt', 'project(fewbit VERSION 0.2.0 LANGUAGES CXX)\n')
        self.write('deploy/kubernetes/chart/Chart.yaml', 'apiVersion: v2\nversion: 0.2.0\nappVersion: 0.2.0\n')
        self.write('deploy/kubernetes/base/kustomization.yaml', '    newTag: 0.2.0-cpu\n')
        self.write('server/a.cc', 'const char* address = "10.0.2.0";\n')
        self.assertEqual(self.found('version'), [])
        self.write('deploy/kubernetes/chart/Chart.yaml', 'apiVersion: v2\nversion: 0.1.0\nappVersion: 0.2.0\n')
        self.write('deploy/kubernetes/base/kustomization.yaml', '    newTag: 0.3.0-cpu\n')
        self.write('server/a.cc', 'const char* version = "0.2.0";\n')
        self.assertEqual(sorted(self.found('version')), [
            'deploy/kubernetes/base/kustomization.yaml:1: says 0.3.0, CMakeLists.txt 0.2.0',
            'deploy/kubernetes/chart/Chart.yaml:2: says 0.1.0, CMakeLists.txt 0.2.0',
            'server/a.cc:1: repeats the version 0.2.0'])


if __name__ == '__main__':
    unittest.main()
